"""The keyring on disk: what the keeper writes is what every signer follows."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmsd import keyring
from kmsd.errors import Misconfigured, Unavailable
from kmsd.keyring import Delta, Entry, KeyringReader, KeyringWriter, Snapshot


def entry(profile: str, credential: str = "1") -> Entry:
    return Entry(profile, "1234", credential, "ab" * 16, "cd" * 32, "https://x/1.pem", 0, 10)


def test_a_keyring_that_was_never_written_is_empty(tmp_path: Path) -> None:
    KeyringWriter(tmp_path / "keyring")
    assert keyring.read(tmp_path / "keyring") == Snapshot(0)


def test_a_reader_gets_everything_first_and_then_only_what_changed(tmp_path: Path) -> None:
    writer = KeyringWriter(tmp_path)
    writer.switch(1, [entry("a")])
    reader = KeyringReader(tmp_path)
    assert reader.follow() == Snapshot(1, (entry("a"),))
    assert reader.follow() == []
    writer.switch(2, [entry("b")])
    writer.switch(5, [], withdrawn=["a"])
    assert reader.follow() == [Delta(2, (entry("b"),)), Delta(5, (), ("a",))]
    assert reader.epoch == 5


def test_a_reader_that_missed_folded_deltas_gets_everything(tmp_path: Path) -> None:
    writer = KeyringWriter(tmp_path)
    reader = KeyringReader(tmp_path)
    writer.switch(1, [entry("a")])
    reader.follow()
    for epoch in range(2, keyring.KEPT_DELTAS + 10):
        writer.switch(epoch, [entry("a", str(epoch))])
    news = reader.follow()
    assert isinstance(news, Snapshot)
    assert news.entries == tuple(writer.entries.values())
    assert reader.follow() == []


def test_old_files_do_not_pile_up(tmp_path: Path) -> None:
    writer = KeyringWriter(tmp_path)
    for epoch in range(1, 500):
        writer.switch(epoch, [entry("a", str(epoch))])
        assert len(list(tmp_path.iterdir())) <= keyring.KEPT_DELTAS + 2


def test_a_new_writer_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    KeyringWriter(tmp_path).switch(3, [entry("a")])
    writer = KeyringWriter(tmp_path)
    assert (writer.epoch, writer.entries) == (3, {"a": entry("a")})
    with pytest.raises(ValueError, match="does not come after"):
        writer.switch(3, [entry("b")])


def test_a_damaged_file_is_named_and_nothing_is_taken_from_it(tmp_path: Path) -> None:
    KeyringWriter(tmp_path).switch(1, [entry("a")])
    (tmp_path / f"delta-{1:016d}.json").write_bytes(b'{"epoch": 1, "entries": [{"profile')
    with pytest.raises(Misconfigured, match="damaged") as damaged:
        keyring.read(tmp_path)
    assert damaged.value.reason == "KEYRING_DAMAGED"


def test_a_missing_folder_says_what_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as missing:
        KeyringReader(tmp_path / "none").follow()
    assert missing.value.reason == "KEYRING_UNREADABLE"
    assert missing.value.next_step


def test_a_half_written_file_is_not_read(tmp_path: Path) -> None:
    writer = KeyringWriter(tmp_path)
    writer.switch(1, [entry("a")])
    (tmp_path / f"delta-{2:016d}.tmp").write_bytes(b"{")
    assert keyring.read(tmp_path) == Snapshot(1, (entry("a"),))


def test_the_keyring_is_not_for_everybody(tmp_path: Path) -> None:
    KeyringWriter(tmp_path / "keyring").switch(1, [entry("a")])
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "keyring").iterdir()}
    assert modes == {0o640}
    assert (tmp_path / "keyring").stat().st_mode & 0o777 == 0o750


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
        for delta in news:
            mine.update({one.profile: one for one in delta.entries})
            for profile in delta.withdrawn:
                mine.pop(profile, None)

    for epoch, (set_, withdrawn) in enumerate(changes, start=1):
        writer.switch(epoch, [entry(name, str(epoch)) for name in set_], withdrawn)
        if epoch in looks:
            look()
    look()
    assert mine == writer.entries
    assert {one.profile: one for one in keyring.read(folder).entries} == writer.entries
