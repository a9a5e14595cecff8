"""What slices are made of: five watches, two of them only when a service needs them.

    services       those with our annotations
    workloads      all; there are few
    slices         those that are labelled as ours
    pods           those with an address from us; once a service names a network
    nodes          name and zone; once there is a service

A slice that was written is not believed before the watch has shown it: a round
that knew only half of what the last one did would put endpoints twice.  So a
namespace rests until then (`resting`), and at most `PATIENCE`: an object that
was made and deleted at once is never shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Generic, NamedTuple, TypeVar

from muslin.controller.seen import Bell
from muslin.controller.slices import wire
from muslin.controller.slices.model import Member, Service, Slice
from muslin.controller.slices.pack import MANAGED_BY, OURS
from muslin.controller.slices.plan import NETWORK
from muslin.kube import Api, Kind
from muslin.kube.kinds import ENDPOINT_SLICES, NODES, PODS, SERVICES
from muslin.kube.values import KINDS
from muslin.model import Workload

PATIENCE = 2.0  # seconds until what was written is no longer waited for

Key = tuple[str, str]  # namespace, name
GONE = ""  # the version of what was deleted

V = TypeVar("V")


class Kept(Generic[V]):
    """Objects of one kind, by namespace and name."""

    def __init__(self) -> None:
        self._spaces: dict[str, dict[str, V]] = {}

    def of(self, namespace: str) -> Mapping[str, V]:
        """Those of one namespace."""
        return self._spaces.get(namespace, {})

    def get(self, key: Key) -> V | None:
        return self.of(key[0]).get(key[1])

    def put(self, key: Key, value: V | None) -> bool:
        """Keep it, or drop it for None; whether it was another before."""
        space = self._spaces.setdefault(key[0], {})
        before = space.pop(key[1], None)
        if value is not None:
            space[key[1]] = value
        elif not space:
            del self._spaces[key[0]]
        return before != value

    def namespaces(self) -> set[str]:
        return set(self._spaces)

    def __iter__(self) -> Iterator[Key]:
        return iter([(space, name) for space, kept in self._spaces.items() for name in kept])

    def values(self) -> Iterator[V]:
        return (value for kept in self._spaces.values() for value in kept.values())


class _Watch(NamedTuple):
    kind: Kind
    of: type[Any]
    take: Callable[[Key, Any], bool]  # whether a change of one object matters
    kept: Kept[Any]
    labels: str = ""
    when: asyncio.Event | None = None


class Known:
    """The caches; `follow` fills them, and rings `bell` for what concerns a slice.

    `dirty` are the namespaces in which something changed since they were looked at.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.services: Kept[Service] = Kept()
        self.slices: Kept[Slice] = Kept()
        self.workloads: Kept[Member] = Kept()
        self.pods: Kept[Member] = Kept()
        self._nodes: Kept[str] = Kept()
        self.bell, self.dirty = Bell(now), set[str]()
        self._now = now
        self._listed: set[str] = set()
        self._asked, self._asked_network = asyncio.Event(), asyncio.Event()
        self._written: dict[Key, tuple[str, float]] = {}  # version, until when it is waited for

    @property
    def synced(self) -> bool:
        """Whether all is listed that somebody needs; before, nothing may be concluded."""
        needed = {SERVICES, ENDPOINT_SLICES, KINDS[Workload]}
        needed |= {NODES} if self._asked.is_set() else set()
        needed |= {PODS} if self._asked_network.is_set() else set()
        return {kind.resource for kind in needed} <= self._listed

    @property
    def zones(self) -> Mapping[str, str]:
        """Every node with its zone, or ""."""
        return self._nodes.of("")

    def members(self, namespace: str) -> list[Member]:
        """Who may be behind services of a namespace."""
        return [*self.pods.of(namespace).values(), *self.workloads.of(namespace).values()]

    def wrote(self, key: Key, version: str) -> None:
        """A slice was written, or deleted (GONE); its namespace rests until that is seen."""
        if not _is_at(self.slices.get(key), version):  # the watch may be faster than the answer
            self._written[key] = (version, self._now() + PATIENCE)

    def resting(self) -> Mapping[str, float]:
        """Namespaces that wait for what was written, and for how many seconds at most."""
        now = self._now()
        self._written = {k: w for k, w in self._written.items() if w[1] > now}
        found: dict[str, float] = {}
        for (namespace, _), (_, until) in self._written.items():
            found[namespace] = max(found.get(namespace, 0.0), until - now)
        return found

    async def follow(self, api: Api) -> None:
        """Watch until cancelled."""
        self._listed.clear()
        ours, workloads = f"{MANAGED_BY}={OURS}", KINDS[Workload]
        async with asyncio.TaskGroup() as tasks:
            for watch in (
                _Watch(SERVICES, wire.RawService, self._service, self.services),
                _Watch(workloads, wire.RawWorkload, self._workload, self.workloads),
                _Watch(ENDPOINT_SLICES, wire.RawSlice, self._slice, self.slices, ours),
                _Watch(PODS, wire.RawPod, self._pod, self.pods, when=self._asked_network),
                _Watch(NODES, wire.RawNode, self._node, self._nodes, when=self._asked),
            ):
                tasks.create_task(self._follow(api, watch))

    async def _follow(self, api: Api, watch: _Watch) -> None:
        if watch.when:
            await watch.when.wait()
        first = True
        source = api.watch(watch.kind, labels=watch.labels, type=watch.of)
        async with aclosing(source) as batches:
            async for batch in batches:
                if first:  # what an earlier watch told and this one does not
                    for key in set(watch.kept) - {(c.namespace, c.name) for c in batch}:
                        watch.take(key, None)
                    self._listed.add(watch.kind.resource)
                    self._all_dirty()
                told = first
                for namespace, name, found in batch:
                    if watch.take((namespace, name), found):
                        self.dirty.add(namespace)
                        told = True
                if told and self.synced:
                    self.bell.ring()
                first = False

    def _all_dirty(self) -> None:
        self.dirty |= self.services.namespaces() | self.slices.namespaces()

    # ── one object; whether anything of it matters that was not so before ───────────────────────

    def _service(self, key: Key, found: wire.RawService | None) -> bool:
        service = wire.service_of(found) if found else None
        if service:
            self._asked.set()
            if NETWORK in service.asks:
                self._asked_network.set()
        return self.services.put(key, service)

    def _workload(self, key: Key, found: wire.RawWorkload | None) -> bool:
        return self.workloads.put(key, wire.workload_of(found) if found else None)

    def _pod(self, key: Key, found: wire.RawPod | None) -> bool:
        return self.pods.put(key, wire.pod_of(found) if found else None)

    def _slice(self, key: Key, found: wire.RawSlice | None) -> bool:
        one = wire.slice_of(found) if found else None
        if key in self._written and _is_at(one, self._written[key][0]):
            del self._written[key]
        return self.slices.put(key, one)

    def _node(self, key: Key, found: wire.RawNode | None) -> bool:
        changed = self._nodes.put(key, wire.zone_of(found) if found else None)
        if changed:
            self._all_dirty()
        return changed


def _is_at(one: Slice | None, version: str) -> bool:
    """Whether a slice is as it was written, or later: versions are numbers that grow."""
    if one is None or version == GONE:
        return one is None and version == GONE
    try:
        return int(one.version) >= int(version)
    except ValueError:
        return one.version == version
