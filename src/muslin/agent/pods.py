"""This node's pods as Kubernetes has them: one watch of them, one row each in node.db.

Only this node's (`spec.nodeName`), so it costs the API server a watch and this
process what 110 pods weigh, however large the cluster is.  A row is the uid
and what the annotations come to; a pod's many other changes (its status, its
containers) write nothing.  Pods on the host's network are never asked for.

The rows outlive this process and the API server; the first batch of a watch
takes away what went meanwhile.  `agent.known` reads them, and how the watch
is: it is told when that changes and every `BEAT` while the watch is heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import NamedTuple

from muslin.agent import known, wishes
from muslin.kernel import boot
from muslin.kube import Api, Change
from muslin.kube.kinds import PODS
from muslin.kube.pauses import OWN
from muslin.kube.slim import Pod
from muslin.log import log
from muslin.model import encode
from muslin.store.ledger import Ledger
from muslin.store.pods import PodKey, PodRow

# A pod from a file is in the API server as a mirror with a uid of its own; this annotation has the
# uid by which kubelet and runtime know it (pkg/kubelet/types: ConfigMirrorAnnotationKey).
MIRROR = "kubernetes.io/config.mirror"
ENDED = ("Succeeded", "Failed")  # phases


class Seen(NamedTuple):
    """A pod with wishes, as the API server had it last."""

    uid: str  # of the object
    row: PodRow
    told: str  # what stands in its annotation `muslin.io/status`


class Pods:
    """Keeps the rows; `run` ends only by cancellation.

    `changed` is called when the pods that `wishing` holds have changed.
    """

    def __init__(
        self, api: Api, ledger: Ledger, node: str, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._api, self._ledger, self._node, self._changed = api, ledger, node, changed
        self._rows = ledger.pods()
        self._state: known.State = "starting"
        self._since = boot.clock()
        self.listed = asyncio.Event()  # all that there are have been told once
        self.wishing: dict[PodKey, Seen] = {}  # few: most pods ask for nothing
        self.addresses: dict[PodKey, tuple[str, ...]] = {}  # what their status says

    async def run(self) -> None:
        """Follow and say how that goes."""
        self._say("starting")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._beat())

    async def _follow(self) -> None:
        fields = f"spec.nodeName={self._node}"
        # A short list, and ADDs wait for it: not with the others, who have time.
        watch = self._api.watch(PODS, fields=fields, type=Pod, heard=self._heard, spread=OWN)
        async with aclosing(watch) as batches:
            async for batch in batches:
                self._take(batch)
                self.listed.set()
                del batch  # what waits keeps its locals

    def _take(self, batch: tuple[Change[Pod], ...]) -> None:
        """One batch into node.db, at once; the first one is everything there is."""
        news: dict[PodKey, PodRow | None] = {}
        for change in batch:
            key = PodKey(change.namespace, change.name)
            pod = change.object
            row = row_of(pod) if pod else None
            self._remember(key, pod, row)
            self._place(key, pod, row)
            if self._rows.get(key) != row:
                news[key] = row
        if not self.listed.is_set():
            told = {PodKey(c.namespace, c.name) for c in batch}
            news |= dict.fromkeys(self._rows.keys() - told)
        if news:
            self._ledger.learn(news)
        for key, row in news.items():
            if row is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = row

    def _remember(self, key: PodKey, pod: Pod | None, row: PodRow | None) -> None:
        if pod is None or row is None or not row.wishes:
            self.wishing.pop(key, None)
            return
        told = (pod.metadata.annotations or {}).get(wishes.STATUS, "")
        seen = Seen(pod.metadata.uid, row, told)
        if self.wishing.get(key) != seen:
            self.wishing[key] = seen
            self._changed()

    def _place(self, key: PodKey, pod: Pod | None, row: PodRow | None) -> None:
        # What has ended keeps its addresses in its status, and nowhere else.
        here = pod is not None and row is not None and pod.status.phase not in ENDED
        ips = tuple(a.ip for a in pod.status.pod_ips or ()) if pod and here else ()
        if ips:
            self.addresses[key] = ips
        else:
            self.addresses.pop(key, None)

    def _heard(self, lost: str) -> None:
        self._say("away" if lost else "here")

    def _say(self, state: known.State) -> None:
        if state != self._state:
            log.info("pods.watch", state=state, pods=len(self._rows))
            self._state, self._since = state, boot.clock()
        known.say(self._ledger, state, self._since)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(known.BEAT)
            self._say(self._state)


def row_of(pod: Pod) -> PodRow | None:
    """What an ADD has to know of a pod; None for one that has no network of its own."""
    if pod.spec.host_network:
        return None
    annotations: Mapping[str, str] = pod.metadata.annotations or {}
    owners = pod.metadata.owner_references or ()
    stateful = any(o.controller and o.kind == "StatefulSet" for o in owners)
    found = wishes.read(annotations, pod=pod.metadata.name, stateful=stateful)
    uid = annotations.get(MIRROR) or pod.metadata.uid
    return PodRow(uid, "" if found == wishes.NONE else encode(found).decode())
