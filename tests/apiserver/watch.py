"""Watches: who hears of which change, and in which bytes.

An event's line is encoded once for all watchers of one form, HTTP chunk framing included.
A watcher that wants one node's pods, one name or one namespace hangs under that word and is
not asked about other objects.  What is due to a watcher is written once per turn of the loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any, Protocol

from .call import Call
from .core import Core
from .encode import encode
from .forms import Form, form
from .reads import revision, selector
from .selectors import Selector
from .status import ApiError, initializing, internal, too_old
from .storage import Entry, Event, Resource

Word = tuple[str, str] | None  # what a watcher hangs under; None hears everything
_INDEXED = ("spec.nodeName", "metadata.name")


class Wire(Protocol):
    """Where a watcher's bytes go; raw, without draining."""

    def send(self, data: bytes) -> None: ...
    def unsent(self) -> int: ...
    def abort(self) -> None: ...


class Watcher:
    """One open watch."""

    def __init__(self, core: Core, call: Call, wanted: Selector, shape: Form) -> None:
        self.core, self.call, self.wanted, self.shape = core, call, wanted, shape
        self.since = 0  # changes up to here are known to the client
        self.bookmarks = call.query.get("allowWatchBookmarks") in ("true", "1")
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wire: Wire | None = None
        self.mute = core.faults.silent  # half-open: nothing is sent any more
        self._due: list[bytes] = []

    @property
    def word(self) -> Word:
        for field in _INDEXED:
            if value := self.wanted.field(field):
                return (field, value)
        return ("metadata.namespace", self.wanted.namespace) if self.wanted.namespace else None

    def offer(self, event: Event) -> None:
        """Take an event if it concerns this watch."""
        if event.entry.revision <= self.since:
            return
        self.since = event.entry.revision
        if kind := self._seen_as(event):
            self.push(frame(event, kind, self.shape))

    def replay(self, events: Iterator[Event]) -> None:
        """Take what happened before this watch; nothing of it stays encoded."""
        for event in events:
            self.offer(event)
            event.frames.clear()

    def _seen_as(self, event: Event) -> str:
        """What a selector makes of a change: entering is ADDED, leaving is DELETED."""
        wanted, before, entry = self.wanted, event.before, event.entry
        was = before is not None and wanted.wants(before.key, before.labels, before.fields)
        if event.kind == "DELETED":
            return "DELETED" if was else ""
        is_now = wanted.wants(entry.key, entry.labels, entry.fields)
        if is_now:
            return "MODIFIED" if was else "ADDED"
        return "DELETED" if was else ""

    def push(self, data: bytes) -> None:
        if self.mute or self.done.done():  # what has ended must not skip a line and go on
            return
        torn = self.core.faults.torn > 0
        if torn:
            self.core.faults.torn -= 1
            body = data.split(b"\r\n", 1)[1]
            data = chunk(body[: len(body) // 2])
        if not self._due:
            asyncio.get_running_loop().call_soon(self._flush)
        self._due.append(data)
        if torn:
            self.finish()

    def bookmark(self) -> None:
        """Tell the client how far it is, as far as a real server would know."""
        settings = self.core.settings
        table = self.core.storage.table(self.shape.kind.storage)
        if settings.progress:
            version = self.core.storage.revision
        elif table.last <= table.began:
            return  # nothing has changed since the front started
        else:
            version = table.last
        obj = self.shape.kind.bookmark(version)
        if self.shape.shape:
            meta = {"resourceVersion": str(version)}
            obj = {"kind": self.shape.shape, "apiVersion": "meta.k8s.io/v1", "metadata": meta}
        self.push(chunk(b'{"type":"BOOKMARK","object":' + encode(obj) + b"}\n"))

    def fail(self, error: ApiError) -> None:
        """End the watch with an ERROR event."""
        self.push(chunk(b'{"type":"ERROR","object":' + encode(error.body) + b"}\n"))
        self.finish()

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def flush(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self.wire is None or not self._due:
            return
        data = self._due[0] if len(self._due) == 1 else b"".join(self._due)
        self._due.clear()
        if self.mute:
            return
        self.wire.send(data)
        if self.wire.unsent() > self.core.settings.watch_buffer:
            self.wire.abort()
            self.finish()


def chunk(body: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(body), body)


def frame(event: Event, kind: str, shape: Form) -> bytes:
    """An event's line in one form, made once."""
    key = (kind, *shape.key)
    found = event.frames.get(key)
    if found is None:
        raw = event.entry.raw
        if kind == "DELETED" and event.kind != "DELETED" and event.before is not None:
            # It left the selector: what it was, at the version of the change.
            raw = _with_version(event.before, event.entry.revision)
        line = b'{"type":"%s","object":%s}\n' % (kind.encode(), shape.one(raw))
        found = event.frames[key] = chunk(line)
    return found


def _with_version(entry: Entry, version: int) -> bytes:
    old = f'"resourceVersion":"{entry.revision}"'.encode()
    return entry.raw.replace(old, f'"resourceVersion":"{version}"'.encode(), 1)


class Hub:
    """Everybody who watches one resource."""

    def __init__(self) -> None:
        self._under: dict[Word, set[Watcher]] = {}

    def __iter__(self) -> Iterator[Watcher]:
        for watchers in list(self._under.values()):
            yield from list(watchers)

    def add(self, watcher: Watcher) -> None:
        self._under.setdefault(watcher.word, set()).add(watcher)

    def remove(self, watcher: Watcher) -> None:
        watchers = self._under.get(watcher.word)
        if watchers is not None:
            watchers.discard(watcher)
            if not watchers:
                del self._under[watcher.word]

    def publish(self, event: Event) -> None:
        for word in _words(event):
            for watcher in self._under.get(word, ()):
                watcher.offer(event)
        event.frames.clear()  # the log keeps events, not lines


def _words(event: Event) -> set[Word]:
    namespace, name = event.entry.key
    words: set[Word] = {None, ("metadata.name", name), ("metadata.namespace", namespace)}
    for entry in (event.entry, event.before):
        if entry is not None and (node := entry.fields.get("spec.nodeName")):
            words.add(("spec.nodeName", node))
    return words


class Watches:
    """The verb watch."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._hubs: dict[Resource, Hub] = {}
        core.registry.removed = self._kind_removed

    def open(self, call: Call) -> Watcher:
        """A watcher with what it missed already due; raises what a plain answer says."""
        core, kind = self._core, call.kind
        if kind.custom and core.registry.filling(kind):
            raise initializing()
        shape = form(core, kind, call.accept, call.query.get("includeObject", ""))
        watcher = Watcher(core, call, selector(call), shape)
        asked = revision(call.query.get("resourceVersion"))
        if asked:
            self._replay(watcher, asked)
        else:
            self._begin(watcher)
        if not watcher.done.done():
            self._hub(kind.storage).add(watcher)
        return watcher

    def close(self, watcher: Watcher) -> None:
        self._hub(watcher.shape.kind.storage).remove(watcher)

    def finish_all(self) -> None:
        for hub in self._hubs.values():
            for watcher in hub:
                watcher.finish()

    def mute_all(self) -> None:
        for hub in self._hubs.values():
            for watcher in hub:
                watcher.mute = True

    def bookmark_all(self) -> None:
        for hub in self._hubs.values():
            for watcher in hub:
                if watcher.bookmarks:
                    watcher.bookmark()

    def abort_all(self) -> None:
        """Cut every connection, as a network does."""
        for hub in self._hubs.values():
            for watcher in hub:
                if watcher.wire is not None:
                    watcher.wire.abort()
                watcher.finish()

    @property
    def count(self) -> int:
        return sum(1 for hub in self._hubs.values() for _ in hub)

    def timeout(self, call: Call) -> float:
        given = int(call.query.get("timeoutSeconds") or 0)
        return float(given) if given > 0 else random.uniform(*self._core.settings.watch_timeout)

    def _hub(self, resource: Resource) -> Hub:
        hub = self._hubs.get(resource)
        if hub is None:
            hub = self._hubs[resource] = Hub()
            self._core.storage.table(resource).listeners.append(hub.publish)
        return hub

    def _replay(self, watcher: Watcher, asked: int) -> None:
        table = self._core.storage.table(watcher.shape.kind.storage)
        if asked < table.floor:
            error = too_old(asked, table.floor)
            if self._core.settings.plain_gone:
                raise error
            watcher.fail(error)
            return
        watcher.since = asked
        watcher.replay(table.since(asked))

    def _begin(self, watcher: Watcher) -> None:
        """Without a version: everything there is, then what changes."""
        initial = watcher.call.query.get("sendInitialEvents") == "true"
        if (watcher.bookmarks or initial) and not self._core.settings.progress:
            words = (
                "a watch stream was requested by the client but the required storage feature "
                "RequestWatchProgress is disabled"
            )
            watcher.fail(internal(words))
            return
        table = self._core.storage.table(watcher.shape.kind.storage)
        for key in table.order():
            entry = table.entries[key]
            if watcher.wanted.wants(key, entry.labels, entry.fields):
                line = b'{"type":"ADDED","object":%s}\n' % watcher.shape.one(entry.raw)
                watcher.push(chunk(line))
        watcher.since = self._core.storage.revision
        if initial:
            obj: dict[str, Any] = watcher.shape.kind.bookmark(watcher.since)
            obj["metadata"]["annotations"] = {"k8s.io/initial-events-end": "true"}
            watcher.push(chunk(b'{"type":"BOOKMARK","object":' + encode(obj) + b"}\n"))

    def _kind_removed(self, resource: Resource) -> None:
        for watcher in self._hub(resource):
            watcher.finish()
