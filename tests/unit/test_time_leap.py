"""Years of rotations in seconds: what becomes of every credential, as tables to be read.

Each scenario is a policy and STI-CAs with their troubles; `time_leap/*.txt` is what happened.
GOLDEN=write writes them anew: read what changed.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from kmsd.enrollment import Recalled
from kmsd.forecast import What, forecast
from kmsd.model import Certificate, Retired
from kmsd.renewal import Window
from kmsd.rotation import NO_HINTS
from kmsd.settings import Policy
from tests.unit.leap import DAY, HOUR, START, Issuer, Life, World, down, refusing

TABLES = Path(__file__).parent / "time_leap"
YEAR = 365 * DAY
MINUTE = 60

pytestmark = pytest.mark.time_leap


def suggests(certificate: Certificate, now: int) -> Window:
    """Two thirds into the lifetime; on day 150, everything before that day at once."""
    lifetime = certificate.not_after - certificate.not_before
    if now >= START + 150 * DAY > certificate.not_before:
        return Window(START + 150 * DAY, START + 151 * DAY)
    begin = certificate.not_before + lifetime * 2 // 3
    return Window(begin, begin + lifetime // 50)


SCENARIOS: dict[str, tuple[str, int, World]] = {
    "hourly": (
        "Certificates of an hour. On day 100 the STI-CA is down for the last quarter of every\n"
        "hour; on day 200 it is down for 3 hours, which nobody can bridge.",
        400,
        World(
            Policy(hold_key_days=1 / 24),
            {
                "ca": Issuer(
                    HOUR,
                    (
                        *(
                            (100 * DAY + hour * HOUR - 15 * MINUTE, 100 * DAY + hour * HOUR, down)
                            for hour in range(1, 25)
                        ),
                        (200 * DAY, 200 * DAY + 3 * HOUR, down),
                    ),
                )
            },
        ),
    ),
    "7-days": (
        "Certificates of 7 days, renewed in the hours of work. The STI-CA is down on days 33 and\n"
        "34, and refuses on days 59 and 60.",
        400,
        World(
            Policy(windows=("Mon-Fri 08:00-16:00",)),
            {"ca": Issuer(7 * DAY, ((33 * DAY, 35 * DAY, down), (59 * DAY, 61 * DAY, refusing)))},
        ),
    ),
    "90-days-two-sti-cas": (
        "Certificates of 90 days from two STI-CAs. The first is down on days 60 to 99 and refuses\n"
        "on days 124 to 129; both are down on days 183 to 187.",
        400,
        World(
            Policy(),
            {
                "first": Issuer(
                    90 * DAY,
                    (
                        (60 * DAY, 100 * DAY, down),
                        (124 * DAY, 130 * DAY, refusing),
                        (183 * DAY, 188 * DAY, down),
                    ),
                ),
                "second": Issuer(90 * DAY, ((183 * DAY, 188 * DAY, down),)),
            },
        ),
    ),
    "90-days-ari": (
        "Certificates of 90 days from an STI-CA that suggests when to renew (RFC 9773), and on\n"
        "day 150 wants all replaced within a day.",
        400,
        World(Policy(), {"ca": Issuer(90 * DAY, suggests=suggests)}),
    ),
    "1-year": (
        "Certificates of a year, renewed on the first nights of the week. The STI-CA is down on\n"
        "days 255 to 276.",
        800,
        World(
            Policy(windows=("Sat-Sun 22:00-04:00",)),
            {"ca": Issuer(YEAR, ((255 * DAY, 277 * DAY, down),))},
        ),
    ),
    "3-years": (
        "Certificates of three years, keys held for 30 days. The STI-CA refuses on days 720 to\n"
        "819; the second one issues for a year, and refuses too on days 760 to 789.",
        2400,
        World(
            Policy(hold_key_days=30),
            {
                "long": Issuer(3 * YEAR, ((720 * DAY, 820 * DAY, refusing),)),
                "short": Issuer(YEAR, ((760 * DAY, 790 * DAY, refusing),)),
            },
        ),
    ),
}


def moment(at: int) -> str:
    """Day and time since START."""
    day, rest = divmod(at - START, DAY)
    return f"{day:4} {rest // HOUR:02}:{rest % HOUR // MINUTE:02}" if at else " " * 10


def duration(seconds: int) -> str:
    for unit, size in (("d", DAY), ("h", HOUR), ("min", MINUTE)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds} s"


def line(number: int, life: Life, first: bool) -> str:
    end = f"failed: {life.failed}" if life.failed else moment(life.active)
    left = "" if first or life.failed or not life.active else f"{life.left:4.0%}"
    return (
        f"{number:4}  {moment(life.begun)}  {life.why:<9} {life.tries:5}  {life.issuer:<7} "
        f"{end:<10}  {left:>4}  {moment(life.destroyed)}"
    ).rstrip()


def each(lives: Iterable[Life]) -> Iterator[str]:
    """One line a credential."""
    yield "  no  begun      why       tries  STI-CA  active      left  key destroyed"
    for number, life in enumerate(lives, 1):
        yield line(number, life, first=number == 1)


def by_days(lives: Iterable[Life], size: int = 10) -> Iterator[str]:
    """One line for the credentials begun in ten days."""
    yield "      days  begun  active  failed  tries  least left  why"
    parts: dict[int, list[Life]] = {}
    for life in list(lives)[1:]:
        parts.setdefault((life.begun - START) // DAY // size, []).append(life)
    for part, some in sorted(parts.items()):
        why = Counter(life.why for life in some)
        told = ", ".join(f"{name} {why[name]}" for name in sorted(why))
        lost = sum(life.failed != "" for life in some)
        active = [life for life in some if life.active]
        tries, least = sum(life.tries for life in some), min(life.left for life in active)
        yield (
            f"{part * size:4}-{part * size + size - 1:<4} {len(some):6} {len(active):7} {lost:7} "
            f"{tries:6} {least:11.0%}  {told}"
        )


def told(name: str) -> tuple[str, World]:
    about, days, world = SCENARIOS[name]
    world.enroll()
    world.run(START + days * DAY)
    lives = list(world.lives.values())
    table = by_days(lives) if len(lives) > 1000 else each(lives)
    active = sum(life.active > 0 for life in lives)
    end = (
        f"{days} days: {active} were active, {len(lives) - active} were not; "
        f"{world.most_keys} keys at most, {len(world.hsm)} at the end; "
        f"without a valid credential for {duration(world.unsigned)}."
    )
    return "\n".join((about, "", *table, "", end, "")), world


@pytest.mark.parametrize("name", SCENARIOS)
def test_years_of_rotations_are_as_they_were_read(name: str) -> None:
    text, world = told(name)
    path = TABLES / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text, "utf-8")
    assert path.read_text("utf-8") == text
    # The one outage of three hours that an hour's certificate cannot outlast.
    assert (world.unsigned > 0) == (name == "hourly")
    assert world.unsigned < 3 * HOUR
    world.must_hold()


def test_what_was_recalled_stays_until_its_floor() -> None:
    world = World(Policy(hold_key_days=5), {"ca": Issuer(30 * DAY)})
    world.enroll()
    world.run(START + 22 * DAY)
    (retired,) = [one for one in world.credentials if isinstance(one.state, Retired)]
    world.save(retired, Recalled())
    world.run(START + 60 * DAY)
    lives = list(world.lives.values())
    assert [life.why for life in lives[:4]] == ["ENROLL", "FRACTION", "RECALLED", "FRACTION"]
    assert lives[2].begun - START == pytest.approx(27 * DAY, abs=2 * HOUR)
    assert world.unsigned == 0


def test_a_rehearsal_leaves_nothing_behind_and_changes_nothing() -> None:
    world = World(Policy(), {"ca": Issuer(90 * DAY)})
    world.enroll()
    world.run(START + DAY)
    (before,) = world.credentials
    world.enroll(rehearsal=True)
    world.run(START + 2 * DAY)
    assert world.credentials == [before]
    assert world.hsm == {before.key_id}


def test_the_calendar_said_before_what_then_happened() -> None:
    world = World(Policy(), {"ca": Issuer(30 * DAY)})
    world.enroll()
    world.run(START + DAY)
    profile = (world.credentials, world.policy, NO_HINTS)
    said = forecast(world.now, 200, {"acme": profile})
    world.run(START + 201 * DAY)
    renewals = [one.at for one in said if one.what is What.RENEW]
    happened = [life.begun for life in list(world.lives.values())[1:]]
    assert len(renewals) == len(happened)
    # The jitter of credentials that do not exist yet is not known, and adds up.
    for n, (expected, begun) in enumerate(zip(renewals, happened, strict=True)):
        assert begun == pytest.approx(expected, abs=n * (1.5 * DAY + 2 * HOUR) + MINUTE)
