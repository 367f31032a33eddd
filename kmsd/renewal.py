"""Renewal Information: when an STI-CA suggests that a certificate be renewed (RFC 9773).

Pure: what a certificate is called there, the moment inside the suggested window, and when to
ask again. Asking is `acme`'s work. What there is without renewal information, and the floor
below which no suggestion counts, is `rotation`'s: nothing here ever holds a renewal up.
"""

import hashlib

from cryptography import x509

from kmsd.errors import Invalid, KmsdError, Unavailable
from kmsd.jose import b64url
from kmsd.model import Value

SOONEST, LATEST = 60, 86_400
"""Seconds between two questions for one certificate: Retry-After is clamped to these (4.3.2)."""
AFTER_FAILURE = 21_600
"""Seconds to the next question after a failure that lasts, or an answer that does not say."""
TRIES = 3
"""Failures that may pass by themselves and are tried again soon, before they count as lasting."""


class Window(Value, frozen=True):
    """Renew between start and end: seconds UTC, end later than start.

    Raises Invalid (RENEWAL_WINDOW_INVALID) where it is not (RFC 9773 section 4.2).
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise Invalid("RENEWAL_WINDOW_INVALID", "The window ends before it begins.")


class RenewalInfo(Value, frozen=True):
    """What an STI-CA suggests for one certificate.

    explanation_url: https page for people, why it is this window; empty when there is none.
    retry_after: seconds to the next question, SOONEST to LATEST.
    """

    window: Window
    explanation_url: str
    retry_after: int


class Suggestion(Value, frozen=True):
    """What is known of an STI-CA's suggestions for one credential, kept while it is active.

    ask_at: when to ask next, seconds UTC. window: the last one suggested; None: none was, or it
    offers no renewal information. failures: questions in a row that had no answer.
    """

    credential: str
    ask_at: int
    window: Window | None = None
    explanation_url: str = ""
    failures: int = 0


def certificate_id(certificate: bytes) -> str:
    """What RFC 9773 section 4.1 calls this certificate (DER); also `replaces` of an order.

    base64url(AKI keyIdentifier) "." base64url(content octets of the serial's DER INTEGER).
    Empty for one without an AKI keyIdentifier, or a positive serial: it has no such name.
    Raises Invalid (CERTIFICATE_MALFORMED).
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        aki = parsed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        serial = parsed.serial_number
    except x509.ExtensionNotFound:
        return ""
    except ValueError as error:
        raise Invalid("CERTIFICATE_MALFORMED", "This is no certificate in DER.") from error
    if not aki.key_identifier or serial < 1:
        return ""
    # One octet more than the magnitude needs when its top bit is set: DER integers are signed.
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    return f"{b64url(aki.key_identifier)}.{b64url(octets)}"


def renewal_moment(window: Window, seed: bytes) -> int:
    """When to renew: seconds UTC, start <= moment < end (RFC 9773 section 4.2).

    Uniform over the window for seeds that differ, and the same for one seed however often it is
    asked: seed is the credential's id, so a restart does not throw the dice again, and a window
    that is moved moves the moment with it. A moment that is past means: renew now.
    """
    dice = int.from_bytes(hashlib.sha256(b"RFC 9773 4.2\0" + seed).digest(), "big")
    return window.start + (dice * (window.end - window.start) >> 256)


def next_question(asked: float | None) -> int:
    """Seconds to the next question; asked: the server's Retry-After, None when it has none."""
    return AFTER_FAILURE if asked is None else min(max(int(asked), SOONEST), LATEST)


def next_try(error: KmsdError, failures: int) -> int:
    """Seconds to the next question after `failures` (1 or more) in a row, the last with `error`.

    RFC 9773 section 4.3.3: no answer is tried again soon, TRIES times, each pause twice the one
    before; after that, and after a refusal, six hours are waited. Never sooner than was asked.
    """
    wait = error.retry_after if isinstance(error, Unavailable) else 0.0
    passing = isinstance(error, Unavailable) and failures <= TRIES
    own = SOONEST << failures - 1 if passing else AFTER_FAILURE
    return max(own, next_question(wait))
