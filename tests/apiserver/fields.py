"""Sets of field paths, and what two objects differ in: the arithmetic under managedFields.

A path is a tuple of elements as fieldsV1 writes them: `f:name`, `k:{"key":...}`, `v:value`.
A set of paths is a frozenset; `to_v1` and `from_v1` are its JSON form.  The rules are those
of structured-merge-diff: a path is added when nothing was there, an atomic object or list is
one path, and an object's own path is owned only by who made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .encode import Json, decode, encode
from .shapes import METADATA, Shape

Path = tuple[str, ...]
Paths = frozenset[Path]
ABSENT: Any = object()  # unlike null, which is a value

# Nobody owns these; `metadata` itself included.
_NEVER = frozenset(
    [("f:apiVersion",), ("f:kind",), ("f:metadata",)]
    + [
        ("f:metadata", f"f:{name}")
        for name in (
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "clusterName",
            "generation",
            "managedFields",
            "resourceVersion",
        )
    ]
)
_KEY_DEFAULTS = {"protocol": "TCP"}
_SERVERS = ("deletionTimestamp", "deletionGracePeriodSeconds")


def strip(paths: Iterable[Path]) -> Paths:
    """Without what only the server writes."""
    return frozenset(
        path
        for path in paths
        if path not in _NEVER and not (path[0] == "f:metadata" and path[1][2:] in _SERVERS)
    )


def to_v1(paths: Iterable[Path]) -> Json:
    nodes: dict[Path, Json] = {(): {}}

    def node(path: Path) -> Json:
        found = nodes.get(path)
        if found is None:
            found = nodes[path] = node(path[:-1])[path[-1]] = {}
        return found

    listed = sorted(paths)
    for path in listed:
        node(path)
    for path in listed:
        if nodes[path]:  # owned itself, beside what is below it
            nodes[path]["."] = {}
    return nodes[()]


def from_v1(root: Json) -> Paths:
    return frozenset(_members(root, ()))


def _members(node: Json, path: Path) -> Iterator[Path]:
    for element, child in node.items():
        if element == ".":
            yield path
        elif child:
            yield from _members(child, (*path, element))
        else:
            yield (*path, element)


def shown(path: Path) -> str:
    """A path as conflicts print it: `.spec.ports[port=80,protocol="TCP"].name`."""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "v":
            text += f"[={rest}]"
        else:
            keys = [f"{key}={encode(value).decode()}" for key, value in decode(rest).items()]
            text += f"[{','.join(keys)}]"
    return text


def item_element(item: Any, shape: Shape) -> str:
    """The path element of one item of a set or map."""
    if shape.listing == "set" or not isinstance(item, dict):
        return "v:" + encode(item).decode()
    keys = {key: item.get(key, _KEY_DEFAULTS.get(key)) for key in sorted(shape.keys)}
    return "k:" + encode(keys).decode()


def _items(value: Any, shape: Shape) -> dict[str, Any]:
    return {item_element(item, shape): item for item in value or ()}


def _leaf(value: Any, shape: Shape) -> bool:
    if isinstance(value, dict):
        return shape.atomic
    return not isinstance(value, list) or shape.listing == "atomic"


@dataclass(slots=True)
class Difference:
    """What a change added, altered and removed."""

    added: set[Path] = field(default_factory=set)
    modified: set[Path] = field(default_factory=set)
    removed: set[Path] = field(default_factory=set)


def compare(old: Json, new: Json, shape: Shape) -> Difference:
    """The difference between two objects as paths."""
    found = Difference()
    for name in {**old, **new}:
        place = METADATA if name == "metadata" else shape.child(name)
        _compare((f"f:{name}",), old.get(name, ABSENT), new.get(name, ABSENT), place, found)
    return found


def _compare(path: Path, old: Any, new: Any, shape: Shape, found: Difference) -> None:
    if old is new or (old == new and type(old) is type(new)):
        return
    either = new if new is not ABSENT and new is not None else old
    both_empty = old in (ABSENT, None, {}, []) and new in (ABSENT, None, {}, [])
    if both_empty or _leaf(either, shape) or not _alike(old, new):
        _compare_leaf(path, old, new, found)
        if not both_empty and not _alike(old, new):
            _inside(path, new, shape, found.added)
        return
    if isinstance(either, dict):
        before, after = _fields(old), _fields(new)
        for name in {**before, **after}:
            below = (before.get(name, ABSENT), after.get(name, ABSENT))
            _compare((*path, f"f:{name}"), *below, shape.child(name), found)
    else:
        before, after = _items(_listed(old), shape), _items(_listed(new), shape)
        for element in {**before, **after}:
            below = (before.get(element, ABSENT), after.get(element, ABSENT))
            _compare((*path, element), *below, shape.item(), found)
    if old is ABSENT:
        found.added.add(path)
    elif new is ABSENT:
        found.removed.add(path)


def _alike(old: Any, new: Any) -> bool:
    for kind in (dict, list):
        if isinstance(old, kind) or isinstance(new, kind):
            return all(value in (ABSENT, None) or isinstance(value, kind) for value in (old, new))
    return True


def _fields(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _inside(path: Path, value: Any, shape: Shape, into: set[Path]) -> None:
    if value is not ABSENT and isinstance(value, dict | list) and not _leaf(value, shape):
        into.update((*path, *rest) for rest in owned(value, shape))


def _compare_leaf(path: Path, old: Any, new: Any, found: Difference) -> None:
    if old is ABSENT:
        found.added.add(path)
    elif new is ABSENT:
        found.removed.add(path)
    else:
        found.modified.add(path)


def owned(value: Any, shape: Shape) -> Iterator[Path]:
    """The paths that applying `value` claims: leaves, items, keys of free maps."""
    if isinstance(value, dict):
        for name, below in value.items():
            place = METADATA if name == "metadata" and not shape.keys else shape.child(name)
            yield from _owned((f"f:{name}",), below, place, named=shape.known(name))
    else:
        for item in value:
            yield from _owned((item_element(item, shape),), item, shape.item(), named=False)


def _owned(path: Path, value: Any, shape: Shape, *, named: bool) -> Iterator[Path]:
    empty = value is None or value in ({}, [])
    if empty or _leaf(value, shape):
        yield path
        return
    if not named:
        yield path
    yield from ((*path, *rest) for rest in owned(value, shape))


def merged(old: Any, new: Any, shape: Shape, *, top: bool = True) -> Any:
    """`new` laid over `old`, as server-side apply does: maps and keyed lists are merged."""
    if isinstance(new, dict) and isinstance(old, dict) and not shape.atomic:
        result = dict(old)
        for name, value in new.items():
            place = METADATA if top and name == "metadata" else shape.child(name)
            result[name] = merged(old.get(name, ABSENT), value, place, top=False)
        return result
    if isinstance(new, list) and isinstance(old, list) and shape.listing != "atomic":
        items = _items(old, shape)
        for element, value in _items(new, shape).items():
            items[element] = merged(items.get(element, ABSENT), value, shape.item(), top=False)
        return list(items.values())
    return new


def without(value: Any, gone: Json, shape: Shape, *, top: bool = True) -> Any:
    """`value` less the paths of `gone` (fieldsV1 form)."""
    if isinstance(value, dict):
        result = {}
        for name, below in value.items():
            node = gone.get(f"f:{name}")
            place = METADATA if top and name == "metadata" else shape.child(name)
            if node is None:
                result[name] = below
            elif node and "." not in node:
                result[name] = without(below, node, place, top=False)
        return result
    if isinstance(value, list) and shape.listing != "atomic":
        kept = []
        for item in value:
            node = gone.get(item_element(item, shape))
            if node is None:
                kept.append(item)
            elif node and "." not in node:
                kept.append(without(item, node, shape.item(), top=False))
        return kept
    return value
