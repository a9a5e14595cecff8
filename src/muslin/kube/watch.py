"""Following one kind: list, then watch, for ever, whatever happens on the way.

The loop has one variable, the version it has come to:

    no version ──list──▶ version ──watch from it──▶ later versions
        ▲                                                 │
        └─── 410, or refused `_REFUSALS` times in a row ──┘   all else resumes from the version

Not lightkube's `watch`: any user who may write an object can crash it (the
first point below), it raises past its own error handler when the server is
away, tells no deletions after 410, and hangs on a half-open connection
(1.0.1, measured).  Each of these has a test (tests/unit/test_kube_watch_faults.py).

- Lines end at a newline *byte*.  An API server sends U+0085 as it is, and a
  text decoder would end a line there.
- The first request is a list, and a watch always names the version it starts
  from.  Without one a server may stream all objects as new and tell no
  deletions, or, on an etcd without progress notification, fail.
- Bookmarks are asked for and trusted only to move the version.  They come
  only for kinds that had an event since the server started, so silence for
  `idle` seconds is no fault: the watch is begun again, from the same version.
- 410 comes as a status, or after a 200 as an ERROR event; both mean to list
  again, and the list is told as its difference, deletions included.
- A version may be *later* than the server's after a restore from a backup;
  it is then refused for ever ("Too large resource version", or 429 "storage
  is (re)initializing" for a custom resource).  Hence the count.
- Lists are read from etcd, not from any API server's cache
  (`resourceVersion=0`), which may be older than what was already told.  Since
  1.31 a server answers such a list from its cache after making sure of it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Generic, NamedTuple, TypeVar

import msgspec

from muslin.errors import ConfigError, MuslinError, NotReady
from muslin.kube.faults import Answer, Ask, Busy, Denied, Gone, Unserved, explain, status_of
from muslin.kube.kinds import Kind
from muslin.kube.pauses import RESUME, SPREAD, pauses, relists
from muslin.kube.told import Change, Event, Listed, Reader, Told
from muslin.kube.wire import QuietError, Wire
from muslin.log import log
from muslin.tally import End, tally

T = TypeVar("T")

PAGE = 500  # objects; client-go's
_LONGEST = 16 << 20  # bytes of a line; etcd refuses an object of more than 1.5 MiB by default
_SETTLED = 5.0  # seconds after which a watch that ends has been a good one
_REFUSALS = 8  # in a row: half a minute or more, by the pauses
_LIFE = (240.0, 480.0)  # seconds; client-go asks for 5 to 10 minutes, to spread watches anew
_RESTARTS = 3  # of a list whose later pages are no longer kept


class Query(NamedTuple):
    """Which objects: of a kind, perhaps of one namespace, perhaps selected."""

    kind: Kind
    namespace: str = ""
    labels: str = ""
    fields: str = ""

    def parameters(self) -> dict[str, str]:
        """The selectors as the URL wants them."""
        given = {"labelSelector": self.labels, "fieldSelector": self.fields}
        return {name: value for name, value in given.items() if value}


class _PageMeta(msgspec.Struct, frozen=True):
    resourceVersion: str = ""  # noqa: N815  (the wire's words)
    more: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct, frozen=True):
    metadata: _PageMeta
    items: tuple[msgspec.Raw, ...] | None = None


class _Line(msgspec.Struct, frozen=True, gc=False):
    type: str
    object: msgspec.Raw


_page = msgspec.json.Decoder(_Page)
_line = msgspec.json.Decoder(_Line)


async def pages(
    wire: Wire, query: Query
) -> AsyncGenerator[tuple[tuple[msgspec.Raw, ...], str], None]:
    """The objects of one instant, at most `PAGE` at a time, each page with the list's version.

    Raise Gone when the server no longer keeps that instant: start over.
    """
    ask = Ask("list", query.kind, query.namespace)
    path = query.kind.path(query.namespace)
    more = ""
    while True:
        parameters = query.parameters() | {"limit": str(PAGE)}
        answer = await wire.ask("GET", path, parameters | ({"continue": more} if more else {}))
        if answer.code == 400 and more:  # a token of another server, or of the one before
            raise Gone(f"{ask}: {status_of(answer.body).message}")
        if not answer.ok:
            raise explain(ask, answer)
        try:
            page = _page.decode(answer.body)
        except msgspec.MsgspecError as e:
            raise NotReady(f"{ask}: the answer is no list: {e}") from e
        if not page.metadata.resourceVersion:
            raise NotReady(f"{ask}: the answer is a list without a version")
        yield page.items or (), page.metadata.resourceVersion
        more = page.metadata.more
        if not more:
            return


async def list_all(wire: Wire, query: Query, type: type[T]) -> Listed[T]:  # noqa: A002
    """Every object of `query` and the list's version; those that do not fit `type` are left out."""
    for left in range(_RESTARTS, -1, -1):
        reader = Reader(query.kind.resource, type)
        items: list[T] = []
        version = ""
        try:
            async with aclosing(pages(wire, query)) as found:
                async for raws, version in found:  # noqa: B007  (the last one is returned)
                    for raw in raws:
                        meta = reader.meta(raw)
                        item = reader.read(meta.key, raw)
                        if item is not None:
                            items.append(item)
            return Listed(tuple(items), version)
        except Gone:
            if not left:
                raise
    raise AssertionError("unreachable")


