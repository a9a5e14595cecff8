"""The servers of the tests themselves: stopped at any moment, they leave no socket behind."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from collections.abc import Awaitable, Callable

import pytest

from apiserver import ApiServer
from scripted import Scripted

TURNS = range(8)


async def scripted() -> tuple[int, Callable[[], Awaitable[None]]]:
    made = Scripted()
    await made.start()
    return made.port, made.kill


async def apiserver() -> tuple[int, Callable[[], Awaitable[None]]]:
    made = ApiServer()
    await made.start()
    return made.port, made.stop


@pytest.mark.parametrize("serve", [scripted, apiserver])
def test_a_connection_that_is_being_accepted_is_closed_with_the_others(
    serve: Callable[[], Awaitable[tuple[int, Callable[[], Awaitable[None]]]]],
) -> None:
    """However many turns the loop has made since the client connected."""

    async def stopped_after(turns: int) -> None:
        port, stop = await serve()
        with socket.create_connection(("127.0.0.1", port)):
            for _ in range(turns):
                await asyncio.sleep(0)
            await stop()

    lost = []
    for turns in TURNS:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            asyncio.run(stopped_after(turns))
            gc.collect()
        lost += [(turns, str(w.message)) for w in told if w.category is ResourceWarning]
    assert lost == []
