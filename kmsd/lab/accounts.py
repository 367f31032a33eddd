"""ACME accounts: new, update, deactivate, key change, external binding (RFC 8555 section 7.3)."""

import secrets
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from kmsd.lab import jws
from kmsd.lab.problem import Problem
from kmsd.lab.reply import Reply
from kmsd.lab.signed import Signed
from kmsd.lab.state import Account
from kmsd.lab.world import World


def new_account(world: World, signed: Signed) -> Reply:
    """201 for a new account, 200 for the one this key has already (section 7.3.1)."""
    if signed.account is not None:
        raise Problem("malformed", "newAccount is signed with jwk (RFC 8555 section 7.3).")
    body = signed.body()
    thumbprint = jws.thumbprint(signed.key)
    known = world.book.account_by_key(thumbprint)
    if known is not None:
        if not known.active:
            raise Problem("unauthorized", "The account is deactivated.")
        return _account(world, known)
    if body.get("onlyReturnExisting") is True:
        raise Problem("accountDoesNotExist", "There is no account with this key.")
    terms = body.get("termsOfServiceAgreed") is True
    if world.switches.terms and not terms:
        link = {"Link": f'<{world.urls.ca}/terms>;rel="terms-of-service"'}
        raise Problem("userActionRequired", "Agree to the terms of service.", headers=link)
    if world.book.certified(thumbprint):
        raise Problem("badPublicKey", "The key is a certificate's (RFC 8555 section 11.1).")
    account = Account(
        id=secrets.token_hex(8),
        key=signed.key,
        thumbprint=thumbprint,
        contact=_contact(body),
        terms_agreed=terms,
        eab_kid=_bound(world, signed, body.get("externalAccountBinding")),
    )
    world.book.accounts[account.id] = account
    return _account(world, account, status=201)


def account(world: World, signed: Signed, name: str) -> Reply:
    """POST-as-GET, update of `contact`, deactivation (sections 7.3.2 and 7.3.6)."""
    own = signed.by_account()
    if own.id != name:
        raise Problem("unauthorized", "The account is another's.")
    if signed.as_get:
        return _account(world, own)
    body = signed.body()
    match body.get("status"):
        case None:
            pass
        case "deactivated":
            own = world.book.change_account(own, active=False)
            return _account(world, own)
        case other:
            raise Problem("malformed", f"An account cannot be made {other!r}.")
    if "contact" in body:
        own = world.book.change_account(own, contact=_contact(body))
    return _account(world, own)


def account_orders(world: World, signed: Signed, name: str) -> Reply:
    """The account's orders, one page (section 7.1.2.1)."""
    own = signed.by_account()
    if own.id != name:
        raise Problem("unauthorized", "The account is another's.")
    ids = [order.id for order in world.book.orders.values() if order.account == own.id]
    return Reply({"orders": [f"{world.urls.ca}/order/{each}" for each in ids]})


def key_change(world: World, signed: Signed) -> Reply:
    """The outer JWS is the old key's, the inner one the new key's (section 7.3.5)."""
    own = signed.by_account()
    inner = signed.body()
    header, payload, text, signature = _inner(inner, "keyChange")
    if "nonce" in header:
        raise Problem("malformed", "The inner JWS of keyChange has no nonce.")
    if header.get("alg") != "ES256":
        raise Problem("badSignatureAlgorithm", "alg is ES256 here.", algorithms=["ES256"])
    if header.get("url") != signed.url:
        raise Problem("malformed", "The inner JWS is for another url than the outer.")
    try:
        fresh = jws.key_of(header.get("jwk"))
        change = jws.parse_object(payload)
        old = jws.key_of(change.get("oldKey"))
    except ValueError as error:
        raise Problem("malformed", f"The inner JWS of keyChange: {error}.") from error
    if not jws.verifies(fresh, signature, text):
        raise Problem("malformed", "The inner JWS's signature does not verify.")
    if change.get("account") != f"{world.urls.ca}/account/{own.id}":
        raise Problem("malformed", "The inner JWS names another account.")
    if jws.thumbprint(old) != own.thumbprint:
        raise Problem("malformed", "oldKey is not the account's key.")
    thumbprint = jws.thumbprint(fresh)
    taken = world.book.account_by_key(thumbprint)
    if taken is not None:
        location = {"Location": f"{world.urls.ca}/account/{taken.id}"}
        raise Problem("malformed", "The new key has an account.", status=409, headers=location)
    if world.book.certified(thumbprint):
        raise Problem("badPublicKey", "The new key is a certificate's.")
    return _account(world, world.book.change_account(own, key=fresh, thumbprint=thumbprint))


def _account(world: World, own: Account, status: int = 200) -> Reply:
    url = f"{world.urls.ca}/account/{own.id}"
    body = {
        "status": "valid" if own.active else "deactivated",
        "contact": list(own.contact),
        "termsOfServiceAgreed": own.terms_agreed,
        "orders": f"{url}/orders",
    }
    return Reply(body, status=status, headers={"Location": url})


def _contact(body: dict[str, Any]) -> tuple[str, ...]:
    contact = body.get("contact", [])
    if not isinstance(contact, list) or not all(isinstance(each, str) for each in contact):
        raise Problem("malformed", "contact is an array of texts.")
    for each in contact:
        if not each.startswith("mailto:"):
            raise Problem("unsupportedContact", "Contacts are mailto: here.")
        if "@" not in each or "?" in each or "," in each:
            raise Problem("invalidContact", "A contact is one plain mail address.")
    return tuple(contact)


def _bound(world: World, signed: Signed, binding: object) -> str:
    """The kid of a good external account binding (section 7.3.4); empty when there is none."""
    if binding is None:
        if world.switches.eab == "required":
            raise Problem("externalAccountRequired", "An external account binding is needed.")
        return ""
    header, payload, text, signature = _inner(binding, "externalAccountBinding")
    if header.get("alg") != "HS256":
        raise Problem("badSignatureAlgorithm", "The binding's alg is HS256.")
    if header.get("url") != signed.url or "nonce" in header:
        raise Problem("malformed", "The binding has the url of newAccount and no nonce.")
    secret = world.eab.get(str(header.get("kid")))
    if secret is None or not jws.hmac_verifies(secret, signature, text):
        raise Problem("unauthorized", "The external account binding does not verify.")
    if not _same_key(payload, signed.key):
        raise Problem("malformed", "The binding is not for this account key.")
    return str(header["kid"])


def _inner(value: object, name: str) -> tuple[dict[str, Any], bytes, bytes, bytes]:
    """Header, payload, signing input and signature of a JWS inside a payload."""
    try:
        match value:
            case {
                "protected": str(protected),
                "payload": str(payload),
                "signature": str(signature),
            }:
                return (
                    jws.decode_object(protected),
                    jws.decode(payload),
                    f"{protected}.{payload}".encode("ascii"),
                    jws.decode(signature),
                )
    except ValueError as error:
        raise Problem("malformed", f"{name} is no flattened JWS: {error}.") from error
    raise Problem("malformed", f"{name} is no flattened JWS.")


def _same_key(payload: bytes, key: ec.EllipticCurvePublicKey) -> bool:
    try:
        bound = jws.key_of(jws.parse_object(payload))
    except ValueError:
        return False
    return jws.thumbprint(bound) == jws.thumbprint(key)
