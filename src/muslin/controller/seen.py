"""What the leader knows of the cluster: five watches, and of each object only what it needs.

    networks, pools     whole, with the status they have now
    agents              muslin Nodes: the value, and what the agent says of itself
    blocks              pool, range, node
    machines            core Nodes: taints, and the one condition that is ours

A core Node is 10 kB and more, most of it image names; a Machine is a hundredth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from muslin.errors import ConfigError
from muslin.kube import Api, Change, Kind
from muslin.kube.kinds import NODES
from muslin.kube.status import NetworkStatus, NodeStatus, PoolStatus
from muslin.kube.values import KINDS, from_object
from muslin.model import Block, Network, Node, Pool

CONDITION = "NetworkUnavailable"  # of core Nodes; its taint keeps pods away (node lifecycle)

V = TypeVar("V", Network, Pool, Node, Block)
S = TypeVar("S")


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0


class _Object(msgspec.Struct, frozen=True):
    metadata: _Meta
    spec: msgspec.Raw = msgspec.Raw(b"{}")
    status: msgspec.Raw = msgspec.Raw(b"{}")


class Condition(msgspec.Struct, frozen=True):
    """One of a core Node's conditions."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class Taint(msgspec.Struct, frozen=True):
    """Why pods stay away from a core Node."""

    key: str = ""
    effect: str = ""


class _Spec(msgspec.Struct, frozen=True):
    taints: tuple[Taint, ...] | None = None


class _Status(msgspec.Struct, frozen=True):
    conditions: tuple[Condition, ...] | None = None


class _Core(msgspec.Struct, frozen=True):
    metadata: _Meta
    spec: _Spec = _Spec()
    status: _Status = _Status()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Generic[V, S]):
    """One of our objects; `value` is None when it is none, and `fault` says why."""

    name: str
    uid: str = ""
    version: str = ""
    generation: int = 0
    value: V | None = None
    fault: str = ""
    status: S | None = None  # None also when it is not as we would write it


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A core Node."""

    name: str
    uid: str = ""
    taints: tuple[Taint, ...] = ()
    condition: Condition | None = None  # CONDITION


class Seen:
    """The caches; `follow` fills them, and who has a `bell` hears of every change."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.networks: dict[str, Found[Network, NetworkStatus]] = {}
        self.pools: dict[str, Found[Pool, PoolStatus]] = {}
        self.agents: dict[str, Found[Node, NodeStatus]] = {}
        self.blocks: dict[str, Block] = {}
        self.machines: dict[str, Machine] = {}
        self._now, self._bells = now, list[Bell]()
        self._listed = 0

    @property
    def synced(self) -> bool:
        """Whether every kind has been listed; before, nothing may be concluded."""
        return self._listed >= 5

    def bell(self) -> Bell:
        """Rung by every change from now on, once all is known."""
        self._bells.append(Bell(self._now))
        return self._bells[-1]

    async def follow(self, api: Api) -> None:
        """Watch until cancelled."""
        self._listed = 0
        kinds: list[tuple[Kind, type[Any], dict[str, Any], Callable[[Any], Any]]] = [
            (KINDS[Network], _Object, self.networks, _reader(Network, NetworkStatus)),
            (KINDS[Pool], _Object, self.pools, _reader(Pool, PoolStatus)),
            (KINDS[Node], _Object, self.agents, _reader(Node, NodeStatus)),
            (KINDS[Block], _Object, self.blocks, _block),
            (NODES, _Core, self.machines, _machine),
        ]
        async with asyncio.TaskGroup() as tasks:
            for kind in kinds:
                tasks.create_task(self._follow(api, *kind))

    async def _follow(
        self,
        api: Api,
        kind: Kind,
        of: type[Any],
        known: dict[str, Any],
        read: Callable[[Any], Any],
    ) -> None:
        first = True
        async with aclosing(api.watch(kind, type=of)) as batches:
            async for batch in batches:
                if first:
                    known.clear()  # what an earlier watch had told
                    self._listed += 1
                told = self._take(batch, known, read)
                if (told or first) and self.synced:
                    for bell in self._bells:
                        bell.ring()
                first = False
                del batch  # what waits keeps its locals, and the first one is everything

    def _take(
        self, batch: tuple[Change[Any], ...], known: dict[str, Any], read: Callable[[Any], Any]
    ) -> bool:
        """Whether any change of the batch is one of what is kept: not a node's heartbeat."""
        told = False
        for change in batch:
            before = known.get(change.name)
            after = None if change.object is None else read(change.object)
            if after is None:
                known.pop(change.name, None)
            else:
                known[change.name] = after
            told = told or before != after
        return told


class Bell:
    """Something changed, and since when nobody has looked at it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.since: float | None = None
        self._now, self._event = now, asyncio.Event()

    def ring(self) -> None:
        """Somebody should look."""
        self._event.set()
        self.since = self._now() if self.since is None else self.since

    async def heard(self) -> float:
        """Wait for it, and be quiet again; the time of the first ring."""
        await self._event.wait()
        return self.taken() or self._now()

    def taken(self) -> float | None:
        """Be quiet; the time of the first ring, if it rang."""
        since, self.since = self.since, None
        self._event.clear()
        return since


def _reader(kind: type[V], status: type[S]) -> Callable[[_Object], Found[V, S]]:
    def read(found: _Object) -> Found[V, S]:
        meta, value, fault = found.metadata, None, ""
        try:
            plain = {"metadata": {"name": meta.name}, "spec": msgspec.json.decode(found.spec)}
            value = from_object(kind, plain)
        except ConfigError as e:
            fault = str(e)
        try:
            said = msgspec.json.decode(found.status, type=status)
        except msgspec.ValidationError:
            said = None
        return Found(
            name=meta.name,
            uid=meta.uid,
            version=meta.resource_version,
            generation=meta.generation,
            value=value,
            fault=fault,
            status=said,
        )

    return read


def _block(found: _Object) -> Block | None:
    return _reader(Block, dict)(found).value


def _machine(found: _Core) -> Machine:
    mine = (c for c in found.status.conditions or () if c.type == CONDITION)
    return Machine(
        name=found.metadata.name,
        uid=found.metadata.uid,
        taints=found.spec.taints or (),
        condition=next(mine, None),
    )
