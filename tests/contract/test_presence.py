"""Presence: a lock that tells the living from the dead, and never gets in their way."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kmsd.errors import Misconfigured
from kmsd.presence import Acknowledgement, Presence, Seen, seen

SAID = Acknowledgement(index=1, pid=7, epoch=3, at=100, started_at=90, profiles=2)

OTHER_SIGNER = """
import sys
from pathlib import Path
from kmsd.presence import Acknowledgement, Presence
with Presence(Path(sys.argv[1]), 2) as presence:
    presence.acknowledge(Acknowledgement(2, 8, 5, 0, 0, 1))
    print("here", flush=True)
    sys.stdin.read()
"""


def test_a_signer_is_alive_as_long_as_it_is_held_open(tmp_path: Path) -> None:
    assert seen(tmp_path) == []
    with Presence(tmp_path, 1) as presence:
        assert seen(tmp_path) == []  # it has not spoken yet
        presence.acknowledge(SAID)
        assert seen(tmp_path) == [Seen(SAID, alive=True)]
    assert seen(tmp_path) == [Seen(SAID, alive=False)]


def test_a_killed_process_is_seen_as_dead_at_once(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_SIGNER, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"here\n"
        (one,) = seen(tmp_path)
        assert (one.alive, one.acknowledgement.epoch) == (True, 5)
        other.kill()
        other.wait()
        assert [one.alive for one in seen(tmp_path)] == [False]


def test_two_signers_of_one_number_cannot_be(tmp_path: Path) -> None:
    with Presence(tmp_path, 1), pytest.raises(Misconfigured) as refused:
        Presence(tmp_path, 1)
    assert refused.value.reason == "SIGNER_INDEX_TAKEN"
    with Presence(tmp_path, 1):
        pass


def test_whoever_looks_is_not_in_the_way_of_a_signer_that_starts(tmp_path: Path) -> None:
    """A lock taken to look would now and then refuse the signer its own number."""
    with Presence(tmp_path, 1) as presence:
        presence.acknowledge(SAID)
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen(tmp_path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(300):
            with Presence(tmp_path, 1):
                pass
    finally:
        stop.set()
        looking.join()


def test_the_last_word_counts_however_long_the_one_before_was(tmp_path: Path) -> None:
    with Presence(tmp_path, 1) as presence:
        many = tuple("p" * 63 + str(number) for number in range(20))
        long = Acknowledgement(1, 7, 3, 0, 0, 0, trouble="\N{EURO SIGN}\x01" * 100, unusable=many)
        for said in (long, SAID):
            presence.acknowledge(said)
            assert [one.acknowledgement for one in seen(tmp_path)] == [said]


def test_what_is_no_acknowledgement_is_passed_over(tmp_path: Path) -> None:
    with Presence(tmp_path, 10) as ten, Presence(tmp_path, 2) as two:
        ten.acknowledge(Acknowledgement(10, 1, 1, 1, 1, 1))
        two.acknowledge(Acknowledgement(2, 1, 1, 1, 1, 1))
        (tmp_path / "signers" / "3.json").write_bytes(b'{"index": 3')
        (tmp_path / "signers" / "4.json").mkdir()
        (tmp_path / "signers" / "5.json").symlink_to("nowhere")
        assert [one.acknowledgement.index for one in seen(tmp_path)] == [2, 10]


def test_a_run_folder_that_cannot_be_used_is_the_operators_to_correct(tmp_path: Path) -> None:
    (tmp_path / "signers").write_text("in the way")
    with pytest.raises(Misconfigured) as refused:
        Presence(tmp_path, 1)
    assert refused.value.reason == "RUN_FOLDER_UNUSABLE"
