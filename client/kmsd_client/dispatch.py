"""Which stream signs which call: the calls of many callers become frames here.

Self-clocking: where a stream has room, what waits leaves at once; where none has, calls gather,
and the next frame is as long as the load makes it. "At once" is the end of the event loop's
round, so that callers that go on together travel together.

A frame whose stream breaks, or whose signer is unavailable, goes to another stream, as long as
its callers wait. A refusal is an answer.

Not here: frames that a caller made (`connections`), and connecting (`streams`).
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from kmsapi.v1 import signing_pb2 as pb

from kmsd_client.alarm import Alarm
from kmsd_client.answers import Signed, bad_answer, outcome_of
from kmsd_client.backlog import Backlog
from kmsd_client.calls import GATHER, Call, Frame, Waiting, expire
from kmsd_client.connection import Connection
from kmsd_client.errors import Overloaded, SigningError, Unavailable
from kmsd_client.refusals import error_of_refusal
from kmsd_client.streams import STREAM_FRAMES, UNDER_WAY, Stream

ALONE: Final = 2
"""Frames of a profile that leave as they come. While so many are under way calls gather, for they
are many and a frame of its own costs each of them more than its signature does."""


class Dispatch:
    """The calls of one client, on all of its connections, in one event loop.

    frame_items: calls in one frame, at most. queue_items: calls that wait for a frame, at most.
    """

    def __init__(
        self, connections: Sequence[Connection], frame_items: int, queue_items: int
    ) -> None:
        window = max(frame_items, UNDER_WAY // len(connections))
        self._streams = [Stream(connection, self, window) for connection in connections]
        self._targets: dict[str, list[Stream]] = {}
        for stream in self._streams:
            self._targets.setdefault(stream.connection.target, []).append(stream)
        self._frame_items = frame_items
        self._queue_items = queue_items
        self._loop = asyncio.get_running_loop()
        self._waiting = Waiting()
        self._backlog = Backlog()
        self._is_flowing = False
        self._again: list[Frame] = []
        self._sequences = itertools.count(1)
        self._turns = itertools.count(1)
        self._is_scheduled = False
        self._alarm = Alarm(self._expire)
        self._gathering: asyncio.TimerHandle | None = None
        self._trouble: SigningError = Unavailable("UNAVAILABLE", "No signer can be reached.")
        self._quiet: asyncio.Event | None = None

    def check_room(self, now: float) -> None:
        """Raises Overloaded "CLIENT_QUEUE_FULL" when too many calls wait for one more."""
        if len(self._waiting) >= self._queue_items:
            raise Overloaded(
                "CLIENT_QUEUE_FULL",
                f"{self._queue_items} calls of this client wait already; send less.",
                {"limit": str(self._queue_items)},
            )
        if self._is_flowing:
            self._backlog.check(self._outstanding() + len(self._waiting), now)

    async def sign(self, wire: bytes, profile: str, within: float) -> Signed:
        """One PASSporT (`passports.to_wire`), for which there was room, signed in a frame.

        Raises SigningError.
        """
        promise: asyncio.Future[Signed] = self._loop.create_future()
        call = Call(wire, profile, within, time.monotonic() + within, promise)
        self._take(call)
        try:
            return await promise
        except asyncio.CancelledError:
            self._waiting.remove(call)
            self._check_quiet()
            raise

    def submit(self, call: Call) -> None:
        """The same for any promise; raises as `check_room`."""
        self.check_room(call.deadline - call.within)
        self._take(call)

    async def close(self, grace: float) -> None:
        """Waits for what is under way, `grace` seconds at most; what is left raises "CLOSED"."""
        self._quiet = asyncio.Event()
        self._check_quiet()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), grace)
        self._alarm.stop()
        if self._gathering is not None:
            self._gathering.cancel()
        left = [*self._under_way(), Frame(0, "", self._waiting.take_all())]
        self._again.clear()
        for frame in left:
            frame.fail(Unavailable("CLOSED", "The client was closed before the answer."))
        await asyncio.gather(*(stream.close() for stream in self._streams))

    def _take(self, call: Call) -> None:
        self._waiting.add(call)
        self._alarm.by(call.deadline, call.deadline - call.within)
        self._schedule()

    # --- what streams tell

    def stream_opened(self) -> None:
        """As `Owner`."""
        self._schedule()

    def stream_rested(self) -> None:
        """As `Owner`."""
        self._schedule()

    def stream_answered(self, stream: Stream, frame: Frame, answer: pb.SignResponse) -> None:
        """As `Owner`."""
        now = time.monotonic()
        more = bool(self._waiting or self._outstanding())
        self._backlog.answered(len(answer.results), now, more=more)
        if answer.HasField("refusal"):
            self._refused(stream, frame, error_of_refusal(answer.refusal))
        elif len(answer.results) != len(frame.calls):
            frame.fail(bad_answer("The signer's answer does not fit the request."))
        else:
            self._settle(stream, frame, answer)
        self._schedule()

    def stream_ended(
        self, stream: Stream, frames: list[Frame], error: SigningError, *, said: bool
    ) -> None:
        """As `Owner`."""
        for frame in frames:
            if not isinstance(error, Unavailable):
                frame.fail(error)
                continue
            if said or stream in frame.broke:
                frame.refused_by |= {stream}
            frame.broke |= {stream}
            frame.error = error
            self._again.append(frame)
        self._trouble = error
        self._backlog.interrupted(time.monotonic())
        self._schedule()

    def _settle(self, stream: Stream, frame: Frame, answer: pb.SignResponse) -> None:
        epoch = answer.epoch
        again: list[Call] = []
        error: SigningError | None = None
        for call, result in zip(frame.calls, answer.results, strict=True):
            if call.promise.done():
                continue
            outcome = outcome_of(result, epoch)
            if isinstance(outcome, Signed):
                call.promise.set_result(outcome)
            elif isinstance(outcome, Unavailable):
                again.append(call)
                error = outcome
            else:
                call.promise.set_exception(outcome)
        if error is None:
            stream.works()
        else:
            rest = self._frame(frame.profile, again)
            rest.refused_by = frame.refused_by
            self._refused(stream, rest, error)

    def _refused(self, stream: Stream, frame: Frame, error: SigningError) -> None:
        limit = error.metadata.get("limit", "")
        if isinstance(error, Unavailable):
            stream.rest()
            self._trouble = frame.error = error
            frame.refused_by |= {stream}
            self._again.append(frame)
        elif error.reason == "FRAME_TOO_LARGE" and limit.isdecimal() and len(frame.calls) > 1:
            self._frame_items = max(1, min(int(limit), len(frame.calls) // 2))
            for call in frame.waiting():
                self._waiting.add(call)
        else:
            if isinstance(error, Overloaded):
                stream.narrow(frame, time.monotonic())
            frame.fail(error)

    # --- what leaves

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_scheduled = False
        if self._again or self._waiting:
            now = time.monotonic()
            # None has a good name: then any that stands is better than none.
            desperate = all(stream.is_resting for stream in self._streams)
            self._send_again(now, desperate)
            self._send_waiting(now, desperate)
            if self._again or self._waiting:
                self._grow()
        self._check_quiet()

    def _send_again(self, now: float, desperate: bool) -> None:
        frames, self._again = self._again, []
        for frame in frames:
            frame.calls = frame.waiting()
            others = [stream for stream in self._streams if stream not in frame.refused_by]
            usable = [s for s in others if s.is_open and (desperate or not s.is_resting)]
            if not frame.calls:
                continue
            if usable:
                self._send(frame, min(usable, key=_load), now)
            elif any(s.is_starting or s.can_start() for s in others):
                self._again.append(frame)
            else:
                frame.fail(frame.error or self._trouble)

    def _send_waiting(self, now: float, desperate: bool) -> None:
        usable = [s for s in self._streams if s.is_open and (desperate or not s.is_resting)]
        self._is_flowing = sent = bool(usable)
        gathers = False
        while sent and self._waiting:
            sent = False
            for profile in self._waiting.profiles(STREAM_FRAMES * len(usable)):
                if (
                    not self._waiting.ready(profile, self._frame_items, now)
                    and sum([stream.under_way(profile) for stream in usable]) >= ALONE
                ):
                    gathers = True
                    continue
                with_room = [stream for stream in usable if stream.room(profile)]
                if not with_room:
                    continue
                sent = True
                stream = min(with_room, key=_load)
                items = min(self._frame_items, stream.room(profile))
                if calls := self._waiting.take(profile, items, now):
                    self._send(self._frame(profile, calls), stream, now)
        if gathers and self._gathering is None:
            self._gathering = self._loop.call_later(GATHER, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self._schedule()

    def _frame(self, profile: str, calls: list[Call]) -> Frame:
        return Frame(next(self._sequences), profile, calls)

    def _send(self, frame: Frame, stream: Stream, now: float) -> None:
        stream.connection.turn = next(self._turns)
        stream.send(frame, now)

    def _grow(self) -> None:
        """Something found no room: one stream more at each target, until all stand."""
        coming = False
        for streams in self._targets.values():
            if any(stream.is_starting for stream in streams):
                coming = True
            elif startable := [stream for stream in streams if stream.can_start()]:
                startable[0].start()
                coming = True
        if not coming and not any(stream.is_open for stream in self._streams):
            Frame(0, "", self._waiting.take_all()).fail(self._trouble)

    def _expire(self, now: float) -> float:
        """Tells the calls whose time is up; gives when the next one's is."""
        waiting = self._waiting.expire(now)
        again = [expire(frame.calls, now) for frame in self._again]
        sent = [stream.expire(now) for stream in self._streams]
        self._check_quiet()
        return min([waiting, *again, *sent])

    def _outstanding(self) -> int:
        return sum([stream.connection.outstanding for stream in self._streams])

    def _under_way(self) -> list[Frame]:
        sent = [frame for stream in self._streams for frame in stream.frames.values()]
        return [*self._again, *sent]

    def _check_quiet(self) -> None:
        if self._quiet is None or self._waiting:
            return
        if not any(frame.waiting() for frame in self._under_way()):
            self._quiet.set()


def _load(stream: Stream) -> tuple[int, int]:
    """The fewest PASSporTs under way, of equals the longest unused."""
    return stream.connection.outstanding, stream.connection.turn
