"""What an ACME server sends, as frozen values (RFC 8555 section 7.1, RFC 9448).

Members nobody here knows are ignored, as RFC 8555 section 7.1 wants of clients; members
known here must have the right type, and `null` is as good as absent where one may be.
Error documents stay the text that the server wrote.
"""

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated
from unicodedata import category

import msgspec

Several = Annotated[tuple[str, ...], msgspec.Meta(max_length=64)]


class Message(msgspec.Struct, frozen=True, rename="camel"):
    """Base of what comes over the wire."""


class OrderStatus(StrEnum):
    PENDING = "pending"
    READY = "ready"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


class AuthorizationStatus(StrEnum):
    PENDING = "pending"
    VALID = "valid"
    INVALID = "invalid"
    DEACTIVATED = "deactivated"
    EXPIRED = "expired"
    REVOKED = "revoked"


class DirectoryMeta(Message, frozen=True):
    """RFC 8555 section 9.7.6."""

    terms_of_service: str | None = None
    external_account_required: bool | None = None


class Directory(Message, frozen=True):
    """Where things are (RFC 8555 section 7.1.1). Some STI-CAs name just the first three."""

    new_nonce: str
    new_account: str
    new_order: str
    revoke_cert: str | None = None
    key_change: str | None = None
    renewal_info: str | None = None
    meta: DirectoryMeta | None = None


class SuggestedWindow(Message, frozen=True):
    """RFC 3339 times."""

    start: str
    end: str


class RenewalInfoObject(Message, frozen=True):
    """RFC 9773 section 4.2."""

    suggested_window: SuggestedWindow
    explanation_url: str | None = msgspec.field(name="explanationURL", default=None)


class AccountObject(Message, frozen=True):
    """RFC 8555 section 7.1.2."""

    status: str | None = None


class Identifier(Message, frozen=True):
    """What a certificate is ordered for: `TNAuthList` and its encoded DER (RFC 9448 section 3)."""

    type: str
    value: str


class Problem(Message, frozen=True):
    """The part of a problem document (RFC 7807, RFC 8555 section 6.7) that decides what to do."""

    type: str = "about:blank"
    detail: str | None = None
    instance: str | None = None


class Challenge(Message, frozen=True):
    """RFC 8555 section 7.1.5; `tkauth-type` and no token needed in RFC 9447 section 3."""

    type: str
    url: str
    status: str | None = None
    tkauth_type: str | None = msgspec.field(name="tkauth-type", default=None)
    error: msgspec.Raw = msgspec.Raw()


class Authorization(Message, frozen=True):
    """RFC 8555 section 7.1.4."""

    status: AuthorizationStatus
    challenges: Annotated[tuple[Challenge, ...], msgspec.Meta(max_length=64)] = ()


class OrderObject(Message, frozen=True):
    """RFC 8555 section 7.1.3, `x5u` of RFC 9448 section 7. Its URL is not in it: see `Order`."""

    status: OrderStatus
    finalize: str
    authorizations: Several = ()
    certificate: str | None = None
    x5u: str | None = None
    expires: str | None = None
    error: msgspec.Raw = msgspec.Raw()


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An order as the STI-CA last showed it. Texts are empty while there is nothing to tell.

    url, authorizations, finalize, certificate: URLs at the STI-CA. x5u: where the STI-CA
    hosts the chain (RFC 9448 section 7). expires: seconds since the epoch, 0 when unknown.
    error: the problem document word for word.
    """

    url: str
    status: OrderStatus
    authorizations: tuple[str, ...]
    finalize: str
    certificate: str = ""
    x5u: str = ""
    expires: int = 0
    error: str = ""


def order(url: str, seen: OrderObject) -> Order:
    """The order at `url`, from what the server showed there."""
    return Order(
        url=url,
        status=seen.status,
        authorizations=seen.authorizations,
        finalize=seen.finalize,
        certificate=seen.certificate or "",
        x5u=seen.x5u or "",
        expires=_seconds(seen.expires or ""),
        error=kept(seen.error),
    )


def kept(document: msgspec.Raw) -> str:
    """A member kept as the server wrote it, as text; empty when absent or null."""
    text = verbatim(bytes(document))
    return "" if text == "null" else text


def verbatim(body: bytes) -> str:
    """What the server wrote, word for word, but at most 16 384 characters of it.

    Control characters, which JSON has only escaped, are replaced: it ends on terminals. Tokens
    it repeats are taken out; of what holds a private key nothing is kept.
    """
    text = without_tokens(body[:65_536].decode("utf-8", "replace"))[:16_384]
    if "PRIVATE KEY" in text:
        return "[removed: there is a private key in it]"
    return "".join(c if c in "\r\n\t" or category(c) != "Cc" else "\ufffd" for c in text)


def without_tokens(text: str) -> str:
    """`text` with [removed] where an SPC token, or any other JWT, was repeated in it."""
    return _JWT.sub("[removed]", text)


_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?", re.ASCII)


def _seconds(rfc3339: str) -> int:
    try:
        moment = datetime.fromisoformat(rfc3339)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return 0  # only ever shown to people: no reason to fail an enrollment
