"""The STI-PA: our subscriber account there, SPC tokens, the list of STI-CAs, and the CRL.

One `Authority` per STI-PA and trust domain. It logs in, asks, and hands on only what passed
the checks of `spctoken`, `trust` and `crl`; it keeps nothing on disk and decides nothing about
when to ask again. RFC 9447 section 5, RFC 9448 section 5.5, and the API of the US STI-PA as
PROTOCOL 2.2 has it. The clock is an argument: integer seconds UTC.
"""

from contextlib import suppress
from typing import Self
from urllib.parse import quote

import msgspec
from cryptography import x509

from kmsd import crl as crls
from kmsd import spctoken, trust
from kmsd.authority import tokenfile
from kmsd.authority.exchange import ANSWER, Exchange
from kmsd.authority.subscriber import Subscriber
from kmsd.errors import KmsdError, Misconfigured
from kmsd.model import RevocationList, TrustList
from kmsd.settings import Authority as Settings
from kmsd.settings import PaBody
from kmsd.spctoken import SpcToken

__all__ = ["Authority", "SpcToken"]

CHAIN_SECONDS, CHAINS = 3600, 16
"""How long, and how many, signer chains are kept in memory."""
CHAIN, LIST, CRL = 131_072, 4_194_304, 10_485_760
"""Octets that an x5u file, the STI-CA list and the CRL may have."""