class Watch(Generic[T]):
    """One watcher.  `batches` may be read once."""

    def __init__(
        self,
        wire: Wire,
        query: Query,
        type: type[T],  # noqa: A002
        heard: Callable[[str], None] = lambda _: None,
        *,
        spread: float = SPREAD,
    ) -> None:
        self._wire, self._heard, self._spread = wire, heard, spread
        self._query = query
        self._ask = Ask("watch", query.kind, query.namespace)
        self._path = query.kind.path(query.namespace)
        self._reader = Reader(query.kind.resource, type)
        self._told = Told(self._reader)
        self._version = ""  # none: list first
        self._begun = False  # whether the first batch has been told
        self._since = math.inf  # when the stream was opened that is open
        self._lost = ""  # what keeps us from watching, while something does
        self._renew()

    async def batches(self) -> AsyncGenerator[tuple[Change[T], ...], None]:
        """Follow for ever by the rules of `Api.watch`."""
        while not self._wire.closed.is_set():
            self._since = math.inf
            try:
                if not self._version:
                    batch, self._version = await self._list()
                    self._begun = True
                    if batch is not None:
                        yield batch
                    # What waits keeps its locals, and this one may be the whole state: of a
                    # thousand nodes and their blocks 3 MiB, with the pages that they came in.
                    del batch
                async with aclosing(self._stream()) as stream:
                    async for batch in stream:
                        self._renew()
                        yield batch
                        del batch
                self._tell_end("ended")
                wait = 0.0 if self._has_settled() else next(self._resume)
            except MuslinError as e:
                self._has_settled()
                wait = self._after(e)
            if wait and not self._wire.closed.is_set():
                await self._wire.rest(wait)

    def _has_settled(self) -> bool:
        """Whether the stream that has ended was a good one; if so, `_renew`."""
        good = asyncio.get_running_loop().time() - self._since >= _SETTLED
        if good:
            self._renew()
        return good

    def _renew(self) -> None:
        """All is well: a fault that comes now is the first."""
        self._refusals = 0
        self._resume = pauses(self._wire.uniform, RESUME)
        self._relist = relists(self._wire.uniform, self._spread)

    def _after(self, fault: MuslinError) -> float:
        """What `fault` makes of the version, and how long to wait; raise it if waiting is vain."""
        quiet, gone = isinstance(fault, QuietError), isinstance(fault, Gone)
        self._tell_end("silent" if quiet else "gone" if gone else "error")
        if quiet:
            return self._wire.uniform(0.0, RESUME[0])
        vain = isinstance(fault, ConfigError) and not isinstance(fault, Denied | Unserved)
        if vain and not self._begun:
            raise fault
        if not self._lost and not self._wire.closed.is_set():
            self._lost = str(fault)
            log.warning("kube.watch.lost", kind=self._query.kind.resource, why=self._lost)
            self._heard(self._lost)
        if self._version and (vain or isinstance(fault, Busy)):  # not: nobody answered
            self._refusals += 1
        if gone or self._refusals >= _REFUSALS:
            self._version = ""
            self._refusals = 0
            return next(self._relist)
        return next(self._resume) + (fault.after if isinstance(fault, Busy) else 0.0)

    def _tell_end(self, why: End) -> None:
        """Count it, but for our own closing and for lists, which have no version yet."""
        if self._version and not self._wire.closed.is_set():
            tally.ended(self._query.kind.resource, why)

    async def _list(self) -> tuple[tuple[Change[T], ...] | None, str]:
        tally.listed(self._query.kind.resource)
        relist = self._told.relist()
        version = ""
        async with aclosing(pages(self._wire, self._query)) as found:
            async for items, version in found:  # noqa: B007  (the last one is returned)
                relist.page(items)
        return self._told.end(relist), version

    async def _stream(self) -> AsyncGenerator[tuple[Change[T], ...], None]:
        """Watch from the version on, until the server ends it or something fails."""
        parameters = self._query.parameters() | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(int(self._wire.uniform(*_LIFE))),
        }
        async with self._wire.stream(self._path, parameters) as (answer, chunks):
            if not answer.ok:
                raise explain(self._ask, answer)
            self._since = asyncio.get_running_loop().time()
            if self._lost:
                self._lost = ""
                log.info("kube.watch.back", kind=self._query.kind.resource)
            self._heard("")
            rest = bytearray()
            async for chunk in chunks:
                rest += chunk
                if b"\n" not in chunk:
                    if len(rest) > _LONGEST:
                        raise Gone(f"{self._ask}: a line of more than {_LONGEST} bytes")
                    continue
                *lines, rest = rest.split(b"\n")
                batch, fault = self._take(lines)
                if batch is not None:
                    yield batch
                if fault is not None:
                    raise fault
                del batch, lines
            # What is left is a line that was cut off; it comes again.

    def _take(
        self, lines: Iterable[bytearray]
    ) -> tuple[tuple[Change[T], ...] | None, MuslinError | None]:
        """What complete lines tell, and the fault that one of them is or has."""
        events: list[Event] = []
        fault: MuslinError | None = None
        for line in lines:
            if not line.strip():
                continue
            try:
                kind, raw = msgspec.structs.astuple(_line.decode(line))
            except msgspec.MsgspecError as e:
                fault = Busy(f"{self._ask}: a line that is no event: {e}", 0.0)
                break
            if kind == "ERROR":
                body = bytes(raw)
                fault = explain(self._ask, Answer(status_of(body).code or 500, body))
                break
            meta = self._reader.meta(raw)
            if kind in ("ADDED", "MODIFIED", "DELETED"):
                events.append(Event(kind, meta, raw))
            elif kind != "BOOKMARK":
                continue
            self._version = meta.resourceVersion or self._version
        return self._told.events(events), fault
