"""The watches of many agents in one process, each with an Api of its own, as the agent has them.

    python -m bench.scale.crowd --kubeconfig FILE --first 0 --count 500 --spread 40 ...

Says `{"up": true}` when every watch has had its first batch.  Then each line of
standard input is a question: since when have all watches of every agent been
back, after they were lost?
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from bench.scale import estate
from bench.scale.machine import more_files
from muslin.kube import Api, Kind, kubeconfig
from muslin.kube.kinds import NODES, PODS
from muslin.kube.pauses import OWN
from muslin.kube.values import KINDS
from muslin.model import Block, Network, Node, Pool
from muslin.store.kubernetes import Held

PATIENCE = 300.0  # seconds; a server without CPU is asked again by all, and never catches up


class Bare(msgspec.Struct, frozen=True):
    """Nothing of an object: what is decoded here is no part of what is measured."""


class Agent:
    """One agent's six watches."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._watches: list[tuple[Kind, str]] = [
            *((KINDS[kind], "") for kind in (Network, Pool, Node, Block)),
            (NODES, f"metadata.name={node}"),
            (PODS, f"spec.nodeName={node}"),
        ]
        self._waiting = len(self._watches)  # for their first batch
        self.up = asyncio.Event()  # when every watch has had it
        self.lost: set[Kind] = set()
        self.back: dict[Kind, float] = {}  # when it was heard again

    async def run(self) -> None:
        """Follow for ever."""
        async with asyncio.TaskGroup() as tasks:
            for kind, fields in self._watches:
                tasks.create_task(self._follow(kind, fields))

    async def _follow(self, kind: Kind, fields: str) -> None:
        def heard(lost: str) -> None:
            if lost:
                self.lost.add(kind)
            else:
                self.lost.discard(kind)
                self.back[kind] = time.monotonic()

        of = Held if kind.group == "muslin.io" else Bare
        spread = OWN if kind == PODS else None  # as agent/pods.py
        watch = self._api.watch(kind, fields=fields, type=of, heard=heard, spread=spread)
        async with aclosing(watch) as batches:
            await anext(batches)
            self._waiting -= 1
            if not self._waiting:
                self.up.set()
            async for _ in batches:
                pass


async def _run(options: argparse.Namespace) -> None:
    at = kubeconfig(options.kubeconfig)
    agents: list[Agent] = []
    async with asyncio.TaskGroup() as tasks:
        for number in range(options.first, options.first + options.count):
            agents.append(Agent(Api(at, spread=options.spread), estate.name(number)))
            tasks.create_task(agents[-1].run())
            await asyncio.sleep(options.pace)
        for agent in agents:
            await agent.up.wait()
        print(json.dumps({"up": True}), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            async with asyncio.timeout(PATIENCE):
                found = await _back(agents, options.steady)
            print(json.dumps(found), flush=True)
        sys.exit(0)


async def _back(agents: list[Agent], calm: float) -> dict[str, Any]:
    """When each agent's last watch, and each watch of pods, was back."""
    steady = time.monotonic()
    while time.monotonic() - steady < calm:
        await asyncio.sleep(0.1)
        if any(a.lost for a in agents):
            steady = time.monotonic()
    return {
        "agents": [max(a.back.values()) for a in agents],
        "pods": [a.back[PODS] for a in agents],
    }


def main() -> None:
    """Until standard input ends."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kubeconfig", type=Path, required=True)
    options.add_argument("--first", type=int, required=True)
    options.add_argument("--count", type=int, required=True)
    for name, what in (
        ("pace", "between the starts of two agents"),
        ("spread", "of the lists after a restart"),
        ("steady", "without a lost watch, after which a storm is over"),
    ):
        options.add_argument(f"--{name}", type=float, required=True, help=f"seconds {what}")
    more_files()
    gc.disable()  # a collection in the middle of a storm looks at the memory of 500 agents
    asyncio.run(_run(options.parse_args()))


if __name__ == "__main__":
    main()
