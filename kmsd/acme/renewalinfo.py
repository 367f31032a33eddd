"""Renewal information as an STI-CA hands it out (RFC 9773 sections 4.1 and 4.2).

Asked without a signature. An answer that cannot be used is an error of its own, which never
stands in the way of a renewal: there is another time for that (`rotation`).
"""

from datetime import datetime
from math import ceil, floor

from kmsd.acme.messages import RenewalInfoObject, verbatim
from kmsd.acme.problems import PEER, printable
from kmsd.acme.transport import Answer, Transport, is_https
from kmsd.errors import Invalid, PeerRefused
from kmsd.renewal import RenewalInfo, Window, certificate_id, next_question


async def renewal_info(transport: Transport, certificate: bytes) -> RenewalInfo | None:
    """What the STI-CA suggests for a certificate (DER); None where it suggests nothing.

    Nothing: no renewalInfo in its directory, or no AKI in the certificate. Raises PeerRefused
    (ACME_RENEWAL_WINDOW_INVALID) and what `Transport.get` does, Invalid (CERTIFICATE_MALFORMED).
    """
    base = (await transport.directory()).renewal_info
    name = certificate_id(certificate)
    if not base or not name:
        return None
    answer = await transport.get(f"{base.rstrip('/')}/{name}", "renewalInfo")
    seen = answer.parse(RenewalInfoObject)
    window = _window(answer, seen.suggested_window.start, seen.suggested_window.end)
    page = seen.explanation_url or ""
    return RenewalInfo(window, page if is_https(page) else "", next_question(answer.retry_after()))


def _window(answer: Answer, start: str, end: str) -> Window:
    try:
        # A window within one second is one, too: outwards to whole seconds.
        begins, ends = _seconds(start), _seconds(end)
        return Window(floor(begins), ceil(ends) if ends > begins else floor(begins))
    except (ValueError, OverflowError, Invalid) as error:
        raise PeerRefused(
            "ACME_RENEWAL_WINDOW_INVALID",
            f"STI-CA {answer.issuer} suggests to renew from {printable(start)} to "
            f"{printable(end)}, which is no window.",
            peer=PEER,
            problem=verbatim(answer.body),
            next_step="The credential is renewed as if there were no suggestion: tell the STI-CA.",
            issuer=answer.issuer,
            resource=answer.resource,
        ) from error


def _seconds(rfc3339: str) -> float:
    moment = datetime.fromisoformat(rfc3339.upper())  # RFC 3339 section 5.6 has t and z, too
    if moment.tzinfo is None:
        raise ValueError("a time without its offset from UTC")
    return moment.timestamp()
