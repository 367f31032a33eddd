"""ACME orders for TNAuthList identifiers (RFC 8555 section 7.4 and 7.5, RFC 9447, RFC 9448)."""

import secrets
from typing import Any

from kmsd.lab import issuance, jws, renewal, tnauth
from kmsd.lab.checks import Expected, Published, check_token
from kmsd.lab.csr import check_csr
from kmsd.lab.problem import Problem
from kmsd.lab.reply import Reply, retry_after
from kmsd.lab.signed import Signed
from kmsd.lab.state import Issued, Order, Outcome
from kmsd.lab.world import World, rfc3339

_ORDER_SECONDS = 3600.0
_NEVER = float("inf")


def new_order(world: World, signed: Signed) -> Reply:
    own = signed.by_account()
    if world.switches.order == "rate_limited":
        headers = _retry(world)
        raise Problem("rateLimited", "Too many orders for this account.", headers=headers)
    body = signed.body()
    value = _identifier(body)
    try:
        der = tnauth.read_text(value, world.switches.encoding)
    except ValueError as error:
        raise Problem("malformed", f"The identifier's value is {error}.") from error
    try:
        spc = tnauth.read_spc(der)
    except ValueError as error:
        raise Problem("rejectedIdentifier", f"The identifier is {error}.") from error
    order = Order(
        id=secrets.token_hex(8),
        account=own.id,
        identifier=value,
        der=der,
        spc=spc,
        expires=world.now() + _ORDER_SECONDS,
        token=secrets.token_urlsafe(24),
        not_before=_text(body, "notBefore"),
        not_after=_text(body, "notAfter"),
        replaces=renewal.replaces(world, own, der, body),
    )
    try:
        issuance.validity(order, world)
    except (ValueError, OverflowError) as error:
        raise Problem("malformed", f"The order's times do not do: {error}.") from error
    world.book.orders[order.id] = order
    return _order(world, order, status=201)


def order(world: World, signed: Signed, name: str) -> Reply:
    _nothing_but_a_get(signed)
    return _order(world, _own(world, signed, name))


def authorization(world: World, signed: Signed, name: str) -> Reply:
    """POST-as-GET, or `{"status": "deactivated"}` (section 7.5.2)."""
    own = _own(world, signed, name)
    if not signed.as_get:
        if signed.body().get("status") != "deactivated":
            raise Problem("malformed", "An authorization can only be deactivated.")
        if own.authorization_status(world.now()) not in ("pending", "valid"):
            raise Problem("malformed", "The authorization is final.")
        own = world.book.change_order(own, deactivated=True)
    now = world.now()
    status = own.authorization_status(now)
    body = {
        "identifier": {"type": "TNAuthList", "value": own.identifier},
        "status": status,
        "expires": rfc3339(own.expires),
        "challenges": [_challenge(world, own)],
    }
    waiting = own.answer is not None and status == "pending"
    return Reply(body, headers=_retry(world) if waiting else {})


def challenge(world: World, signed: Signed, name: str, published: Published) -> Reply:
    """The SPC token comes here (RFC 9448 section 4); one answer only, good or bad.

    published: looks up the chain behind a token's x5u.
    """
    own = _own(world, signed, name)
    headers = {"Link": f'<{world.urls.ca}/authorization/{own.id}>;rel="up"'}
    if not signed.as_get:
        token = _token(world, signed)
        if own.authorization_status(world.now()) != "pending":
            raise Problem("malformed", "The authorization is no longer pending.")
        if own.answer is None:
            own = _answer(world, signed, own, token, published)
    if own.challenge_status(world.now()) == "processing":
        headers |= _retry(world)
    return Reply(_challenge(world, own), headers=headers)


def finalize(world: World, signed: Signed, name: str) -> Reply:
    """A CSR that does not do leaves the order ready, so that a better one may come (7.4)."""
    own = _own(world, signed, name)
    text = signed.body().get("csr")
    status = own.status(world.now())
    if status != "ready":
        raise Problem("orderNotReady", f"The order is {status}, not ready.")
    if not isinstance(text, str):
        raise Problem("malformed", "csr is a text.")
    try:
        der = jws.decode(text)
    except ValueError as error:
        raise Problem("malformed", f"csr is {error}.") from error
    if world.switches.order == "bad_csr":
        raise Problem("badCSR", "The subject's O is not in our records.")
    request = check_csr(der, own, world)
    match world.switches.order:
        case "invalid":
            problem = Problem("serverInternal", "The certificate could not be made.")
            outcome = Outcome(world.settles_at(), problem)
            return _order(world, world.book.change_order(own, issuance=outcome))
        case "never_issued":
            outcome = Outcome(_NEVER)
            return _order(world, world.book.change_order(own, issuance=outcome))
    made, chain = issuance.issue(request, own, world)
    issued = Issued(
        id=secrets.token_hex(16),
        account=own.account,
        order=own.id,
        certificate=made,
        chain=chain,
        thumbprint=jws.thumbprint(request.key),
        subject=made.subject.public_bytes(),
        renewal_name=renewal.name_of(made),
    )
    world.book.issued[issued.id] = issued
    outcome = Outcome(world.settles_at())
    changed = world.book.change_order(own, issuance=outcome, certificate=issued.id)
    return _order(world, changed)


