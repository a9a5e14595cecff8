"""Desired × observed → changes, in an order that never leaves a gap.

Pure, and the only place that knows the order.  Two facts shape it:

*  A link that cannot be changed in place (its VNI, its local address) is made
   anew, and the kernel then drops everything that hung on it: addresses,
   neighbours, routes.  What hung on a rebuilt link counts as absent.
*  The same holds for our nft table and its elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from muslin.plan.objects import ORDER, Element, Link, Object, Plan, Present, Ruleset, Sysctl, holds

Verb = Literal["add", "replace", "remove"]


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
    have = {o.key: o for o in observed}
    want = {o.key: o for o in desired}
    rebuilt = {k for k, o in want.items() if k in have and not _in_place(o, have[k])}

    for key in rebuilt:
        yield Change("remove", have[key])
    lost = {k for k, o in have.items() if _hangs_on(o, rebuilt)} | rebuilt
    have = {k: o for k, o in have.items() if k not in lost}

    yield from _removals(o for k, o in have.items() if k not in want and isinstance(o, Element))
    for obj in sorted(desired, key=_rank):
        was = have.get(obj.key)
        if was is None:
            yield Change("add", obj)
        elif not holds(obj, was):
            yield Change("replace", obj, was)
    gone = {k for k in have if k not in want and isinstance(have[k], Link | Ruleset)}
    yield from _removals(
        o
        for k, o in have.items()
        if k not in want and not isinstance(o, Element) and not _hangs_on(o, gone)
    )


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


def _hangs_on(obj: Object, keys: set[tuple[object, ...]]) -> bool:
    """Whether `obj` vanishes with one of the links or the table in `keys`."""
    if isinstance(obj, Element):
        return ("ruleset", obj.ns) in keys
    return not isinstance(obj, Link) and ("link", obj.ns, obj.dev) in keys


def _rank(obj: Object) -> tuple[int, bool, str]:
    # A pod's end of a pair is there only after the node's end, which makes both.
    present = isinstance(obj, Link) and isinstance(obj.kind, Present)
    return ORDER.index(type(obj)), present, repr(obj.key)