class Authority:
    """One STI-PA. Use as `async with Authority(...) as authority`.

    name: in the configuration. password: of the subscriber account. root_pem: the pinned
    STI-PA root certificates. Raises Misconfigured (ROOT_UNREADABLE, TLS_CA_UNREADABLE,
    AUTHORITY_URL).
    """

    def __init__(self, name: str, settings: Settings, *, password: str, root_pem: str) -> None:
        if not settings.url.startswith("https://"):
            raise Misconfigured("AUTHORITY_URL", f"url of authority {name} must be https.")
        self._name = name
        self._settings = settings
        self._roots = trust.pinned(root_pem)
        self._exchange = Exchange(name, settings.tls_ca, settings.timeout, password)
        self._subscriber = Subscriber(name, settings, password, self._exchange)
        self._chains: dict[str, tuple[int, trust.Certificates]] = {}

    async def __aenter__(self) -> Self:
        await self._exchange.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._subscriber.log_out()
        await self._exchange.__aexit__()

    async def spc_token(
        self,
        *,
        account_id: str,
        spc_tkvalue: str,
        fingerprint: str,
        profile: str,
        spc: str,
        now: int,
    ) -> SpcToken:
        """A checked SPC token for one order, from the API or from `token_file`.

        account_id: ours at the STI-PA for this SPC. spc_tkvalue: the TNAuthList as text, sent
        as it is. fingerprint: `SHA256 AB:CD:...` of the ACME account key (RFC 9448 5.4).
        Raises PeerRefused (STI_PA_REFUSED, STI_PA_LOGIN_REFUSED, STI_PA_ANSWER_INVALID,
        SPC_TOKEN_REJECTED with the rule), Unavailable, Misconfigured.
        """
        wanted = spctoken.Wanted(spc_tkvalue, fingerprint, self._settings.min_token_seconds)
        if self._settings.token_file:
            path = tokenfile.path(self._settings.token_file, profile, spc)
            answer, advice = await tokenfile.read(path, wanted), tokenfile.NEXT_STEP
        else:
            answer, advice = await self._requested(account_id, wanted, now), ""
        if answer.crl not in ("", self.crl_url):
            # Told before there is an order: later, the gate would refuse the certificate for it.
            raise Misconfigured(
                "CRL_URL_DIFFERS",
                f"The STI-PA {self._name} has its CRL at {answer.crl[:200]!r}, and kmsd takes it"
                f" from {self.crl_url!r}.",
                next_step="Set crl_url of the authority to what the STI-PA documents.",
            )
        signed = spctoken.read(answer.token, advice)
        chain = await self._chain(signed.x5u, now)
        expires = spctoken.check(signed, chain, self._roots, wanted, now, advice)
        return SpcToken(answer.token, expires)

    async def trust_list(self, last: TrustList | None, now: int) -> TrustList:
        """The STI-CAs this STI-PA trusts. `last`: what was accepted before, if anything.

        Raises PeerRefused (TRUST_LIST_REJECTED with the rule, TRUST_LIST_ROLLBACK and as
        above), Unavailable. On any of them the caller goes on with `last`.
        """
        signed = await self._signed_list(now)
        chain = await self._chain(signed.x5u, now)
        return trust.accept_list(
            signed, chain, self._roots, authority=self._name, last=last, now=now
        )

    async def crl(self, last: RevocationList | None, now: int) -> RevocationList:
        """The STI-PA's CRL. `last`: what was accepted before, if anything.

        Raises PeerRefused (CRL_REJECTED with the rule, CRL_ROLLBACK and as above), Unavailable.
        """
        url = self.crl_url
        answer = await self._exchange.ask("GET", url, accept="application/pkix-crl", limit=CRL)
        if answer.status != 200:
            raise self._exchange.refusal(answer, f"the CRL at {url}")
        found = crls.read(answer.body)
        served = await self._crl_signers(found, now)
        return crls.accept(
            found, served, self._roots, authority=self._name, url=url, last=last, now=now
        )

    @property
    def crl_url(self) -> str:
        return self._settings.crl_url or self._url("/download/v1/crl")

    def _url(self, path: str) -> str:
        return self._settings.url.rstrip("/") + path

    async def _requested(
        self, account_id: str, wanted: spctoken.Wanted, now: int
    ) -> spctoken.Answer:
        atc = {
            "tktype": spctoken.TKTYPE,
            "tkvalue": wanted.tkvalue,
            "ca": False,
            "fingerprint": wanted.fingerprint,
        }
        url = self._url(self._settings.token_path.replace("{id}", quote(account_id, safe="")))
        body = {"atc": atc} if self._settings.body is PaBody.ATC else atc
        reply = await self._subscriber.ask("POST", url, now, accept=_JOSE, limit=ANSWER, body=body)
        answer = spctoken.read_answer(reply.text) if reply.status < 400 else None
        if reply.status >= 400 or (answer and answer.status.lower() not in ("", "success")):
            raise self._exchange.refusal(reply, f"an SPC token for account {account_id}")
        if answer is None or not answer.token:
            raise self._exchange.invalid("there is no SPC token in it", reply.text)
        return answer

    async def _signed_list(self, now: int) -> trust.Jws:
        url = self._url(self._settings.ca_list_path)
        # Whether the list needs a login is nowhere said (PROTOCOL 10). Without one first: it
        # must be had even while our account is locked.
        reply = await self._exchange.ask("GET", url, accept=_JOSE, limit=LIST)
        if reply.status in (401, 403) and self._settings.user:
            reply = await self._subscriber.ask("GET", url, now, accept=_JOSE, limit=LIST)
        answer = _read_list(reply.text) if reply.status < 400 else None
        if reply.status >= 400 or (answer and answer.status.lower() not in ("", "success")):
            raise self._exchange.refusal(reply, "the list of trusted STI-CAs")
        if answer is None or not answer.ca_list:
            raise self._exchange.invalid("there is no list of STI-CAs in it", reply.text)
        with trust.refusing("TRUST_LIST_REJECTED", "The list of trusted STI-CAs was not accepted"):
            return trust.read_jws(answer.ca_list, LIST)

    async def _crl_signers(
        self, crl: x509.CertificateRevocationList, now: int
    ) -> list[x509.Certificate]:
        """Where the CRL says its signer is (AIA); failing that, the signers of all else."""
        served = [each for url in crls.signer_urls(crl)[:3] for each in await self._try(url, now)]
        if any(each.subject == crl.issuer for each in (*served, *self._roots)):
            return served
        if not self._chains:
            with suppress(KmsdError):
                await self._chain((await self._signed_list(now)).x5u, now)
        return served + [each for _, chain in self._chains.values() for each in chain]

    async def _try(self, url: str, now: int) -> trust.Certificates:
        with suppress(KmsdError):
            return await self._chain(url, now)
        return ()

    async def _chain(self, url: str, now: int) -> trust.Certificates:
        """What `url` serves, at most an hour old. Trusted only as far as it is checked."""
        fetched, chain = self._chains.get(url, (0, ()))
        if chain and 0 <= now - fetched < CHAIN_SECONDS:
            return chain
        reply = await self._exchange.ask("GET", url, accept=_CERTIFICATES, limit=CHAIN)
        if reply.status != 200:
            raise self._exchange.refusal(reply, f"the certificates at {url}")
        try:
            chain = trust.certificates(reply.body)
        except trust.Broken as error:
            raise self._exchange.invalid(f"{url}: {error.why}") from error
        while len(self._chains) >= CHAINS:
            del self._chains[next(iter(self._chains))]
        self._chains[url] = (now, chain)
        return chain


class _Listed(msgspec.Struct, frozen=True):
    status: str = ""
    ca_list: str = msgspec.field(name="caList", default="")


_JOSE = "application/jose+json, application/json"
_CERTIFICATES = "application/pem-certificate-chain, application/pkix-cert"


def _read_list(text: str) -> _Listed | None:
    """The answer with the list in it, also when it is the bare JWS. None: neither."""
    text = text.strip()
    if not text.startswith("{"):
        return _Listed(ca_list=text) if text.count(".") == 2 else None
    try:
        return msgspec.json.decode(text, type=_Listed)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
