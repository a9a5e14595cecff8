"""Who leads: one of several replicas, by a Lease object and everybody's own monotonic clock.

    leader       patches renewTime every 2 s ──► Lease muslin-controller (resourceVersion n)
    candidates   look every 2 to 4 s; see n unchanged for 15 s by their own clock: take over

The rules and figures are client-go's (tools/leaderelection), so are the
fields; kubectl and other tools read the Lease as they read any.  Times in it
are for people: nobody compares them, so nobody's wall clock counts.

Promise: work is done only in a *term*, and no two terms overlap.

    leader:     began ── renewal sent, answered ─────── began + 10 s: the term is over
    candidate:           sees the renewal ──────────────────── + 15 s: may take over

A term counts from before the request that renewed it was sent, a candidate's
wait from after that request had its effect, so five seconds lie between them
whatever the clocks show.  A write whose answer was lost extends no term; that
it may have made us holder is found out by the next look, since a holder's
name is that of one process and never used again.

One thing a wall clock could spoil: set back to the very microsecond of the
last renewal, the next one would change nothing, and an API server that has
nothing to write makes no new version for others to see.  It is told by the
version in the answer, and is no renewal.

What a clock cannot give: a process that is stopped (SIGSTOP, a paused VM)
goes on in mid-step when it is let go.  So whoever works in a term asks
`Term.check` before every write (`writes.Writes`), and every write is one that
does no harm late: it names the version it has seen, or the next leader's look
mends it.  The clock is the boot's, which goes on while a machine sleeps.

A Lease that vanishes is waited for as if it had just been renewed, by those
who saw somebody hold it.  Who starts in that moment cannot know; so nobody
should delete it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from muslin.errors import Conflict, MuslinError, NotReady
from muslin.kernel import boot
from muslin.kube import Api, micro_time
from muslin.kube.kinds import LEASES
from muslin.kube.slim import Lease
from muslin.log import log

NAME = "muslin-controller"
JITTER = 1.2  # client-go's JitterFactor: a pause is 1 to 2.2 times the retry period
ENDING = 1.0  # seconds that work may take to end when its term does


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds; client-go's 15, 10 and 2, or in the same proportions."""

    duration: float = 15.0  # without a renewal, after which another may lead
    deadline: float = 10.0  # without one, after which the leader stops
    retry: float = 2.0  # between two tries

    @classmethod
    def of(cls, duration: float) -> Times:
        """For another `duration`, of which the Lease object holds whole seconds."""
        whole = float(math.ceil(duration))
        return cls(whole, whole * 2 / 3, whole * 2 / 15)


class Lost(NotReady):
    """We do not lead any more, so this was not done."""


