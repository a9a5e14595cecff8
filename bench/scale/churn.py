"""What comes and goes in a cluster: blocks, pods, kubelets' reports, at random moments."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from tests.apiserver.kubelet import Kubelet, Sender
from tests.apiserver.kubelet import pod as pod_object

from bench.scale import estate
from bench.scale.estate import APPS, Json
from bench.scale.populate import MERGE
from muslin.kube.kinds import NODES
from muslin.kube.values import KINDS, to_object
from muslin.model import Block


class Churn:
    """Writes what kubelets, a scheduler and other nodes' agents would."""

    def __init__(self, send: Sender, nodes: int) -> None:
        self._send, self._kubelet, self._nodes = send, Kubelet(send), nodes
        self._rng = random.Random(1)  # noqa: S311 - nothing secret
        self._serial = 0
        self._moves: list[tuple[str, float]] = []
        self._binds: list[tuple[str, float]] = []
        self._lives = 0

    async def run(self, seconds: float, stay: float, rates: Json) -> Json:
        """So many a second of each, at random moments; when each was sent.

        blocks    a remote node takes a block, and gives it back
        pods      on other nodes: a pod comes (6 writes) and goes (4)
        own       on the agent's node: a pod with wishes is bound, and deleted
        beats     a kubelet writes its Node's status

        What comes stays for `stay` seconds.
        """
        self._moves, self._binds, self._lives = [], [], 0
        await asyncio.gather(
            self._often(seconds, rates["blocks"], lambda: self._move(stay)),
            self._often(seconds, rates["pods"], lambda: self._life(stay)),
            self._often(seconds, rates["own"], lambda: self._bind(stay)),
            self._often(seconds, rates["beats"], self._beat),
        )
        return {"blocks": self._moves, "own": self._binds, "lives": self._lives}

    async def _often(
        self, seconds: float, rate: float, what: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            while rate and time.monotonic() + (wait := self._rng.expovariate(rate)) <= end:
                await asyncio.sleep(wait)
                tasks.create_task(what())

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _other(self) -> int:
        return self._rng.randrange(estate.OURS + 1, self._nodes)

    async def _move(self, stay: float) -> None:
        number = self._other()
        new = estate.block(number, estate.BEYOND + self._next())
        body = to_object(new, labels=estate.labels(number))
        self._moves.append((str(new.cidr), time.monotonic()))
        await self._send("POST", KINDS[Block].path(), body)
        await asyncio.sleep(stay)
        await self._send("DELETE", KINDS[Block].path("", body["metadata"]["name"]))

    async def _life(self, stay: float) -> None:
        name = f"churn-{self._next()}"
        body = pod_object(name, namespace=APPS)
        await self._kubelet.bring_up(body, estate.name(self._other()), ["10.0.0.1"])
        await asyncio.sleep(stay)
        await self._kubelet.take_down(APPS, name)
        self._lives += 1

    async def _bind(self, stay: float) -> None:
        name = f"own-{self._next()}"
        notes = {"kubernetes.io/ingress-bandwidth": "20M"}
        await self._kubelet.create(pod_object(name, namespace=APPS, annotations=notes))
        self._binds.append((name, time.monotonic()))
        await self._kubelet.schedule(APPS, name, estate.name(estate.OURS))
        await asyncio.sleep(stay)
        await self._kubelet.delete(APPS, name, grace=0)

    async def _beat(self) -> None:
        path = NODES.path("", estate.name(self._other()), "status")
        body = {"metadata": {"annotations": {"beat": str(self._next())}}}
        await self._send("PATCH", path, body, content_type=MERGE)
