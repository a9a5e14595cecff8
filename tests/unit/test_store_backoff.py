"""Waits between attempts."""

from __future__ import annotations

import asyncio
from itertools import islice

from muslin.store.backoff import wait, waits


def test_bounds_double_up_to_the_last() -> None:
    bounds = waits(lambda _, high: high, first=0.1, last=1.0)
    assert [round(w, 3) for w in islice(bounds, 6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_every_wait_is_drawn_from_zero_on() -> None:
    assert set(islice(waits(lambda low, _: low), 5)) == {0.0}


async def test_a_bell_ends_a_wait_early() -> None:
    bell = asyncio.Event()
    asyncio.get_running_loop().call_soon(bell.set)
    async with asyncio.timeout(5):
        await wait(bell, None)


async def test_a_wait_ends_without_its_bell() -> None:
    await wait(asyncio.Event(), 0.001)
