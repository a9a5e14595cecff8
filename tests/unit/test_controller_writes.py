"""How the leader writes: in its term, once a second and object, and not against a dead server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from apiserver import ApiServer
from muslin.controller.election import Lost, Term
from muslin.controller.metrics import Metrics
from muslin.controller.rounds import rounds
from muslin.controller.seen import Bell, Machine, Seen
from muslin.controller.writes import Fenced, Writer
from muslin.errors import ConfigError, Conflict, NotReady
from muslin.kube import Access, Api, crd
from muslin.kube.kinds import CONFIG_MAPS, CRDS, NODES
from virtual import run


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def failing(*faults: Exception | None) -> tuple[list[int], Callable[[], Any]]:
    """A write that fails so, in order, and then does not; and how often it was made."""
    made, left = [0], list(faults)

    async def write() -> None:
        made[0] += 1
        if left and (fault := left.pop(0)):
            raise fault

    return made, write


async def test_an_object_is_written_at_most_once_a_second(clock: Clock) -> None:
    writer = Writer("x", clock)
    made, write = failing()
    assert await writer.bring({"a": write}) == pytest.approx(1.0)
    clock.now += 0.4
    assert await writer.bring({"a": write}) == pytest.approx(0.6)
    assert made == [1]
    clock.now += 0.6
    await writer.bring({"a": write})
    assert made == [2]
    assert await writer.bring({}) is None


async def test_a_server_that_is_away_is_asked_once_a_round_and_less_and_less(clock: Clock) -> None:
    writer = Writer("x", clock)
    (made, one), (others, other) = failing(*[NotReady("away")] * 3), failing()
    pauses = [await writer.bring({"a": one, "b": other}) for _ in range(3)]
    assert pauses == [2.0, 4.0, 8.0]
    assert (made, others) == ([3], [0])
    await writer.bring({"a": one, "b": other})
    assert (made, others) == ([4], [1])


async def test_one_that_is_refused_waits_longer_and_the_others_do_not(clock: Clock) -> None:
    writer = Writer("x", clock)
    made, write = failing(*[ConfigError("a", ["no"])] * 20)
    others, other = failing()
    for _ in range(600):
        await writer.bring({"a": write, "b": other})
        clock.now += 1.0
    assert made[0] <= 16
    assert others == [600]


async def test_who_was_outrun_looks_again_soon(clock: Clock) -> None:
    writer = Writer("x", clock)
    made, write = failing(Conflict("a"))
    assert await writer.bring({"a": write}) == pytest.approx(1.0)
    clock.now += 1.0
    await writer.bring({"a": write})
    assert made == [2]


async def test_when_the_term_is_over_the_round_is(clock: Clock) -> None:
    _, write = failing(Lost("over"))
    others, other = failing()
    with pytest.raises(Lost):
        await Writer("x", clock).bring({"a": write, "b": other})
    assert others == [0]


async def test_nothing_is_written_outside_a_term(clock: Clock) -> None:
    term, metrics = Term(clock), Metrics()
    async with ApiServer() as server, Fenced(Access(server=server.url), term, metrics) as api:
        body = {"metadata": {"name": "x"}}
        before = server.faults.requests
        for write in (
            lambda: api.create(CONFIG_MAPS, body, namespace="default"),
            lambda: api.patch(CONFIG_MAPS, "x", body, namespace="default"),
            lambda: api.apply(CONFIG_MAPS, "x", body, namespace="default"),
            lambda: api.delete(CONFIG_MAPS, "x", namespace="default"),
        ):
            with pytest.raises(Lost):
                await write()
        assert server.faults.requests == before
        term.extend(clock.now + 10)
        await api.create(CONFIG_MAPS, body, namespace="default")
        with pytest.raises(Conflict):
            await api.create(CONFIG_MAPS, body, namespace="default")
        await api.list(CONFIG_MAPS, type=dict)
        assert await api.delete(CONFIG_MAPS, "x", namespace="default")
    page = metrics.text().decode()
    for line in (
        'requests_total{resource="configmaps",result="ok",verb="create"} 1.0',
        'requests_total{resource="configmaps",result="conflict",verb="create"} 1.0',
        'requests_total{resource="configmaps",result="ok",verb="list"} 1.0',
    ):
        assert line in page


def test_rounds_join_what_comes_together_and_come_again_when_asked() -> None:
    async def main() -> list[tuple[float, float | None]]:
        now = asyncio.get_running_loop().time
        bell, turns = Bell(now), list[tuple[float, float | None]]()

        async def turn(since: float | None) -> float | None:
            turns.append((round(now(), 3), since))
            return 10.0 if len(turns) == 1 else None

        task = asyncio.create_task(rounds(bell, turn, settle=0.2))
        await asyncio.sleep(5)
        for _ in range(50):
            bell.ring()
            await asyncio.sleep(0.001)
        await asyncio.sleep(100)
        bell.ring()
        await asyncio.sleep(1)
        task.cancel()
        return turns

    first, again, last = run(main())
    assert first == (5.2, 5.0)
    assert again == (15.4, None)
    assert last == (105.25, pytest.approx(105.05))


def test_a_turn_that_failed_is_made_again_by_the_next_rounds() -> None:
    async def main() -> float:
        now = asyncio.get_running_loop().time
        bell, made = Bell(now), [0]

        async def turn(_: float | None) -> float | None:
            made[0] += 1
            if made[0] == 1:
                raise NotReady("away")
            raise EOFError

        bell.ring()
        with pytest.raises(NotReady):
            await rounds(bell, turn)
        with pytest.raises(EOFError):
            await rounds(bell, turn)
        return now()

    assert run(main()) < 1.0


async def test_what_is_seen_follows_the_cluster_and_heartbeats_ring_no_bell() -> None:
    async with ApiServer() as server, Api(Access(server=server.url)) as api:
        for definition in crd.definitions():
            await server.send("POST", CRDS.path(), definition)
        seen = Seen(asyncio.get_running_loop().time)
        bell = seen.bell()
        task = asyncio.create_task(seen.follow(api))
        await bell.heard()
        assert seen.synced
        await api.create(NODES, {"metadata": {"name": "n1"}})
        await bell.heard()
        assert seen.machines["n1"] == Machine(name="n1", uid=seen.machines["n1"].uid)
        beat = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        await api.patch(NODES, "n1", beat, how="strategic", subresource="status")
        pool = {"metadata": {"name": "a"}, "spec": {"cidr": "10.0.0.0/24"}}
        from muslin.kube.values import KINDS
        from muslin.model import Pool

        await asyncio.sleep(0.2)
        assert bell.taken() is None
        await api.create(KINDS[Pool], pool)
        await bell.heard()
        assert seen.pools["a"].value is not None
        await api.delete(KINDS[Pool], "a")
        await bell.heard()
        assert seen.pools == {}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
