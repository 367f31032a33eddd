"""Renewal information (RFC 9773) and revocation (RFC 8555 section 7.6)."""

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from kmsd.lab import jws
from kmsd.lab.crl import known_reason
from kmsd.lab.problem import Problem
from kmsd.lab.reply import Reply, retry_after
from kmsd.lab.signed import Signed
from kmsd.lab.state import Account, Issued, Revoked
from kmsd.lab.switches import RenewalFault
from kmsd.lab.world import World, rfc3339


def renewal_info(world: World, name: str) -> Reply:
    """The last third of the lifetime, or a window that is over; needs no signature."""
    issued = _by_name(world, name)
    if issued is None or not world.switches.ari:
        raise Problem("malformed", "There is no such certificate.", status=404)
    start = issued.certificate.not_valid_before_utc.timestamp()
    end = issued.certificate.not_valid_after_utc.timestamp()
    third = (end - start) / 3
    if world.switches.ari_now or world.book.revocation(issued.certificate):
        window = (world.now() - 7200, world.now() - 3600)
    else:
        window = (end - third, end - third / 2)
    body = {
        "suggestedWindow": {"start": rfc3339(window[0]), "end": rfc3339(window[1])},
        "explanationURL": f"{world.urls.ca}/why",
    }
    headers = retry_after(world.switches, world.switches.ari_retry_after)
    return _spoiled(world.switches.renewal, body, headers)


def _spoiled(fault: RenewalFault, body: dict[str, Any], headers: dict[str, str]) -> Reply:
    """What RFC 9773 section 4.2 forbids a server to say, by switch."""
    window = body["suggestedWindow"]
    match fault:
        case "backwards":
            window["start"], window["end"] = window["end"], window["start"]
        case "empty":
            window["end"] = window["start"]
        case "no_window":
            del body["suggestedWindow"]
        case "no_offset":
            body["suggestedWindow"] = {name: time[:-1] for name, time in window.items()}
        case "not_times":
            body["suggestedWindow"] = {"start": "soon", "end": "later"}
        case "no_retry_after":
            headers = {}
    return Reply(body, headers=headers)


def name_of(certificate: x509.Certificate) -> str:
    """base64url(AKI) "." base64url(serial) (RFC 9773 section 4.1); empty without AKI."""
    try:
        aki = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return ""
    serial = certificate.serial_number
    content = serial.to_bytes(serial.bit_length() // 8 + 1, "big")  # as DER writes INTEGER
    return f"{jws.encode(aki.key_identifier or b'')}.{jws.encode(content)}"


def replaces(world: World, own: Account, der: bytes, body: dict[str, Any]) -> str:
    """The `replaces` of a new order, checked (RFC 9773 section 5); empty without renewalInfo."""
    name = body.get("replaces", "")
    if not name or not world.switches.ari:
        return ""
    issued = _by_name(world, str(name))
    if issued is None or issued.account != own.id:
        raise Problem("malformed", "replaces names no certificate of this account.")
    if world.book.orders[issued.order].der != der:
        raise Problem("malformed", "replaces names a certificate of another identifier.")
    now = world.now()
    orders = world.book.orders.values()
    if any(each.replaces == name and each.status(now) != "invalid" for each in orders):
        raise Problem("alreadyReplaced", "The certificate is replaced already.")
    return str(name)


def revoke_certificate(world: World, signed: Signed) -> Reply:
    """By the account it was issued to, one that may certify the same SPC, or its own key."""
    body = signed.body()
    reason = body.get("reason", 0)
    try:
        der = jws.decode(str(body.get("certificate", "")))
        certificate = x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise Problem("malformed", "certificate is no certificate in base64url.") from error
    issued = next(
        (
            each
            for each in world.book.issued.values()
            if each.certificate.public_bytes(Encoding.DER) == der
        ),
        None,
    )
    if issued is None:
        raise Problem("malformed", "The certificate is none of ours.", status=404)
    if not _may_revoke(world, signed, issued):
        raise Problem("unauthorized", "The certificate is another's.")
    if not isinstance(reason, int) or isinstance(reason, bool) or not known_reason(reason):
        raise Problem("badRevocationReason", f"The reason {reason!r} is not used here.")
    if world.book.revocation(certificate):
        raise Problem("alreadyRevoked", "The certificate is revoked already.")
    world.book.revoked.append(
        Revoked(certificate.issuer, certificate.serial_number, reason, world.now())
    )
    return Reply(b"")


def _may_revoke(world: World, signed: Signed, issued: Issued) -> bool:
    if signed.account is None:
        key = issued.certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101  we issued it
        return jws.thumbprint(key) == jws.thumbprint(signed.key)
    if signed.account.id == issued.account:
        return True
    now, der = world.now(), world.book.orders[issued.order].der
    return any(
        order.account == signed.account.id
        and order.der == der
        and order.authorization_status(now) == "valid"
        for order in world.book.orders.values()
    )


def _by_name(world: World, name: str) -> Issued | None:
    issued = world.book.issued.values()
    return next((each for each in issued if name and each.renewal_name == name), None)
