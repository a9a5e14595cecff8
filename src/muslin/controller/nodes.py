"""Core Nodes: the condition that keeps pods from a node without a network, and our taint.

    muslin Node says Ready True       NetworkUnavailable False, and the startup taint goes
                      Ready False     NetworkUnavailable True, with the agent's own words; where it
                                      was False, after 5 s: an agent that is upgraded is soon back
    was there, is gone for 30 s       NetworkUnavailable True, unless another network has spoken
                                      since: a node that went back to flannel is flannel's
    never was there                   another network's node, or none yet: not touched
    has `pods` false                  the same: no pod of ours runs there

Written only when it changes: the condition's heartbeats are nobody's business
(the node lifecycle controller looks at the kubelet's).  A muslin Node outlives
its core Node until its lease ends; `store.promises.Expiry` removes it.

A machine that is replaced under the same name meets the muslin Node of the one
before, Ready and all.  So what was said before the core Node was made anew
counts for nothing until the agent writes again, or two minutes have passed:
then the machine is the same one, and only the object was made anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from muslin.controller.metrics import Metrics
from muslin.controller.rounds import rounds
from muslin.controller.seen import CONDITION, Condition, Found, Machine, Seen
from muslin.controller.writes import Fenced, Writer
from muslin.kube.kinds import NODES
from muslin.kube.status import Condition as Said
from muslin.kube.status import NodeStatus
from muslin.log import log
from muslin.model import Node

TAINT = "muslin.io/agent-not-ready"
OURS = "Muslin"  # what our reasons begin with: how a later leader knows what was ours
VANISHED = 30.0  # seconds; an agent whose object was removed writes it again
CALM = 5.0  # seconds
FORMER = 120.0  # seconds; longer than the grace in which Expiry removes a dead machine's object

Agent = Found[Node, NodeStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the objects of now do not show; by node."""

    uids: Mapping[str, str] = field(default_factory=dict)  # of the core Node
    had: frozenset[str] = frozenset()  # uids of core Nodes that had an agent
    absent: Mapping[str, float] = field(default_factory=dict)  # since when it has none any more
    down: Mapping[str, float] = field(default_factory=dict)  # since when its agent is not ready
    former: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """The version of a muslin Node that spoke for the machine before, and when that one went."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to be written of one core Node."""

    condition: Condition | None = None
    turned: bool = False  # whether the condition's status is another than before
    taints: tuple[int, ...] = ()  # places in the list of taints


def remember(
    before: Memory, machines: Mapping[str, Machine], agents: Mapping[str, Agent], now: float
) -> Memory:
    """What is to be remembered after a look."""
    uids = {n: u for n, u in before.uids.items() if n in agents} | {
        n: m.uid for n, m in machines.items()
    }
    former = {n: f for n, f in before.former.items() if _still(f, agents.get(n), now)}
    for name, machine in machines.items():
        if name in agents and before.uids.get(name, machine.uid) != machine.uid:
            former[name] = (agents[name].version, now)
    had = {m.uid for n, m in machines.items() if n in agents and n not in former}
    had |= {m.uid for m in machines.values() if m.uid in before.had or _is_ours(m.condition)}
    absent = {
        n: before.absent.get(n, now)
        for n, m in machines.items()
        if n not in agents and m.uid in had
    }
    down = {n: before.down.get(n, now) for n in machines if _said(agents.get(n)) == "False"}
    return Memory(uids=uids, had=frozenset(had), absent=absent, down=down, former=former)


def wanted(
    memory: Memory, machines: Mapping[str, Machine], agents: Mapping[str, Agent], now: float
) -> dict[str, Change]:
    """What differs from what should be."""
    found = {}
    for name, machine in machines.items():
        agent = None if name in memory.former else agents.get(name)
        says, before = _condition(agent, now - memory.absent.get(name, now)), machine.condition
        if says is None or (agent is None and before is not None and not _is_ours(before)):
            continue
        available = before is not None and before.status == "False"
        if available and now - memory.down.get(name, -CALM) < CALM:
            continue
        gone = [i for i, t in enumerate(machine.taints) if t.key == TAINT]
        change = Change(
            condition=says if says != before else None,
            turned=before is None or says.status != before.status,
            taints=tuple(gone) if says.status == "False" else (),
        )
        if change.condition or change.taints:
            found[name] = change
    return found


