"""Fetching a chain from an x5u as a verifier does: once, without redirects, within bounds
(ATIS-1000074; RFC 8224 section 6.2 step 2). Whatever fails is a 436, Bad Identity Info."""

import ssl
import time
from urllib.parse import urlsplit

import httpx

from kmsd.errors import Misconfigured, PeerRefused

LONGEST_CHAIN = 64 * 1024
"""Bytes of a PEM chain that are read."""

_HEADERS = {"Accept": "application/pem-certificate-chain", "Accept-Encoding": "identity"}


def fetch(x5u: str, *, tls_ca: str, timeout: float) -> str:
    """The PEM text that `x5u` serves. tls_ca: PEM file that its HTTPS certificate must chain
    to, "" for the system's trust store. timeout: seconds for all of it.

    Raises PeerRefused (peer "sti-cr") and Misconfigured.
    """
    if urlsplit(x5u).scheme != "https":
        raise _refused("X5U_NOT_HTTPS", x5u, "is no https URL")
    context = _tls(tls_ca)
    ends = time.monotonic() + timeout
    content = b""
    try:
        with (
            httpx.Client(verify=context, timeout=timeout, trust_env=False) as client,
            client.stream("GET", x5u, headers=_HEADERS, follow_redirects=False) as response,
        ):
            if response.status_code != 200:
                redirect = response.has_redirect_location
                moved = ", and a verifier follows no redirect" if redirect else ""
                raise _refused("X5U_STATUS", x5u, f"answers {response.status_code}{moved}")
            for piece in response.iter_raw():
                content += piece
                if len(content) > LONGEST_CHAIN:
                    raise _refused("X5U_TOO_LARGE", x5u, f"serves more than {LONGEST_CHAIN} bytes")
                if time.monotonic() > ends:
                    raise _refused("X5U_SLOW", x5u, f"did not serve all within {timeout:g} s")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = str(error) or type(error).__name__
        raise _refused("X5U_UNREACHABLE", x5u, f"cannot be fetched: {why}") from error
    try:
        return content.decode("ascii")
    except UnicodeDecodeError as error:
        raise _refused("X5U_NOT_PEM", x5u, "serves something that is no PEM text") from error


def _tls(tls_ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=tls_ca or None)
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(
            "TLS_CA_UNREADABLE",
            f"The file {tls_ca} cannot be used as TLS trust: {error}.",
            next_step="Name a PEM file with --tls-ca FILE.",
        ) from error


def _refused(reason: str, x5u: str, what: str) -> PeerRefused:
    return PeerRefused(
        reason,
        f"The x5u {x5u} {what}.",
        peer="sti-cr",
        next_step=f"curl -v {x5u}",
        x5u=x5u,
    )
