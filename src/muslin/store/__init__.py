"""What is remembered: one contract, several stores.

A store maps keys (`/`-separated text) to values (bytes).  It is the only
memory shared between machines; everything else is rebuilt by observing.
Implementations: `memory` (tests), `sqlite` (one machine, several processes),
`etcd` (a cluster).  `open_store` picks by URL.

Two rules make concurrent writers safe without locks: `create` succeeds only
where there is nothing, and `put` only over the revision the writer has read.
Uniqueness (one block, one node) is therefore the key itself.

Three rules make watchers simple.  The first batch is the whole present state.
After it, every key's *final* state is delivered exactly once, whatever was
lost in between (a compaction, a reconnect); intermediate states may be
skipped.  A batch never holds two events for one key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Record:
    """One key as it stood at one revision.

    `revision` changes with every write of this key, grows within one store,
    and means nothing to any other store.
    """

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Event:
    """A key's new state: `record` is None when the key is gone."""

    key: str
    record: Record | None


class Lease(ABC):
    """A promise to come back: keys written under it vanish when it is not kept for `ttl` seconds.

    The store's clock decides, never the caller's, so a node with a wrong
    clock neither loses its block early nor holds it for ever.
    """

    ttl: float

    @abstractmethod
    async def keep(self) -> None:
        """Start the `ttl` again.  Raise Conflict if the lease is already gone."""

    @abstractmethod
    async def revoke(self) -> None:
        """End it now, and its keys with it.  Repeating it is success."""


class Store(ABC):
    """Keys to bytes, with compare-and-swap, leases and watches.

    Every method raises NotReady when the store cannot be reached, and
    whoever calls backs off and comes again; a write that raised NotReady may
    have happened (the answer was lost), so callers re-read before they
    believe either.  One value is safe to use from many tasks of one loop.
    """

    @abstractmethod
    async def get(self, key: str) -> Record | None:
        """The present record, or None."""

    @abstractmethod
    async def list(self, prefix: str) -> tuple[Record, ...]:
        """Every record whose key starts with `prefix`, by key, from one instant."""

    @abstractmethod
    async def create(self, key: str, value: bytes, *, lease: Lease | None = None) -> Record:
        """Write `key` only where there is nothing; else raise Conflict.

        A `lease` that is gone is a Conflict too, here and in `put`.
        """

    @abstractmethod
    async def put(
        self, key: str, value: bytes, *, if_revision: int, lease: Lease | None = None
    ) -> Record:
        """Replace the record that has `if_revision`; raise Conflict if it changed or is gone.

        The key leaves its former lease and joins `lease`, if one is given.
        """

    @abstractmethod
    async def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        """Remove `key`; say whether there was something to remove.

        With `if_revision`, raise Conflict if the key exists at another revision.
        """

    @abstractmethod
    def watch(self, prefix: str) -> AsyncGenerator[tuple[Event, ...], None]:
        """Follow `prefix` for ever: the whole state first (perhaps empty), then what changes.

        Survives a store that goes away: it reconnects with backoff and jitter
        by itself and goes on by the module's rules.  Ends only when it or the
        store is closed; raises only ConfigError, for what waiting cannot mend.
        """

    @abstractmethod
    async def lease(self, ttl: float) -> Lease:
        """A new lease of `ttl` seconds, or the next longer time the store can do (at least 1)."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and tasks.  Repeating it is success."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
