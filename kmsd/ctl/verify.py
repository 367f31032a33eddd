"""`kmsctl verify`: an Identity header value, verified as a callee's network would.

`verification` judges; here the chain is fetched, the trust material is had from the keeper or
from files, and the verdict is told step by step.
"""

import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from kmsapi.v1 import admin_pb2 as pb

from kmsd import identity
from kmsd.ctl import chainfetch, connection, details, invocation
from kmsd.ctl.failure import ExitCode, UsageError
from kmsd.ctl.invocation import DEFAULT_CONFIG, Invocation
from kmsd.ctl.output import VerificationDocument
from kmsd.ctl.page import iso_seconds
from kmsd.errors import Invalid, KmsdError, Misconfigured, PeerRefused
from kmsd.path import PATH_RULES
from kmsd.verification import VerificationFailed, Verified
from kmsd.verification import verify as judge


def verify(
    context: typer.Context,
    value: Annotated[
        str,
        typer.Argument(
            metavar="IDENTITY|-",
            help="Value of an Identity header; - or nothing: read from standard input.",
        ),
    ] = "-",
    orig: Annotated[
        str, typer.Option("--orig", metavar="NUMBER|URI", help="The call is from here.")
    ] = "",
    dest: Annotated[
        str, typer.Option("--dest", metavar="NUMBER|URI", help="The call is to here.")
    ] = "",
    tls_ca: Annotated[
        str,
        typer.Option(
            "--tls-ca",
            metavar="FILE",
            help="PEM to check the repository's HTTPS with. [default: repository.tls_ca]",
        ),
    ] = "",
    roots: Annotated[
        Path | None,
        typer.Option(
            "--roots",
            metavar="FILE",
            help="PEM of the trusted STI-CAs. [default: the keeper's list]",
        ),
    ] = None,
    crl: Annotated[
        Path | None,
        typer.Option("--crl", metavar="FILE", help="The STI-PA's CRL, with --roots."),
    ] = None,
    authority: Annotated[
        str,
        typer.Option(
            "--authority", metavar="NAME", help="Whose trust the keeper gives, if it has several."
        ),
    ] = "",
    freshness: Annotated[
        int, typer.Option("--freshness", metavar="SECONDS", help="How old iat may be.")
    ] = 60,
) -> int:
    """Verify an Identity header value as a callee's network would, and say what holds.

    Fetches the chain from the x5u in the token, once and without redirects, then checks
    freshness, chain, revocation, TNAuthList and signature against the list of trusted
    STI-CAs. Ends with 1 when it does not verify, with the step that failed and the SIP code:
    403 stale, 436 chain not to be had, 437 certificate no good, 438 invalid.

    \b
    Examples:
      kmsctl sign -p acme --orig 12155550112 --dest 12155550113 | kmsctl verify
      kmsctl verify - --freshness 86400 < identity.txt
      kmsctl verify --roots sti-cas.pem --crl sti.crl 'eyJhbGciOi...;info=<https://...>'
    """
    run = invocation.of(context)
    text = _read(value)
    trust = _from_files(roots, crl) if roots else _from_keeper(run, authority)
    try:
        x5u = identity.parse(text).x5u
        chain = chainfetch.fetch(x5u, tls_ca=tls_ca or _tls_ca(run), timeout=run.patience)
    except Invalid:
        chain, x5u = "", ""  # the judge finds the same fault, and knows its SIP code
    except PeerRefused as error:
        document = VerificationDocument(
            verified=False,
            sip_code=436,
            holds=(_HEADER,),
            reason=error.reason,
            message=error.message,
            next_step=error.next_step,
            facts={"x5u": error.metadata["x5u"]},
        )
        run.show(document, lambda _: details.verification(document))
        return ExitCode.ERROR
    document = _judged(run, text, chain, x5u, trust, freshness, (orig, dest))
    run.show(document, lambda _: details.verification(document))
    return ExitCode.OK if document.verified else ExitCode.ERROR


_HEADER = "the header and its token are well formed, and info is the token's x5u"


