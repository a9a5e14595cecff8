"""The rounds of one term: plan what changed, pack it, write what differs.

Of a namespace in which nothing changed nothing is computed.  New slices and
changed ones are written before any is deleted.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from muslin.controller.events import CONTROLLER, LONGEST
from muslin.controller.metrics import Metrics
from muslin.controller.rounds import rounds
from muslin.controller.slices import pack, plan
from muslin.controller.slices.known import GONE, Key, Known
from muslin.controller.slices.model import Service, Slice
from muslin.controller.writes import Fenced, Writer
from muslin.errors import ConfigError, Conflict
from muslin.kube import micro_time
from muslin.kube.kinds import ENDPOINT_SLICES, EVENTS
from muslin.log import log

AGAIN = 3600.0  # seconds until a fault that lasts is told again; Events are kept as long


class Tell(NamedTuple):
    """What of a service cannot be had, to be told where `kubectl describe` shows it."""

    name: str
    service: Service
    reason: str
    fault: str


Step = pack.Change | Tell


class Slices:
    """The loop of one term; `follow` and `run` are both to be kept going."""

    def __init__(
        self,
        api: Fenced,
        identity: str,
        metrics: Metrics,
        now: Callable[[], float],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._identity, self._metrics = api, identity, metrics
        self._now, self._wall = now, wall
        self._known, self._writer = Known(now), Writer("slice", now)
        self._open: set[str] = set()  # namespaces of which not all is written yet
        self._taken: set[Key] = set()  # names of slices that are not ours
        self._told: dict[str, tuple[str, float]] = {}  # uid of a Service → fault, when

    async def follow(self) -> None:
        """Until cancelled."""
        await self._known.follow(self._api)

    async def run(self) -> None:
        """Until cancelled."""
        await rounds(self._known.bell, self._turn)

    async def _turn(self, since: float | None) -> float | None:
        known = self._known
        if not known.synced:
            return None
        resting = known.resting()
        due = (known.dirty | self._open) - resting.keys()
        wants: list[tuple[str, Step]] = []
        for namespace in sorted(due):
            known.dirty.discard(namespace)
            self._open.add(namespace)  # also if this raises
            if steps := self._steps(namespace):
                wants += [(namespace, step) for step in steps]
            else:
                self._open.discard(namespace)
            await asyncio.sleep(0)  # the term is renewed by this loop too
        wants.sort(key=lambda want: isinstance(want[1], pack.Delete))
        alive = {service.uid for service in known.services.values()}
        self._told = {uid: told for uid, told in self._told.items() if uid in alive}
        again = await self._writer.bring(
            {
                f"{_what(step)} {namespace}/{step.name}": partial(self._do, namespace, step, since)
                for namespace, step in wants
            }
        )
        waits = [resting[n] for n in resting.keys() & (known.dirty | self._open)]
        return min((w for w in (again, *waits) if w is not None), default=None)

    def _steps(self, namespace: str) -> list[Step]:
        """What is to be done in one namespace."""
        known = self._known
        mine = known.services.of(namespace)
        there: dict[str, list[Slice]] = {name: [] for name in mine}
        found: list[Step] = []
        for one in known.slices.of(namespace).values():
            owner = one.labels.get(pack.SERVICE_NAME, "")
            if owner in there:
                there[owner].append(one)
            elif not one.going:
                found.append(pack.Delete(one.name, one.version))
        taken = {name for space, name in self._taken if space == namespace}
        index = plan.Index(known.members(namespace) if mine else ())
        for name, service in mine.items():
            asked = plan.wish(service)
            wanted, fault = plan.endpoints(service, asked, index, known.zones)
            found += pack.changes(service, wanted, there[name], taken)
            if self._is_news(service, fault):
                reason = "NoEndpoints" if asked.fault else "EndpointsIncomplete"
                found.append(Tell(name, service, reason, fault))
        return found

    async def _do(self, namespace: str, step: Step, since: float | None) -> None:
        key = (namespace, step.name)
        match step:
            case Tell(_, service, reason, fault):
                await self._tell(service, reason, fault)
                return
            case pack.Create(name, body):
                try:
                    made = await self._api.create(ENDPOINT_SLICES, body, namespace=namespace)
                except Conflict:
                    self._taken.add(key)  # ours would be known by now, or will be
                    raise
            case pack.Patch(name, steps):
                made = await self._api.patch(
                    ENDPOINT_SLICES, name, steps, namespace=namespace, how="json"
                )
            case pack.Delete(name, version):
                await self._api.delete(ENDPOINT_SLICES, name, namespace=namespace, version=version)
                made = {}
        self._known.wrote(key, made.get("metadata", {}).get("resourceVersion", GONE))
        if since is not None:
            self._metrics.lag.observe(self._now() - since)
        log.debug("slice.written", namespace=namespace, name=name, how=type(step).__name__)

    def _is_news(self, service: Service, fault: str) -> bool:
        before, at = self._told.get(service.uid, ("", 0.0))
        if not fault:
            self._told.pop(service.uid, None)
        return bool(fault) and (before != fault or self._now() - at > AGAIN)

    async def _tell(self, service: Service, reason: str, fault: str) -> None:
        """An Event for what cannot be had; the name follows from the words, so it is made once.

        Also by the next leader, as long as it is there.
        """
        digest = hashlib.blake2b(f"{service.uid} {fault}".encode(), digest_size=8).hexdigest()
        regarding = {"apiVersion": "v1", "kind": "Service", "namespace": service.namespace}
        body = {
            "metadata": {"name": f"{service.name}.{digest}"},
            "eventTime": micro_time(self._wall()),
            "reportingController": CONTROLLER,
            "reportingInstance": self._identity[:128],
            "action": "Check",
            "reason": reason,
            "type": "Warning",
            "note": fault.encode()[:LONGEST].decode(errors="ignore"),
            "regarding": {**regarding, "name": service.name, "uid": service.uid},
        }
        try:
            await self._api.create(EVENTS, body, namespace=service.namespace)
        except Conflict:
            pass  # it is there
        except ConfigError as e:
            log.warning("event.lost", about=service.name, note=fault, error=str(e))
        self._told[service.uid] = (fault, self._now())


def _what(step: Step) -> str:
    """A slice is one thing to the writer, whatever is done to it."""
    return "event" if isinstance(step, Tell) else "slice"
