"""The default store: one SQLite file, shared by the processes of one machine.

What is remembered and how it fails is `database`; this module makes it
asynchronous and follows changes.

All SQL runs in one worker thread per store: the loop never waits for a disk,
calls are answered in the order they were made, and no connection is shared.

A watcher sleeps until it is woken, reads its prefix again and delivers the
difference (`mirror`).  Three things wake it.  Writers in any process touch
the file *after* they commit, which inotify reports; listening to the -wal
file instead would be too early, since its frames are written before the
commit becomes visible, and nothing would follow.  The next expiry among the
watcher's own records is an alarm clock.  And every two seconds it looks
whether the counter has moved, should a writer have died between its commit
and its touch.  Where there is no inotify, that look comes every 30 ms.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from muslin.errors import NotReady
from muslin.store import Event, Lease, Record, Store
from muslin.store.backoff import wait, waits
from muslin.store.database import Database
from muslin.store.inotify import Touches
from muslin.store.mirror import Mirror

T = TypeVar("T")

GATHER = 0.005  # seconds; a storm of writes becomes few batches, well within the promised 50 ms
SLOW_LOOK = 2.0  # seconds; for a touch that never came
FAST_LOOK = 0.03  # seconds; without inotify


class SqliteStore(Store):
    """The contract on one file.

    Opened by the first call: a file that cannot be used is a ConfigError of
    that call.  `trace` is told every SQL statement.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        trace: Callable[[str], None] | None = None,
        listen: Callable[[Path], Touches] = Touches,
    ) -> None:
        self._clock = clock
        self._database = Database(path, clock, trace=trace)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="muslin-store")
        self._listen = listen
        self._touches: Touches | None = None
        self._look_every = SLOW_LOOK
        self._bells: set[asyncio.Event] = set()
        self._closed = False

    async def get(self, key: str) -> Record | None:
        return await self._run(lambda: self._database.get(key))

    async def list(self, prefix: str) -> tuple[Record, ...]:
        snapshot = await self._run(lambda: self._database.look(prefix))
        return snapshot.records if snapshot else ()

    async def create(self, key: str, value: bytes, *, lease: Lease | None = None) -> Record:
        number = _number(lease)
        return await self._run(lambda: self._database.create(key, value, number))

    async def put(
        self, key: str, value: bytes, *, if_revision: int, lease: Lease | None = None
    ) -> Record:
        number = _number(lease)
        return await self._run(lambda: self._database.put(key, value, if_revision, number))

    async def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        return await self._run(lambda: self._database.delete(key, if_revision))

    async def watch(self, prefix: str) -> AsyncGenerator[tuple[Event, ...], None]:
        mirror = Mirror()
        bell = asyncio.Event()
        seen, due = -1, math.inf
        pauses = waits()
        self._bells.add(bell)
        try:
            while not self._closed:
                bell.clear()
                try:
                    await self._start_listening()
                    look = partial(self._database.look, prefix, since=seen, due=due)
                    snapshot = await self._run(look)
                except NotReady:
                    await wait(bell, next(pauses))
                    continue
                pauses = waits()
                if snapshot is not None:
                    seen, due = snapshot.revision, snapshot.due
                    batch = mirror.relist(snapshot.records)
                    if batch is not None:
                        yield batch
                # Half a millisecond late rather than early: an alarm must find the record gone.
                await wait(bell, min(self._look_every, max(0.0, due - self._clock()) + 0.0005))
                await asyncio.sleep(GATHER)
        finally:
            self._bells.discard(bell)

    async def lease(self, ttl: float) -> Lease:
        granted = max(1.0, ttl)
        return SqliteLease(self, await self._run(lambda: self._database.grant(granted)), granted)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._ring()
        if self._touches is not None:
            asyncio.get_running_loop().remove_reader(self._touches.fd)
            self._touches.close()
        await asyncio.get_running_loop().run_in_executor(self._worker, self._database.close)
        self._worker.shutdown(wait=False)  # its thread has just answered: nothing is left to run

    async def _run(self, call: Callable[[], T]) -> T:
        if self._closed:
            raise NotReady(f"{self._database.path}: the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    async def _start_listening(self) -> None:
        if self._touches is not None or self._look_every == FAST_LOOK:
            return
        await self._run(self._database.open)  # only a file that is there can be heard
        if self._touches is not None or self._closed:  # another watcher was faster
            return
        try:
            self._touches = self._listen(self._database.path)
        except OSError:
            self._look_every = FAST_LOOK
            return
        asyncio.get_running_loop().add_reader(self._touches.fd, self._heard)

    def _heard(self) -> None:
        if self._touches is not None:
            self._touches.drain()
        self._ring()

    def _ring(self) -> None:
        for bell in self._bells:
            bell.set()


class SqliteLease(Lease):
    """A row of the lease table."""

    def __init__(self, store: SqliteStore, number: int, ttl: float) -> None:
        self._store = store
        self.number = number
        self.ttl = ttl

    async def keep(self) -> None:
        await self._store._run(lambda: self._store._database.keep(self.number))

    async def revoke(self) -> None:
        await self._store._run(lambda: self._store._database.revoke(self.number))


def _number(lease: Lease | None) -> int | None:
    if lease is None:
        return None
    if not isinstance(lease, SqliteLease):
        raise TypeError(f"a lease of another store: {lease!r}")
    return lease.number