def _judged(
    run: Invocation,
    text: str,
    chain: str,
    x5u: str,
    trust: pb.Trust,
    freshness: int,
    call: tuple[str, str],
) -> VerificationDocument:
    now = int(run.now().timestamp())
    crl = trust.crl or None
    try:
        verified = judge(
            text,
            chain,
            roots=tuple(trust.roots),
            crl=crl,
            now=now,
            freshness=freshness,
            orig=call[0],
            dest=call[1],
        )
    except VerificationFailed as error:
        return VerificationDocument(
            verified=False,
            sip_code=error.sip_code,
            holds=_holds(error.step, x5u, freshness, crl is not None, any(call)),
            reason=error.step.upper(),
            message=error.message,
            next_step=_ADVICE.get(error.sip_code, ""),
            facts={"verstat": error.verstat} | ({"x5u": x5u} if x5u else {}),
        )
    return VerificationDocument(
        verified=True,
        sip_code=200,
        holds=_holds("", x5u, freshness, crl is not None, any(call)),
        facts=_facts(verified),
    )


_ADVICE = {
    403: "To look at an old PASSporT, give --freshness SECONDS.",
    437: "kmsctl status, for the age of the STI-CA list and the CRL",
}


def _holds(
    failed: str, x5u: str, freshness: int, with_crl: bool, with_call: bool
) -> tuple[str, ...]:
    """What was established before the step `failed`; all of it when that is ""."""
    revoked = "and is not revoked" if with_crl else "(no CRL to look into)"
    phases: list[tuple[str, set[str]]] = [
        (_HEADER, {"typ", "alg", "ppt"}),
        (f"the chain was fetched from {x5u}", set()),
        ("the claims of its type are there", {"claims", "identity", "dest"}),
        (f"iat is within {freshness} s of now", {"iat"}),
        ("it is for this call", {"orig"}),
        (
            f"the chain is in order, leads to a trusted STI-CA {revoked}",
            {"chain", *(name for name, _ in PATH_RULES)},
        ),
        ("the certificate was valid at iat and is for one SPC", {"valid_at_iat", "tnauthlist"}),
        ("the certified key made the signature", {"key", "signature"}),
    ]
    known = {"": len(phases), "attest": len(phases)}
    known |= {step: number for number, (_, steps) in enumerate(phases) for step in steps}
    reached = phases[: known.get(failed, 0)]
    return tuple(words for words, steps in reached if with_call or "orig" not in steps)


def _facts(verified: Verified) -> dict[str, str]:
    facts = {
        "type": verified.ppt,
        "attest": verified.attest,
        "orig": verified.orig,
        "dest": " ".join(verified.dest),
        "iat": iso_seconds(datetime.fromtimestamp(verified.iat, UTC)),
        "origid": verified.origid,
        "spc": verified.spc,
        "subject": verified.subject,
        "anchor": verified.anchor,
        "x5u": verified.x5u,
        "verstat": verified.verstat,
    }
    return {name: value for name, value in facts.items() if value}


def _read(value: str) -> str:
    if value == "-":
        if sys.stdin.isatty():
            raise UsageError(
                "IDENTITY_MISSING",
                "There is no Identity header value to verify.",
                next_step="Give it as argument, or pipe it: kmsctl sign ... | kmsctl verify",
            )
        value = sys.stdin.read(2 * identity.IDENTITY_LIMIT)
    return re.sub(r"(?i)^identity[ \t]*:", "", value.strip()).strip()


def _from_keeper(run: Invocation, authority: str) -> pb.Trust:
    try:
        with connection.admin(run.address()) as admin:
            return admin.GetTrust(pb.GetTrustRequest(authority=authority), timeout=run.patience)
    except KmsdError as error:
        error.next_step = f"{error.next_step} (or bring the trusted STI-CAs: --roots FILE)".strip()
        raise


def _from_files(roots: Path, crl: Path | None) -> pb.Trust:
    """The files as the keeper would have said it: each root by itself, the CRL as it is."""
    try:
        found = re.findall(
            r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", roots.read_text(), re.DOTALL
        )
        listed = crl.read_bytes() if crl else b""
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(
            "TRUST_UNREADABLE",
            f"The trust material cannot be read: {error}.",
            next_step="Name readable files with --roots FILE and --crl FILE.",
        ) from error
    if not found:
        raise Misconfigured(
            "TRUST_UNREADABLE",
            f"The file {roots} holds no PEM certificate.",
            next_step="Name the trusted STI-CAs' certificates with --roots FILE.",
        )
    return pb.Trust(roots=[f"{root}\n" for root in found], crl=listed)


def _tls_ca(run: Invocation) -> str:
    """As configured; "" (the system's trust store) when there is no configuration to read."""
    if run.config is None and not os.access(DEFAULT_CONFIG, os.R_OK):
        return ""
    return run.configuration().repository.tls_ca
