"""A store of objects behind the keys and values of the contract's tests, which are any at all.

A Kubernetes store keeps what has a schema.  So a key becomes a network's
name, byte by byte in hexadecimal (prefixes and order stay what they were), and
a value one of its backend's options.  Nothing else is between: what the tests
say of the store behind this, they say of real objects.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from muslin.errors import Conflict
from muslin.model import Network, decode, encode
from muslin.store import Event, Lease, Record, Store

PLACE = "networks/x"


class Typed(Store):
    """Any key of up to 31 bytes, any value."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    async def get(self, key: str) -> Record | None:
        found = await self._inner.get(_inside(key))
        return _outside(found) if found else None

    async def list(self, prefix: str) -> tuple[Record, ...]:
        return tuple(_outside(r) for r in await self._inner.list(_inside(prefix)))

    async def create(self, key: str, value: bytes, *, lease: Lease | None = None) -> Record:
        place = _inside(key)
        try:
            return _outside(await self._inner.create(place, _wrapped(key, value), lease=lease))
        except Conflict as e:
            raise Conflict(key, str(e)) from e

    async def put(
        self, key: str, value: bytes, *, if_revision: int, lease: Lease | None = None
    ) -> Record:
        place, wrapped = _inside(key), _wrapped(key, value)
        return _outside(await self._inner.put(place, wrapped, if_revision=if_revision, lease=lease))

    async def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        return await self._inner.delete(_inside(key), if_revision=if_revision)

    async def watch(self, prefix: str) -> AsyncGenerator[tuple[Event, ...], None]:
        async with aclosing(self._inner.watch(_inside(prefix))) as batches:
            async for batch in batches:
                yield tuple(
                    Event(_key(e.key), _outside(e.record) if e.record else None) for e in batch
                )

    async def lease(self, ttl: float) -> Lease:
        return await self._inner.lease(ttl)

    async def close(self) -> None:
        await self._inner.close()


def _inside(key: str) -> str:
    return PLACE + key.encode().hex()


def _key(place: str) -> str:
    return bytes.fromhex(place.removeprefix(PLACE)).decode()


def _wrapped(key: str, value: bytes) -> bytes:
    name = _inside(key).removeprefix("networks/")
    network = Network(name=name, backend="test", pools=("p",), options={"value": value.hex()})
    return encode(network)


def _outside(record: Record) -> Record:
    network = decode(Network, record.value)
    return Record(_key(record.key), bytes.fromhex(network.options["value"]), record.revision)
