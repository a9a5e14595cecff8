"""This node in a Kubernetes cluster: what the API server is asked for, and what it is told.

    Node (core)        watched, this one only    whose the leases are, podCIDRs
    Pod                watched, this node's      agent/pods.py
    Node (muslin.io)   status                    agent/report.py: one write per change of state
    Pod                an annotation             agent/report.py: only of pods that asked for
                                                 something; plain pods cost no write
    Event              of pods whose ADDs fail   agent/events.py
    flannel's          where that is set         agent/flannel.py

Beside the store, that is: networks, pools, nodes and blocks come by the same
way as from any other store (store/kubernetes.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

from muslin.agent.events import Events
from muslin.agent.pods import Pods
from muslin.agent.report import PodReport, Report
from muslin.agent.sync import Standing
from muslin.errors import MuslinError, NotReady
from muslin.kube import Api
from muslin.kube.kinds import NODES
from muslin.kube.slim import Node
from muslin.log import log
from muslin.store.ledger import Ledger

if TYPE_CHECKING:
    from muslin.agent.flannel import Flannel

PACE = 1.0  # seconds between two rounds of telling, at least
PAUSE = (1.0, 30.0)  # seconds after a round that failed: at first, and at most

Uniform = Callable[[float, float], float]


class Own:
    """The core Node object of this machine, as it was last seen."""

    def __init__(self, name: str, *, required: bool = True) -> None:
        self.name, self._required = name, required
        self.uid = ""  # "": not seen, or gone
        self.podcidrs: tuple[str, ...] = ()
        self._listed = False

    def owner(self) -> Mapping[str, object] | None:
        """The ownerReference of what is to end with this node; None for a machine that is none.

        NotReady while the Node is not there: a lease without it would outlive
        a node that is deleted.
        """
        if self.uid:
            return {"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": self.uid}
        if not self._required:
            return None
        if not self._listed:
            raise NotReady(f"node {self.name}: not heard from Kubernetes yet")
        raise NotReady(
            f"Kubernetes has no node {self.name}",
            hint="if the kubelet runs under another name, set `node` to that",
        )

    def take(self, found: Node | None) -> bool:
        """Take in what the API server says; whether it is another Node object than before."""
        self._listed = True
        before, self.uid = self.uid, found.metadata.uid if found else ""
        self.podcidrs = tuple(found.spec.pod_cidrs or ()) if found else ()
        return bool(self.uid) and self.uid != before


class Cluster:
    """Everything of Kubernetes that is not the store.

    `tell` says how this node is and that attachments may have changed; it is
    free, and what it leads to is written by a task, when it differs.
    """

    def __init__(
        self,
        api: Api,
        ledger: Ledger,
        own: Own,
        *,
        pods: bool = True,
        flannel: str = "",
        uniform: Uniform = random.uniform,
    ) -> None:
        self.own, self._api, self._uniform = own, api, uniform
        self._due = asyncio.Event()
        self._standing: Standing | None = None
        self._report = Report(api, own.name)
        self._pods = Pods(api, ledger, own.name, self._due.set) if pods else None
        self._told = PodReport(api, ledger)
        self._events = Events(api, ledger, own.name, self._pods.wishing if self._pods else {})
        self.flannel: Flannel | None = None
        if flannel:
            from muslin.agent.flannel import Flannel  # late: most clusters have none

            self.flannel = Flannel(api, ledger, flannel, own=own, pods=self._pods, due=self._due)

    def tell(self, standing: Standing) -> None:
        """How this node is now."""
        self._standing = standing
        self._due.set()

    async def run(self, changed: Callable[[], None], replaced: Callable[[], None]) -> None:
        """Follow and tell until cancelled.

        `changed` is called when this node's Node did, `replaced` before that
        when it is another one of the same name.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(changed, replaced))
            tasks.create_task(self._tell())
            if self._pods is not None:
                tasks.create_task(self._pods.run())
            if self.flannel is not None:
                tasks.create_task(self.flannel.run(changed))

    async def _follow(self, changed: Callable[[], None], replaced: Callable[[], None]) -> None:
        fields = f"metadata.name={self.own.name}"
        watch = self._api.watch(NODES, fields=fields, type=Node, heard=self._heard)
        async with aclosing(watch) as batches:
            async for batch in batches:
                before = (self.own.uid, self.own.podcidrs)
                if not batch:
                    self.own.take(None)
                for change in batch:
                    if self.own.take(change.object):
                        log.info("node.seen", node=self.own.name, uid=self.own.uid)
                        replaced()
                if (self.own.uid, self.own.podcidrs) != before or not batch:
                    changed()

    def _heard(self, lost: str) -> None:
        if lost:
            self._report.forget()  # somebody may have written that we are away
        else:
            self._due.set()

    async def _tell(self) -> None:
        bound = PAUSE[0]
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self._round()
                bound = PAUSE[0]
                await asyncio.sleep(PACE)
            except MuslinError as e:
                log.warning("cluster.not_told", error=str(e))
                await asyncio.sleep(self._uniform(bound / 2, bound))
                bound = min(bound * 2, PAUSE[1])
                self._due.set()

    async def _round(self) -> None:
        """All that is to be told; what cannot be written keeps nothing else from it."""
        faults: list[MuslinError] = []
        parts = [self._tell_of_node, self._tell_of_pods, self._events.tell]
        if self.flannel is not None:
            parts.append(self.flannel.tell)
        for part in parts:
            try:
                await part()
            except MuslinError as e:
                faults.append(e)
        if faults:
            raise faults[0]

    async def _tell_of_node(self) -> None:
        if self._standing is not None:
            await self._report.tell(self._standing)

    async def _tell_of_pods(self) -> None:
        if self._pods is not None:
            await self._told.tell(self._pods.wishing)
