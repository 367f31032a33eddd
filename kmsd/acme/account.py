"""The account at an ACME server: made or found by its key, and given another key.

RFC 8555 sections 7.3 (newAccount), 7.3.4 (external account binding), 7.3.5 (keyChange).
"""

from kmsd import jose
from kmsd.acme.messages import AccountObject, Directory, DirectoryMeta, verbatim
from kmsd.acme.problems import PEER, printable
from kmsd.acme.signing import ByAccount, ByKey, Key, header
from kmsd.acme.transport import Answer, Transport
from kmsd.errors import Misconfigured, PeerRefused, Unavailable
from kmsd.settings import Issuer


async def ensure(transport: Transport, issuer: Issuer, key: Key, mac_key: bytes | None) -> str:
    """The URL of the account that has `key`; there is one afterwards.

    mac_key: of the external account binding, decoded. Raises Misconfigured
    (ACME_TERMS_NOT_AGREED, ACME_EAB_REQUIRED, ACME_EAB_KEY_MISSING), PeerRefused
    (ACME_ACCOUNT_UNUSABLE for an account that was deactivated or revoked).
    """
    directory = await transport.directory()
    signer = ByKey(key, issuer.resolved().jwk_kid)
    payload: dict[str, object] = {}
    if issuer.contact:
        payload["contact"] = issuer.contact
    if _agreed(transport.name, directory, issuer):
        payload["termsOfServiceAgreed"] = True
    binding = _binding(transport.name, directory, issuer, signer, mac_key)
    if binding is not None:
        payload["externalAccountBinding"] = binding
    answer = await transport.post(directory.new_account, payload, signer, "newAccount")
    url = answer.location()
    if not answer.body.strip():  # some STI-CAs: the account itself must be asked
        answer = await transport.post(url, None, ByAccount(key, url), "account")
    _check_usable(transport.name, answer)
    return url


async def find(transport: Transport, issuer: Issuer, key: Key) -> str:
    """The URL of the account that has `key`; empty when none has. Nothing is made.

    RFC 8555 section 7.3.1. Raises Unavailable, and PeerRefused (ACME_ANSWER_MALFORMED,
    ACME_REDIRECT), when it is not the STI-CA that answers.
    """
    directory = await transport.directory()
    signer = ByKey(key, issuer.resolved().jwk_kid)
    try:
        answer = await transport.post(
            directory.new_account, {"onlyReturnExisting": True}, signer, "newAccount"
        )
    except PeerRefused as refused:
        if refused.reason in _NO_ANSWER:
            raise
        return ""  # accountDoesNotExist by the RFC, and whatever the field says in its place
    return answer.location()


async def roll(
    transport: Transport, issuer: Issuer, old_key: Key, new_key: Key, account_url: str
) -> str:
    """The URL of the account that had `old_key`; it has `new_key` afterwards.

    account_url: empty when it is not known. After a lost reply or a crash the same call ends
    what was begun: the STI-CA is asked which of the two keys it knows. Raises PeerRefused
    (ACME_KEY_IN_USE when the new key is another account's, ACME_ACCOUNT_DOES_NOT_EXIST when
    neither key has an account, ACME_NOT_OFFERED), Unavailable.
    """
    url = account_url or await find(transport, issuer, old_key)
    if not url:  # rolled already, or there never was one
        if owner := await find(transport, issuer, new_key):
            return owner
        raise _lost(transport.name)
    try:
        await _change(transport, ByAccount(old_key, url), new_key)
    except (PeerRefused, Unavailable) as error:
        if error.reason in _NOT_JUDGED:
            raise
        # Whose key it is counts, not the status: a lost reply, 409, or even 500 (seen).
        owner = await find(transport, issuer, new_key)
        if not owner:
            raise
        if owner != url:
            raise _in_use(transport.name, error) from error
    return url


_NO_ANSWER = frozenset({"ACME_ANSWER_MALFORMED", "ACME_REDIRECT"})
"""A captive portal knows nothing of accounts: to believe it would be to make a second one."""
_NOT_JUDGED = frozenset({"ACME_NOT_OFFERED", "ACME_RATE_LIMITED"})
"""Refusals that ask for no second question: there is nothing to learn, or it would be refused."""