def _condition(agent: Agent | None, absent: float) -> Condition | None:
    """What a core Node's condition should be; None: nothing is to be said."""
    if agent is None:
        if absent < VANISHED:
            return None
        return Condition(CONDITION, "True", "MuslinGone", "the node's muslin Node has vanished")
    if agent.value is None or not agent.value.pods:
        return None
    ready = _ready(agent)
    if ready is None or ready.status == "Unknown":
        return None
    if ready.status == "True":
        return Condition(CONDITION, "False", "MuslinReady", "the node has its pod networks")
    return Condition(CONDITION, "True", "MuslinNotReady", ready.message[:1024])


def _ready(agent: Agent) -> Said | None:
    said = agent.status.conditions if agent.status else ()
    return next((c for c in said if c.type == "Ready"), None)


def _said(agent: Agent | None) -> str:
    ready = _ready(agent) if agent else None
    return ready.status if ready else ""


def _is_ours(condition: Condition | None) -> bool:
    return condition is not None and condition.reason.startswith(OURS)


def _still(former: tuple[str, float], agent: Agent | None, now: float) -> bool:
    version, since = former
    return agent is not None and agent.version == version and now - since < FORMER


def condition_patch(change: Change, now: str) -> dict[str, Any]:
    """A strategic merge patch of `status`: other conditions, and an older turn, stay."""
    said = change.condition
    assert said is not None
    words = {"type": said.type, "status": said.status, "reason": said.reason}
    made = {**words, "message": said.message, "lastHeartbeatTime": now}
    if change.turned:
        made["lastTransitionTime"] = now
    return {"status": {"conditions": [made]}}


def taint_patch(machine: Machine, places: tuple[int, ...]) -> list[dict[str, Any]]:
    """A JSON patch that takes our taints out, or fails where the list is another by now."""
    tests = [
        {"op": "test", "path": f"/spec/taints/{i}/{key}", "value": value}
        for i in places
        for key, value in (("key", machine.taints[i].key), ("effect", machine.taints[i].effect))
    ]
    return tests + [{"op": "remove", "path": f"/spec/taints/{i}"} for i in sorted(places)[::-1]]


class Nodes:
    """The loop of one term."""

    def __init__(
        self,
        api: Fenced,
        seen: Seen,
        metrics: Metrics,
        now: Callable[[], float],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._seen, self._metrics, self._now, self._wall = api, seen, metrics, now, wall
        self._bell, self._memory = seen.bell(), Memory()
        self._writer = Writer("node", now)

    async def run(self) -> None:
        """Until cancelled."""
        await rounds(self._bell, self._turn)

    async def _turn(self, since: float | None) -> float | None:
        machines, agents, now = self._seen.machines, self._seen.agents, self._now()
        if not self._seen.synced:
            return None
        self._memory = remember(self._memory, machines, agents, now)
        wants = wanted(self._memory, machines, agents, now)
        again = await self._writer.bring(
            {n: partial(self._write, machines[n], change, since) for n, change in wants.items()}
        )
        waits = [t + VANISHED - now for t in self._memory.absent.values() if t + VANISHED > now]
        waits += [t + CALM - now for t in self._memory.down.values() if t + CALM > now]
        waits += [t + FORMER - now for _, t in self._memory.former.values()]
        return min((w for w in (again, *waits) if w is not None), default=None)

    async def _write(self, machine: Machine, change: Change, since: float | None) -> None:
        if change.condition:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall()))
            patch = condition_patch(change, now)
            await self._api.patch(NODES, machine.name, patch, how="strategic", subresource="status")
            said = change.condition
            log.info("node.condition", node=machine.name, status=said.status, reason=said.reason)
        if change.taints:
            steps = taint_patch(machine, change.taints)
            await self._api.patch(NODES, machine.name, steps, how="json")
            log.info("node.taint.removed", node=machine.name, taint=TAINT)
        if since is not None:
            self._metrics.lag.observe(self._now() - since)
