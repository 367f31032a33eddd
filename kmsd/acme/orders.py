"""Orders and authorizations as the STI-CA shows them: looked at, waited for, and why one died.

RFC 8555 sections 7.1.6 (states) and 7.5.1 (polling). Nothing is changed from here: what moves
an order on is the client's business.
"""

from collections.abc import Awaitable, Callable

from kmsd.acme import messages, problems
from kmsd.acme.messages import Authorization, AuthorizationStatus, Order, OrderStatus
from kmsd.acme.polling import Patience
from kmsd.acme.transport import Answer
from kmsd.errors import PeerRefused, Unavailable


class Orders:
    """The orders of one account.

    name: of the issuer in the configuration. limit: seconds to wait for anything. ask: a request
    signed by the account: URL, payload (None: a POST-as-GET), the RFC's word for what it is.
    """

    def __init__(
        self, name: str, limit: float, ask: Callable[[str, None, str], Awaitable[Answer]]
    ) -> None:
        self._name = name
        self._limit = limit
        self._ask = ask

    async def order(self, url: str) -> tuple[Order, float | None]:
        """The order at `url`, and in how many seconds the STI-CA wants to be asked again."""
        answer = await self._ask(url, None, "order")
        return messages.order(url, answer.parse(messages.OrderObject)), answer.retry_after()

    async def authorization(self, url: str) -> tuple[Authorization, float | None]:
        """The same of an authorization."""
        answer = await self._ask(url, None, "authorization")
        return answer.parse(Authorization), answer.retry_after()

    async def living(
        self,
        url: str,
        enough: Callable[[Order], bool] = lambda order: True,
        patience: Patience | None = None,
    ) -> Order:
        """The order as soon as it is `enough`.

        Raises PeerRefused (ACME_ORDER_INVALID) when it is dead, Unavailable (ACME_POLL_LIMIT).
        """
        order = await (patience or self.patience()).until(enough, self.order, url)
        if order.status is OrderStatus.INVALID:
            raise await self._dead(order)
        return order

    def patience(self) -> Patience:
        """For one job, however much it has to look at."""
        return Patience(self._name, self._limit)

    async def still_open(self, order: Order, authorization: Authorization) -> bool:
        """Whether it is to be answered yet. Raises PeerRefused (ACME_ORDER_INVALID)."""
        match authorization.status:
            case AuthorizationStatus.PENDING:
                return True
            case AuthorizationStatus.VALID:
                return False
            case _:
                raise await self._dead(order)

    async def _dead(self, order: Order) -> PeerRefused:
        documents: list[str] = []
        judged = False
        for url in order.authorizations:
            try:
                authorization, _ = await self.authorization(url)
            except (PeerRefused, Unavailable):
                continue  # an order that is gone often takes its authorizations with it
            judged = judged or authorization.status is AuthorizationStatus.INVALID
            errors = (messages.kept(challenge.error) for challenge in authorization.challenges)
            documents += [document for document in errors if document]
        return problems.order_invalid(self._name, order.url, order.error, documents, judged=judged)


def left_pending(order: Order) -> bool:
    """Its authorizations are through, or it is dead."""
    return order.status is not OrderStatus.PENDING


def left_processing(order: Order) -> bool:
    """The STI-CA is done with it, or waits for us."""
    return order.status is not OrderStatus.PROCESSING


def is_final(authorization: Authorization) -> bool:
    """The answer to its challenge was judged, or it is dead."""
    return authorization.status is not AuthorizationStatus.PENDING
