"""How long to wait before trying again.

Exponential with full jitter: each wait is drawn evenly from zero up to a
bound that doubles.  After an outage every node of the estate reconnects; even
draws spread them over the whole interval, where a fixed wait with a little
noise would bring them back together.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator

FIRST = 0.1  # seconds; the first bound: a restart of a local store is over by then
LAST = 5.0  # seconds; no watcher is behind for longer once the store is back


def waits(
    uniform: Callable[[float, float], float] = random.uniform,
    *,
    first: float = FIRST,
    last: float = LAST,
) -> Iterator[float]:
    """Yield seconds for ever, drawn from 0 to `first`, then to twice that, at most to `last`."""
    bound = first
    while True:
        yield uniform(0.0, bound)
        bound = min(bound * 2, last)


async def wait(bell: asyncio.Event, seconds: float | None) -> None:
    """Return when `bell` rings or after `seconds`, whichever is first (None: only the bell)."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await bell.wait()
