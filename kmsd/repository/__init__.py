"""The STI-CR: where certificate chains are public, each at its own URL that never changes.

A chain is written once and never overwritten, because verifiers cache it for days
(ATIS-1000074 section 5.3.1, PROTOCOL 3.8); what is not certificates and nothing else is never
published. Not here: serving a directory over HTTPS (`publicserver`), and deciding when.
"""

import asyncio
import re
import ssl
from typing import Protocol
from urllib.parse import unquote, urlsplit

import httpx
from cryptography import x509

from kmsd.certs import leaf_der
from kmsd.errors import Invalid, Misconfigured, PeerRefused, Precondition, Unavailable
from kmsd.repository.bucket import Bucket
from kmsd.repository.directory import Directory
from kmsd.settings import Repository as Settings

MEDIA_TYPE = "application/pem-certificate-chain"
"""RFC 8555 section 9.1."""
DAY = 86_400
"""Seconds a chain must be cacheable, at least (ATIS-1000074 v002 and later)."""
LIMIT = 65_536
"""Octets of a chain, at most."""
TIMEOUT = 20.0
"""Seconds that fetching a chain back may take."""


class Shelf(Protocol):
    """Where chains are put. Names are `<credential id>.pem`."""

    async def create(self, name: str, chain: bytes) -> bool:
        """Puts a new chain there, durably and all at once; False when `name` exists."""

    async def read(self, name: str) -> bytes:
        """What is there under `name`."""

    async def delete(self, name: str) -> None:
        """Takes `name` away, if it is there."""


