"""What of one namespace an observation shows: the decision of what is ours, in one place.

In the namespace the agent runs in, that is everything on devices that carry
our mark, every route and rule of our protocol number, and of the rest exactly
the slots that `about` names.  In any other namespace it is what stands on the
devices that `about` names there, and again its slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from muslin.kernel import codec, links, tc
from muslin.kernel.netlink import Socket
from muslin.plan.objects import (
    Addr,
    Fdb,
    Link,
    Neigh,
    Object,
    Plan,
    Present,
    Route,
    Rule,
    Shaper,
    Vxlan,
)


def view(ns: str | None, socket: Socket, about: Plan) -> Plan:
    """Everything of rtnetlink's that is to be seen in the socket's namespace."""
    devices = [links.read(body) for body in socket.dump(links.GETLINK, links.everything())]
    scope = _scope(ns, devices, about)
    return frozenset(
        o
        for o in (*_links(ns, devices, about), *_objects(ns, socket, devices))
        if isinstance(o, Link) or scope.shows(o)
    )


@dataclass(frozen=True, slots=True)
class _Scope:
    """What to show of what hangs on devices or on nothing."""

    home: bool  # the agent's own namespace
    devices: frozenset[str]  # with all that stands on them
    keys: frozenset[tuple[object, ...]]  # slots that were asked for by name

    def shows(self, obj: Object) -> bool:
        if obj.dev in self.devices or (self.home and isinstance(obj, Route | Rule)):
            return True
        return obj.key in self.keys


def _scope(ns: str | None, devices: Iterable[links.Device], about: Plan) -> _Scope:
    """Which devices, and beside what stands on them which slots."""
    home = ns is None
    shown = (d.name for d in devices if d.is_ours) if home else (o.dev for o in about if o.dev)
    scope = _Scope(home=home, devices=frozenset(shown), keys=frozenset())
    # Hashing a slot takes longer than reading what is in it, and nearly all is shown anyway.
    return replace(scope, keys=frozenset(o.key for o in about if not scope.shows(o)))


def _links(ns: str | None, devices: Iterable[links.Device], about: Plan) -> Iterator[Link]:
    asked = {o.name: o.kind for o in about if isinstance(o, Link)}
    for device in devices:
        if isinstance(asked.get(device.name), Present):
            yield device.link(ns, present=True)
        elif device.is_ours and (ns is None or device.name in asked):
            yield device.link(ns)


def _objects(
    ns: str | None, socket: Socket, devices: Iterable[links.Device]
) -> Iterator[Addr | Neigh | Fdb | Route | Rule | Shaper]:
    names = {d.index: d.name for d in devices}
    found: list[Addr | Neigh | Fdb | Route | Rule | Shaper | None] = []
    for body in socket.dump(codec.GETADDR, codec.all_addresses()):
        found.append(codec.read_addr(ns, body, names))
    for body in socket.dump(codec.GETNEIGH, codec.all_neighbours()):
        found.append(codec.read_neigh(ns, body, names))
    for device in devices:
        if isinstance(device.kind, Vxlan):
            for body in socket.dump(codec.GETNEIGH, codec.fdb_of(device.index)):
                found.append(codec.read_fdb(ns, body, names))
    for version in (4, 6):
        for body in socket.dump(codec.GETROUTE, codec.routes_of(version)):
            found.append(codec.read_route(ns, body, names))
    for body in socket.dump(tc.GETQDISC, tc.everything()):
        found.append(tc.read(ns, body, names))
    for body in socket.dump(codec.GETRULE, codec.all_rules()):
        found.append(codec.read_rule(ns, body))
    return (o for o in found if o is not None)
