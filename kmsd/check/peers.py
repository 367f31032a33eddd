"""Checks of what is reached by HTTPS: STI-PA, STI-CAs, the public side of the STI-CR, the clock."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import msgspec

from kmsd.acme.transport import Transport
from kmsd.authority import Authority
from kmsd.authority.exchange import Exchange
from kmsd.authority.subscriber import Subscriber
from kmsd.check.files import is_out_of_sight
from kmsd.check.finding import Finding, Level, error, failed, ok, warning
from kmsd.config import secret
from kmsd.errors import KmsdError, PeerRefused
from kmsd.repository import Repository
from kmsd.settings import Authority as AuthoritySettings
from kmsd.settings import Configuration, Issuer, PaAuthorization

TIMEOUT = 10.0
FETCHED = 20
"""Public chains fetched back, at most."""
LIST = 4_194_304


async def authority(name: str, configuration: Configuration, now: int) -> tuple[Finding, ...]:
    """The pinned root holds for what the STI-PA says, and the STI-PA lets us in."""
    what = f"authority {name}"
    settings = configuration.authorities[name]
    found: list[Finding] = []
    password, refused = "", Level.ERROR
    if is_out_of_sight(settings.password):
        found.append(warning(what, "Its password is a systemd credential; no login was tried."))
        # Without a user nobody logs in: an empty password sent often enough locks the account.
        settings, refused = msgspec.structs.replace(settings, user=""), Level.WARNING
    elif settings.password:
        password = secret(settings.password, f"authorities.{name}.password")
    if settings.token_file:
        found.append(ok(what, "SPC tokens are imported from files."))
    if password and not settings.token_file:
        found.append(await _login(what, name, settings, password, now))
    if any(finding.level is Level.ERROR for finding in found):
        return tuple(found)
    try:
        root = await asyncio.to_thread(Path(settings.root).read_text)
    except (OSError, ValueError):
        return (*found, error(what, f"Its pinned root {settings.root} cannot be read."))
    async with Authority(name, settings, password=password, root_pem=root) as opened:
        try:
            trusted = await opened.trust_list(None, now)
            hours = (trusted.expires - now) // 3600
            count = len(trusted.roots)
            found.append(ok(what, f"It trusts {count} STI-CAs; its list is good for {hours} h."))
            crl = await opened.crl(None, now)
            found.append(ok(what, f"Its CRL number {crl.number} can be had and is signed."))
        except PeerRefused as refusal:
            found.append(failed(what, refusal, refused))
        except KmsdError as refusal:
            found.append(failed(what, refusal))
    return tuple(found)


async def issuer(name: str, settings: Issuer) -> tuple[Finding, ...]:
    """The STI-CA's directory can be had and has what kmsd needs (RFC 8555 section 7.1.1)."""
    what = f"issuer {name}"
    async with Transport(name, settings) as transport:
        directory = await transport.directory()
    found = [ok(what, f"The directory {settings.directory} can be used.")]
    meta = directory.meta
    if directory.revoke_cert is None:
        found.append(warning(what, "It offers no revocation by ACME."))
    if meta and meta.external_account_required and not settings.eab_key_id:
        step = f"Ask the STI-CA for a key; set issuers.{name}.eab_key_id and eab_mac_key."
        found.append(error(what, "It wants an external account binding.", step))
    if meta and meta.terms_of_service and not settings.terms_of_service_agreed:
        step = f"Read {meta.terms_of_service}; set issuers.{name}.terms_of_service_agreed."
        found.append(warning(what, "It has terms of service to agree to.", step))
    return tuple(found)


async def repository(
    configuration: Configuration, chains: Mapping[str, str]
) -> tuple[Finding, ...]:
    """The public URL serves what was published. chains: x5u to PEM."""
    what = "repository"
    settings = configuration.repository
    opened = Repository(settings)
    if not chains:
        try:
            await _date(settings.public_url, settings.tls_ca)
        except (httpx.HTTPError, OSError) as problem:
            step = "Serve it there: kmsd repository, or a web server of your own."
            return (error(what, f"{settings.public_url}: {_why(problem)}.", step),)
        return (ok(what, f"{settings.public_url} answers; nothing of ours is there yet."),)
    found = []
    for x5u, chain in list(chains.items())[:FETCHED]:
        try:
            await opened.fetch_back(x5u, chain)
            found.append(ok(what, f"{x5u} serves the chain that is signed with."))
        except KmsdError as refusal:
            found.append(failed(what, refusal))
    return tuple(found)


async def clock(configuration: Configuration, now: Callable[[], float]) -> tuple[Finding, ...]:
    """This host's clock against the Date of every server we know; the nearest one counts."""
    repository = configuration.repository
    servers = {repository.public_url: repository.tls_ca}
    servers |= {one.url: one.tls_ca for one in configuration.authorities.values()}
    servers |= {one.directory: one.tls_ca for one in configuration.issuers.values()}
    answers = await asyncio.gather(
        *(_ahead(url, tls_ca, now) for url, tls_ca in servers.items()), return_exceptions=True
    )
    offsets = [answer for answer in answers if isinstance(answer, float)]
    if not offsets:
        return (warning("clock", "No server answered that it could be compared with."),)
    offset = min(offsets, key=abs)
    step = "timedatectl; chronyc tracking"
    freshness = configuration.signer.freshness_seconds
    if abs(offset) > freshness:
        return (error("clock", f"This host's clock is {_off(offset)}; calls would fail.", step),)
    if abs(offset) > 5:
        return (warning("clock", f"This host's clock is {_off(offset)}.", step),)
    return (ok("clock", "This host's clock agrees with the servers it was compared with."),)


async def _login(
    what: str, name: str, settings: AuthoritySettings, password: str, now: int
) -> Finding:
    url = settings.url.rstrip("/") + settings.ca_list_path
    async with Exchange(name, settings.tls_ca, settings.timeout, password) as exchange:
        subscriber = Subscriber(name, settings, password, exchange)
        try:
            # Whatever it answers to the question: it is asked after a login.
            await subscriber.ask("GET", url, now, accept="application/jose+json", limit=LIST)
        except KmsdError as refusal:
            return failed(what, refusal)
        finally:
            await subscriber.log_out()
    if settings.authorization is PaAuthorization.BASIC:
        return ok(what, f"User {settings.user} is not refused.")
    return ok(what, f"User {settings.user} can log in.")


async def _ahead(url: str, tls_ca: str, now: Callable[[], float]) -> float:
    """Seconds that our clock is ahead of the server's. Date has no fractions: half is added."""
    return now() - (parsedate_to_datetime(await _date(url, tls_ca)).timestamp() + 0.5)


async def _date(url: str, tls_ca: str) -> str:
    """What the server at the URL, whatever its answer, says the time is; "" when it does not."""
    context = ssl.create_default_context(cafile=tls_ca or None)
    async with (
        httpx.AsyncClient(verify=context, timeout=TIMEOUT, trust_env=False) as client,
        client.stream("GET", url) as response,
    ):
        return str(response.headers.get("Date", ""))


def _off(offset: float) -> str:
    return f"{abs(offset):.0f} s {'ahead' if offset > 0 else 'behind'}"


def _why(problem: Exception) -> str:
    return str(problem) or type(problem).__name__