class Repository:
    """One STI-CR. Raises Misconfigured when its settings cannot work.

    lints: what is allowed, but bound to make trouble with verifiers; one sentence each.
    shelf: where chains are put, instead of what settings.url names.
    """

    def __init__(self, settings: Settings, shelf: Shelf | None = None) -> None:
        self.lints = check_public_url(settings.public_url)
        if settings.max_age_seconds < DAY:
            raise Misconfigured(
                "REPOSITORY_MAX_AGE",
                f"repository.max_age_seconds is {settings.max_age_seconds}, less than a day.",
                next_step=f"Set {DAY} or more; every certificate has its own URL.",
            )
        self._public_url = settings.public_url
        self._shelf = shelf or _shelf(settings)
        try:
            self._tls = ssl.create_default_context(cafile=settings.tls_ca or None)
        except OSError as error:
            raise Misconfigured(
                "TLS_CA_UNREADABLE",
                f"tls_ca of the repository cannot be read: {settings.tls_ca}: {error.strerror}.",
            ) from error

    def x5u(self, credential_id: str) -> str:
        """The URL of a credential's chain, published or not; the shorter, the shorter each call.

        credential_id: 16 lower-case hex digits, else Invalid (CREDENTIAL_ID).
        """
        if not re.fullmatch("[0-9a-f]{16}", credential_id):
            raise Invalid("CREDENTIAL_ID", f"{credential_id!r} is not a credential id.")
        return f"{self._public_url}{credential_id}.pem"

    async def publish(self, credential_id: str, chain_pem: str) -> str:
        """Puts the chain (PEM, leaf first) there and returns its x5u; repeating it is harmless.

        Raises Invalid (PRIVATE_KEY_REFUSED, CHAIN_NOT_PUBLISHABLE), Precondition (X5U_TAKEN),
        Unavailable (REPOSITORY_DISK_FULL, REPOSITORY_UNAVAILABLE), Misconfigured
        (REPOSITORY_NOT_WRITABLE), PeerRefused (REPOSITORY_REFUSED).
        """
        x5u = self.x5u(credential_id)
        chain = chain_pem.encode()
        only_certificates(chain)
        name = f"{credential_id}.pem"
        if not await self._shelf.create(name, chain) and await self._shelf.read(name) != chain:
            raise Precondition(
                "X5U_TAKEN",
                f"There is another chain at {x5u}, and what is public is never overwritten.",
                next_step="Enroll a new credential: it gets a new URL.",
                x5u=x5u,
            )
        return x5u

    async def withdraw(self, credential_id: str) -> None:
        """Takes a rehearsal's chain away; nothing that was ever signed with may be withdrawn.

        Raises Invalid (CREDENTIAL_ID), and as `publish` where the repository cannot be used.
        """
        self.x5u(credential_id)  # no other name is ever taken away
        await self._shelf.delete(f"{credential_id}.pem")

    async def fetch_back(self, x5u: str, chain_pem: str) -> str:
        """Checks that `x5u` serves this chain, the way verifiers will fetch it.

        Below public_url it must be octet for octet, with the headers it is due. What an STI-CA
        hosts (RFC 9448 section 7) has a text and headers of its own, and maybe other certificates
        above the same leaf: the PEM that is served is returned, to be judged like anybody's.
        Raises PeerRefused (X5U_REDIRECTED, X5U_REFUSED, X5U_DIFFERENT, X5U_MEDIA_TYPE,
        X5U_CACHE_CONTROL), Unavailable (X5U_UNREACHABLE, X5U_NOT_SERVED).
        """
        response, served = await self._fetched(x5u)
        _check_status(response, x5u)
        if not x5u.startswith(self._public_url):
            return _same_leaf(served, chain_pem, x5u)
        if served != chain_pem.encode():
            what = f"{x5u} does not serve the chain that was published, octet for octet"
            raise _refused("X5U_DIFFERENT", what, x5u)
        _check_headers(response, x5u)
        return chain_pem

    async def _fetched(self, x5u: str) -> tuple[httpx.Response, bytes]:
        # Compressed only if the server does so unasked, and then it is not what was published:
        # what a compressed answer grows to is bounded by nobody.
        headers = {"Accept": MEDIA_TYPE, "Accept-Encoding": "identity"}
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                # Not through a proxy: the path verifiers take is what is tried.
                httpx.AsyncClient(verify=self._tls, timeout=TIMEOUT, trust_env=False) as client,
                client.stream("GET", x5u, headers=headers) as response,
            ):
                served = bytearray()
                async for part in response.aiter_raw(LIMIT):
                    served += part
                    if len(served) > LIMIT:
                        break
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                "X5U_UNREACHABLE",
                f"The chain cannot be fetched from {x5u}: {error or type(error).__name__}.",
                next_step="Check that public_url leads to the repository, and its certificate.",
                x5u=x5u,
            ) from error
        return response, bytes(served)


