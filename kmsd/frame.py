"""A frame on its way through a signer: drafted, signed, answered.

Errors are per item, so one bad call never spoils a frame. Not here: what may be asked for, and of
whom (`signing`); the HSM (`lanes`).
"""

import asyncio
import time
from hashlib import sha256
from math import inf
from typing import Final

import structlog
from kmsapi.v1.signing_pb2 import SignResponse

from kmsd import passport
from kmsd.answers import refusal
from kmsd.counters import Counters, Kind, stages
from kmsd.errors import KmsdError
from kmsd.lanes import Lanes
from kmsd.live import Key

NEVER: Final = inf
log = structlog.get_logger()


class Frame:
    """PASSporTs of one profile under one epoch: what was refused, and the drafts of the rest.

    outcomes: for each PASSporT the error, or its draft: type, payload segment, origid.
    caller: of what kind, for a trace. arrived, drafted: when, and deadline: until when somebody
    waits for it, in seconds of the monotonic clock.
    """

    __slots__ = (
        "_counters",
        "_digests",
        "_key",
        "_kinds",
        "_lanes",
        "_signing",
        "arrived",
        "caller",
        "drafted",
        "epoch",
        "outcomes",
        "sequence",
    )

    def __init__(
        self, sequence: int, epoch: int, key: Key, lanes: Lanes, counters: Counters, caller: str
    ) -> None:
        self.sequence = sequence
        self.epoch = epoch
        self.caller = caller
        self.outcomes: list[tuple[str, str, str] | KmsdError] = []
        self.arrived = self.drafted = time.monotonic()
        self._key = key
        self._lanes = lanes
        self._counters = counters
        self._kinds: list[Kind] = []
        self._digests: list[bytes] = []
        self._signing: asyncio.Future[list[bytes]] | None = None

    def add(self, ppt: str, attest: str, payload: str, origid: str) -> None:
        """One more PASSporT to sign."""
        signed = passport.signing_input(self._key.header(ppt), payload)
        self._digests.append(sha256(signed).digest())
        self.outcomes.append((ppt, payload, origid))
        self._kinds.append((ppt, attest))

    def refuse(self, error: KmsdError) -> None:
        """One more that is not signed."""
        self._counters.refused(error.reason)
        self.outcomes.append(error)

    def start(self, deadline: float = NEVER) -> "asyncio.Future[list[bytes]] | None":
        """Lets the HSM begin; when the future is done there is an `answer`. None: there is one."""
        self.drafted = time.monotonic()
        if self._digests:
            self._signing = self._lanes.sign(self._key.handles, self._digests, deadline)
        return self._signing

    def drop(self) -> None:
        """Nobody waits for it any more: what has not begun does not begin."""
        if self._signing is not None:
            self._signing.cancel()

    def answer(self) -> SignResponse:
        """What the caller gets. Raises Unavailable when the HSM is lost, Late."""
        try:
            signatures = iter(self._signing.result() if self._signing is not None else ())
        except KmsdError as error:
            self._counters.refused(error.reason, len(self._digests))
            raise
        signed_at = time.monotonic()
        header, x5u = self._key.header, self._key.entry.x5u
        response = SignResponse(sequence=self.sequence, epoch=self.epoch)
        add = response.results.add
        for outcome in self.outcomes:
            if isinstance(outcome, KmsdError):
                add().refusal.CopyFrom(refusal(outcome))
                continue
            ppt, payload, origid = outcome
            signed = add().signed
            signed.identity = passport.identity(header(ppt), payload, next(signatures), x5u, ppt)
            signed.origid = origid
        self._count(signed_at)
        return response

    def _count(self, signed: float) -> None:
        """It is answered: counts it and, one in many, says in the log what its time went into."""
        profile, now = self._key.entry.profile, time.monotonic()
        if self._counters.answered(profile, self._kinds, self.epoch, now - self.arrived):
            draft, hsm, answer = stages(self.arrived, self.drafted, signed, now)
            log.info(
                "trace",
                profile=profile,
                epoch=self.epoch,
                sequence=self.sequence,
                caller=self.caller,
                items=len(self.outcomes),
                signed=len(self._kinds),
                draft_us=draft,
                hsm_us=hsm,
                answer_us=answer,
            )
