"""Problem documents of the STI-CA (RFC 8555 section 6.7, RFC 7807)."""

from typing import Any

PREFIX = "urn:ietf:params:acme:error:"

_STATUS = {
    "accountDoesNotExist": 400,
    "alreadyReplaced": 409,
    "alreadyRevoked": 400,
    "badCSR": 400,
    "badNonce": 400,
    "badPublicKey": 400,
    "badRevocationReason": 400,
    "badSignatureAlgorithm": 400,
    "connection": 400,
    "externalAccountRequired": 403,
    "incorrectResponse": 403,
    "invalidContact": 400,
    "malformed": 400,
    "orderNotReady": 403,
    "rateLimited": 429,
    "rejectedIdentifier": 400,
    "serverInternal": 500,
    "unauthorized": 403,
    "unsupportedContact": 400,
    "unsupportedIdentifier": 400,
    "userActionRequired": 403,
}


class Problem(Exception):
    """A request or a challenge is refused.

    kind: the last part of the error URN. detail: one sentence for people.
    status: HTTP status; 0 takes the usual one of `kind`. headers: of the reply.
    members: extension members of the document (RFC 7807 section 3.2).
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        status: int = 0,
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.status = status or _STATUS[kind]
        self.headers = headers or {}
        self.members = members

    def document(self) -> dict[str, Any]:
        """What goes over the wire, also as `error` inside a challenge or an order."""
        return {
            "type": PREFIX + self.kind,
            "detail": self.detail,
            "status": self.status,
            **self.members,
        }
