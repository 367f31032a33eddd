"""The keyring on disk: what the keeper writes is what every signer follows."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kmsd import keyring
from kmsd.errors import Misconfigured, Unavailable
from kmsd.keyring import KeyringReader, KeyringWriter
from kmsd.ring import Coming, Delta, Entry, Snapshot


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def entry(profile: str, credential: str = "1") -> Entry:
    return Entry(profile, "1234", credential, "ab" * 16, "cd" * 32, "https://x/1.pem", 0, 10)


def coming(profile: str, credential: str = "2") -> Coming:
    return entry(profile, credential).public()


def bare(news: Snapshot | list[Delta]) -> Snapshot | list[Delta]:
    """Without the checksums."""
    if isinstance(news, Snapshot):
        return replace(news, last="")
    return [replace(delta, previous="") for delta in news]


def delta(folder: Path, epoch: int, note: int = 0) -> Path:
    return folder / f"delta-{epoch:016d}-{note:08d}.json"


def snapshots(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("snapshot-*"))


def test_a_keyring_that_was_never_written_is_empty(tmp_path: Path) -> None:
    KeyringWriter(tmp_path / "keyring")
    assert keyring.read(tmp_path / "keyring") == Snapshot(0)


def test_a_reader_gets_everything_first_and_then_only_what_changed(tmp_path: Path) -> None:
    writer = KeyringWriter(tmp_path)
    writer.switch(1, [entry("a")])
    reader = KeyringReader(tmp_path)
    assert bare(reader.follow()) == Snapshot(1, (entry("a"),))
    assert reader.follow() == []
    writer.switch(2, [entry("b")])
    writer.switch(5, [], withdrawn=["a"])
    assert bare(reader.follow()) == [Delta(2, (entry("b"),)), Delta(5, (), ("a",))]
    assert reader.epoch == 5


def test_what_is_coming_is_announced_under_the_present_epoch(tmp_path: Path) -> None:
    writer = KeyringWriter(tmp_path)
    writer.switch(3, [entry("a")])
    reader = KeyringReader(tmp_path)
    reader.follow()
    writer.announce([coming("a")])
    assert bare(reader.follow()) == [Delta(3, coming=(coming("a"),), note=1)]
    assert (writer.epoch, reader.epoch) == (3, 3)
    writer.announce([], ["a"])
    assert bare(reader.follow()) == [Delta(3, called_off=("a",), note=2)]
    writer.announce([coming("a", "3")])
    writer.switch(4, [entry("b")])
    assert keyring.read(tmp_path).coming == (coming("a", "3"),)
    writer.switch(5, [entry("a", "3")])
    assert keyring.read(tmp_path).coming == ()
    assert keyring.read(tmp_path).note == 0


def test_another_credential_does_not_end_what_was_announced(tmp_path: Path) -> None:
    writer = KeyringWriter(tmp_path)
    writer.announce([coming("a", "9")])
    writer.switch(1, [entry("a", "1")])
    writer.switch(2, [], withdrawn=["a"])
    assert keyring.read(tmp_path).coming == (coming("a", "9"),)
    assert KeyringWriter(tmp_path).coming == {"a": coming("a", "9")}


def test_what_is_announced_names_no_key() -> None:
    assert not {"key_id", "handle"} & set(Coming.__struct_fields__)


@pytest.mark.usefixtures("unsynced")
def test_a_reader_that_missed_folded_deltas_gets_everything(tmp_path: Path) -> None:
    writer = KeyringWriter(tmp_path)
    reader = KeyringReader(tmp_path)
    writer.switch(1, [entry("a")])
    reader.follow()
    for epoch in range(2, 3 * keyring.KEPT_DELTAS):
        writer.switch(epoch, [entry("a", str(epoch))])
    news = reader.follow()
    assert isinstance(news, Snapshot)
    assert news.entries == tuple(writer.entries.values())
    assert reader.follow() == []


@pytest.mark.usefixtures("unsynced")
def test_a_reader_that_follows_never_needs_a_second_snapshot(tmp_path: Path) -> None:
    writer, reader = KeyringWriter(tmp_path), KeyringReader(tmp_path)
    reader.follow()
    for epoch in range(1, 3 * keyring.KEPT_DELTAS):
        writer.switch(epoch, [entry("a", str(epoch))])
        news = reader.follow()
        assert isinstance(news, list)
        assert [one.epoch for one in news] == [epoch]
    assert snapshots(tmp_path)


@pytest.mark.usefixtures("unsynced")
def test_old_files_do_not_pile_up(tmp_path: Path) -> None:
    writer = KeyringWriter(tmp_path)
    for epoch in range(1, 500):
        writer.switch(epoch, [entry("a", str(epoch))])
        assert len(list(tmp_path.iterdir())) <= 2 * keyring.KEPT_DELTAS + 2


def test_a_new_writer_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    KeyringWriter(tmp_path).switch(3, [entry("a")])
    writer = KeyringWriter(tmp_path)
    assert (writer.epoch, writer.entries) == (3, {"a": entry("a")})
    with pytest.raises(ValueError, match="does not come after"):
        writer.switch(3, [entry("b")])


def test_a_missing_folder_says_what_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as missing:
        KeyringReader(tmp_path / "none").follow()
    assert missing.value.reason == "KEYRING_UNREADABLE"
    assert missing.value.next_step


def test_a_half_written_file_is_not_read_and_does_not_stay(tmp_path: Path) -> None:
    writer = KeyringWriter(tmp_path)
    writer.switch(1, [entry("a")])
    delta(tmp_path, 2).with_suffix(".tmp").write_bytes(b"{")
    assert bare(keyring.read(tmp_path)) == Snapshot(1, (entry("a"),))
    KeyringWriter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [delta(tmp_path, 1).name]


def test_the_keyring_is_not_for_everybody(tmp_path: Path) -> None:
    KeyringWriter(tmp_path / "keyring").switch(1, [entry("a")])
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "keyring").iterdir()}
    assert modes == {0o640}
    assert (tmp_path / "keyring").stat().st_mode & 0o777 == 0o750


# --- files that are torn, lost, or not in their places


def torn(folder: Path) -> None:
    delta(folder, 3).write_bytes(delta(folder, 3).read_bytes()[:-20])


def spoiled(folder: Path) -> None:
    """Still JSON, and of the right form: only the checksum tells."""
    content = delta(folder, 3).read_bytes()
    assert b"https://x/1.pem" in content
    delta(folder, 3).write_bytes(content.replace(b"https://x/1.pem", b"https://x/7.pem"))


def lost(folder: Path) -> None:
    delta(folder, 3).unlink()


def exchanged(folder: Path) -> None:
    third, fourth = delta(folder, 3).read_bytes(), delta(folder, 4).read_bytes()
    delta(folder, 3).write_bytes(fourth)
    delta(folder, 4).write_bytes(third)


def renamed(folder: Path) -> None:
    delta(folder, 4).rename(delta(folder, 9))


def of_another_keyring(folder: Path) -> None:
    other = folder.parent / "other"
    KeyringWriter(other).switch(3, [entry("c", "strange")])
    delta(other, 3).rename(delta(folder, 3))


Harm = Callable[[Path], None]
harms = pytest.mark.parametrize(
    "harm", [torn, spoiled, lost, exchanged, renamed, of_another_keyring]
)


def five_epochs(folder: Path) -> KeyringWriter:
    writer = KeyringWriter(folder)
    for epoch, profile in enumerate("abcde", start=1):
        writer.switch(epoch, [entry(profile, str(epoch))])
    return writer


@harms
def test_harm_is_noticed_by_who_starts_and_by_who_follows(tmp_path: Path, harm: Harm) -> None:
    folder = tmp_path / "keyring"
    writer = KeyringWriter(folder)
    writer.switch(1, [entry("a")])
    writer.switch(2, [entry("b")])
    follower = KeyringReader(folder)
    follower.follow()
    for epoch, profile in enumerate("cde", start=3):
        writer.switch(epoch, [entry(profile, str(epoch))])
    harm(folder)
    for reader in (follower, KeyringReader(folder), follower):
        with pytest.raises(Misconfigured, match="damaged") as damaged:
            reader.follow()
        assert damaged.value.reason == "KEYRING_DAMAGED"
    assert follower.epoch == 2  # it has what it had


@harms
def test_the_next_switch_puts_right_what_it_notices(tmp_path: Path, harm: Harm) -> None:
    """A file that is missing or strange by its name is noticed at once."""
    writer = five_epochs(tmp_path / "keyring")
    harm(tmp_path / "keyring")
    if harm in (lost, renamed):
        writer.switch(10, [entry("f")])
    else:
        writer.mend()
    assert len(list((tmp_path / "keyring").iterdir())) == 1
    everything = KeyringReader(tmp_path / "keyring").follow()
    assert isinstance(everything, Snapshot)
    assert {one.profile: one for one in everything.entries} == writer.entries
    assert set("abcde") <= writer.entries.keys()
    writer.switch(11, [entry("g")])
    assert {one.profile for one in keyring.read(tmp_path / "keyring").entries} == set(
        writer.entries
    )


@harms
def test_a_writer_that_starts_on_harmed_files_takes_what_is_whole_and_writes_all_anew(
    tmp_path: Path, harm: Harm
) -> None:
    folder = tmp_path / "keyring"
    five_epochs(folder)
    harm(folder)
    writer = KeyringWriter(folder)
    assert writer.damage is not None
    assert writer.damage.reason == "KEYRING_DAMAGED"
    assert {"a", "b"} <= writer.entries.keys() <= set("abcd")
    assert writer.epoch >= 5
    writer.switch(writer.epoch + 1, [entry("e")])
    assert writer.damage is None
    assert {one.profile: one for one in keyring.read(folder).entries} == writer.entries


def test_a_spoiled_snapshot_is_noticed(tmp_path: Path) -> None:
    writer = five_epochs(tmp_path)
    delta(tmp_path, 2).unlink()
    writer.switch(6, [entry("f")])
    [name] = snapshots(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content.replace(b'"1234"', b'"4321"', 1))
    with pytest.raises(Misconfigured, match="checksum"):
        keyring.read(tmp_path)
    writer.mend()
    assert {one.profile: one for one in keyring.read(tmp_path).entries} == writer.entries
    assert KeyringReader(tmp_path).follow() == keyring.read(tmp_path)


def test_mending_what_is_whole_writes_nothing(tmp_path: Path) -> None:
    writer = five_epochs(tmp_path)
    before = sorted(tmp_path.iterdir())
    writer.mend()
    assert sorted(tmp_path.iterdir()) == before


def test_a_follower_comes_along_when_it_is_mended(tmp_path: Path) -> None:
    writer = five_epochs(tmp_path)
    follower = KeyringReader(tmp_path)
    follower.follow()
    writer.switch(6, [entry("f")])
    delta(tmp_path, 6).write_bytes(b"")
    with pytest.raises(Misconfigured):
        follower.follow()
    writer.mend()
    news = follower.follow()
    assert isinstance(news, Snapshot)
    assert {one.profile for one in news.entries} == set("abcdef")
    assert follower.epoch == 6  # nothing is signed with anything else
    assert follower.follow() == []


def test_a_reader_takes_nothing_from_a_folder_that_was_emptied_or_put_back(tmp_path: Path) -> None:
    writer = five_epochs(tmp_path)
    reader = KeyringReader(tmp_path)
    reader.follow()
    for path in tmp_path.iterdir():
        path.unlink()
    assert reader.follow() == []
    anew = KeyringWriter(tmp_path)
    anew.switch(3, [entry("old")])
    assert reader.follow() == []
    anew.switch(writer.epoch + 1, [entry("new")])
    news = reader.follow()
    assert isinstance(news, Snapshot)
    assert {one.profile for one in news.entries} == {"old", "new"}


def test_a_file_that_was_written_but_not_surely_is_not_built_upon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's own fsync fails: the file is there, and may be gone after a power cut."""
    writer = five_epochs(tmp_path)
    calls = iter([True, False])
    fsync = os.fsync
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda fd: fsync(fd) if next(calls) else _disk_full())
        with pytest.raises(Unavailable):
            writer.switch(6, [entry("a", "unsure")])
    assert writer.entries["a"] == entry("a", "1")
    writer.switch(7, [entry("f")])
    assert {one.profile: one for one in keyring.read(tmp_path).entries} == writer.entries
    assert snapshots(tmp_path)


