"""What an agent holds of the cluster's nodes and blocks, and what a pass over them costs.

    python -m bench.scale.holding NODES

Fed to the code that an agent uses (store/kubernetes.py, store/objects.py), but
for the network in between.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec

from bench.scale import estate
from bench.scale.estate import Json
from muslin.agent.world import Planner, World, sites
from muslin.kube import Kind
from muslin.kube.told import Reader, Told
from muslin.kube.values import KINDS, to_object
from muslin.model import Block, Host, Node
from muslin.plan.diff import step
from muslin.store.kubernetes import KubernetesStore
from muslin.store.objects import Objects

BACKENDS = ("vxlan", "hostgw")
PAGE = 500
CHANGES = 20  # the cheapest of so many counts: what others do on the machine is no part of it


class Fed:
    """An Api whose watches tell what it was given."""

    def __init__(self, pages: dict[Kind, Callable[[int], list[msgspec.Raw]]]) -> None:
        self._pages = pages

    async def watch(self, kind: Kind, *, type: type[Any]) -> AsyncIterator[Any]:  # noqa: A002
        """The first batch, page by page, and nothing more."""
        told = Told(Reader(kind.resource, type))
        relist, number = told.relist(), 0
        while items := self._pages[kind](number):
            relist.page(items)
            number += 1
        yield told.end(relist)
        del relist, items
        await asyncio.Event().wait()
        del told  # what a watch keeps while it waits

    async def close(self) -> None:
        """Nothing was opened."""


def _pages(nodes: int, what: Callable[[int], Json]) -> Callable[[int], list[msgspec.Raw]]:
    def page(number: int) -> list[msgspec.Raw]:
        wanted = range(number * PAGE, min((number + 1) * PAGE, nodes))
        return [msgspec.Raw(msgspec.json.encode(what(i))) for i in wanted]

    return page


def _object(value: Node | Block, node: int) -> Json:
    """As an API server sends it."""
    made = to_object(value, labels=estate.labels(node))
    made["metadata"] |= {
        "uid": f"00000000-0000-4000-8000-{node:012x}",
        "resourceVersion": str(1_000_000 + node),
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return made


async def _hold(nodes: int) -> Json:
    kinds: dict[type[Any], Callable[[int], Json]] = {
        Node: lambda i: _object(estate.node(i), i) | estate.ready(),
        Block: lambda i: _object(estate.block(i, i), i),
    }
    fed = Fed({KINDS[k]: _pages(nodes, what) for k, what in kinds.items()})
    objects = Objects(KubernetesStore(fed, namespace="x"))  # type: ignore[arg-type]
    found: Json = {"nodes": nodes}
    held: dict[type[Any], dict[str, Any]] = {}
    for kind, what in kinds.items():
        word = kind.__name__.lower()
        began = time.process_time()
        async with _following(objects, kind):
            found[f"{word}_decode_us"] = (time.process_time() - began) / nodes * 1e6
        tracemalloc.start()
        async with _following(objects, kind) as held[kind]:
            gc.collect()
            found[f"{word}_bytes"] = tracemalloc.get_traced_memory()[0] / nodes
        tracemalloc.stop()
        found[f"{word}_wire"] = len(msgspec.json.encode(what(nodes // 2)))
    return found | {f"{backend}_pass": _pass(held, backend) for backend in BACKENDS}


@asynccontextmanager
async def _following(objects: Objects, kind: type[Any]) -> AsyncIterator[dict[str, Any]]:
    """What a sync loop has of a kind while it waits for the next change."""
    stream = objects.watch(kind)
    update = await anext(stream)
    held = {name: found.value for name, found in update.changed.items() if found}
    del update
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    yield held
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


def _pass(held: dict[type[Any], dict[str, Any]], backend: str) -> Json:
    """What a plan weighs, and what it costs in milliseconds from nothing and after one change."""
    world = World(
        networks={"default": estate.network(backend)},
        pools={estate.POOL.name: estate.POOL},
        nodes=held[Node],
        blocks=tuple(held[Block].values()),
    )
    me, host = held[Node][estate.name(estate.OURS)], Host(uplink="eth0")
    tracemalloc.start()
    weighed = Planner()
    kept = weighed.desired(sites(world, me, host))
    gc.collect()
    weight = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    planner, first = Planner(), time.perf_counter()
    kept = planner.desired(sites(world, me, host))
    found = {"desired": (time.perf_counter() - first) * 1000}
    times = []
    for i in range(CHANGES):
        extra = estate.block(1 + i, estate.BEYOND + i)
        changed = replace(world, blocks=(*world.blocks, extra))
        began = time.perf_counter()
        view = sites(changed, me, host)
        viewed = time.perf_counter()
        want = planner.desired(view)
        assert step(kept.plan, want.plan)
        times.append((viewed - began, time.perf_counter() - viewed))
        kept = want
    found["sites"], found["again"] = (min(took) * 1000 for took in zip(*times, strict=True))
    return found | {"objects": len(kept.plan), "plan_bytes": weight}


def run(counts: tuple[int, ...]) -> list[Json]:
    """Each count in a process of its own."""
    found = []
    for count in counts:
        argv = [sys.executable, "-m", "bench.scale.holding", str(count)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_hold(int(sys.argv[1])))))
