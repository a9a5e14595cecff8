"""A store in a dictionary: for tests and for a program that wants nothing to outlive it.

Its clock is passed in, so a test lets a lease run out without waiting: move
the clock, then call `tick`.  Setting `away` makes every method raise
NotReady and silences watchers, as a store that cannot be reached does.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from muslin.errors import Conflict, NotReady
from muslin.store import Event, Lease, Record, Store
from muslin.store.backoff import wait
from muslin.store.mirror import Mirror


class MemoryStore(Store):
    """The contract in one process; never blocks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        self._revision = 0
        self._bells: set[asyncio.Event] = set()
        self._closed = False
        self._away = False

    @property
    def away(self) -> bool:
        """Whether the store pretends that it cannot be reached."""
        return self._away

    @away.setter
    def away(self, away: bool) -> None:
        self._away = away
        self.tick()

    def tick(self) -> None:
        """Let watchers look: an injected clock has moved."""
        for bell in self._bells:
            bell.set()

    async def get(self, key: str) -> Record | None:
        row = self._live().get(key)
        return row.record if row else None

    async def list(self, prefix: str) -> tuple[Record, ...]:
        return self._records(prefix)

    async def create(self, key: str, value: bytes, *, lease: Lease | None = None) -> Record:
        if key in self._live():
            raise Conflict(key, f"{key}: already exists")
        return self._write(key, value, lease)

    async def put(
        self, key: str, value: bytes, *, if_revision: int, lease: Lease | None = None
    ) -> Record:
        row = self._live().get(key)
        if row is None or row.record.revision != if_revision:
            raise Conflict(key)
        return self._write(key, value, lease)

    async def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        row = self._live().get(key)
        if row is None:
            return False
        if if_revision not in (None, row.record.revision):
            raise Conflict(key)
        del self._rows[key]
        self.tick()
        return True

    async def watch(self, prefix: str) -> AsyncGenerator[tuple[Event, ...], None]:
        mirror = Mirror()
        bell = asyncio.Event()
        self._bells.add(bell)
        try:
            while not self._closed:
                bell.clear()
                if not self._away:
                    batch = mirror.relist(self._records(prefix))
                    if batch is not None:
                        yield batch
                        continue  # look again before waiting: the reader may have been slow
                await wait(bell, self._until_next_expiry(prefix))
        finally:
            self._bells.discard(bell)

    async def lease(self, ttl: float) -> Lease:
        self._live()
        return MemoryLease(self, max(1.0, ttl), self._clock())

    async def close(self) -> None:
        self._closed = True
        self.tick()

    def _live(self) -> dict[str, _Row]:
        """Every row whose lease has not run out; the others are forgotten first."""
        if self._closed or self._away:
            raise NotReady("memory store: " + ("closed" if self._closed else "away"))
        kept = {k: r for k, r in self._rows.items() if r.expires > self._clock()}
        if len(kept) < len(self._rows):
            self._rows = kept
            self.tick()
        return self._rows

    def _records(self, prefix: str) -> tuple[Record, ...]:
        live = self._live()
        return tuple(live[k].record for k in sorted(live) if k.startswith(prefix))

    def _write(self, key: str, value: bytes, lease: Lease | None) -> Record:
        if lease is not None:
            if not isinstance(lease, MemoryLease):
                raise TypeError(f"a lease of another store: {lease!r}")
            if lease.expires <= self._clock():
                raise Conflict(key, f"{key}: its lease is gone")
        self._revision += 1
        record = Record(key, bytes(value), self._revision)
        self._rows[key] = _Row(record, lease)
        self.tick()
        return record

    def _until_next_expiry(self, prefix: str) -> float | None:
        due = min(
            (r.expires for k, r in self._rows.items() if k.startswith(prefix)), default=math.inf
        )
        # At least a millisecond: never spin on an expiry that is a rounding error away.
        return None if due == math.inf else max(0.001, due - self._clock())


class MemoryLease(Lease):
    """Alive while the store's clock is before `expires`."""

    def __init__(self, store: MemoryStore, ttl: float, now: float) -> None:
        self._store = store
        self.ttl = ttl
        self.expires = now + ttl

    async def keep(self) -> None:
        self._store._live()
        now = self._store._clock()
        if self.expires <= now:
            raise Conflict("lease", "the lease is gone")
        self.expires = now + self.ttl

    async def revoke(self) -> None:
        self.expires = -math.inf
        self._store._live()


@dataclass(slots=True)
class _Row:
    record: Record
    lease: MemoryLease | None

    @property
    def expires(self) -> float:
        return self.lease.expires if self.lease else math.inf
