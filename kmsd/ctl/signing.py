"""`kmsctl sign`: one PASSporT from a signer, the way an authentication server gets it.

It goes through kmsd_client with the [client] table of kmsd.toml and is granted what that
certificate is granted: no back door.
"""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer
from kmsd_client import Base, Client, Div, Passport, Rcd, Rph, Shaken, SigningError, Tls

from kmsd.ctl import completion, invocation
from kmsd.ctl.failure import ExitCode, UsageError
from kmsd.ctl.output import IdentityDocument, encoded
from kmsd.errors import KmsdError, Misconfigured
from kmsd.settings import Configuration


class Attestation(StrEnum):
    """RFC 8588 section 4."""

    A = "A"
    B = "B"
    C = "C"


class Type(StrEnum):
    """PASSporT types, by their `ppt`."""

    SHAKEN = "shaken"
    BASE = "base"
    DIV = "div"
    RPH = "rph"
    RCD = "rcd"


def sign(
    context: typer.Context,
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            "-p",
            metavar="PROFILE",
            help="Whose key signs.",
            autocompletion=completion.profiles,
        ),
    ],
    orig: Annotated[
        str, typer.Option("--orig", metavar="NUMBER|URI", help="The calling identity.")
    ],
    dest: Annotated[
        list[str],
        typer.Option("--dest", metavar="NUMBER|URI", help="A called identity; repeatable."),
    ],
    attest: Annotated[
        Attestation, typer.Option("--attest", help="Attestation level of shaken.")
    ] = Attestation.C,
    kind: Annotated[Type, typer.Option("--type", help="PASSporT type.")] = Type.SHAKEN,
    origid: Annotated[
        str, typer.Option("--origid", metavar="UUID", help="shaken; made when absent.")
    ] = "",
    iat: Annotated[
        int, typer.Option("--iat", min=0, help="Seconds since 1970 UTC; 0: now. Needed for div.")
    ] = 0,
    div: Annotated[
        str, typer.Option("--div", metavar="NUMBER|URI", help="div: the old target.")
    ] = "",
    auth: Annotated[
        list[str] | None,
        typer.Option("--auth", metavar="VALUE", help="rph: ets.0, wps.0, ...; repeatable."),
    ] = None,
    nam: Annotated[str, typer.Option("--nam", metavar="TEXT", help="rcd: display name.")] = "",
    apn: Annotated[
        str, typer.Option("--apn", metavar="NUMBER", help="rcd: alternate presentation number.")
    ] = "",
    icn: Annotated[str, typer.Option("--icn", metavar="URL", help="rcd: icon.")] = "",
    jcd: Annotated[str, typer.Option("--jcd", metavar="JSON", help="rcd: jCard.")] = "",
    jcl: Annotated[str, typer.Option("--jcl", metavar="URL", help="rcd: jCard's URL.")] = "",
    rcdi: Annotated[
        str, typer.Option("--rcdi", metavar="JSON", help="rcd: pointer to digest, an object.")
    ] = "",
    crn: Annotated[str, typer.Option("--crn", metavar="TEXT", help="rcd: call reason.")] = "",
) -> int:
    """Sign one PASSporT and print the value of its SIP Identity header, alone on one line.

    Uses the [client] table of kmsd.toml: what its certificate is granted can be signed, and
    nothing else. Text with a colon is a URI, everything else a telephone number in E.164.

    \b
    Examples:
      kmsctl sign -p acme --orig +12155550112 --dest +12155550113 --attest A
      kmsctl sign -p acme --orig 12155550112 --dest 12155550113 | kmsctl verify -
      kmsctl sign -p acme --type div --orig 12155550112 --dest 12155550114 \\
        --div 12155550113 --iat 1700000000
      kmsctl sign -p acme --type rph --orig 12155550112 --dest 911 --auth ets.0
    """
    run = invocation.of(context)
    passport: Passport
    match kind:
        case Type.SHAKEN:
            passport = Shaken(orig, dest, attest.value, origid, iat)
        case Type.BASE:
            passport = Base(orig, dest, iat)
        case Type.DIV:
            if not div or not iat:
                raise UsageError(
                    "OPTION_MISSING",
                    "A div PASSporT needs --div and --iat, as in the PASSporT received.",
                    next_step="kmsctl sign --help",
                )
            passport = Div(orig, dest, div, iat)
        case Type.RPH:
            passport = Rph(orig, dest, auth or [], iat)
        case Type.RCD:
            passport = Rcd(orig, dest, nam, apn, icn, jcd, jcl, _digests(rcdi), crn, iat)
    identity = _signed(run.configuration(), passport, profile, run.patience)
    if run.json:
        typer.echo(encoded(IdentityDocument(profile=profile, identity=identity)))
    else:
        typer.echo(identity)
    return ExitCode.OK


def _signed(configuration: Configuration, passport: Passport, profile: str, timeout: float) -> str:
    targets = configuration.client.targets or configuration.signer.listen
    files = configuration.client.tls
    if files is None and not configuration.signer.plaintext:
        raise Misconfigured(
            "CLIENT_NOT_CONFIGURED",
            "kmsd.toml does not say how kmsctl reaches the signers.",
            next_step="Add [client] with targets, and [client.tls] with certificate, key and ca.",
        )
    try:
        tls = Tls(ca=files.ca, certificate=files.certificate, key=files.key) if files else None
        with Client(targets, tls=tls, profile=profile, timeout=timeout) as client:
            return str(client.sign(passport))
    except SigningError as error:
        raise _told(error) from error
    except (OSError, ValueError) as error:
        raise Misconfigured(
            "CLIENT_TLS_INVALID",
            f"The TLS files under [client.tls] cannot be used: {error}.",
            next_step="Correct [client.tls] in kmsd.toml, or run kmsctl as a user who may read it.",
        ) from error


def _told(error: SigningError) -> KmsdError:
    """The signer's refusal, in its own words."""
    facts = dict(error.metadata)
    next_step = facts.pop("next_step", "")
    for taken in ("reason", "message"):
        facts.pop(taken, None)
    message = error.message.removesuffix(next_step).rstrip()
    return KmsdError(error.reason, message, next_step=next_step or "kmsctl profiles", **facts)


def _digests(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        parsed: Any = json.loads(text)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict) and all(isinstance(value, str) for value in parsed.values()):
        return parsed
    raise UsageError(
        "OPTION_INVALID",
        "--rcdi takes a JSON object of texts.",
        next_step="""--rcdi '{"/icn": "sha256-..."}'""",
    )
