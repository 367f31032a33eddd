"""Steps that were begun and are tried again, with counterparts that say what they are told to."""

from types import SimpleNamespace
from typing import Any, cast

from kmsd.enrollment import Activate, Deferred, Ended, Switched
from kmsd.errors import PeerRefused, Unavailable
from kmsd.model import Credential
from kmsd.steps import Steps
from tests.contract.test_switch import published

NOW = 15


class Signers:
    """What the signers were told. told: the credentials that they sign with."""

    def __init__(self, *told: str, behind: bool = False) -> None:
        self._told = set(told)
        self._behind = behind

    def holds(self, credential: Credential) -> bool:
        return credential.id in self._told

    async def activate(self, credential: Credential) -> int:
        self._told.add(credential.id)
        if self._behind:
            raise Unavailable("SIGNER_BEHIND", "Signer 1 has not followed.")
        return 7


def steps(signers: Signers, now: int = NOW) -> Steps:
    """Where every chain that is fetched back fails verification."""

    async def fetch_back(*_: object) -> str:
        raise PeerRefused("VERIFICATION_FAILED", "It is on the CRL.", peer="sti-cr")

    async def nobody(*_: object) -> None:
        return None

    parts: Any = SimpleNamespace
    return Steps(
        cast(Any, parts(profiles={})),
        cast(Any, None),
        cast(Any, parts(given_up=nobody, fared=nobody)),
        cast(Any, None),
        cast(Any, None),
        cast(Any, parts(fetch_back=fetch_back)),
        cast(Any, signers),
        lambda: now,
    )


async def test_a_chain_that_does_not_verify_never_reaches_the_signers() -> None:
    signers, credential = Signers(), published(1)
    outcome = await steps(signers).perform(credential, Activate())
    assert isinstance(outcome, Ended)
    assert outcome.reason == "VERIFICATION_FAILED"
    assert not signers.holds(credential)


async def test_what_the_signers_were_told_to_sign_with_does_not_fail_any_more() -> None:
    credential = published(1)
    outcome = await steps(Signers(credential.id)).perform(credential, Activate())
    assert outcome == Switched(7)  # its key would be destroyed under them


async def test_signers_that_lag_behind_are_waited_for_past_the_end_of_the_certificate() -> None:
    credential = published(1)
    signers = Signers(credential.id, behind=True)
    outcome = await steps(signers, now=10**9).perform(credential, Activate())
    assert isinstance(outcome, Deferred)
    assert outcome.reason == "SIGNER_BEHIND"