def check_public_url(url: str) -> tuple[str, ...]:
    """What verifiers may stumble over in this base URL of x5u values (PROTOCOL 3.8).

    Raises Misconfigured (PUBLIC_URL) for what they will.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError as error:
        raise _bad_url(url, f"it is no URL ({error})") from error
    if parts.scheme != "https":
        raise _bad_url(url, "its scheme must be https")
    if not parts.hostname:
        raise _bad_url(url, "it names no host")
    if "@" in parts.netloc or "?" in url or "#" in url or ";" in parts.path:
        raise _bad_url(url, "it must have no user, query, fragment or path parameter")
    if not parts.path.endswith("/"):
        raise _bad_url(url, "it must end with a slash")
    if not re.fullmatch(r"[!-~]+", url) or '"' in url or "\\" in url:
        raise _bad_url(url, "it has characters that a URL has not")
    if port not in (443, 8443):
        return (f"public_url has port {port}; verifiers may take 443 and 8443 only.",)
    return ()


def only_certificates(chain: bytes) -> None:
    """Nothing, if `chain` is PEM certificates, blank space, and not one other octet.

    Raises Invalid (PRIVATE_KEY_REFUSED, CHAIN_NOT_PUBLISHABLE).
    """
    labels = re.findall(rb"-----BEGIN ([^\r\n-]*)-----", chain)
    if any(b"PRIVATE" in label for label in labels):
        raise Invalid(
            "PRIVATE_KEY_REFUSED",
            "There is a private key with the chain, and a private key is never published.",
            next_step="Find out how it got there, and take that key for compromised.",
        )
    if set(labels) != {b"CERTIFICATE"} or len(chain) > LIMIT or not _CHAIN.fullmatch(chain):
        raise _not_publishable("it is not certificates in PEM and nothing else")
    try:
        x509.load_pem_x509_certificates(chain)
    except ValueError as error:
        raise _not_publishable(f"a certificate in it cannot be read ({error})") from error


_CHAIN = re.compile(
    rb"(?:-----BEGIN CERTIFICATE-----\s+(?:[A-Za-z0-9+/=]+\s+)+-----END CERTIFICATE-----\s*)+"
)


def _shelf(settings: Settings) -> Shelf:
    parts = urlsplit(settings.url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise Misconfigured("REPOSITORY_URL", f"{settings.url!r} is no absolute file URL.")
        return Directory(unquote(parts.path))
    cache_control = f"public, max-age={settings.max_age_seconds}, immutable"
    return Bucket.at(settings.url, settings.options, MEDIA_TYPE, cache_control)


def _check_status(response: httpx.Response, x5u: str) -> None:
    status = response.status_code
    if 300 <= status < 400:
        raise _refused("X5U_REDIRECTED", f"{x5u} redirects, and verifiers do not follow", x5u)
    if status in (404, 408, 425, 429) or status >= 500:
        raise Unavailable(
            "X5U_NOT_SERVED",
            f"{x5u} answers HTTP {status}; the chain is not public there yet.",
            next_step="Check that public_url leads to what url names.",
            x5u=x5u,
        )
    if status != 200:
        raise _refused("X5U_REFUSED", f"{x5u} answers HTTP {status}", x5u)


def _same_leaf(served: bytes, chain_pem: str, x5u: str) -> str:
    try:
        text = served.decode("ascii")
        same = leaf_der(text) == leaf_der(chain_pem)
    except UnicodeDecodeError as error:
        raise _refused("X5U_DIFFERENT", f"{x5u} serves no certificates in PEM", x5u) from error
    except Invalid as error:
        what = f"{x5u} serves no chain: {error.message.rstrip('.')}"
        raise _refused("X5U_DIFFERENT", what, x5u) from error
    if not same:
        raise _refused("X5U_DIFFERENT", f"{x5u} serves another certificate first", x5u)
    return text


def _check_headers(response: httpx.Response, x5u: str) -> None:
    media_type = response.headers.get("Content-Type", "")
    if media_type.split(";")[0].strip().lower() != MEDIA_TYPE:
        what = f"{x5u} has Content-Type {media_type!r}, not {MEDIA_TYPE}"
        raise _refused("X5U_MEDIA_TYPE", what, x5u)
    said = response.headers.get("Cache-Control", "")
    directives = {each.strip().lower() for each in said.split(",")}
    ages = [int(each[8:]) for each in directives if re.fullmatch(r"max-age=[0-9]{1,12}", each)]
    if directives & {"no-store", "no-cache", "private"} or not ages or min(ages) < DAY:
        what = f"{x5u} has Cache-Control {said!r}, and not a public max-age of a day or more"
        raise _refused("X5U_CACHE_CONTROL", what, x5u)


def _refused(reason: str, what: str, x5u: str) -> PeerRefused:
    return PeerRefused(
        reason,
        f"{what}.",
        peer="sti-cr",
        next_step="Correct what serves public_url; the old certificate stays in use meanwhile.",
        x5u=x5u,
    )


def _not_publishable(why: str) -> Invalid:
    return Invalid("CHAIN_NOT_PUBLISHABLE", f"The chain cannot be published: {why}.")


def _bad_url(url: str, why: str) -> Misconfigured:
    return Misconfigured(
        "PUBLIC_URL",
        f"repository.public_url {url!r} cannot be the base of an x5u: {why}.",
        next_step="Use something like https://cr.example.net/.",
    )
