"""Desired × observed → changes, in an order that never leaves a gap.

Pure, and the only place that knows the order.  Four facts shape it:

*  A link that cannot be changed in place (its VNI, its local address) is made
   anew, and the kernel then drops everything that hung on it: addresses,
   neighbours, routes.  What hung on a rebuilt link counts as absent.
*  The same holds for our nft table and its elements.
*  A link that gets another MAC loses its neighbours, permanent ones too
   (net/core/neighbour.c: neigh_changeaddr()).
*  A link that loses its last IPv4 address loses its IPv4 routes and neighbours,
   without a word (net/ipv4/fib_frontend.c: fib_disable_ip()).  What shall stand
   on such a link is put after the removals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from muslin.plan.objects import (
    ORDER,
    Addr,
    Element,
    Fdb,
    InTable,
    Link,
    Neigh,
    Object,
    Plan,
    Present,
    Route,
    Rule,
    Ruleset,
    Sysctl,
    holds,
)

Verb = Literal["add", "replace", "remove"]
Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One step: put `obj` where there is nothing, over `was`, or take it away."""

    verb: Verb
    obj: Object
    was: Object | None = None


def diff(desired: Plan, observed: Plan) -> Iterator[Change]:
    """Yield the changes in a safe order; nothing when `observed` already holds `desired`.

    Adds come before removes, so that a peer that moved is never without a
    route.  Links come before what hangs on them; removals run backwards.
    Elements are the exception: a set of intervals refuses an overlap, so old
    ones go first (the kernel applies all nft changes as one transaction).
    `observed` holds only objects that carry our mark, so an extra one is ours
    to remove.  Sysctls and links made by others are never removed.
    """
    if not observed:
        yield from _puts(desired, {})
        return
    have = {o.key: o for o in observed}
    want = {o.key: o for o in desired}
    rebuilt = {k for k, o in want.items() if k in have and not _in_place(o, have[k])}

    for key in sorted(rebuilt, key=repr):
        yield Change("remove", have[key])
    lost = {k for k, o in have.items() if _hangs_on(o, rebuilt)} | rebuilt
    readdressed = {k for k, o in want.items() if k in have and _new_mac(o, have[k])}
    lost |= {k for k, o in have.items() if isinstance(o, Neigh) and _hangs_on(o, readdressed)}
    have = {k: o for k, o in have.items() if k not in lost}

    bare = _places4(have.values()) - _places4(desired)
    late = frozenset(o for o in desired if _place4(o) in bare and isinstance(o, Route | Neigh))

    yield from _removals(o for k, o in have.items() if k not in want and isinstance(o, Element))
    yield from _puts(desired - late, have)
    gone = {k for k, o in have.items() if k not in want and _takes_along(o)}
    yield from _removals(
        o
        for k, o in have.items()
        if k not in want and not isinstance(o, Element) and not _hangs_on(o, gone)
    )
    yield from _puts(late, {k: o for k, o in have.items() if _place4(o) not in bare})


def step(before: Plan, after: Plan) -> list[Change] | None:
    """The changes from one plan to another where the kernel holds exactly the first.

    None where the two differ in what takes other objects along, or decides
    whether they can stand: links, addresses, switches, the table.
    """
    new, old = after - before, before - after
    if not all(isinstance(o, Route | Neigh | Fdb | Rule | Element) for o in (*new, *old)):
        return None
    return list(diff(new, old))


def _puts(objects: Iterable[Object], have: Mapping[Key, Object]) -> Iterator[Change]:
    for obj in sorted(objects, key=_rank):
        was = have.get(obj.key)
        if was is None:
            yield Change("add", obj)
        elif not holds(obj, was):
            yield Change("replace", obj, was)


def _removals(objects: Iterator[Object]) -> Iterator[Change]:
    removable = [
        o
        for o in objects
        if not isinstance(o, Sysctl) and not (isinstance(o, Link) and isinstance(o.kind, Present))
    ]
    for obj in sorted(removable, key=_rank, reverse=True):
        yield Change("remove", obj)


def _in_place(want: Object, have: Object) -> bool:
    """Whether the kernel can turn `have` into `want` without making it anew."""
    if isinstance(want, Ruleset):
        return want == have
    if isinstance(want, Link) and isinstance(have, Link):
        return isinstance(want.kind, Present) or want.kind == have.kind
    return True


def _new_mac(want: Object, have: Object) -> bool:
    if not isinstance(want, Link) or not isinstance(have, Link):
        return False
    return want.mac is not None and want.mac != have.mac


def _place4(obj: Object) -> tuple[str | None, str | None] | None:
    """The device on which `obj` stands, if it is there by virtue of IPv4."""
    match obj:
        case Addr() | Neigh():
            version = obj.address.version
        case Route():
            version = obj.dst.version
        case _:
            return None
    return (obj.ns, obj.dev) if version == 4 and obj.dev is not None else None


def _places4(objects: Iterable[Object]) -> set[tuple[str | None, str | None] | None]:
    """The devices with an IPv4 address."""
    return {_place4(o) for o in objects if isinstance(o, Addr)} - {None}


def _takes_along(obj: Object) -> bool:
    """Whether removing `obj` removes what hangs on it; a link made by others is not removed."""
    return isinstance(obj, Ruleset) or (isinstance(obj, Link) and not isinstance(obj.kind, Present))


def _hangs_on(obj: Object, keys: set[Key]) -> bool:
    """Whether `obj` vanishes with one of the links or the table in `keys`."""
    if isinstance(obj, InTable):
        return ("ruleset", obj.ns) in keys
    return not isinstance(obj, Link) and ("link", obj.ns, obj.dev) in keys


def _rank(obj: Object) -> tuple[int, bool, str]:
    # Within a kind: a pod's end of a pair is there only after the node's end, which makes both;
    # a next hop may be on the link only by another route.
    late = isinstance(obj, Link) and isinstance(obj.kind, Present)
    late |= isinstance(obj, Route) and obj.via is not None
    return ORDER.index(type(obj)), late, repr(obj.key)