def certificate(world: World, signed: Signed, name: str) -> Reply:
    """The chain, leaf first (section 7.4.2)."""
    own = signed.by_account()
    _nothing_but_a_get(signed)
    issued = world.book.issued.get(name)
    if issued is None or issued.account != own.id:
        raise Problem("malformed", "There is no such certificate.", status=404)
    if world.book.orders[issued.order].status(world.now()) != "valid":
        raise Problem("malformed", "There is no such certificate.", status=404)
    headers = {}
    if world.switches.x5u_header:
        headers["X-Shaken-Certificate-Location"] = world.urls.x5u(issued.id)
    return Reply(issued.chain, media_type=world.switches.chain_media_type, headers=headers)


def _identifier(body: dict[str, Any]) -> str:
    """The value of the one TNAuthList identifier. Raises Problem."""
    identifiers = body.get("identifiers")
    if not isinstance(identifiers, list) or not identifiers:
        raise Problem("malformed", "identifiers is an array that is not empty.")
    for each in identifiers:
        match each:
            case {"type": "TNAuthList", "value": str()}:
                pass
            case {"type": str(kind), "value": str()} if kind != "TNAuthList":
                raise Problem("unsupportedIdentifier", f"Identifiers {kind!r} are not served.")
            case _:
                raise Problem("malformed", "An identifier has the texts type and value.")
    if len(identifiers) != 1:
        raise Problem("rejectedIdentifier", "An order has one TNAuthList here.")
    value: str = identifiers[0]["value"]
    return value


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise Problem("malformed", f"{name} is a text.")
    return value


def _token(world: World, signed: Signed) -> object:
    """The SPC token in the challenge response, from the member this STI-CA reads."""
    body = signed.body()
    wanted = world.switches.challenge_field
    fields = ("tkauth", "atc") if wanted == "either" else (wanted,)
    present = [name for name in ("tkauth", "atc") if name in body]
    if len(present) != 1 or present[0] not in fields:
        raise Problem("malformed", f"The response has the one member {' or '.join(fields)}.")
    return body[present[0]]


def _answer(world: World, signed: Signed, own: Order, token: object, published: Published) -> Order:
    """Judges the token now; the verdict shows when the clock gets there."""
    match world.switches.order:
        case "challenge_refused":
            problem = Problem("unauthorized", "The STI-PA does not vouch for this SPC.")
            return world.book.change_order(own, answer=Outcome(world.settles_at(), problem))
        case "challenge_malformed":
            raise Problem("malformed", "The token's claims are not what this STI-CA takes.")
        case "challenge_unreachable":
            problem = Problem("connection", "The token's x5u did not answer.")
            return world.book.change_order(own, answer=Outcome(world.settles_at(), problem))
        case "never_ready":
            return world.book.change_order(own, answer=Outcome(_NEVER))
    expected = Expected(
        der=own.der,
        account_key=signed.key,
        root=world.pki.pa_root.certificate,
        published=published,
        now=world.now(),
        used=world.book.jtis,
        switches=world.switches,
    )
    try:
        accepted = check_token(token, expected)
    except Problem as problem:
        return world.book.change_order(own, answer=Outcome(world.settles_at(), problem))
    world.book.jtis.add(accepted.jti)
    outcome = Outcome(world.settles_at())
    return world.book.change_order(own, answer=outcome, token_ca=accepted.ca)


def _own(world: World, signed: Signed, name: str) -> Order:
    """The order of that id, when it is this account's: else as if there were none."""
    own = world.book.orders.get(name)
    if own is None or own.account != signed.by_account().id:
        raise Problem("malformed", "There is no such order of this account.", status=404)
    return own


def _nothing_but_a_get(signed: Signed) -> None:
    if not signed.as_get:
        raise Problem("malformed", "This is fetched with POST-as-GET (RFC 8555 section 6.3).")


def _retry(world: World) -> dict[str, str]:
    return retry_after(world.switches, world.switches.retry_after)


def _order(world: World, own: Order, status: int = 200) -> Reply:
    now, ca = world.now(), world.urls.ca
    state = own.status(now)
    body: dict[str, Any] = {
        "status": state,
        "expires": rfc3339(own.expires),
        "identifiers": [{"type": "TNAuthList", "value": own.identifier}],
        "authorizations": [f"{ca}/authorization/{own.id}"],
        "finalize": f"{ca}/order/{own.id}/finalize",
    }
    times = {"notBefore": own.not_before, "notAfter": own.not_after, "replaces": own.replaces}
    body |= {name: value for name, value in times.items() if value}
    if state == "valid":
        body["certificate"] = f"{ca}/certificate/{own.certificate}"
        if world.switches.order_x5u:
            body["x5u"] = world.urls.x5u(own.certificate)
    if state == "invalid":
        outcome = own.issuance or own.answer
        if outcome and outcome.problem:
            body["error"] = outcome.problem.document()
    headers = {"Location": f"{ca}/order/{own.id}"}
    waiting = state == "processing" or (state == "pending" and own.answer is not None)
    return Reply(body, status=status, headers=headers | (_retry(world) if waiting else {}))


def _challenge(world: World, own: Order) -> dict[str, Any]:
    now = world.now()
    status = own.challenge_status(now)
    body: dict[str, Any] = {
        "type": "tkauth-01",
        "tkauth-type": "atc",
        "token-authority": world.urls.pa,
        "url": f"{world.urls.ca}/challenge/{own.id}",
        "status": status,
    }
    if world.switches.challenge_token:
        body["token"] = own.token
    if status == "valid" and own.answer:
        body["validated"] = rfc3339(own.answer.settles_at)
    if status == "invalid" and own.answer and own.answer.problem:
        body["error"] = own.answer.problem.document()
    return body
