"""What is remembered: objects as bytes, a log of their changes, and one revision counter.

The part of an API server that etcd plays.  It outlives the HTTP front: give the same
`Storage` to the next `ApiServer`, or a journal file to the next process.  Nothing here
awaits, so a change is whole when a writer returns.

Cost: a pod is its bytes (3 to 6 kB) and about 1 kB around them; the log keeps the bytes of
superseded versions until `history` changes later.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

Key = tuple[str, str]  # namespace, name
Resource = tuple[str, str]  # group, plural


@dataclass(slots=True, eq=False)
class Entry:
    """One version of one object, and what selectors ask of it."""

    key: Key
    revision: int
    raw: bytes
    uid: str
    labels: Mapping[str, str]
    fields: Mapping[str, str]


@dataclass(slots=True, eq=False)
class Event:
    """One change.  `entry` is what is there now or, for DELETED, what was there last."""

    kind: str
    entry: Entry
    before: Entry | None
    frames: dict[Any, bytes] = field(default_factory=dict)  # encoded once for all watchers


class Table:
    """All objects of one resource."""

    def __init__(self, floor: int) -> None:
        self.entries: dict[Key, Entry] = {}
        self.log: list[Event] = []
        self.floor = floor  # changes up to here are forgotten
        self.last = floor  # the newest change
        self.began = floor  # where the front that serves this found it
        self.listeners: list[Callable[[Event], None]] = []
        self._sorted: list[Key] | None = None

    def order(self) -> list[Key]:
        """All keys in order; kept until one comes or goes."""
        if self._sorted is None:
            self._sorted = sorted(self.entries)
        return self._sorted

    def since(self, revision: int) -> Iterator[Event]:
        """The changes after `revision`, oldest first."""
        start = bisect.bisect_right(self.log, revision, key=lambda event: event.entry.revision)
        return iter(self.log[start:])

    def at(self, revision: int) -> dict[Key, Entry | None]:
        """What differs from now at an older revision: key to the entry of then."""
        then: dict[Key, Entry | None] = {}
        for event in reversed(self.log):
            if event.entry.revision <= revision:
                break
            then[event.entry.key] = event.before
        return then

    def record(self, event: Event, history: int) -> None:
        key = event.entry.key
        if event.kind == "DELETED":
            del self.entries[key]
            self._sorted = None
        else:
            if key not in self.entries:
                self._sorted = None
            self.entries[key] = event.entry
        self.last = event.entry.revision
        self.log.append(event)
        if len(self.log) > history + history // 4:  # a quarter at a time: one copy for many
            self.compact(self.log[-history].entry.revision - 1)
        for listener in self.listeners:
            listener(event)

    def compact(self, revision: int) -> None:
        self.floor = max(self.floor, revision)
        self.log = list(self.since(self.floor))


class Storage:
    """Every table, under one revision counter."""

    def __init__(self, *, history: int = 20_000, journal: Path | None = None) -> None:
        self.revision = 0
        self.history = history
        self.tables: dict[Resource, Table] = {}
        self._journal: BinaryIO | None = None
        if journal is not None:
            self._replay(journal)
            self._journal = journal.open("ab", buffering=0)

    def table(self, resource: Resource) -> Table:
        found = self.tables.get(resource)
        if found is None:
            found = self.tables[resource] = Table(0)
        return found

    def get(self, resource: Resource, key: Key) -> Entry | None:
        return self.table(resource).entries.get(key)

    def put(self, resource: Resource, entry: Entry) -> None:
        """Store an object; its revision must be the next one."""
        before = self.table(resource).entries.get(entry.key)
        self._commit(resource, Event("MODIFIED" if before else "ADDED", entry, before))

    def delete(self, resource: Resource, last: Entry) -> None:
        """Forget an object; `last` is what watchers are told, with the next revision."""
        before = self.table(resource).entries[last.key]
        self._commit(resource, Event("DELETED", last, before))

    def compact(self, revision: int | None = None) -> None:
        """Forget all changes up to `revision`; up to now without one."""
        for table in self.tables.values():
            table.compact(self.revision if revision is None else revision)

    def forget_history(self) -> None:
        """Leave what a restarted front knows: the objects, and no change before now."""
        self.compact()
        for table in self.tables.values():
            table.floor = table.began = self.revision

    def detach(self) -> None:
        """Tell no listener any more."""
        for table in self.tables.values():
            table.listeners.clear()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _commit(self, resource: Resource, event: Event) -> None:
        entry = event.entry
        assert entry.revision == self.revision + 1, "a revision was taken twice"
        self.revision = entry.revision
        if self._journal is not None:
            line = (resource, event.kind, entry.key, entry.revision, entry.raw.decode())
            rest = (entry.uid, entry.labels, entry.fields)
            self._journal.write(msgspec.json.encode((*line, *rest)) + b"\n")
        self.table(resource).record(event, self.history)

    def _replay(self, journal: Path) -> None:
        """Read what a former process wrote; a torn last line was never answered."""
        if not journal.exists():
            return
        raw = journal.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for line in whole.splitlines():
            resource, kind, key, revision, text, *rest = msgspec.json.decode(line)
            table = self.table(tuple(resource))
            entry = Entry(tuple(key), revision, text.encode(), *rest)
            before = table.entries.get(entry.key)
            self.revision = revision
            table.record(Event(kind, entry, before), self.history)
        if len(whole) < len(raw):
            journal.write_bytes(whole)
        self.forget_history()
