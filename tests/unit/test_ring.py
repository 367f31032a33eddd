"""The keyring in memory: what deltas make of it."""

from kmsd.ring import Coming, Delta, Entry, Position, Ring, Snapshot


def entry(profile: str, credential: str = "1") -> Entry:
    return Entry(profile, "1234", credential, "ab" * 16, "cd" * 32, "https://x/1.pem", 0, 10)


def test_what_is_announced_is_the_entry_to_be_without_its_key() -> None:
    fields = entry("a").public()
    assert fields == Coming("a", "1234", "1", "cd" * 32, "https://x/1.pem", 0, 10)
    assert set(Entry.__struct_fields__) - set(Coming.__struct_fields__) == {"key_id"}


def test_an_entry_ends_the_announcement_of_its_own_credential_alone() -> None:
    soon = entry("a", "2").public()
    ring = Ring(Snapshot(1, (entry("a"), entry("b")), (soon,), note=3, last="x"))
    ring.apply(Delta(2, (entry("a", "9"), entry("c")), withdrawn=("b", "nobody")), "y")
    assert ring.coming == {"a": soon}
    assert ring.entries == {"a": entry("a", "9"), "c": entry("c")}
    ring.apply(Delta(3, (entry("a", "2"),)), "z")
    assert ring.coming == {}
    assert (ring.position, ring.last) == (Position(3, 0), "z")


def test_announcing_leaves_entries_and_epoch() -> None:
    ring = Ring(Snapshot(1, (entry("a"),)))
    soon = entry("a", "2").public()
    ring.apply(Delta(1, coming=(soon,), note=1), "x")
    assert ring.snapshot() == Snapshot(1, (entry("a"),), (soon,), 1, "x")
    assert Ring(ring.snapshot()).snapshot() == ring.snapshot()
    ring.apply(Delta(1, called_off=("a", "nobody"), note=2), "y")
    assert ring.snapshot() == Snapshot(1, (entry("a"),), (), 2, "y")
    assert ring.position > Position(1, 1)
