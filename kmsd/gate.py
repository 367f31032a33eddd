"""The acceptance gate: which issued chains kmsd signs with.

A chain is asked every rule of the profile (`leaf`) and of the way to the STI-PA's list (`path`).
One that fails is never used, and the error names every rule that failed, so that an operator
can tell the STI-CA what to correct. Not here: keeping what was refused (the keeper does).
"""

from collections.abc import Sequence

import msgspec

from kmsd.certs import chain_pem, read_chain, spki, spki_sha256
from kmsd.errors import Invalid, PeerRefused
from kmsd.leaf import LEAF_RULES, Candidate
from kmsd.path import PATH_RULES, Path, path, validity


class Accepted(msgspec.Struct, frozen=True):
    """A chain to sign with. chain: PEM, leaf first, certificates only.

    serial, spki_sha256: lower-case hex. Times: seconds since 1970 UTC, both inclusive.
    anchor: subject of the listed STI-CA it leads to (RFC 4514).
    """

    chain: str
    serial: str
    spki_sha256: str
    not_before: int
    not_after: int
    anchor: str


def accept(
    chain_pem: str,
    *,
    public_key: bytes,
    spc: str,
    now: int,
    roots: Sequence[str],
    crl: bytes | None = None,
    policy_oids: Sequence[str] = (),
    country: str = "",
    crl_url: str = "",
) -> Accepted:
    """The chain as it may be used.

    public_key: DER SubjectPublicKeyInfo we generated. now: seconds since 1970 UTC. roots: PEM
    certificates in the STI-PA's list; crl: its CRL (DER or PEM); both checked before.
    policy_oids: accepted policies or arcs, none: any. country: C of the subject, "": any.
    crl_url: where the STI-PA's CRL is, "": anywhere.
    Raises PeerRefused (CHAIN_NOT_ACCEPTED; metadata `rule` is the first that failed, `rules`
    all, with commas), Invalid (ROOT_MALFORMED, CRL_MALFORMED).
    """
    try:
        chain = read_chain(chain_pem)
    except Invalid as error:
        raise _refusal([(_READABLE[error.reason], error.message.rstrip("."))]) from error
    way = path(chain, roots, now=now, crl=crl)
    candidate = Candidate(chain[0], way, public_key, spc, tuple(policy_oids), country, crl_url)
    found = [(name, rule(way)) for name, rule in PATH_RULES]
    found += [(name, rule(candidate)) for name, rule in LEAF_RULES]
    if failed := [(name, why) for name, why in found if why]:
        raise _refusal(failed)
    return _accepted(way)


_READABLE = {
    "PRIVATE_KEY_IN_CHAIN": "private_key",
    "CHAIN_TOO_LARGE": "readable",
    "CHAIN_MALFORMED": "readable",
}


def _accepted(way: Path) -> Accepted:
    leaf, anchor = way.chain[0], way.links[-1]
    not_before, not_after = validity(leaf)
    return Accepted(
        chain_pem(way.chain),
        f"{leaf.serial_number:x}",
        spki_sha256(spki(leaf)),
        not_before,
        not_after,
        anchor.subject.rfc4514_string(),
    )


def _refusal(failed: Sequence[tuple[str, str]]) -> PeerRefused:
    sentences = "; ".join(f"{why} ({name})" for name, why in failed[:4])
    more = f"; and {len(failed) - 4} more rules failed" if len(failed) > 4 else ""
    return PeerRefused(
        "CHAIN_NOT_ACCEPTED",
        f"The chain that the STI-CA issued was not accepted: {sentences}{more}.",
        peer="sti-ca",
        next_step="Show the chain to the STI-CA; nothing is signed with it.",
        rule=failed[0][0],
        rules=",".join(name for name, _ in failed),
    )
