"""A real signer under a thousand switches: whatever it signs, key and x5u are of one credential."""

import asyncio
import os
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from kmsd_client import (
    ActiveCredential,
    AsyncClient,
    CalledOff,
    ComingCredential,
    Signed,
    Synced,
    Tls,
    Withdrawn,
)
from msgspec.structs import replace

from kmsd.model import BirthRecord
from tests.contract.signing_contract import GOOD
from tests.contract.tokens import read_identity, verify_signature
from tests.system.programs import until
from tests.system.signing_host import SigningHost

PROFILES = ("acme", "other")
SWITCHES = 1000
EACH = 3
"""Keys of a profile; they take turns."""
FRAME = 8


async def test_key_and_x5u_never_mix_across_a_thousand_switches_while_frames_are_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is announced first; nothing is signed with what is only announced."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # of the keyring, written here
    host = SigningHost(tmp_path, profiles=PROFILES, threads=2)
    births = [[host.key() for _ in range(EACH)] for _ in PROFILES]
    keys = [[_public(birth) for birth in of_one] for of_one in births]
    pattern = host.entry(births[0][0])
    done = asyncio.Event()

    def switch(number: int) -> None:
        turn, which = divmod(number, len(PROFILES))
        entry = host.entry(births[which][turn % EACH], PROFILES[which], number)
        never = replace(pattern, profile=PROFILES[which], credential="f" * 16, x5u="https://x/no")
        host.keyring.announce([never.public()])
        host.keyring.announce([entry.public()])
        host.activate(entry)

    async def sign(client: AsyncClient, profile: str) -> list[list[Signed]]:
        frames = []
        while not done.is_set():
            frame = await client.sign_many([GOOD] * FRAME, profile=profile, timeout=10)
            frames.append([one for one in frame if isinstance(one, Signed)])
        return frames

    for first in range(len(PROFILES)):
        switch(first)
    with host.signer():
        host.until_serving()
        files = host.caller("as1")
        tls = Tls(files.ca, files.certificate, files.key)
        async with AsyncClient(f"localhost:{host.port}", tls=tls) as client:
            watching = asyncio.create_task(_watched(client, SWITCHES - 1))
            signing = [asyncio.create_task(sign(client, name)) for name in PROFILES]
            for number in range(len(PROFILES), SWITCHES):
                switch(number)
                await asyncio.sleep(0.003)
            await asyncio.to_thread(until, "the signer follows", lambda: _follows(host))
            told = await asyncio.wait_for(watching, 10)
            done.set()
            signed = await asyncio.gather(*signing)
    epochs: set[int] = set()
    for frames in signed:
        for frame in frames:
            assert len(frame) == FRAME  # none was refused
            tokens = [read_identity(str(one)) for one in frame]
            [x5u] = {token.x5u for token in tokens}
            [epoch] = {one.epoch for one in frame}
            number = int(x5u.rsplit("/", 1)[1].removesuffix(".pem"), 16)
            turn, which = divmod(number, len(PROFILES))
            # One switch an epoch, and the profiles take turns.
            assert epoch - 1 in (number, number + 1)
            for token in tokens:
                verify_signature(token, keys[which][turn % EACH])
            epochs.add(epoch)
    assert len(epochs) > 20
    _check_told(told)


def _follows(host: SigningHost) -> bool:
    said = host.acknowledged()
    return said is not None and said.acknowledgement.epoch == host.keyring.epoch


async def _watched(client: AsyncClient, last: int) -> list[ActiveCredential | ComingCredential]:
    """What a watcher hears until the last switch. It never reconnects."""
    heard: list[ActiveCredential | ComingCredential] = []
    synced = 0
    async with aclosing(client.watch()) as changes:
        async for change in changes:
            match change:
                case Synced():
                    synced += 1
                case CalledOff():
                    pass  # what is passed over, below
                case Withdrawn():
                    raise AssertionError(change)
                case ActiveCredential() | ComingCredential():
                    heard.append(change)
                    if isinstance(change, ActiveCredential) and int(change.credential, 16) == last:
                        break
    assert synced == 1
    return heard


def _check_told(told: list[ActiveCredential | ComingCredential]) -> None:
    """Switches in their order, announced by their own x5u right before. A signer that fell far
    behind reads everything anew: then some are passed over."""
    for profile in PROFILES:
        first, *rest = [change for change in told if change.profile == profile]
        assert isinstance(first, ActiveCredential)
        numbers = [int(one.credential, 16) for one in rest if isinstance(one, ActiveCredential)]
        assert numbers == sorted(set(numbers))
        announced = [
            (before.credential, before.x5u) == (after.credential, after.x5u)
            for before, after in pairwise(rest)
            if isinstance(before, ComingCredential) and isinstance(after, ActiveCredential)
        ]
        assert announced.count(True) > len(numbers) // 2


def _public(birth: BirthRecord) -> ec.EllipticCurvePublicKey:
    key = load_der_public_key(birth.public_key)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key
