"""The HSM's PIN as a systemd credential (systemd.exec(5), LoadCredential=): kmsd.toml names it,
`$CREDENTIALS_DIRECTORY` has it, and nothing else ever shows it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kmsd_client import AsyncClient, Tls, Unavailable

from kmsd.lab import Lab, running_lab
from tests.contract.tokens import read_identity
from tests.softhsm import pin_of
from tests.system.key_room import KeyRoom
from tests.system.programs import until
from tests.system.signing_host import SigningHost

PIN = "credential:hsm-pin"
FOLDER = "CREDENTIALS_DIRECTORY"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), spcs=["1234"], calm=True) as lab:
        yield lab


def test_keeper_and_signer_work_with_a_pin_that_only_a_credential_shows(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = KeyRoom(tmp_path / "room", lab, hsm={"pin": PIN})
    pin = pin_of(room.token)
    monkeypatch.setenv(FOLDER, str(_credentials(tmp_path, room.token.pin)))
    with room.signer() as signer, room.keeper() as keeper:
        room.until_serving()
        active = room.enrolled()
        assert read_identity(room.sign()).x5u == active["x5u"]
        for process in (keeper, signer):
            told = Path(f"/proc/{process.pid}")
            assert FOLDER.encode() in (told / "environ").read_bytes()
            for name in ("cmdline", "environ"):
                assert pin.encode() not in (told / name).read_bytes()
    for name, event in (("keeper", "event=hsm_open"), ("signer-1", "event=serving")):
        assert event in room.log(name)
        assert pin not in room.log(name)


async def test_a_signer_without_the_credential_says_what_it_was_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    host = SigningHost(tmp_path, pin=PIN)
    host.activate(host.entry(host.key()))
    with host.signer() as signer:
        until("it says so", lambda: "hsm_not_usable" in host.log())
        refused = await _refusal(host)
        assert refused.reason == "SECRET_MISSING"
        assert "LoadCredential=hsm-pin" in refused.metadata["next_step"]
        assert "LoadCredential=hsm-pin" in host.log()
        assert signer.poll() is None
        assert not _token_was_asked(host.folder / "run", signer.pid, host.hsm.module)
    assert signer.returncode == 0


async def test_a_signer_whose_credential_comes_late_serves_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SigningHost(tmp_path, pin=PIN)
    host.activate(host.entry(host.key()))
    credentials = tmp_path / "credentials"
    monkeypatch.setenv(FOLDER, str(credentials))
    with host.signer() as signer:
        until("it says so", lambda: "hsm_not_usable" in host.log())
        refused = await _refusal(host)
        assert refused.reason == "SECRET_MISSING"
        assert str(credentials / "hsm-pin") in str(refused)
        assert not _token_was_asked(host.folder / "run", signer.pid, host.hsm.module)
        _credentials(tmp_path, host.hsm.pin)
        host.until_serving()
        assert _token_was_asked(host.folder / "run", signer.pid, host.hsm.module)
    assert host.log().count("hsm_not_usable") == 1


def test_a_keeper_without_the_credential_answers_and_says_what_it_was_not_given(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    room = KeyRoom(tmp_path, lab, hsm={"pin": PIN})
    with room.keeper() as keeper:
        room.begun(verb="enroll")
        until("it says so", room.trouble)
        trouble = room.trouble()
        assert trouble["reason"] == "SECRET_MISSING"
        assert "LoadCredential=hsm-pin" in trouble["next_step"]
        hsm = room.status()["hsm"]
        assert not hsm["usable"]
        assert "LoadCredential=hsm-pin" in hsm["trouble"]
        assert keeper.poll() is None
        assert not _token_was_asked(room.run, keeper.pid, room.token.module)
    assert keeper.returncode == 0
    assert room.log().count("hsm_not_usable") == 1


def _credentials(folder: Path, pin: str) -> Path:
    """The folder that systemd makes for a unit. The PIN's file goes there: it has no other."""
    credentials = folder / "credentials"
    credentials.mkdir(mode=0o700)
    file = Path(pin).rename(credentials / "hsm-pin")
    file.chmod(0o400)
    return credentials


async def _refusal(host: SigningHost) -> Unavailable:
    files = host.caller("as1")
    tls = Tls(ca=files.ca, certificate=files.certificate, key=files.key)
    async with AsyncClient(f"localhost:{host.port}", tls=tls, profile="acme", timeout=5) as client:
        with pytest.raises(Unavailable) as refused:
            await client.sign_shaken("12155550112", "12155550113", "A")
    return refused.value


def _token_was_asked(run: Path, pid: int, module: str) -> bool:
    """Whether a process came as far as a login: past the latch of PINs, into the module."""
    loaded = str(Path(module).resolve()) in Path(f"/proc/{pid}/maps").read_text()
    tried = (run / "pin-refused").exists()
    assert loaded == tried
    return loaded
