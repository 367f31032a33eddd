"""The client of one STI-CA: account, order, authorization, certificate, revocation.

Every method may be repeated: what is already done is seen and not done again, so a caller
that lost a reply or crashed just calls once more. Nothing is kept here between calls but
the account's URL; what must last (account and order URLs) is the caller's to store, before
the next step. RFC 8555 section 7; TNAuthList orders and SPC tokens: RFC 9448 and `tkauth`.
"""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kmsd.acme import account, messages, problems, renewalinfo, revocation
from kmsd.acme.chain import Chain, chain
from kmsd.acme.messages import Authorization, Identifier, Order, OrderStatus
from kmsd.acme.orders import Orders, is_final, left_pending, left_processing
from kmsd.acme.signing import ByAccount, ByKey, Key
from kmsd.acme.tkauth import Proof, SpcToken, SpcTokenProof, identifier
from kmsd.acme.transport import Answer, Transport
from kmsd.errors import Invalid, PeerRefused, Precondition
from kmsd.jose import b64url
from kmsd.renewal import RenewalInfo
from kmsd.settings import Issuer, PollTarget

OLD_CERTIFICATE_REFUSED = frozenset(
    {
        "ACME_ALREADY_REPLACED",
        "ACME_MALFORMED",
        "ACME_NOT_FOUND",
        "ACME_REFUSED",
        "ACME_UNAUTHORIZED",
    }
)
"""Refusals of a new order that may be about what it `replaces` (RFC 9773 section 5)."""


