"""Revocation at an STI-CA (RFC 8555 section 7.6).

Verifiers learn of it from the STI-PA's CRL alone (ATIS-1000080 6.3.9), so whoever revokes looks
there afterwards; from here only the STI-CA is asked.
"""

from kmsd.acme.account import not_offered
from kmsd.acme.signing import Signer
from kmsd.acme.transport import Transport
from kmsd.errors import Invalid, PeerRefused
from kmsd.jose import b64url

REASONS = frozenset({0, 1, 2, 3, 4, 5, 6, 9, 10})
"""Codes of RFC 5280 section 5.3.1 that revoke: 7 is unused, 8 (removeFromCRL) does the opposite."""


def check_reason(reason: int) -> None:
    """Raises Invalid (REVOCATION_REASON_INVALID) for what an STI-CA could not do anything with."""
    if reason not in REASONS:
        raise Invalid("REVOCATION_REASON_INVALID", f"There is no revocation reason {reason}.")


async def revoke(transport: Transport, signer: Signer, certificate: bytes, reason: int) -> None:
    """The certificate (DER) is revoked afterwards; revoked before is as good.

    signer: an account that may, or the certificate's own key.
    Raises PeerRefused (ACME_NOT_OFFERED, ACME_UNAUTHORIZED, ACME_BAD_REVOCATION_REASON).
    """
    url = (await transport.directory()).revoke_cert
    if not url:
        raise not_offered(transport.name, "revokeCert")
    payload = {"certificate": b64url(certificate), "reason": reason}
    try:
        await transport.post(url, payload, signer, "revokeCert")
    except PeerRefused as refused:
        if refused.reason != "ACME_ALREADY_REVOKED":
            raise
