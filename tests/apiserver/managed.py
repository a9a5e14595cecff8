"""Who owns which field: metadata.managedFields through updates and server-side apply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .encode import Json
from .fields import Path, Paths, compare, from_v1, merged, owned, shown, strip, to_v1, without
from .kinds import Kind
from .status import ApiError

MOST_UPDATERS = 10  # older Update entries are folded into one beyond this


@dataclass(frozen=True, slots=True)
class Manager:
    """Whose entry it is; the time is not part of who."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""

    def shown(self) -> str:
        text = f'"{self.name}"'
        if self.subresource:
            text += f' with subresource "{self.subresource}"'
        return f"{text} using {self.api_version}" if self.operation == "Update" else text


@dataclass(frozen=True, slots=True)
class Entry:
    """What one manager owns."""

    paths: Paths
    time: str
    raw: Json | None = None  # its fieldsV1, while nothing of it has changed


Entries = dict[Manager, Entry]


def read(meta: Json) -> Entries:
    found: Entries = {}
    for one in meta.get("managedFields") or ():
        manager = Manager(
            one["manager"], one["operation"], one["apiVersion"], one.get("subresource", "")
        )
        raw = one.get("fieldsV1") or {}
        found[manager] = Entry(from_v1(raw), one.get("time", ""), raw)
    return found


def write(entries: Entries) -> list[Json]:
    def order(item: tuple[Manager, Entry]) -> tuple[str, ...]:
        manager, entry = item
        return (
            manager.operation,
            entry.time,
            manager.name,
            manager.api_version,
            manager.subresource,
        )

    written = []
    for manager, entry in sorted(entries.items(), key=order):
        one: Json = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.api_version,
            "time": entry.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": to_v1(entry.paths) if entry.raw is None else entry.raw,
        }
        if manager.subresource:
            one["subresource"] = manager.subresource
        written.append(one)
    return written


def bare(obj: Json) -> Json:
    """The object without its managedFields."""
    meta = {k: v for k, v in obj.get("metadata", {}).items() if k != "managedFields"}
    return {**obj, "metadata": meta}


def empty(kind: Kind) -> Json:
    """What a new object is compared with."""
    if kind.custom:
        return {"apiVersion": kind.api_version, "kind": kind.kind}
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {}, **kind.zero}


def after_update(kind: Kind, old: Json, new: Json, manager: Manager, now: str) -> list[Json]:
    """The managedFields of `new`, which `manager` made out of `old`.

    A client may send managedFields back: `[{}]` or `[]` clears them, others replace
    what is known.
    """
    sent = (new.get("metadata") or {}).get("managedFields")
    base = old if sent is None else new
    entries = read(base.get("metadata") or {}) if sent != [{}] else {}
    difference = compare(bare(old), bare(new), kind.shape)
    taken = strip(difference.added | difference.modified)
    entries = _yielded(entries, taken, frozenset(difference.removed))
    if taken := frozenset(path for path in taken if not _reset(kind, manager, path)):
        before = entries.get(manager)
        paths = taken | before.paths if before else taken
        entries[manager] = Entry(paths, now)
    return write(_capped(entries))


def _reset(kind: Kind, manager: Manager, path: Path) -> bool:
    """Whether the endpoint written to ignores this field."""
    if not kind.status:
        return False
    if manager.subresource == "status":
        return path[0] == "f:spec" or (kind.custom and path[0] != "f:status")
    return path[0] == "f:status"


def _yielded(entries: Entries, taken: Paths, removed: Paths) -> Entries:
    """All entries less what another took or removed."""
    left = {}
    for manager, entry in entries.items():
        if entry.paths.isdisjoint(taken) and entry.paths.isdisjoint(removed):
            left[manager] = entry
        elif paths := entry.paths - taken - removed:
            left[manager] = replace(entry, paths=paths, raw=None)
    return left


def _capped(entries: Entries) -> Entries:
    updaters = [manager for manager in entries if manager.operation == "Update"]
    if len(updaters) <= MOST_UPDATERS:
        return entries
    oldest = sorted(updaters, key=lambda one: entries[one].time)
    folded = oldest[: len(updaters) - MOST_UPDATERS + 1]
    paths: Paths = frozenset().union(*(entries[one].paths for one in folded))
    kept = {one: entry for one, entry in entries.items() if one not in folded}
    last = entries[folded[-1]]
    kept[Manager("ancient-changes", "Update", folded[-1].api_version)] = Entry(paths, last.time)
    return kept


def apply(
    kind: Kind, live: Json | None, applied: Json, manager: Manager, now: str, *, force: bool
) -> Json:
    """Server-side apply: the merged object with its managedFields, or 409 with the owners."""
    base = live if live is not None else empty(kind)
    entries = read(base.get("metadata") or {})
    claimed = strip(owned(bare(applied), kind.shape))
    claimed = frozenset(path for path in claimed if not _reset(kind, manager, path))
    before = entries.pop(manager, None)
    result = merged(bare(base), bare(applied), kind.shape)
    if before:
        result = _pruned(kind, result, before.paths, claimed, entries)
    difference = compare(bare(base), result, kind.shape)
    changed = strip(difference.added | difference.modified)
    if not force and (conflicts := _conflicts(entries, changed)):
        raise _conflict(conflicts)
    entries = _yielded(entries, changed, frozenset(difference.removed))
    unchanged = before is not None and before.paths == claimed and result == bare(base)
    if claimed:
        entries[manager] = Entry(claimed, before.time if before and unchanged else now)
    meta = dict(result.get("metadata") or {})
    meta["managedFields"] = write(entries)
    return {**result, "metadata": meta}


def _parents(paths: Paths) -> set[Path]:
    """The named fields above these paths, which go with the last of what they hold."""
    return {
        path[:end]
        for path in paths
        for end in range(1, len(path))
        if path[end - 1].startswith("f:")
    }


def _pruned(kind: Kind, result: Json, before: Paths, claimed: Paths, others: Entries) -> Json:
    """Without what this manager applied last time, not this time, and nobody else owns."""
    kept: set[Path] = set(claimed).union(*(entry.paths for entry in others.values()))
    kept |= {path[:end] for path in kept for end in range(1, len(path))}
    gone = strip((set(before) | _parents(before)) - kept)
    # What hangs below something that goes, goes with it.
    tops = {p for p in gone if not any(p[:end] in gone for end in range(1, len(p)))}
    pruned = without(result, to_v1(tops), kind.shape)
    assert isinstance(pruned, dict)
    return pruned


def _conflicts(entries: Mapping[Manager, Entry], changed: Paths) -> list[tuple[Manager, Path]]:
    found = []
    for manager in sorted(entries, key=lambda one: (one.name, one.operation, one.subresource)):
        found += [(manager, path) for path in sorted(entries[manager].paths & changed)]
    return found


def _conflict(conflicts: list[tuple[Manager, Path]]) -> ApiError:
    causes: list[Any] = [
        {
            "reason": "FieldManagerConflict",
            "message": f"conflict with {manager.shown()}",
            "field": shown(path),
        }
        for manager, path in conflicts
    ]
    if len(conflicts) == 1:
        manager, path = conflicts[0]
        text = f"1 conflict: conflict with {manager.shown()}: {shown(path)}"
    else:
        lines: list[str] = []
        for manager in dict.fromkeys(manager for manager, _ in conflicts):
            lines.append(f"conflicts with {manager.shown()}:")
            lines += [f"- {shown(path)}" for owner, path in conflicts if owner == manager]
        text = f"{len(conflicts)} conflicts: " + "\n".join(lines)
    return ApiError(409, "Conflict", f"Apply failed with {text}", {"causes": causes})
