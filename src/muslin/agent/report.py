"""What this node says of itself and of its pods, in the API server.

The status of its own Node (muslin.io): a Ready condition to wait for, with
the faults as its message.  And of each pod that asked for something of its
network one annotation, `muslin.io/status`, saying what it was given:

    {"network":"default","interface":"eth0","addresses":["10.0.0.10"],"mac":"0a:58:0a:00:00:0a"}

A pod with several NICs has a list of these, its first one first.

Both are written when they differ from what is there, so an agent that starts
again writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

import msgspec

import muslin
from muslin.agent import wishes
from muslin.agent.legs import in_order
from muslin.agent.pods import Seen
from muslin.agent.sync import Standing
from muslin.cni.capabilities import pod_name
from muslin.errors import Conflict, MuslinError
from muslin.kube import Api
from muslin.kube.kinds import PODS
from muslin.kube.status import Condition, NodeStatus
from muslin.kube.values import KINDS
from muslin.log import log
from muslin.model import Node, mac_of, to_builtins
from muslin.store.ledger import Attachment, Ledger
from muslin.store.pods import PodKey

READY = "Ready"
MOST = 4096  # characters of a message
_KIND = KINDS[Node]

Now = Callable[[], datetime]


def status_of(standing: Standing, before: NodeStatus | None, now: datetime) -> NodeStatus:
    """The node's status; `before` says since when it is so, and has the conditions of others."""
    others = tuple(c for c in before.conditions if c.type != READY) if before else ()
    last = next((c for c in before.conditions if c.type == READY), None) if before else None
    status, reason = ("True", "Serving") if standing.ready else ("False", "NotServing")
    if standing.ready and standing.faults:
        reason = "ServingWithFaults"
    message = "; ".join(standing.faults) or "pods are served"
    since = last.last_transition_time if last is not None and last.status == status else now
    ready = Condition(
        type=READY,
        status="True" if standing.ready else "False",
        last_transition_time=since,
        reason=reason,
        message=message[:MOST],
    )
    return NodeStatus(conditions=(*others, ready), agent=muslin.__version__, mtu=standing.mtu)


class _Found(msgspec.Struct):
    status: NodeStatus = NodeStatus()


class Report:
    """Keeps the status of one Node."""

    def __init__(self, api: Api, node: str, now: Now = lambda: datetime.now(UTC)) -> None:
        self._api, self._node, self._now = api, node, now
        self._there: NodeStatus | None = None  # what the API server has, where we know it

    def forget(self) -> None:
        """What is there may have changed: look before the next write."""
        self._there = None

    async def tell(self, standing: Standing) -> None:
        """Write the status if it differs from what is there.  NotReady if that cannot be done."""
        if self._there is None:
            found = await self._api.get(_KIND, self._node, type=_Found)
            if found is None:
                return  # the sync loop publishes the Node; its next pass comes here again
            self._there = found.status
        # The API server keeps whole seconds (metav1.Time).
        status = status_of(standing, self._there, self._now().replace(microsecond=0))
        if status == self._there:
            return
        try:
            body = {"status": to_builtins(status)}
            await self._api.patch(_KIND, self._node, body, subresource="status")
        except MuslinError:
            self.forget()
            raise
        self._there = status
        log.info("node.reported", ready=standing.ready, mtu=standing.mtu)


class PodReport:
    """Keeps the annotation of pods that asked for something."""

    def __init__(self, api: Api, ledger: Ledger) -> None:
        self._api, self._ledger = api, ledger
        self._sent: dict[PodKey, tuple[str, str]] = {}  # uid and text, until the watch shows it

    async def tell(self, pods: Mapping[PodKey, Seen]) -> None:
        """Write what differs; one pod that cannot be written keeps no other from it."""
        self._sent = {key: sent for key, sent in self._sent.items() if key in pods}
        if not pods:
            return
        given = _given(self._ledger.attachments())
        for key, seen in list(pods.items()):
            found = given.get(pod_name(*key))
            text = _text(found) if found else ""
            if not text or text == seen.told or self._sent.get(key) == (seen.uid, text):
                continue
            meta = {"uid": seen.uid, "annotations": {wishes.STATUS: text}}
            try:
                await self._api.patch(PODS, key.name, {"metadata": meta}, namespace=key.namespace)
            except Conflict:
                continue  # gone, or another of that name
            self._sent[key] = (seen.uid, text)


def _given(attachments: Iterable[Attachment]) -> dict[str, list[Attachment]]:
    """The NICs of every pod that has a name; of its last container, if one is still going."""
    found: dict[str, list[Attachment]] = {}
    for one in attachments:
        if one.state == "ready" and one.wants.pod:
            before = found.get(one.wants.pod, [])
            found[one.wants.pod] = [*(a for a in before if a.container == one.container), one]
    return found


def _text(found: Iterable[Attachment]) -> str:
    nics = [
        {
            "network": one.network,
            "interface": one.ifname,
            "addresses": [str(a) for a in one.addresses],
            "mac": one.wants.mac or mac_of(one.addresses[0]),
        }
        for one in in_order(found)
    ]
    return msgspec.json.encode(nics if len(nics) > 1 else nics[0]).decode()