def _disk_full() -> None:
    raise OSError(28, "No space left on device")


# --- what it costs


class Costs:
    """Bytes that this process read and wrote since the last look, as the kernel counts them."""

    def __init__(self) -> None:
        self._before = self._now()

    def since(self) -> dict[str, int]:
        before, self._before = self._before, self._now()
        return {name: self._before[name] - before[name] for name in before}

    def _now(self) -> dict[str, int]:
        lines = Path("/proc/self/io").read_text().splitlines()
        counts = dict(line.split(": ") for line in lines)
        return {name: int(counts[name]) for name in ("rchar", "wchar")}


def keyring_of(profiles: int, folder: Path) -> KeyringWriter:
    writer = KeyringWriter(folder)
    writer.switch(1, [entry(f"profile-{n:05d}", f"{n:016x}") for n in range(profiles)])
    (folder / "x").mkdir()  # strange names disturb nobody
    delta(folder, 1).unlink()
    writer.mend()  # as a snapshot
    assert len(snapshots(folder)) == 1
    return writer


@pytest.mark.usefixtures("unsynced")
def test_a_switch_costs_what_changed_whether_there_are_ten_profiles_or_ten_thousand(
    tmp_path: Path,
) -> None:
    costs = {}
    for profiles in (10, 10_000):
        writer = keyring_of(profiles, tmp_path / str(profiles))
        readers = [KeyringReader(tmp_path / str(profiles)) for _ in range(4)]
        for reader in readers:
            reader.follow()
        counted = Costs()
        writer.announce([coming("profile-00003", "f" * 16)])
        writer.switch(2, [entry("profile-00003", "f" * 16)])
        written = counted.since()
        decoded = 0
        for reader in readers:
            news = reader.follow()
            assert isinstance(news, list)
            decoded += sum(len(one.entries) + len(one.coming) for one in news)
        followed = counted.since()
        assert decoded == 2 * len(readers)
        costs[profiles] = (written["wchar"], followed["rchar"] // len(readers))
    small, large = costs[10], costs[10_000]
    assert small == pytest.approx(large, abs=200)  # the kernel's own lines, and digits of numbers
    assert max(large) < 2_500


@pytest.mark.usefixtures("unsynced")
def test_folding_costs_each_switch_a_bounded_share_however_many_profiles_there_are(
    tmp_path: Path,
) -> None:
    each = 400
    for profiles, switches in ((10, 300), (10_000, 700)):
        folder = tmp_path / str(profiles)
        writer = keyring_of(profiles, folder)
        counted = Costs()
        most = 0
        for epoch in range(2, 2 + switches):
            writer.switch(epoch, [entry(f"profile-{epoch % profiles:05d}", f"{epoch:016x}")])
            most = max(most, len(os.listdir(folder)))
        assert counted.since()["wchar"] / switches < (keyring.FOLDED_SHARE + 3) * each
        assert most <= keyring.MOST_DELTAS + keyring.KEPT_DELTAS + 3
        assert snapshots(folder) != [f"snapshot-{1:016d}-{1:08d}.json"]  # it was folded


changes = st.lists(
    st.tuples(st.lists(st.sampled_from("abcde"), max_size=3), st.lists(st.sampled_from("abcde"))),
    max_size=90,
)


@settings(max_examples=30, deadline=None)
@given(changes=changes, looks=st.sets(st.integers(0, 90)))
def test_a_reader_who_looks_at_any_moments_ends_with_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[list[str], list[str]]],
    looks: set[int],
) -> None:
    folder = tmp_path_factory.mktemp("keyring")
    writer, reader = KeyringWriter(folder), KeyringReader(folder)
    mine: dict[str, Entry] = {}

    def look() -> None:
        news = reader.follow()
        if isinstance(news, Snapshot):
            mine.clear()
            mine.update({one.profile: one for one in news.entries})
            return
        for one in news:
            mine.update({changed.profile: changed for changed in one.entries})
            for profile in one.withdrawn:
                mine.pop(profile, None)

    for epoch, (set_, withdrawn) in enumerate(changes, start=1):
        writer.switch(epoch, [entry(name, str(epoch)) for name in set_], withdrawn)
        if epoch in looks:
            look()
    look()
    assert mine == writer.entries
    assert {one.profile: one for one in keyring.read(folder).entries} == writer.entries
