"""What the memory store adds to the contract: a clock of one's own, and being away."""

from __future__ import annotations

import asyncio

import pytest

from muslin.errors import NotReady
from muslin.store import Event
from muslin.store.memory import MemoryStore


async def test_a_lease_ends_exactly_when_the_clock_says() -> None:
    now = [0.0]
    store = MemoryStore(lambda: now[0])
    await store.create("key", b"", lease=await store.lease(10))
    now[0] = 9.999
    assert await store.get("key") is not None
    now[0] = 10.0
    assert await store.get("key") is None


async def test_on_a_running_clock_watchers_hear_of_an_expiry_by_themselves() -> None:
    async with MemoryStore() as store:
        await store.create("key", b"", lease=await store.lease(1))
        batches = store.watch("")
        assert len(await anext(batches)) == 1
        async with asyncio.timeout(10):
            assert await anext(batches) == (Event("key", None),)


async def test_away_is_not_ready_and_watchers_catch_up_afterwards() -> None:
    async with MemoryStore() as store:
        batches = store.watch("")
        assert await anext(batches) == ()
        made = await store.create("key", b"")
        store.away = True
        with pytest.raises(NotReady):
            await store.get("key")
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        assert not waiting.done()
        store.away = False
        async with asyncio.timeout(10):
            assert await waiting == (Event("key", made),)
