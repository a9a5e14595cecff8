"""Endpoints into slices: what is to be written so that the slices say what was planned.  Pure.

A slice is sent whole to every node that has a proxy, so few slices should
change, and none for the sake of order.  An endpoint stays in the slice it is
in, at its place.  New ones go first where something changes anyway; what is
left of them makes new slices, full ones, and the rest goes into the fullest
slice that has room for all of it (as Kubernetes' own controller does).  So no
more slices are written than endpoints have changed.  Slices that have become
sparse are not joined; they fill again.

A new slice's name follows from the service, what its endpoints share and a
number: a create whose answer was lost and that is made again is a Conflict,
not a second slice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

from muslin.controller.slices import wire
from muslin.controller.slices.model import Endpoint, Group, Service, Slice, Wanted
from muslin.model import Address

MOST = 100  # endpoints of a slice; the API takes 1000, Kubernetes' controller makes 100
MANAGED_BY, OURS = "endpointslice.kubernetes.io/managed-by", "muslin.io"
SERVICE_NAME = "kubernetes.io/service-name"
HEADLESS = "service.kubernetes.io/headless"  # kube-proxy watches only slices without it
RESERVED = (MANAGED_BY, SERVICE_NAME, HEADLESS)

Cells = list[Endpoint | None]  # places of a slice; None: to be emptied


class Create(NamedTuple):
    """A slice that is not there."""

    name: str
    body: dict[str, Any]


class Patch(NamedTuple):
    """A JSON patch that fails where the slice is another by now."""

    name: str
    steps: list[dict[str, Any]]


class Delete(NamedTuple):
    """A slice that nobody needs, in the version that we know."""

    name: str
    version: str


Change = Create | Patch | Delete


def labels_of(service: Service) -> dict[str, str]:
    """A slice's labels: the service's own, as Kubernetes does, and whose it is.

    With them comes `service.kubernetes.io/service-proxy-name`, by which
    kube-proxy leaves a service to another proxy.
    """
    own = {k: v for k, v in service.labels.items() if k not in RESERVED}
    own |= {HEADLESS: ""} if service.headless else {}
    return {**own, SERVICE_NAME: service.name, MANAGED_BY: OURS}


def changes(
    service: Service, wanted: Wanted, slices: Iterable[Slice], taken: Collection[str] = ()
) -> Iterator[Change]:
    """What brings this service's slices to what is wanted; nothing when they are.

    `taken` are names that others have.
    """
    there = sorted(slices, key=lambda s: s.name)
    names = {s.name for s in there} | set(taken)
    labels = labels_of(service)
    groups: dict[Group, list[Slice]] = {group: [] for group in wanted}
    for one in there:
        if one.going:
            continue
        if service.uid in one.owners and one.group in groups:
            groups[one.group].append(one)
        else:
            yield Delete(one.name, one.version)
    for group, mine in groups.items():
        placed: set[Address] = set()
        kept = [_Filled(one, wanted[group], labels, placed) for one in mine]
        news = [wanted[group][a] for a in sorted(wanted[group].keys() - placed, key=int)]
        for fresh in _place(kept, news):
            name = _name(service, group, names)
            names.add(name)
            yield Create(name, wire.body(service, name, labels, group, fresh))
        for filled in kept:
            if not any(filled.cells):
                yield Delete(filled.slice.name, filled.slice.version)
            elif filled.touched:
                yield Patch(filled.slice.name, filled.steps())


class _Filled:
    """A slice that is there, and what will be in its places."""

    def __init__(
        self,
        one: Slice,
        wanted: Mapping[Address, Endpoint],
        labels: Mapping[str, str],
        placed: set[Address],
    ) -> None:
        self.slice, self._labels = one, labels
        self.cells: Cells = []
        for was in one.endpoints:
            now = wanted.get(was.address) if was and was.address not in placed else None
            self.cells.append(now)
            placed |= {now.address} if now else set()

    @property
    def touched(self) -> bool:
        """Whether it has to be written, or else deleted."""
        if self.slice.labels != self._labels or not self.cells or None in self.cells:
            return True
        return tuple(self.cells) != self.slice.endpoints

    @property
    def room(self) -> int:
        return max(0, MOST - sum(cell is not None for cell in self.cells))

    def take(self, news: list[Endpoint]) -> None:
        """Put endpoints into free places, then behind the last, while there is room."""
        free = [i for i, cell in enumerate(self.cells) if cell is None]
        for _ in range(min(self.room, len(news))):
            endpoint = news.pop(0)
            if free:
                self.cells[free.pop(0)] = endpoint
            else:
                self.cells.append(endpoint)

    def steps(self) -> list[dict[str, Any]]:
        """From what is there to what will be."""
        was = self.slice.endpoints
        steps: list[dict[str, Any]] = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": self.slice.version}
        ]
        if self.slice.labels != self._labels:
            steps.append({"op": "add", "path": "/metadata/labels", "value": dict(self._labels)})
        if not was:  # may be null, to which nothing can be added
            value = [wire.endpoint(e) for e in self.cells if e]
            return [*steps, {"op": "add", "path": "/endpoints", "value": value}]
        for i, now in enumerate(self.cells):
            if now is None or (i < len(was) and now == was[i]):
                continue
            place = {"op": "replace", "path": f"/endpoints/{i}"}
            behind = {"op": "add", "path": "/endpoints/-"}
            steps.append({**(place if i < len(was) else behind), "value": wire.endpoint(now)})
        gone = (i for i, now in enumerate(self.cells) if now is None)
        steps += [{"op": "remove", "path": f"/endpoints/{i}"} for i in sorted(gone, reverse=True)]
        return steps


def _place(kept: list[_Filled], news: list[Endpoint]) -> Iterator[list[Endpoint]]:
    """Put new endpoints into slices that are there; yield those for slices of their own."""
    for filled in kept:
        if filled.touched:
            filled.take(news)
    while len(news) >= MOST:
        yield news[:MOST]
        del news[:MOST]
    if fitting := [filled for filled in kept if filled.room >= len(news) > 0]:
        min(fitting, key=lambda f: f.room).take(news)
    if news:
        yield news


def _name(service: Service, group: Group, taken: Collection[str]) -> str:
    """The first free name; a Service's has at most 63 characters, so there is room."""
    for number in count():
        text = f"{service.uid} {group.family} {group.ports} {number}"
        digest = hashlib.blake2b(text.encode(), digest_size=5).hexdigest()
        if (name := f"{service.name}-muslin-{digest}") not in taken:
            return name
    raise AssertionError("there is always another number")
