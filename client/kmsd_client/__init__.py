"""Signing of PASSporTs at kmsd, for authentication servers (STI-AS).

    async with AsyncClient("signer:7443", tls=Tls(ca, certificate, key), profile="acme") as client:
        signed = await client.sign_shaken("+12155550112", "+12155550113", "A")
        invite.headers["Identity"] = str(signed)

`Client` is the same without asyncio. Every call has a deadline (1 second if not said otherwise)
and raises a `SigningError` that says whether to ask again. Keys, certificates and the decision
who may sign what stay with the signer; this is only the way to it.
"""

from kmsd_client.answers import (
    ActiveCredential,
    CalledOff,
    ComingCredential,
    CredentialChange,
    Signed,
    Synced,
    Withdrawn,
)
from kmsd_client.asynchronous import AsyncClient
from kmsd_client.blocking import Client
from kmsd_client.errors import (
    DeadlineExceeded,
    Denied,
    Overloaded,
    Refused,
    SigningError,
    Unavailable,
)
from kmsd_client.passports import Attest, Base, Dest, Div, Passport, Rcd, Rph, Shaken
from kmsd_client.tls import Tls

__all__ = [
    "ActiveCredential",
    "AsyncClient",
    "Attest",
    "Base",
    "CalledOff",
    "Client",
    "ComingCredential",
    "CredentialChange",
    "DeadlineExceeded",
    "Denied",
    "Dest",
    "Div",
    "Overloaded",
    "Passport",
    "Rcd",
    "Refused",
    "Rph",
    "Shaken",
    "Signed",
    "SigningError",
    "Synced",
    "Tls",
    "Unavailable",
    "Withdrawn",
]
