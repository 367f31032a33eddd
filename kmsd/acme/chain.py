"""The certificate chain as an STI-CA hands it out, before anybody judged what is in it.

RFC 8555 sections 7.4.2 and 9.1 (application/pem-certificate-chain). Only what makes it
unfit to be kept is refused here; whether it may be used is the acceptance gate's to say.
"""

import re
from dataclasses import dataclass

from kmsd.acme.messages import Order
from kmsd.acme.problems import malformed, printable
from kmsd.acme.transport import Answer
from kmsd.canonical import x5u_url
from kmsd.errors import Invalid

LONGEST = 10
"""Certificates in a chain, at most."""
X5U_HEADER = "x-shaken-certificate-location"


@dataclass(frozen=True, slots=True)
class Chain:
    """A downloaded chain. pem: as it came, leaf first.

    x5u: where the STI-CA itself hosts it (RFC 9448 section 7); empty: nowhere that could be an
    x5u (https, with neither user nor query: ATIS-1000074 5.3.1).
    """

    pem: str
    x5u: str


def chain(order: Order, answer: Answer, media_types: tuple[str, ...]) -> Chain:
    """The chain in `answer`; the order's x5u wins over a header some STI-CAs send.

    Raises PeerRefused (ACME_ANSWER_MALFORMED): another media type, no or too many
    certificates, or anything but certificates in it (a private key above all).
    """
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in media_types:
        what = f"as {printable(media_type) or 'nothing'}, not as {' or '.join(media_types)}"
        raise malformed(answer.issuer, answer.resource, what, answer.body)
    pem = answer.body.decode("ascii", "replace")
    labels = re.findall(r"-----BEGIN ([^\n]*?)-----", pem)
    if "PRIVATE KEY" in pem:
        # Not even into an error message.
        raise malformed(answer.issuer, answer.resource, "with a private key in the chain")
    if set(labels) != {"CERTIFICATE"} or len(labels) > LONGEST:
        what = f"with something else than one to {LONGEST} certificates in PEM"
        raise malformed(answer.issuer, answer.resource, what, answer.body)
    return Chain(pem, _hosted(order.x5u or answer.headers.get(X5U_HEADER, "")))


def _hosted(x5u: str) -> str:
    try:
        return x5u_url(x5u)
    except Invalid:
        return ""
