"""One `SignStream` on one connection: frames out, answers in, in whatever order they come.

A stream opens when it is told to, stands until something ends it, and then waits to be opened
again. What a broken stream means for the frames that were under way its owner decides.

Not here: which frame goes to which stream, and whether it goes to another one (`dispatch`).
"""

import asyncio
import random
from collections import deque
from math import inf
from typing import Final, Protocol

import grpc
from kmsapi.v1 import signing_pb2 as pb

from kmsd_client.calls import Frame, expire
from kmsd_client.connection import Connection, StreamCall
from kmsd_client.errors import SigningError, Unavailable
from kmsd_client.refusals import error_of_call, is_from_signer

STREAM_FRAMES: Final = 32
"""Frames under way on one stream, all profiles together."""

UNDER_WAY: Final = 256
"""PASSporTs that a client has under way, its streams together. Enough for a few signers to have
always more to do; what waits here and not there can still go to another signer."""

PROFILE_FRAMES: Final = 2
"""Of one profile: one that is signed, and one that is there when that is done. What is called for
meanwhile gathers, so that frames grow with the load and a lone call never waits for company."""

HEALTH_WITHIN: Final = 1.0
"""Seconds for a signer to say whether it serves, before it is sent anything."""

FIRST_REST: Final = 0.1
LONGEST_REST: Final = 2.0
"""Seconds that a connection is left alone after it failed: doubled each time, with jitter."""


class Owner(Protocol):
    """Who is told what happens to frames. Called from the event loop; must not wait."""

    def stream_opened(self) -> None:
        """There is a stream more to send on."""

    def stream_answered(self, stream: "Stream", frame: Frame, answer: pb.SignResponse) -> None:
        """The frame has left the stream, and this was said to it."""

    def stream_ended(
        self, stream: "Stream", frames: list[Frame], error: SigningError, *, said: bool
    ) -> None:
        """These frames were under way. said: by the signer, not by the connection to it."""

    def stream_rested(self) -> None:
        """The stream may be used again."""