async def _change(transport: Transport, account: ByAccount, new_key: Key) -> None:
    """keyChange: the new key's signature inside, the old one's around it (section 7.3.5)."""
    url = (await transport.directory()).key_change
    if not url:
        raise not_offered(transport.name, "keyChange")
    change = {"account": account.url, "oldKey": jose.jwk(account.key.public_key)}
    inner = jose.unsigned(header(ByKey(new_key), url), jose.compact_json(change))
    payload = inner.signed(await new_key.sign(inner.signing_input))
    await transport.post(url, payload, account, "keyChange")


def not_offered(issuer: str, resource: str) -> PeerRefused:
    """The server's directory does not have this."""
    return PeerRefused(
        "ACME_NOT_OFFERED",
        f"The directory of STI-CA {issuer} has no {resource}.",
        peer=PEER,
        next_step="Ask the STI-CA how else to do it.",
        issuer=issuer,
        resource=resource,
    )


def _agreed(name: str, directory: Directory, issuer: Issuer) -> bool:
    terms = (directory.meta or DirectoryMeta()).terms_of_service
    if terms and not issuer.terms_of_service_agreed:
        raise Misconfigured(
            "ACME_TERMS_NOT_AGREED",
            f"STI-CA {name} makes accounts only for who agrees to its terms: {printable(terms)}.",
            next_step="Read them; set terms_of_service_agreed = true of this issuer.",
            issuer=name,
        )
    return issuer.terms_of_service_agreed


def _binding(
    name: str, directory: Directory, issuer: Issuer, signer: ByKey, mac_key: bytes | None
) -> dict[str, str] | None:
    if not issuer.eab_key_id:
        if (directory.meta or DirectoryMeta()).external_account_required:
            raise Misconfigured(
                "ACME_EAB_REQUIRED",
                f"STI-CA {name} makes accounts only for its customers (external account binding).",
                next_step="Ask the STI-CA for a key id and a MAC key; set eab_key_id and "
                "eab_mac_key of this issuer.",
                issuer=name,
            )
        return None
    if not mac_key:
        raise Misconfigured(
            "ACME_EAB_KEY_MISSING",
            f"Issuer {name} has an eab_key_id but no MAC key to go with it.",
            next_step="Set eab_mac_key of this issuer.",
            issuer=name,
        )
    protected = {"alg": "HS256", "kid": issuer.eab_key_id, "url": directory.new_account}
    # The very JWK of the outer header, extra members and all: servers compare.
    key = header(signer, directory.new_account)["jwk"]
    return jose.unsigned(protected, jose.compact_json(key)).maced(mac_key)


def _check_usable(name: str, answer: Answer) -> None:
    status = answer.parse(AccountObject).status if answer.body.strip() else None
    if status not in (None, "valid"):
        raise PeerRefused(
            "ACME_ACCOUNT_UNUSABLE",
            f"The account at STI-CA {name} is {printable(status)}.",
            peer=PEER,
            problem=verbatim(answer.body),
            next_step="Make another account key; a deactivated account never comes back.",
            issuer=name,
        )


def _in_use(name: str, error: PeerRefused | Unavailable) -> PeerRefused:
    said = error.problem if isinstance(error, PeerRefused) else error.metadata.get("problem", "")
    return PeerRefused(
        "ACME_KEY_IN_USE",
        f"The new key has another account at STI-CA {name} already.",
        peer=PEER,
        problem=said,
        next_step="Make a new key for the account.",
        issuer=name,
    )


def _lost(issuer: str) -> PeerRefused:
    return PeerRefused(
        "ACME_ACCOUNT_DOES_NOT_EXIST",
        f"STI-CA {issuer} knows neither the old key of the account nor the new one.",
        peer=PEER,
        next_step="The next order makes an account with the key that is configured for it.",
        issuer=issuer,
        resource="keyChange",
    )
