"""One keeper's place among those on its store, on a store that fails when the test wants it."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from kmsd import standby
from kmsd.errors import KmsdError, Misconfigured, Precondition, Unavailable
from kmsd.standby import Standby
from kmsd.store import Store, Term

OUTAGE = Unavailable("STORE_UNREACHABLE", "Gone.")
TAKEN = Precondition("KEEPER_ALREADY_RUNNING", "Another one acts.")
WRONG = Misconfigured("STORE_LOGIN_REFUSED", "No.")


class Seats:
    """A shared store of which only the seat exists. refusal: what a try for it meets."""

    def __init__(self, *, shared: bool = True) -> None:
        self.shared = shared
        self.refusal: KmsdError | None = None
        self.check: KmsdError | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.acts = False
        self.terms = 0

    @contextlib.contextmanager
    def acting(self, _token: str) -> Iterator[Term]:
        if self.refusal is not None:
            raise self.refusal
        self.terms += 1
        self.acts = True
        try:
            yield Term(self.terms, cast(Any, None))
        finally:
            self.acts = False

    def check_acting(self) -> None:
        self.answers.wait(20)
        if self.check is not None:
            raise self.check

    def resign(self) -> None:
        self.acts = False


class Acting:
    """What a keeper would do while it acts; counts how often it began and ended."""

    def __init__(self) -> None:
        self.begun = self.ended = self.followed = 0

    async def act(self) -> None:
        self.begun += 1
        try:
            await asyncio.sleep(60)
        finally:
            self.ended += 1

    async def follow(self) -> None:
        self.followed += 1


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("ASK_EVERY", 0.01), ("BEAT", 0.01), ("PATIENCE", 0.2)):
        monkeypatch.setattr(standby, name, seconds)


@contextlib.asynccontextmanager
async def running(seats: Seats, acting: Acting) -> Any:
    place = Standby(cast(Store, seats), "kmsd")
    task = asyncio.create_task(place.run(acting.act, acting.follow))
    try:
        yield place
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await place.close()


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  what it waits for has no event
            await asyncio.sleep(0.005)


async def test_a_keeper_follows_while_another_one_acts_and_then_acts() -> None:
    seats, acting = Seats(), Acting()
    seats.refusal = TAKEN
    async with running(seats, acting) as place:
        await until(lambda: acting.followed > 2)
        assert place.waits
        assert acting.begun == 0
        seats.refusal = None
        await until(lambda: acting.begun == 1)
        assert place.trouble is None
    assert acting.ended == 1
    assert not seats.acts


async def test_a_lost_seat_ends_what_is_done_and_it_is_begun_anew() -> None:
    seats, acting = Seats(), Acting()
    async with running(seats, acting) as place:
        await until(lambda: acting.begun == 1)
        seats.refusal, seats.check, seats.acts = OUTAGE, OUTAGE, False
        await until(lambda: acting.ended == 1 and place.trouble is OUTAGE)
        assert not place.waits
        seats.refusal = seats.check = None
        await until(lambda: acting.begun == 2)
        assert seats.terms == 2


async def test_an_error_that_leaves_the_seat_is_outlived() -> None:
    seats, acting = Seats(), Acting()
    async with running(seats, acting) as place:
        await until(lambda: acting.begun == 1)
        seats.check = Unavailable("STORE_BUSY", "Busy.")
        await asyncio.sleep(0.05)
        seats.check = None
        await asyncio.sleep(0.3)
        assert (acting.begun, acting.ended, place.trouble) == (1, 0, None)


async def test_a_seat_that_cannot_be_lost_is_kept_whatever_the_store_says() -> None:
    seats, acting = Seats(shared=False), Acting()
    seats.check = OUTAGE
    async with running(seats, acting):
        await asyncio.sleep(0.5)
        assert (acting.begun, acting.ended) == (1, 0)


async def test_a_database_that_says_nothing_ends_the_term_before_it_could_go_to_another() -> None:
    seats, acting = Seats(), Acting()
    async with running(seats, acting) as place:
        await until(lambda: acting.begun == 1)
        seats.answers.clear()
        await until(lambda: acting.ended == 1)
        assert place.trouble is not None
        assert place.trouble.reason == "STORE_SILENT"
        assert not seats.acts
        seats.answers.set()
        await until(lambda: acting.begun == 2)


@pytest.mark.parametrize(
    ("refusal", "shared", "ends"),
    [
        (WRONG, True, True),
        (TAKEN, True, False),
        (TAKEN, False, True),
        (OUTAGE, True, False),
        (OUTAGE, False, False),
    ],
)
async def test_at_the_start_only_what_waiting_does_not_heal_ends_the_keeper(
    refusal: KmsdError, shared: bool, ends: bool
) -> None:
    seats = Seats(shared=shared)
    seats.refusal = refusal
    place = Standby(cast(Store, seats), "kmsd")
    with pytest.raises(type(refusal)) if ends else contextlib.nullcontext():
        await place.first_try()
    await place.close()


async def test_a_defect_while_acting_ends_the_keeper() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    place = Standby(cast(Store, Seats()), "kmsd")
    with pytest.raises(ZeroDivisionError):
        await place.run(broken, broken)
    await place.close()
