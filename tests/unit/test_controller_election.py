"""Who leads: never two at once, whatever dies, stops, is late or is lost; and soon somebody."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from muslin.controller.election import Candidate, Election, Lost, Sight, Term, Times
from muslin.errors import Conflict, NotReady
from muslin.kube import micro_time
from muslin.kube.slim import Lease, LeaseSpec, Meta
from virtual import run

NS = "muslin-system"
REAL = Times()


class Server:
    """One Lease, with an API server's rules for it."""

    def __init__(self) -> None:
        self.spec: dict[str, Any] | None = None
        self.version = 0

    def get(self) -> Lease | None:
        if self.spec is None:
            return None
        words = {
            "holder_identity": self.spec.get("holderIdentity"),
            "lease_duration_seconds": self.spec["leaseDurationSeconds"],
            "lease_transitions": self.spec["leaseTransitions"],
        }
        return Lease(metadata=Meta(resource_version=str(self.version)), spec=LeaseSpec(**words))

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.spec is not None:
            raise Conflict("lease")
        return self._put(body["spec"])

    def patch(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.spec is None or body["metadata"]["resourceVersion"] != str(self.version):
            raise Conflict("lease")
        return self._put(self.spec | body["spec"])

    def touch(self) -> None:
        """Somebody annotates it."""
        self.version += self.spec is not None

    def _put(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.version += spec != self.spec  # as a real one: nothing to write, no new version
        self.spec = spec
        return {"metadata": {"resourceVersion": str(self.version)}}


class Line:
    """The way of one process to the server; `wire` is awaited before and after each effect."""

    def __init__(self, server: Server, wire: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.server, self.wire = server, wire

    async def get(self, *_: object, **__: object) -> Lease | None:
        return await self._do(self.server.get)

    async def create(self, _: object, body: dict[str, Any], **__: object) -> dict[str, Any]:
        return await self._do(lambda: self.server.create(body))

    async def patch(self, _: object, __: str, body: dict[str, Any], **___: object) -> Any:
        return await self._do(lambda: self.server.patch(body))

    async def _do(self, what: Callable[[], Any]) -> Any:
        await self.wire()
        try:
            done, refused = what(), None
        except Conflict as e:
            done, refused = None, e
        await self.wire()
        if refused:
            raise refused
        return done


# ── every order of events, by hand ──────────────────────────────────────────────────────────────


class _Turn:
    def __await__(self) -> Generator[None, None, None]:
        yield


@dataclass
class Process:
    """One candidate whose request, if there is one, is somewhere on its way."""

    candidate: Candidate
    doing: Coroutine[Any, Any, Any] | None = None

    def begin(self, what: Coroutine[Any, Any, Any]) -> None:
        self.doing = what
        self.go()

    def go(self, fault: Exception | None = None) -> None:
        """Until the next point on the wire."""
        if self.doing is None:
            return
        try:
            self.doing.throw(fault) if fault else self.doing.send(None)
        except StopIteration:
            self.doing = None
        except (Conflict, NotReady):
            self.doing = None


class World:
    """Three processes, a server, and time that passes only when told."""

    def __init__(self, times: Times) -> None:
        self.now, self.walls = 0.0, [0.0, 0.0, 0.0]
        self.server, self.times = Server(), times
        self.processes = [self.start(i) for i in range(3)]

    def start(self, i: int) -> Process:
        async def wire() -> None:
            await _Turn()

        line: Any = Line(self.server, wire)
        clock, wall = (lambda: self.now + 1000.0 * i), (lambda: 1e9 + self.now + self.walls[i])
        return Process(Candidate(line, NS, f"c{i}", self.times, clock=clock, wall=wall))

    def attempt(self, i: int) -> None:
        if self.processes[i].doing is None:
            self.processes[i].begin(self.processes[i].candidate.attempt())

    def release(self, i: int) -> None:
        if self.processes[i].doing is None:
            self.processes[i].begin(self.processes[i].candidate.release())

    def kill(self, i: int) -> None:
        if self.processes[i].doing:
            self.processes[i].doing.close()
        self.processes[i] = self.start(i)

    def leaders(self) -> list[str]:
        found = [p.candidate for p in self.processes]
        return [c.identity for c in found if c.term.left]

    def settle(self) -> None:
        """All that is on its way arrives."""
        for process in self.processes:
            while process.doing:
                process.go()


WHO = st.integers(0, 2)


class Elections(RuleBasedStateMachine):
    """Hypothesis chooses what happens next."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(REAL)

    @rule(who=WHO)
    def attempt(self, who: int) -> None:
        self.world.attempt(who)

    @rule(who=WHO)
    def arrive(self, who: int) -> None:
        """The request at the server, or the answer here; unless it does, the process is stopped."""
        self.world.processes[who].go()

    @rule(who=WHO)
    def whole_attempt(self, who: int) -> None:
        self.world.attempt(who)
        while self.world.processes[who].doing:
            self.world.processes[who].go()

    @rule(who=WHO)
    def lose(self, who: int) -> None:
        """The request, or the answer to one that was carried out."""
        self.world.processes[who].go(NotReady("lost"))

    @rule(who=WHO)
    def release(self, who: int) -> None:
        self.world.release(who)

    @rule(who=WHO)
    def kill(self, who: int) -> None:
        self.world.kill(who)

    @rule(seconds=st.sampled_from([0.1, 2.0, 4.9, 9.9, 10.0, 14.9, 15.0, 3600.0]))
    def tick(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(who=WHO, seconds=st.sampled_from([-1e8, -2.0, -0.1, 60.0]))
    def set_wall_clock(self, who: int, seconds: float) -> None:
        self.world.walls[who] += seconds

    @rule()
    def touch(self) -> None:
        self.world.server.touch()

    @invariant()
    def at_most_one_leads(self) -> None:
        assert len(self.world.leaders()) <= 1, self.world.leaders()

    def teardown(self) -> None:
        """Whatever happened: let them be, and within two leases' time somebody leads."""
        self.world.settle()
        for _ in range(20):
            self.world.now += 2.0
            for who in range(3):
                self.world.attempt(who)
            self.world.settle()
            assert len(self.world.leaders()) <= 1
        assert len(self.world.leaders()) == 1
        self.world.settle()


Elections.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestElections = Elections.TestCase


def test_the_simulation_would_find_two_leaders() -> None:
    """With a deadline longer than the lease: so the test above can fail."""
    world = World(Times(duration=10.0, deadline=15.0, retry=2.0))
    for who, wait in ((0, 0.0), (1, 10.5), (1, 0.0)):
        world.attempt(who)
        world.settle()
        world.now += wait
    assert len(world.leaders()) == 2


def test_a_lease_that_vanishes_is_waited_for_by_who_saw_its_holder() -> None:
    world = World(REAL)
    world.attempt(0)
    world.settle()
    world.attempt(1)
    world.settle()
    world.server.spec = None
    world.attempt(1)
    world.settle()
    assert world.leaders() == [world.processes[0].candidate.identity]
    world.attempt(0)  # the leader makes it anew
    world.settle()
    assert world.server.spec["holderIdentity"] == world.processes[0].candidate.identity


def test_a_leader_that_sees_another_holder_stops_at_once() -> None:
    world = World(REAL)
    world.attempt(0)
    world.settle()
    world.server.spec = {**world.server.spec, "holderIdentity": "restored from a backup"}
    world.server.touch()
    world.attempt(0)
    world.settle()
    assert world.leaders() == []


def test_the_fields_are_those_of_client_go() -> None:
    world = World(REAL)
    world.attempt(0)
    world.settle()
    who = world.processes[0].candidate.identity
    first = micro_time(1e9)
    assert world.server.spec == {
        "holderIdentity": who,
        "leaseDurationSeconds": 15,
        "leaseTransitions": 0,
        "renewTime": first,
        "acquireTime": first,
    }
    world.walls[0] = 2.0
    world.attempt(0)
    world.settle()
    assert world.server.spec["renewTime"] == micro_time(1e9 + 2)
    assert world.server.spec["acquireTime"] == first
    world.release(0)
    world.settle()
    assert world.server.spec["holderIdentity"] is None
    assert world.server.spec["leaseDurationSeconds"] == 1
    world.attempt(1)
    world.settle()
    assert world.server.spec["leaseTransitions"] == 1


def test_a_renewal_that_changes_nothing_is_none() -> None:
    """The wall clock was set back to the microsecond of the last one."""
    world = World(REAL)
    world.attempt(0)
    world.settle()
    world.now, world.walls[0] = 8.0, -8.0
    world.attempt(0)
    world.settle()
    assert world.processes[0].candidate.term.left == 2.0
    world.walls[0] = 0.0
    world.attempt(0)
    world.settle()
    assert world.processes[0].candidate.term.left == 10.0


def test_two_processes_of_one_name_are_two() -> None:
    world = World(REAL)
    assert world.start(0).candidate.identity != world.start(0).candidate.identity


def test_a_term_that_is_over_lets_nothing_be_written() -> None:
    now = [0.0]
    term = Term(lambda: now[0])
    with pytest.raises(Lost):
        term.check()
    term.extend(10.0)
    term.check()
    now[0] = 10.0
    with pytest.raises(Lost):
        term.check()
    assert Sight().since == -math.inf


@pytest.mark.parametrize("duration", [1, 3, 15, 60.5])
def test_times_keep_their_order_in_every_length(duration: float) -> None:
    times = Times.of(duration)
    assert times.duration > times.deadline > times.retry * 2.2
    assert times.duration == int(times.duration)
    assert Times.of(15.0) == REAL


# ── the loop, on virtual time ───────────────────────────────────────────────────────────────────


class Replica:
    """One Election whose work is to note when it works."""

    def __init__(self, server: Server, name: str, notes: list[tuple[float, str, str]]) -> None:
        self.away, self.stopped, self.stubborn = False, False, False
        self.name, self.notes, self.died = name, notes, asyncio.Event()
        loop = asyncio.get_running_loop()
        line: Any = Line(server, self.wire)
        self.candidate = Candidate(line, NS, name, REAL, clock=loop.time)
        self.election = Election(self.candidate, REAL, uniform=lambda a, _: a, die=self.die)
        self.task = asyncio.create_task(self.election.run(self.work))

    async def wire(self) -> None:
        await asyncio.sleep(0.01)
        if self.stopped:
            await asyncio.Event().wait()
        if self.away:
            await asyncio.sleep(3.0)
            raise NotReady("no answer in time")

    async def work(self, term: Term) -> None:
        now = asyncio.get_running_loop().time
        self.notes.append((now(), self.name, "began"))
        try:
            while True:
                term.check()
                await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            if self.stubborn:
                await asyncio.sleep(1000)
            raise
        finally:
            self.notes.append((now(), self.name, "ended"))

    def die(self, code: int) -> NoReturn:
        self.died.set()
        raise SystemExit(code)

    async def end(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, NotReady):
            await self.task


def test_a_clean_exit_hands_over_within_a_look() -> None:
    async def main() -> list[tuple[float, str, str]]:
        notes: list[tuple[float, str, str]] = []
        server = Server()
        a = Replica(server, "a", notes)
        await asyncio.sleep(1)
        b = Replica(server, "b", notes)
        await asyncio.sleep(60)
        await a.end()
        await asyncio.sleep(5)
        await b.end()
        return notes

    (_, *_), (ended, *first), (began, *second), _ = run(main())
    assert (first, second) == (["a", "ended"], ["b", "began"])
    assert 0 <= began - ended <= REAL.retry + 0.1


def test_after_a_death_another_leads_when_the_lease_has_run_out() -> None:
    async def main() -> list[tuple[float, str, str]]:
        notes: list[tuple[float, str, str]] = []
        server = Server()
        a = Replica(server, "a", notes)
        await asyncio.sleep(1)
        b = Replica(server, "b", notes)
        await asyncio.sleep(60)
        a.stopped = True  # its renewals never arrive: its term ends by itself
        await asyncio.sleep(30)
        await b.end()
        a.task.cancel()
        return notes

    _, (ended, *first), (began, *second), _ = run(main())
    assert (first, second) == (["a", "ended"], ["b", "began"])
    assert 69 <= ended <= 71.2  # 10 s after its last renewal
    assert 74 <= began <= 61 + 15 + 2.2


def test_an_outage_ends_the_term_and_its_end_begins_another() -> None:
    async def main() -> tuple[list[tuple[float, str, str]], float]:
        notes: list[tuple[float, str, str]] = []
        server = Server()
        replicas = [Replica(server, name, notes) for name in "ab"]
        await asyncio.sleep(30)
        for replica in replicas:
            replica.away = True
        await asyncio.sleep(60)
        for replica in replicas:
            replica.away = False
        back = asyncio.get_running_loop().time()
        await asyncio.sleep(30)
        for replica in replicas:
            await replica.end()
        return notes, back

    notes, back = run(main())
    assert [what for _, _, what in notes[:3]] == ["began", "ended", "began"]
    assert 38 <= notes[1][0] <= 41
    assert back <= notes[2][0] <= back + 6
    working = 0
    for _, _, what in notes:  # never two
        working += 1 if what == "began" else -1
        assert working in (0, 1)


def test_work_that_does_not_end_ends_the_process_before_another_may_lead() -> None:
    async def main() -> float:
        server, loop = Server(), asyncio.get_running_loop()
        a = Replica(server, "a", [])
        await asyncio.sleep(30)
        a.stubborn = a.away = True
        with pytest.raises(SystemExit):
            await a.task
        assert a.died.is_set()
        return loop.time()

    with contextlib.suppress(SystemExit):
        assert run(main()) <= 30 + REAL.duration


def test_what_the_work_raises_ends_the_election_and_the_lease_is_free() -> None:
    async def main() -> Server:
        server = Server()
        a = Replica(server, "a", [])

        async def broken(_: Term) -> None:
            raise ZeroDivisionError

        a.task.cancel()
        with pytest.raises(ZeroDivisionError):
            await a.election.run(broken)
        return server

    assert run(main()).spec["holderIdentity"] is None