class Term:
    """The right to work, until it is over."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = -math.inf

    @property
    def left(self) -> float:
        """Seconds; 0 when it is over."""
        return max(0.0, self._until - self._clock())

    def check(self) -> None:
        """Raise Lost when it is over."""
        if not self.left:
            raise Lost("not the leader: another may be")

    def extend(self, until: float) -> None:
        """A renewal that was answered."""
        self._until = until

    def end(self) -> None:
        """Now."""
        self._until = -math.inf


@dataclass(frozen=True, slots=True)
class Sight:
    """The Lease as this process last saw it."""

    version: str = ""  # "": it is not there
    holder: str = ""  # "": nobody; of one that vanished, who held it last
    patience: float = 0.0  # seconds that its holder may be silent
    transitions: int = 0
    since: float = -math.inf  # by our clock, when we saw it become so


class Candidate:
    """One process in one election; `attempt` is one try to lead or to go on leading."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str,
        times: Times,
        *,
        clock: Callable[[], float] = boot.clock,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.identity = f"{identity}_{secrets.token_hex(4)}"  # a restarted process is another
        self.term = Term(clock)
        self.sight = Sight()
        self.heard = -math.inf  # when the server last answered, by our clock
        self._api, self._namespace, self._times = api, namespace, times
        self._clock, self._wall = clock, wall
        self._ours = False  # whether `sight` is what our own last write made

    async def attempt(self) -> bool:
        """Acquire or renew, if that is ours to do; say whether it was done.

        NotReady when the server does not say: then nothing is known, and a
        term that there is goes on to its end.
        """
        began = self._clock()
        if self._ours and self.term.left:  # nothing to look at: who else writes makes a Conflict
            with contextlib.suppress(Conflict):
                return await self._hold(began)
        self._ours = False
        self.sight = self._seen(await self._look())
        if not self._may_hold():
            self.term.end()
            return False
        try:
            return await self._hold(began)
        except Conflict:
            return False

    async def release(self) -> None:
        """Let another lead at once.  Call it when all work has ended; the term ends first."""
        leading = bool(self.term.left)
        self.term.end()
        if not leading:
            return
        if not self._ours:  # ended in the middle of a renewal
            self.sight = self._seen(await self._look())
        if self.sight.version and self.sight.holder == self.identity:
            self._ours = False
            # Taken out and not "", which some versions of the API server refuse.
            spec = {"holderIdentity": None, "leaseDurationSeconds": 1, **self._now("acquireTime")}
            with contextlib.suppress(Conflict):
                await self._patch(spec)

    async def _look(self) -> Lease | None:
        found = await self._api.get(LEASES, NAME, namespace=self._namespace, type=Lease)
        self.heard = self._clock()
        return found

    def _seen(self, found: Lease | None) -> Sight:
        """What is known of the Lease now; `since` stays while nothing has changed."""
        before, now = self.sight, self._clock()
        if found is None:
            return replace(before, version="", since=now) if before.version else before
        if found.metadata.resource_version == before.version:
            return before
        spec = found.spec
        return Sight(
            version=found.metadata.resource_version,
            holder=spec.holder_identity or "",
            patience=max(self._times.duration, spec.lease_duration_seconds or 0),
            transitions=spec.lease_transitions or 0,
            since=now,
        )

    def _may_hold(self) -> bool:
        held = self.sight
        return held.holder in ("", self.identity) or self._clock() - held.since >= held.patience

    async def _hold(self, began: float) -> bool:
        """Write that we hold the Lease as we saw it; Conflict if it is another by now."""
        before, self._ours = self.sight, False  # an answer that is lost leaves it unknown
        new = before.holder != self.identity
        spec: dict[str, Any] = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self._times.duration),
            "leaseTransitions": before.transitions + (new and before.version != ""),
            **self._now("acquireTime" if new or not before.version else ""),
        }
        if before.version:
            made = await self._patch(spec)
        else:
            body = {"metadata": {"name": NAME}, "spec": spec}
            made = await self._api.create(LEASES, body, namespace=self._namespace)
        self.heard = self._clock()
        if made["metadata"]["resourceVersion"] == before.version:
            return False  # it changed nothing, so nobody sees it (above)
        self.sight = Sight(
            version=made["metadata"]["resourceVersion"],
            holder=self.identity,
            patience=self._times.duration,
            transitions=spec["leaseTransitions"],
            since=self.heard,
        )
        self._ours = True
        self.term.extend(began + self._times.deadline)
        return True

    async def _patch(self, spec: dict[str, Any]) -> dict[str, Any]:
        body = {"metadata": {"resourceVersion": self.sight.version}, "spec": spec}
        return await self._api.patch(LEASES, NAME, body, namespace=self._namespace)

    def _now(self, also: str) -> dict[str, str]:
        now = micro_time(self._wall())
        return {"renewTime": now, also: now} if also else {"renewTime": now}


class Election:
    """The loop around a Candidate."""

    def __init__(
        self,
        candidate: Candidate,
        times: Times,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
        die: Callable[[int], NoReturn] = os._exit,
    ) -> None:
        self.candidate, self._times = candidate, times
        self._uniform, self._die = uniform, die
        self._fault = ""

    async def run(self, lead: Callable[[Term], Awaitable[None]]) -> None:
        """Lead whenever it is our turn, until cancelled; then let another lead.

        `lead` is cancelled when the term ends and may only end so; what it
        raises ends the election too.
        """
        try:
            while True:
                if await self._attempt(None):
                    await self._lead(lead)
                else:
                    await asyncio.sleep(self._times.retry * self._uniform(1.0, 1.0 + JITTER))
        finally:
            try:
                async with asyncio.timeout(ENDING):
                    await self.candidate.release()
            except (MuslinError, TimeoutError) as e:  # then others wait until it is over
                log.warning("leader.not_released", error=str(e) or "no answer in time")

    async def _lead(self, lead: Callable[[Term], Awaitable[None]]) -> None:
        term = self.candidate.term
        log.info("leader.began", identity=self.candidate.identity)

        async def work() -> None:
            await lead(term)

        task = asyncio.create_task(work())
        try:
            while term.left and not task.done():
                await asyncio.wait({task}, timeout=min(self._times.retry, term.left))
                if not task.done():
                    await self._attempt(term.left)
            if not task.done():
                log.warning("leader.lost", identity=self.candidate.identity)
        finally:
            await self._stop(task)
        if not task.cancelled():
            task.result()

    async def _stop(self, task: asyncio.Task[None]) -> None:
        """Nothing of the work is left when this returns."""
        task.cancel()
        margin = self._times.duration - self._times.deadline
        await asyncio.wait({task}, timeout=min(ENDING, margin / 2))
        if not task.done():
            log.error("leader.stuck", identity=self.candidate.identity)
            self._die(os.EX_SOFTWARE)

    async def _attempt(self, limit: float | None) -> bool:
        """One try; a fault is logged when it is news."""
        try:
            async with asyncio.timeout(limit):
                done = await self.candidate.attempt()
        except (MuslinError, TimeoutError) as e:
            fault = str(e) or "no answer before the term's end"
            if fault != self._fault:
                log.warning("election.failed", error=fault)
            self._fault = fault
            return False
        self._fault = ""
        return done
