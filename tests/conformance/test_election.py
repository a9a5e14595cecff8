"""Three candidates on an API server that fails in every way it can: never two work at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from functools import partial
from typing import NoReturn

import pytest

from apiserver import ApiServer
from muslin.controller.election import NAME, Candidate, Election, Term, Times
from muslin.kube import Access, Api
from muslin.kube.kinds import LEASES

NS = "default"
SHORT = Times.of(1.0)
SECONDS = 15.0


class Replica:
    """One candidate with connections of its own; its work notes from when to when it worked."""

    def __init__(
        self, server: ApiServer, name: str, worked: list[tuple[str, float, float]]
    ) -> None:
        self.name, self.worked, self._server = name, worked, server
        self.candidate: Candidate | None = None
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with Api(Access(server=self._server.url), timeout=SHORT.deadline / 2) as api:
            # A wall clock that is set all the time: it must not matter.
            wall = partial(random.uniform, 0.0, 2e9)
            self.candidate = Candidate(api, NS, self.name, SHORT, wall=wall)
            await Election(self.candidate, SHORT, die=self._die).run(self._work)

    async def _work(self, term: Term) -> None:
        now = asyncio.get_running_loop().time
        began = now()
        try:
            while True:
                term.check()
                await asyncio.sleep(0.01)
        finally:
            self.worked.append((self.name, began, now()))

    def _die(self, code: int) -> NoReturn:
        raise AssertionError(f"work did not end: {code}")

    async def end(self, *, clean: bool) -> None:
        if not clean and self.candidate:  # as when killed: no word to the server
            self.candidate.term.end()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.mark.steers
@pytest.mark.parametrize("seed", [1, 2])
async def test_never_two_work_at_once_and_somebody_does(seed: int) -> None:
    uniform = random.Random(seed)
    worked: list[tuple[str, float, float]] = []
    now = asyncio.get_running_loop().time
    async with ApiServer() as server:
        replicas = [Replica(server, name, worked) for name in "abc"]
        end = now() + SECONDS
        while now() < end:
            match uniform.choice(["die", "leave", "refuse", "drop", "slow", "away", "touch", ""]):
                case "die" | "leave" as how:
                    chosen = uniform.choice(replicas)
                    replicas.remove(chosen)
                    await chosen.end(clean=how == "leave")
                    replicas.append(Replica(server, chosen.name, worked))
                case "refuse":
                    server.faults.refuse(503, times=uniform.randrange(8))
                case "drop":
                    server.faults.drop(times=uniform.randrange(8))
                case "slow":
                    server.faults.delay = uniform.choice([0.0, 0.1, 0.25])
                case "away":
                    await server.stop(abort=True)
                    await asyncio.sleep(uniform.uniform(0.1, 1.5))
                    await server.start()
                case "touch":
                    note = {"metadata": {"annotations": {"at": str(now())}}}
                    async with Api(Access(server=server.url)) as api:
                        with contextlib.suppress(Exception):
                            await api.patch(LEASES, NAME, note, namespace=NS)
            await asyncio.sleep(uniform.uniform(0.05, 0.8))
        server.faults.clear()
        await asyncio.sleep(5 * SHORT.duration)
        leading = [r.name for r in replicas if r.candidate and r.candidate.term.left]
        for replica in replicas:
            await replica.end(clean=True)
    spans = sorted((began, ended) for _, began, ended in worked)
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))
    assert len(leading) == 1
    assert len(spans) >= 2
