"""What one watcher has been told: turns lists and events into batches that keep the watch rules.

The rules are those of `muslin.store`: the first batch is the whole present
state; then every object's final state once, whatever was lost; one change per
object in a batch.  They follow from one dictionary per watcher, of the
version last told of every object.  Objects are not kept.

An object is looked at twice.  First for its name and version, which every
object has whatever else is in it; then, if it is news, decoded into what the
watcher wants.  So an object that does not fit is known by name, stops nobody,
and bookmarks, deletions and what was told before are never decoded.

Pure but for one thing: an object that does not fit is logged.
"""

from __future__ import annotations

from collections.abc import Iterable
from sys import intern
from typing import Generic, NamedTuple, TypeVar

import msgspec

from muslin.log import log

T = TypeVar("T")
Key = tuple[str, str]  # namespace, name


class Listed(NamedTuple, Generic[T]):
    """All objects that were asked for, and the version of the whole that they are from."""

    items: tuple[T, ...]
    version: str


class Change(NamedTuple, Generic[T]):
    """An object's new state; `object` is None when it is gone, or no longer what was asked for."""

    namespace: str
    name: str
    object: T | None


class Meta(msgspec.Struct, frozen=True, gc=False):
    """What names an object and its version."""

    name: str = ""
    namespace: str = ""
    resourceVersion: str = ""  # noqa: N815  (the wire's word)

    @property
    def key(self) -> Key:
        return intern(self.namespace), self.name


class _Head(msgspec.Struct, frozen=True, gc=False):
    metadata: Meta = Meta()


class Event(NamedTuple):
    """One change in a watch: ADDED, MODIFIED or DELETED."""

    type: str
    meta: Meta
    raw: msgspec.Raw


_head = msgspec.json.Decoder(_Head)


class Reader(Generic[T]):
    """Decodes objects of one kind; one that does not fit is None, and logged once by name."""

    def __init__(self, resource: str, type: type[T]) -> None:  # noqa: A002  (the contract's word)
        self._resource = resource
        self._decoder = msgspec.json.Decoder(type)
        self._misfits: set[Key] = set()

    def meta(self, raw: msgspec.Raw) -> Meta:
        """What names the object in `raw`; empty fields if it is nothing that has a name."""
        try:
            return _head.decode(raw).metadata
        except msgspec.MsgspecError as e:
            self._misfit(("", "?"), e)
            return Meta()

    def read(self, key: Key, raw: msgspec.Raw) -> T | None:
        """The object in `raw`, which is `key`'s."""
        try:
            found = self._decoder.decode(raw)
        except (msgspec.MsgspecError, RecursionError) as e:
            self._misfit(key, e)
            return None
        self._misfits.discard(key)
        return found

    def forget(self, key: Key) -> None:
        """It is gone: one of its name that comes later is another."""
        self._misfits.discard(key)

    def _misfit(self, key: Key, why: Exception) -> None:
        if key not in self._misfits:
            self._misfits.add(key)
            name = "/".join(filter(None, key))
            log.warning("kube.object.skipped", kind=self._resource, name=name, why=str(why))


class Told(Generic[T]):
    """What one watcher has been told so far."""

    def __init__(self, reader: Reader[T]) -> None:
        self._reader = reader
        self._known: dict[Key, str] = {}
        self._begun = False

    def relist(self) -> Relist[T]:
        """Begin to compare a list with what was told; nothing counts before its `end`."""
        return Relist(self._reader, self._known)

    def end(self, relist: Relist[T]) -> tuple[Change[T], ...] | None:
        """The difference: new and changed first, then gone; None when there is nothing to tell.

        Only the first may be empty, since a watcher waits for it.  Versions
        are compared for difference, not order: a cluster restored from a
        backup counts anew.
        """
        gone = sorted(self._known.keys() - relist.present)
        for key in gone:
            self._reader.forget(key)
        self._known = relist.told
        first, self._begun = not self._begun, True
        batch = (*relist.changes, *(Change(*key, None) for key in gone))
        return batch if batch or first else None

    def events(self, events: Iterable[Event]) -> tuple[Change[T], ...] | None:
        """Events, oldest first, as one batch; None when none is news."""
        last = {e.meta.key: e for e in events if e.meta.name}
        changes = (self._change(key, event) for key, event in last.items())
        return tuple(c for c in changes if c is not None) or None

    def _change(self, key: Key, event: Event) -> Change[T] | None:
        if event.type == "DELETED":
            self._reader.forget(key)
            return Change(*key, None) if self._known.pop(key, None) is not None else None
        if self._known.get(key) == event.meta.resourceVersion:
            return None
        found = self._reader.read(key, event.raw)
        if found is None:
            return None
        self._known[key] = event.meta.resourceVersion
        return Change(*key, found)


class Relist(Generic[T]):
    """A list that is being read, page by page, beside what was told."""

    def __init__(self, reader: Reader[T], known: dict[Key, str]) -> None:
        self._reader = reader
        self._known = known
        self.present: set[Key] = set()
        self.told: dict[Key, str] = {}
        self.changes: list[Change[T]] = []

    def page(self, items: Iterable[msgspec.Raw]) -> None:
        """Take in one page.  What is as it was told is not decoded."""
        for raw in items:
            meta = self._reader.meta(raw)
            key, version = meta.key, meta.resourceVersion
            if not meta.name or key in self.present:
                continue
            self.present.add(key)
            before = self._known.get(key)
            if before != version:
                news = self._reader.read(key, raw)
                if news is None:  # the watcher keeps what it has, if anything
                    version = before or ""
                else:
                    self.changes.append(Change(*key, news))
            if version:
                self.told[key] = version
