"""Leases where nothing expires by itself: an object that is kept, a label, and one who looks.

    Lease  muslin-3f9c…  (coordination.k8s.io)   renewed by whoever promised
    Block  four.10.0.0.0-26    label muslin.io/lease: muslin-3f9c…

Who looks is the controller that leads (`Expiry`).  It measures from when *it*
saw a Lease object change, by its own clock, so no node's clock counts and
none has to be right; a controller that takes over starts counting anew, and
what nobody keeps then stays at most one `ttl` longer.  Time in which the API
server did not answer does not count: nobody could keep a promise then.

A Lease object that vanished takes what is under it along, but only after a
grace: deleting a Kubernetes node removes its Lease (the garbage collector
follows ownerReferences), and a node that was deleted by mistake has that long
to promise again before its blocks are anybody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from muslin.errors import Conflict, MuslinError, NotReady
from muslin.kube import Api, Kind, micro_time
from muslin.kube.kinds import LEASES
from muslin.kube.slim import Lease as LeaseObject
from muslin.kube.slim import Meta
from muslin.log import log
from muslin.store import Lease

LABEL = "muslin.io/lease"  # on what is under a lease: the Lease object's name
_OURS = "muslin.io/promise"  # on the Lease objects: that what is under them is ours to end
GRACE = 60.0  # seconds between seeing that a lease has vanished and ending what is under it
PAUSE = 5.0  # seconds between two looks


class Bare(msgspec.Struct, frozen=True):
    """Any object, for its metadata."""

    metadata: Meta = Meta()


class Promise(Lease):
    """One Lease object in a namespace."""

    def __init__(
        self, api: Api, namespace: str, name: str, ttl: float, kinds: Iterable[Kind]
    ) -> None:
        self._api, self._namespace, self._kinds = api, namespace, tuple(kinds)
        self.name, self.ttl = name, ttl

    async def stands(self) -> bool:
        """Whether the object is there."""
        return await self._api.get(LEASES, self.name, namespace=self._namespace) is not None

    async def keep(self) -> None:
        kept = {"spec": {"renewTime": micro_time(time.time())}}
        await self._api.patch(LEASES, self.name, kept, namespace=self._namespace)

    async def revoke(self) -> None:
        # The lease goes first: from then on nothing is written under it (`stands`).
        await self._api.delete(LEASES, self.name, namespace=self._namespace)
        await _end(self._api, self._kinds, f"{LABEL}={self.name}")


async def promise(
    api: Api,
    namespace: str,
    ttl: float,
    kinds: Iterable[Kind],
    *,
    owner: Mapping[str, object] | None = None,
) -> Promise:
    """A new lease of whole seconds; with `owner` (an ownerReference) it goes when that goes."""
    name, seconds = f"muslin-{secrets.token_hex(8)}", math.ceil(max(1.0, ttl))
    now = micro_time(time.time())
    metadata: dict[str, object] = {"name": name, "labels": {_OURS: "true"}}
    if owner:
        metadata["ownerReferences"] = [dict(owner)]
    times = {"leaseDurationSeconds": seconds, "acquireTime": now, "renewTime": now}
    await api.create(LEASES, {"metadata": metadata, "spec": times}, namespace=namespace)
    return Promise(api, namespace, name, float(seconds), kinds)


class Expiry:
    """Ends what nobody keeps.  One for a cluster: run it where the controller leads."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        kinds: Iterable[Kind],
        *,
        clock: Callable[[], float] = time.monotonic,
        grace: float = GRACE,
    ) -> None:
        self._api, self._namespace, self._kinds = api, namespace, tuple(kinds)
        self._clock, self._grace = clock, grace
        self._kept: dict[str, tuple[str, float]] = {}  # lease → its version, and since when
        self._lost: dict[str, float] = {}  # lease that is not there → since when
        self._looked: float | None = None  # when the server last answered
        self._away = False  # whether it did not

    async def run(self, pause: float = PAUSE) -> None:
        """Look until cancelled; what cannot be reached is looked at again."""
        while True:
            try:
                await self.look()
            except MuslinError as e:
                log.warning("expiry.failed", error=str(e))
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def look(self) -> list[str]:
        """One look; the leases whose objects were ended."""
        try:
            return await self._look()
        except NotReady:
            self._away = True
            raise

    async def _look(self) -> list[str]:
        now = self._clock()
        listed = await self._api.list(
            LEASES, namespace=self._namespace, labels=f"{_OURS}=true", type=LeaseObject
        )
        self._forgive(now)
        leases = {o.metadata.name: o for o in listed.items}
        over = [n for n, o in leases.items() if self._is_over(o, now)]
        ended = [n for n in over if await self._revoke(leases[n])]
        for gone in self._kept.keys() - leases.keys():
            del self._kept[gone]
        under = await self._under()
        self._lost = {n: self._lost.get(n, now) for n in under - leases.keys()}
        orphaned = [n for n, since in self._lost.items() if now - since >= self._grace]
        for name in orphaned:
            if await _end(self._api, self._kinds, f"{LABEL}={name}"):
                log.info("lease.vanished", lease=name)
        return [*ended, *orphaned]

    def _forgive(self, now: float) -> None:
        """Take out of every count the time in which the server was away."""
        if self._away and self._looked is not None:
            missed = now - self._looked
            self._kept = {n: (v, since + missed) for n, (v, since) in self._kept.items()}
            self._lost = {n: since + missed for n, since in self._lost.items()}
        self._looked, self._away = now, False

    def _is_over(self, found: LeaseObject, now: float) -> bool:
        meta, ttl = found.metadata, found.spec.lease_duration_seconds or 0
        version, since = self._kept.get(meta.name, ("", now))
        if version != meta.resource_version:
            self._kept[meta.name] = (meta.resource_version, now)
            return False
        return now - since >= ttl

    async def _revoke(self, found: LeaseObject) -> bool:
        """End a lease and what is under it; False if it was kept at the last moment."""
        meta = found.metadata
        try:
            await self._api.delete(
                LEASES, meta.name, namespace=self._namespace, version=meta.resource_version
            )
        except Conflict:
            return False
        log.info("lease.expired", lease=meta.name)
        await _end(self._api, self._kinds, f"{LABEL}={meta.name}")
        return True

    async def _under(self) -> set[str]:
        """Every lease that something is under."""
        found = set()
        for kind in self._kinds:
            listed = await self._api.list(kind, labels=LABEL, type=Bare)
            found |= {(o.metadata.labels or {})[LABEL] for o in listed.items}
        return found


async def _end(api: Api, kinds: Iterable[Kind], labels: str) -> int:
    """Delete what the selector finds, but not what has moved to another lease since; how many."""
    ended = 0
    for kind in kinds:
        for found in (await api.list(kind, labels=labels, type=Bare)).items:
            meta = found.metadata
            if meta.deletion_timestamp:  # on its way, when its finalizers allow
                continue
            with contextlib.suppress(Conflict):
                ended += await api.delete(kind, meta.name, version=meta.resource_version)
    return ended
