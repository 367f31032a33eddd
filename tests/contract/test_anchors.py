"""Trust material: the last good one counts, and a dead STI-PA is not asked by everybody."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from cryptography.hazmat.primitives.serialization import Encoding

from kmsd.anchors import CRL_EVERY, LIST_EVERY, RETRY_EVERY, RETRY_SOON, Anchors, Material
from kmsd.counterparts import Counterparts
from kmsd.errors import KmsdError, Unavailable
from kmsd.model import RevocationList, TrustList
from kmsd.store import Store
from tests.pki import certify, key_usage, make_crl

DAY = 86_400
ROOT = certify("STI-PA", ca=True, usage=key_usage(signs=True, ca=True, crl=True))
CRL_DER = make_crl(ROOT).public_bytes(Encoding.DER)
DOWN = Unavailable("STI_PA_DOWN", "The STI-PA does not answer.")


class Peer:
    """An STI-PA whose lists have the number of the fetch, and that can be taken down."""

    def __init__(self) -> None:
        self.list_trouble: KmsdError | None = None
        self.crl_trouble: KmsdError | None = None
        self.lists = self.crls = 0
        self.asked: list[str] = []

    async def trust_list(self, last: TrustList | None, now: int) -> TrustList:
        self.asked.append("list")
        await asyncio.sleep(0)
        if self.list_trouble:
            raise self.list_trouble
        self.lists += 1
        return TrustList("pa", self.lists, now + DAY, now, ("ROOT",))

    async def crl(self, last: RevocationList | None, now: int) -> RevocationList:
        self.asked.append("crl")
        await asyncio.sleep(0)
        if self.crl_trouble:
            raise self.crl_trouble
        self.crls += 1
        return RevocationList("pa", str(self.crls), now + DAY, now, CRL_DER)


class Keeper:
    """Anchors over one peer, and the clock."""

    def __init__(self, store: Store) -> None:
        self.now = 1_800_000_000
        self.peer = Peer()
        self.store = store
        self.anchors = self.restarted()

    def restarted(self) -> Anchors:
        return Anchors(self.store, cast(Counterparts, self), lambda: self.now)

    def authority(self, name: str) -> Any:
        """As Counterparts gives it."""
        assert name == "pa"
        return self.peer

    async def sequence(self) -> int:
        return (await self.anchors.material("pa")).trust_list.sequence


def numbers(material: Material) -> tuple[int, str]:
    assert material.crl is not None
    return material.trust_list.sequence, material.crl.number


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    with Store.open(f"sqlite:///{tmp_path}/kmsd.db") as store:
        yield Keeper(store)


async def test_material_is_fetched_once_and_then_when_it_is_due(keeper: Keeper) -> None:
    material = await keeper.anchors.material("pa")
    assert numbers(material) == (1, "1")
    await keeper.anchors.material("pa")
    assert keeper.peer.asked == ["list", "crl"]
    keeper.now += CRL_EVERY
    await keeper.anchors.material("pa")
    assert keeper.peer.asked == ["list", "crl", "crl"]
    keeper.now += LIST_EVERY
    assert await keeper.sequence() == 2


async def test_the_last_good_material_counts_while_the_sti_pa_is_down(keeper: Keeper) -> None:
    await keeper.anchors.material("pa")
    keeper.peer.list_trouble = keeper.peer.crl_trouble = DOWN
    keeper.now += LIST_EVERY
    material = await keeper.anchors.material("pa")
    assert numbers(material) == (1, "1")
    assert keeper.anchors.trouble("pa") is DOWN
    keeper.peer.list_trouble = keeper.peer.crl_trouble = None
    keeper.now += RETRY_EVERY
    assert await keeper.sequence() == 2
    assert keeper.anchors.trouble("pa") is None


async def test_a_clock_that_was_set_back_puts_nothing_off(keeper: Keeper) -> None:
    await keeper.anchors.material("pa")
    keeper.now -= DAY
    assert await keeper.sequence() == 2
    keeper.now += 2 * DAY
    keeper.peer.list_trouble = keeper.peer.crl_trouble = DOWN
    with pytest.raises(Unavailable, match="has expired"):
        await keeper.anchors.material("pa")
    keeper.peer.list_trouble = keeper.peer.crl_trouble = None
    keeper.now -= DAY
    assert await keeper.sequence() == 3
    assert keeper.anchors.trouble("pa") is None


async def test_a_dead_sti_pa_is_asked_now_and_then_not_by_everybody(keeper: Keeper) -> None:
    await keeper.anchors.material("pa")
    keeper.peer.list_trouble = keeper.peer.crl_trouble = DOWN
    keeper.now += LIST_EVERY
    with structlog.testing.capture_logs() as logs:
        await asyncio.gather(*(keeper.anchors.material("pa") for _ in range(10)))
        assert keeper.peer.asked == ["list", "crl"] * 2
        keeper.now += RETRY_EVERY
        await keeper.anchors.material("pa")
    assert keeper.peer.asked == ["list", "crl"] * 3
    assert [entry["what"] for entry in logs] == ["list", "crl"]


async def test_the_crl_is_fetched_also_when_the_list_is_not_to_be_had(keeper: Keeper) -> None:
    await keeper.anchors.material("pa")
    keeper.peer.list_trouble = DOWN
    keeper.now += LIST_EVERY
    material = await keeper.anchors.material("pa")
    assert numbers(material) == (1, "2")
    assert keeper.anchors.trouble("pa") is DOWN


async def test_without_a_first_list_nothing_is_believed_and_the_reason_is_said(
    keeper: Keeper,
) -> None:
    keeper.peer.list_trouble = DOWN
    with pytest.raises(Unavailable, match=r"yet\. The STI-PA does not answer\.") as missing:
        await keeper.anchors.material("pa")
    assert missing.value.reason == "TRUST_LIST_MISSING"
    keeper.peer.list_trouble = None
    assert await keeper.sequence() == 1  # at once: somebody waits for the first one


async def test_an_expired_list_is_not_gone_by(keeper: Keeper) -> None:
    await keeper.anchors.material("pa")
    keeper.peer.list_trouble = DOWN
    keeper.now += DAY
    with pytest.raises(Unavailable, match=r"expired\. The STI-PA does not answer\.") as expired:
        await keeper.anchors.material("pa")
    assert expired.value.reason == "TRUST_LIST_EXPIRED"
    keeper.peer.list_trouble = None
    keeper.now += RETRY_SOON
    assert await keeper.sequence() == 2


async def test_the_last_good_material_survives_a_restart(keeper: Keeper) -> None:
    await keeper.anchors.material("pa")
    keeper.peer.list_trouble = keeper.peer.crl_trouble = DOWN
    keeper.anchors = keeper.restarted()
    assert await keeper.sequence() == 1
    keeper.now += LIST_EVERY
    assert await keeper.sequence() == 1


async def test_a_csr_gets_the_issuer_of_the_crl(keeper: Keeper) -> None:
    keeper.peer.crl_trouble = DOWN
    with pytest.raises(Unavailable) as missing:
        await keeper.anchors.crl_issuer("pa")
    assert missing.value.reason == "CRL_MISSING"
    keeper.peer.crl_trouble = None
    issuer = ROOT.certificate.subject.rfc4514_string()
    assert await keeper.anchors.crl_issuer("pa") == issuer


async def test_an_expired_crl_is_not_asked_for_by_everybody_either(keeper: Keeper) -> None:
    await keeper.anchors.material("pa")
    keeper.peer.crl_trouble = DOWN
    keeper.now += DAY + 1
    for _ in range(5):
        await keeper.anchors.material("pa")
    assert keeper.peer.asked.count("crl") == 2
    keeper.now += RETRY_SOON
    await keeper.anchors.material("pa")
    assert keeper.peer.asked.count("crl") == 3