class Stream:
    """The streams of one connection, one after the other.

    frames: under way, by sequence. is_starting, is_open: else it is closed.
    is_resting: it failed a moment ago; better to use another one.
    """

    def __init__(self, connection: Connection, owner: Owner, window: int) -> None:
        """window: PASSporTs under way at most."""
        self.connection = connection
        self.frames: dict[int, Frame] = {}
        self.is_starting = False
        self.is_open = False
        self.is_resting = False
        self._owner = owner
        self._widest = self._window = window
        self._narrowed_at = 0.0
        self._profiles: dict[str, int] = {}
        self._outbox: deque[bytes] = deque()
        self._to_write = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._call: StreamCall | None = None
        self._given_up = False
        self._failures = 0
        self._has_answered = False
        self._is_broken = False
        self._is_denied = False
        self._asking: asyncio.Task[None] | None = None
        self._rest: asyncio.TimerHandle | None = None

    def room(self, profile: str) -> int:
        """How many PASSporTs of the profile may leave in one more frame."""
        if len(self.frames) >= STREAM_FRAMES or self._profiles.get(profile, 0) >= PROFILE_FRAMES:
            return 0
        return max(0, self._window - self.connection.outstanding)

    def can_start(self) -> bool:
        """Whether it is closed and it makes sense to open it."""
        return not (self.is_open or self.is_starting) and (
            not self.is_resting or self.connection.is_ready()
        )

    def start(self) -> None:
        """Connects and opens; `stream_opened` or `stream_ended` follows."""
        self.is_starting = True
        self._has_answered = self._is_broken = False
        self._task = asyncio.create_task(self._run(), name="kmsd-client-stream")

    def send(self, frame: Frame, now: float) -> None:
        """Hands over a frame; the stream is open. `stream_answered` or `stream_ended` follows."""
        frame.sent_at = now
        self.frames[frame.sequence] = frame
        self._profiles[frame.profile] = self._profiles.get(frame.profile, 0) + 1
        self.connection.outstanding += len(frame.calls)
        self._outbox.append(frame.encoded(now))
        self._to_write.set()

    def under_way(self, profile: str) -> int:
        """Frames of the profile under way."""
        return self._profiles.get(profile, 0)

    def narrow(self, frame: Frame, now: float) -> None:
        """Its signer refused a frame because others have so much under way there, too: less of
        ours from now on, and more again with each answer."""
        if frame.sent_at > self._narrowed_at:
            self._narrowed_at = now
            self._window = max(1, self._window // 2)

    def works(self) -> None:
        """It gave a sound answer: what failed before is forgotten."""
        if self._window < self._widest:
            self._window += 1
        self.is_resting = self._is_denied = False
        self._failures = 0
        if self._rest is not None:
            self._rest.cancel()

    def rest(self) -> None:
        """To be left alone for a while, longer each time."""
        if self.is_resting:
            return
        self.is_resting = True
        pause = min(FIRST_REST * 2.0 ** min(self._failures, 10), LONGEST_REST)
        self._failures += 1
        pause *= random.uniform(0.75, 1.0)  # noqa: S311 - spreads attempts, hides nothing
        self._rest = asyncio.get_running_loop().call_later(pause, self._rested)

    def expire(self, now: float) -> float:
        """Tells the calls under way whose time is up; gives when to look again (`inf`: no need).

        Ends a stream that owes answers nobody waits for any more.
        """
        soonest = inf
        for frame in self.frames.values():
            at = expire(frame.calls, now)
            if at == inf and (at := frame.given_up_at()) <= now:
                self._give_up()
                break
            soonest = min(soonest, at)
        return soonest

    async def close(self) -> None:
        """Ends it for good; the owner is told nothing more."""
        tasks = [task for task in (self._task, self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
            # What it ended with holds the call, and the call holds the connection open.
            self._task = self._asking = None
        if self._rest is not None:
            self._rest.cancel()
        self.frames.clear()
        self._outbox.clear()

    def _give_up(self) -> None:
        if self._call is not None and not self._given_up:
            self._given_up = True
            self._call.cancel()

    async def _run(self) -> None:
        said = False
        try:
            await self._converse()
            error: SigningError = Unavailable("UNAVAILABLE", "The signer ended the stream.")
        except grpc.aio.AioRpcError as failed:
            error, said = error_of_call(failed), is_from_signer(failed)
            if self._is_broken and not said:
                error = Unavailable("UNAVAILABLE", "The connection to the signer broke.")
        except (grpc.aio.BaseError, asyncio.InvalidStateError) as closed:
            error = Unavailable("UNAVAILABLE", f"The connection is closed: {closed}.")
        except asyncio.CancelledError:
            if not self._given_up:
                raise
            error, said = Unavailable("SIGNER_SILENT", "The signer does not answer."), True
        except SigningError as misfit:
            error = misfit
        finally:
            self.is_open = self.is_starting = self._given_up = False
            if self._call is not None:
                self._call.cancel()
                self._call = None
        self._end(error, said)

    async def _converse(self) -> None:
        await self.connection.becomes_ready()  # when it does not, the call says why
        await self._ask_for_health()
        self._call = call = self.connection.sign_stream()
        await call.wait_for_connection()
        self._outbox.clear()
        self.is_open, self.is_starting = True, False
        writing = asyncio.create_task(self._write(call), name="kmsd-client-write")
        try:
            self._owner.stream_opened()
            while (answer := await call.read()) is not grpc.aio.EOF:
                self._take(answer)
        finally:
            writing.cancel()
            await asyncio.wait([writing])

    async def _write(self, call: StreamCall) -> None:
        try:
            while True:
                while self._outbox:
                    await call.write(self._outbox.popleft())
                self._to_write.clear()
                await self._to_write.wait()
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            # The call has ended. Why, the reader hears, except where the status is not there
            # yet: then gRPC makes one up, INTERNAL, for what is a connection that broke.
            self._is_broken = True

    def _take(self, answer: object) -> None:
        # gRPC gives None for what is no SignResponse.
        if not isinstance(answer, pb.SignResponse) or answer.sequence not in self.frames:
            raise SigningError("BAD_ANSWER", "The signer answered something that was not asked.")
        frame = self.frames.pop(answer.sequence)
        self._has_answered = True
        self._leave(frame)
        self._owner.stream_answered(self, frame, answer)

    def _leave(self, frame: Frame) -> None:
        self.connection.outstanding -= len(frame.calls)
        if self._profiles[frame.profile] == 1:
            del self._profiles[frame.profile]
        else:
            self._profiles[frame.profile] -= 1

    def _end(self, error: SigningError, said: bool) -> None:
        frames = list(self.frames.values())
        self.frames.clear()
        for frame in frames:
            self._leave(frame)
        # One that worked until now may be opened again at once: its signer is being replaced.
        if isinstance(error, Unavailable) and (said or not self._has_answered):
            self.rest()
        self._owner.stream_ended(self, frames, error, said=said)

    def _rested(self) -> None:
        if self._is_denied and self.is_open:
            self._asking = asyncio.create_task(self._ask_again(), name="kmsd-client-health")
        else:
            self.is_resting = False
            self._owner.stream_rested()

    async def _ask_again(self) -> None:
        await self._ask_for_health()
        self._owner.stream_rested()

    async def _ask_for_health(self) -> None:
        """One that denies service is used when there is no other: it says why it refuses."""
        self._is_denied = await self.connection.denies_service(HEALTH_WITHIN)
        self.is_resting = False
        if self._is_denied:
            self.rest()
