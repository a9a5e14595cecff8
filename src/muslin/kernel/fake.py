"""A kernel in a dict: it behaves as the conformance suite asserts and prints itself as text.

It holds one machine: the agent's namespace (None) and any number of others by
path.  Besides our objects it can hold a stranger's (`strangers`), which takes
a slot, is never observed, and refuses to be added over or removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from errno import EEXIST, EHOSTUNREACH, ENETUNREACH, ENODEV, ENOENT, EPERM

from muslin.errors import KernelError
from muslin.model import Address
from muslin.plan.diff import Change
from muslin.plan.objects import (
    Addr,
    Element,
    InTable,
    Link,
    Neigh,
    Object,
    Plan,
    Present,
    Route,
    Ruleset,
    Sysctl,
    Veth,
)
from muslin.plan.render import render, words

Key = tuple[object, ...]


class FakeKernel:
    """Holds what is put into it, and refuses what the real one refuses."""

    def __init__(self, present: Plan = frozenset(), *, strangers: Plan = frozenset()) -> None:
        """`present`: links that others made (an uplink, lo); `strangers`: any other objects."""
        self.strangers: dict[Key, Object] = {o.key: o for o in present | strangers}
        self._ours: dict[Key, Object] = {}
        self._peers: dict[Key, Key] = {}  # link → the other end of its pair
        self.log: list[Change] = []  # everything that was applied

    def __str__(self) -> str:
        return render(frozenset(self._ours.values()))

    def observe(self, about: Plan = frozenset()) -> Plan:
        keys = {o.key for o in about}
        links = [o for o in self._ours.values() if isinstance(o, Link) and o.ns is None]
        places = {_place(o) for o in (*links, *(o for o in about if o.ns and o.dev))}
        found = {o for o in self._ours.values() if o.key in keys or _is_seen(o, places)}
        for key in keys:
            link = self.strangers.get(key)
            if isinstance(link, Link) and isinstance(_named(about, key).kind, Present):
                found.add(replace(link, kind=Present()))
        return frozenset(found)

    def apply(self, changes: Iterable[Change]) -> None:
        late: list[Change] = []
        for change in changes:
            if isinstance(change.obj, Ruleset | InTable):
                late.append(change)
            else:
                self._apply(change)
        before = dict(self._ours)
        try:
            for change in late:
                self._apply(change)
        except KernelError:
            self._ours = before  # one transaction
            raise

    def take_down(self, ns: str | None, dev: str) -> None:
        """Somebody sets a link of ours down: its routes go, its addresses stay."""
        key = ("link", ns, dev)
        link = self._ours[key]
        assert isinstance(link, Link)
        routes = [
            k for k, o in self._ours.items() if isinstance(o, Route) and _place(o) == (ns, dev)
        ]
        for route in routes:
            del self._ours[route]
        self._ours[key] = replace(link, up=False)

    def _apply(self, change: Change) -> None:
        if change.verb == "remove":
            self._remove(change)
        elif isinstance(change.obj, Link):
            self._put_link(change, change.obj)
        else:
            self._put(change)
        self.log.append(change)

    def _put_link(self, change: Change, link: Link) -> None:
        if isinstance(link.kind, Present):
            there = self._find(link.key)
            if there is None and link.name == "lo":
                there = Link(ns=link.ns, name="lo", kind=Present())
            if not isinstance(there, Link):
                raise _refused(change, ENODEV)
            settings = replace(there, mtu=link.mtu or there.mtu, mac=link.mac or there.mac, up=True)
            home = self._ours if link.key in self._ours else self.strangers
            self._readdress(there, settings)
            home[link.key] = settings
            return
        if change.verb == "add" and self._find(link.key) is not None:
            raise _refused(change, EEXIST)
        if change.verb == "replace" and link.key not in self._ours:
            raise _refused(change, ENODEV)
        if change.verb == "add" and isinstance(link.kind, Veth):
            self._put_peer(change, link, link.kind)
        there = self._ours.get(link.key)
        if isinstance(there, Link):
            self._readdress(there, link)
        self._ours[link.key] = replace(link, up=True)

    def _readdress(self, before: Link, after: Link) -> None:
        """A link with a new MAC has lost its neighbours."""
        if after.mac not in {None, before.mac}:
            place = _place(before)
            self._ours = {
                k: o
                for k, o in self._ours.items()
                if not isinstance(o, Neigh) or _place(o) != place
            }

    def _put_peer(self, change: Change, link: Link, kind: Veth) -> None:
        assert kind.peer is not None
        ns = kind.peer_ns if kind.peer_ns is not None else link.ns
        peer = Link(ns=ns, name=kind.peer, kind=Present(), up=False)
        if self._find(peer.key) is not None:
            raise _refused(change, EEXIST)
        self.strangers[peer.key] = peer
        self._peers[link.key], self._peers[peer.key] = peer.key, link.key

    def _put(self, change: Change) -> None:
        obj = change.obj
        if isinstance(obj, Sysctl):
            if obj.dev not in {None, "all", "default"} and not self._has_device(obj):
                raise _refused(change, ENOENT)
        elif obj.dev is not None and not self._has_device(obj):
            raise _refused(change, ENODEV)
        if change.verb == "add" and obj.key in self.strangers:
            raise _refused(change, EEXIST)
        if change.verb == "add" and obj.key in self._ours and not isinstance(obj, Sysctl | Element):
            raise _refused(change, EEXIST)
        if isinstance(obj, Route) and obj.via is not None and not self._is_reachable(obj, obj.via):
            raise _refused(change, ENETUNREACH if obj.via.version == 4 else EHOSTUNREACH)
        if isinstance(obj, InTable):
            if ("ruleset", obj.ns) not in self._ours:
                raise _refused(change, ENOENT)
            if change.verb == "add" and self._ours.get(obj.key, obj) != obj:
                raise _refused(change, EEXIST)  # a map's entry with other data
        self._ours[obj.key] = obj

    def _remove(self, change: Change) -> None:
        obj = change.obj
        if isinstance(obj, Link):
            if obj.key in self.strangers:
                raise _refused(change, EPERM)
            self._drop_link(obj.key)
        elif isinstance(obj, Ruleset):
            self._ours = {
                k: o for k, o in self._ours.items()
                if o.ns != obj.ns or not isinstance(o, Ruleset | InTable)
            }  # fmt: skip
        else:
            self._ours.pop(obj.key, None)
            if isinstance(obj, Addr) and obj.address.version == 4:
                self._disable_ip(_place(obj))

    def _disable_ip(self, place: tuple[str | None, str | None]) -> None:
        """A device without an IPv4 address loses what IPv4 has on it."""
        if any(isinstance(o, Addr) and _on_ip4(o, place) for o in self._everything()):
            return
        self._ours = {k: o for k, o in self._ours.items() if not _on_ip4(o, place)}

    def _drop_link(self, key: Key) -> None:
        """A link goes, and with it all that stood on it, and the other end of a pair."""
        for end in (key, self._peers.pop(key, key)):
            self._peers.pop(end, None)
            link = self._ours.pop(end, None) or (
                self.strangers.pop(end, None) if end != key else None
            )
            if link is not None:
                place = _place(link)
                self._ours = {k: o for k, o in self._ours.items() if _place(o) != place}

    def _find(self, key: Key) -> Object | None:
        return self._ours.get(key) or self.strangers.get(key)

    def _has_device(self, obj: Object) -> bool:
        return obj.dev == "lo" or isinstance(self._find(("link", obj.ns, obj.dev)), Link)

    def _is_reachable(self, route: Route, via: Address) -> bool:
        """Whether the next hop is on the link: by an address's prefix, or by decree."""
        if route.onlink or (via.version == 6 and via.is_link_local):
            return True
        return any(
            isinstance(o, Addr) and _place(o) == _place(route) and via in o.address.network
            for o in self._everything()
        )

    def _everything(self) -> Iterator[Object]:
        yield from self._ours.values()
        yield from self.strangers.values()


def _place(obj: Object) -> tuple[str | None, str | None]:
    """The namespace and device an object stands on; those without a device stand nowhere."""
    return (obj.ns, obj.dev) if obj.dev is not None else (obj.ns, "")


def _is_seen(obj: Object, places: set[tuple[str | None, str | None]]) -> bool:
    """Whether an observation shows `obj` unasked: at home what is marked, elsewhere `places`."""
    if isinstance(obj, Sysctl):
        return False
    if obj.ns is None and (isinstance(obj, Link | Route) or obj.dev is None):
        return True
    return not isinstance(obj, Link) and _place(obj) in places


def _on_ip4(obj: Object, place: tuple[str | None, str | None]) -> bool:
    if isinstance(obj, Addr | Neigh):
        return _place(obj) == place and obj.address.version == 4
    return isinstance(obj, Route) and _place(obj) == place and obj.dst.version == 4


def _named(about: Plan, key: Key) -> Link:
    return next(o for o in about if isinstance(o, Link) and o.key == key)


def _refused(change: Change, code: int) -> KernelError:
    return KernelError(change.verb, words(change.obj), code)
