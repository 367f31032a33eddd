"""Whether a chain that was accepted once would still be: what the STI-PA says of it since.

Pure. Not the acceptance gate (`gate`), which asks for more, and once; nor whether it is valid by
the clock, which `rotation` sees to. ATIS-1000080: the list of trusted STI-CAs, and the CRL.
"""

from collections.abc import Iterable, Sequence

from cryptography import x509
from msgspec.structs import replace

from kmsd import path
from kmsd.certs import read_chain
from kmsd.enrollment import certificate_of
from kmsd.model import Credential, Value

REVOKED = "CREDENTIAL_REVOKED"
NOT_TRUSTED = "ISSUER_NOT_TRUSTED"


class Distrusted(Value, frozen=True):
    """A credential that who verifies does not believe any more. reason: REVOKED or NOT_TRUSTED.

    issuer: the STI-CA's name in the configuration. message: a sentence. at: when it was seen,
    seconds UTC.
    """

    credential: str
    profile: str
    issuer: str
    reason: str
    message: str
    at: int


def distrusted(
    credentials: Iterable[Credential], roots: Sequence[str], crl: bytes | None, now: int
) -> tuple[Distrusted, ...]:
    """Those that are on the STI-PA's CRL, or lead to no STI-CA in its list any more.

    roots: PEM certificates of the list. crl: DER, its signature checked before. now: seconds UTC.
    Raises Invalid (ROOT_MALFORMED, CRL_MALFORMED, CHAIN_MALFORMED).
    """
    on_crl = path.revoked(crl) if crl is not None else frozenset()
    # Thousands of leaves hang on a few STI-CAs: the way up from one is the way of all.
    ways: dict[str, path.Path] = {}
    found = []
    for credential in credentials:
        certificate = certificate_of(credential.state)
        if certificate is None:
            continue
        leaf, above = _split(certificate.chain)
        way = ways.get(above) if above else None
        if way is None:
            chain = read_chain(certificate.chain)
            way = replace(path.path(chain, roots, now=now), revoked=on_crl)
            ways[above] = way
        else:
            first = x509.load_pem_x509_certificate(leaf.encode("ascii"))
            way = replace(way, chain=(first, *way.chain[1:]), links=(first, *way.links[1:]))
        for reason, rule in ((REVOKED, path.not_revoked), (NOT_TRUSTED, path.anchored)):
            if why := rule(way):
                facts = credential.id, credential.profile, certificate.issuer
                found.append(Distrusted(*facts, reason, f"{why}.", now))
                break
    return tuple(found)


def _split(pem: str) -> tuple[str, str]:
    """The leaf, and what is above it."""
    end = "-----END CERTIFICATE-----"
    leaf, _, above = pem.partition(end)
    return leaf + end, above.strip()