class Acme:
    """One account at one STI-CA. Use as an async context manager.

    name: of the issuer in the configuration, for errors. key: the account's. account_url:
    what ensure_account returned before, empty at first. mac_key: the external account
    binding's, decoded. http replaces the network in tests.
    Every method raises PeerRefused for what the STI-CA refuses or garbles (reason from the
    ACME error type, problem document word for word) and Unavailable when it does not answer.
    """

    def __init__(
        self,
        name: str,
        issuer: Issuer,
        key: Key,
        *,
        account_url: str = "",
        mac_key: bytes | None = None,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Raises Misconfigured when directory, rules or tls_ca cannot be used."""
        self._name = name
        self._issuer = issuer
        self._rules = issuer.resolved()
        self._key = key
        self._mac_key = mac_key
        self._account = account_url
        self._transport = Transport(name, issuer, http)
        self._orders = Orders(name, issuer.poll_limit, self._post)
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._transport.__aexit__(kind, error, traceback)

    async def ensure_account(self) -> str:
        """The account's URL; the account is made, or found by its key, when not known yet.

        Raises Misconfigured when the STI-CA wants an external account binding or consent to
        its terms that the configuration does not have.
        """
        async with self._lock:
            if not self._account:
                self._account = await account.ensure(
                    self._transport, self._issuer, self._key, self._mac_key
                )
        return self._account

    async def find_account(self, key: Key) -> str:
        """The URL of the account that has `key`, whosever it is; empty when none has."""
        return await account.find(self._transport, self._issuer, key)

    async def roll_key(self, new_key: Key) -> str:
        """The account is `new_key`'s from now on (RFC 8555 section 7.3.5); its URL.

        To be repeated, with the same two keys, until it returns: it finds out what was done
        before. SPC tokens for the old key die with it: their fingerprint is the old key's.
        Raises PeerRefused (ACME_KEY_IN_USE: make another new key; ACME_ACCOUNT_DOES_NOT_EXIST:
        there is no account of either key; ACME_NOT_OFFERED).
        """
        async with self._lock:
            self._account = await account.roll(
                self._transport, self._issuer, self._key, new_key, self._account
            )
            self._key = new_key
        return self._account

    async def renewal_info(self, certificate: bytes) -> RenewalInfo | None:
        """What the STI-CA suggests for the renewal of a certificate (DER), RFC 9773.

        None where it offers no renewal information. Raises PeerRefused
        (ACME_RENEWAL_WINDOW_INVALID); no error of this is a reason not to renew.
        """
        return await renewalinfo.renewal_info(self._transport, certificate)

    async def new_order(
        self,
        tnauthlist: bytes,
        *,
        not_before: int | None = None,
        not_after: int | None = None,
        replaces: str = "",
    ) -> Order:
        """A new order for a certificate with this TNAuthList (DER).

        not_before, not_after: validity asked for, seconds since the epoch. replaces: the
        RFC 9773 section 4.1 id of the old certificate (`renewal.certificate_id`), left out where
        there is no ARI, and where the STI-CA does not want it: it is a courtesy.
        """
        wanted = identifier(tnauthlist, self._rules.tnauthlist_encoding)
        return await self.new_order_for(
            (wanted,), not_before=not_before, not_after=not_after, replaces=replaces
        )

    async def new_order_for(
        self,
        identifiers: Iterable[Identifier],
        *,
        not_before: int | None = None,
        not_after: int | None = None,
        replaces: str = "",
    ) -> Order:
        """The same for identifiers of any type (RFC 8555 section 7.4)."""
        directory = await self._transport.directory()
        payload: dict[str, object] = {"identifiers": tuple(identifiers)}
        if not_before is not None:
            payload["notBefore"] = _rfc3339(not_before)
        if not_after is not None:
            payload["notAfter"] = _rfc3339(not_after)
        if replaces and directory.renewal_info:
            answer = await self._replacing(directory.new_order, payload, replaces)
        else:
            answer = await self._post(directory.new_order, payload, "newOrder")
        seen = answer.parse(messages.OrderObject)
        return messages.order(answer.location(), seen)

    async def order(self, order_url: str) -> Order:
        """The order as it is now."""
        return (await self._orders.order(order_url))[0]

    async def authorize(self, order_url: str, spc_token: SpcToken) -> Order:
        """Prove with an SPC token that the order is ours to make; the order is then ready.

        spc_token: the token, or what fetches one: called once, and only if a challenge is
        to be answered. An authorization that failed is final (RFC 9448 section 6): reason
        ACME_ORDER_INVALID, with every problem document the STI-CA left.
        """
        return await self.authorize_with(
            order_url, SpcTokenProof(spc_token, self._rules.challenge_field)
        )

    async def authorize_with(self, order_url: str, proof: Proof) -> Order:
        """The same with a proof of any kind."""
        order = await self._orders.living(order_url)
        if order.status is not OrderStatus.PENDING:
            return order
        response: dict[str, str] | None = None
        for url in order.authorizations:
            authorization, _ = await self._orders.authorization(url)
            if not await self._orders.still_open(order, authorization):
                continue
            challenge = self._challenge(authorization, proof)
            if challenge.status in (None, "pending"):
                response = response or await proof.response()
                await self._post(challenge.url, response, "challenge")
        patience = self._orders.patience()
        if self._rules.poll_target is PollTarget.AUTHORIZATION:
            for url in order.authorizations:
                final = await patience.until(is_final, self._orders.authorization, url)
                await self._orders.still_open(order, final)
        # Also after the authorizations: some servers move the order a moment later.
        return await self._orders.living(order_url, left_pending, patience)

    async def finalize(self, order_url: str, csr: bytes) -> Order:
        """Hand in the CSR (DER) of an order that is ready; a second time does nothing.

        ACME_BAD_CSR leaves the order ready for a better CSR. Raises Invalid (CSR_MALFORMED),
        Precondition (ACME_KEY_REUSED) for a CSR with the account's key: RFC 8555 section 11.1.
        """
        self._check_csr(csr)
        order = await self._orders.living(order_url)
        if order.status in (OrderStatus.PROCESSING, OrderStatus.VALID):
            return order
        answer = await self._post(order.finalize, {"csr": b64url(csr)}, "finalize")
        return messages.order(order_url, answer.parse(messages.OrderObject))

    async def collect(self, order_url: str) -> Chain:
        """Wait for the certificate and download its chain (RFC 8555 section 7.4.2).

        Raises Precondition (ACME_ORDER_NOT_FINALIZED) when the STI-CA has no CSR yet.
        """
        order = await self._orders.living(order_url, left_processing)
        if order.status is not OrderStatus.VALID:
            raise Precondition(
                "ACME_ORDER_NOT_FINALIZED",
                f"The order at STI-CA {self._name} is {order.status}: it has no CSR yet.",
                next_step="Authorize and finalize it first.",
                order=order_url,
            )
        types = self._rules.chain_media_types
        # One name found in the field is no media type; a strict server would refuse to read it.
        accept = ", ".join(name for name in types if "/" in name)
        answer = await self._post(order.certificate, None, "certificate", accept=accept)
        return chain(order, answer, types)

    async def revoke(self, certificate: bytes, reason: int, key: Key | None = None) -> None:
        """Revoke a certificate (DER) for an RFC 5280 section 5.3.1 reason code.

        key: the certificate's own, when the account is not to be used. A certificate that
        is revoked already is as good. Raises Invalid (REVOCATION_REASON_INVALID), PeerRefused
        (ACME_UNAUTHORIZED, ACME_BAD_REVOCATION_REASON, ACME_NOT_OFFERED).
        """
        revocation.check_reason(reason)
        signer = ByKey(key) if key else ByAccount(self._key, await self.ensure_account())
        await revocation.revoke(self._transport, signer, certificate, reason)

    async def _replacing(self, url: str, payload: dict[str, object], replaces: str) -> Answer:
        """An order that says what it replaces, or one that does not: an order in any case."""
        try:
            return await self._post(url, payload | {"replaces": replaces}, "newOrder")
        except PeerRefused as refused:
            if refused.reason not in OLD_CERTIFICATE_REFUSED:
                raise
        return await self._post(url, payload, "newOrder")

    async def _post(
        self, url: str, payload: object, resource: str, *, accept: str = "application/json"
    ) -> Answer:
        signer = ByAccount(self._key, await self.ensure_account())
        return await self._transport.post(url, payload, signer, resource, accept)

    def _challenge(self, authorization: Authorization, proof: Proof) -> messages.Challenge:
        for challenge in authorization.challenges:
            if proof.takes(challenge):
                return challenge
        offered = ", ".join(challenge.type for challenge in authorization.challenges) or "nothing"
        raise PeerRefused(
            "ACME_NO_CHALLENGE",
            f"STI-CA {self._name} offers no challenge that can be answered here: "
            f"{problems.printable(offered)}.",
            peer=problems.PEER,
            next_step="Check that `directory` is that of its TNAuthList service (tkauth-01, atc).",
            issuer=self._name,
        )

    def _check_csr(self, csr: bytes) -> None:
        try:
            public = x509.load_der_x509_csr(csr).public_key()
        except ValueError as error:
            raise Invalid("CSR_MALFORMED", "The CSR is no DER CertificationRequest.") from error
        if public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == (
            self._key.public_key
        ):
            raise Precondition(
                "ACME_KEY_REUSED",
                "The CSR is for the account's own key, which RFC 8555 section 11.1 forbids.",
                next_step="Make a key of its own for the certificate.",
            )


def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
