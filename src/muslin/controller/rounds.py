"""When to look: soon after a change, never twice for one, and again when a look asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from muslin.controller.seen import Bell

SETTLE = 0.2  # seconds: changes that come together are one round

Turn = Callable[[float | None], Awaitable[float | None]]
"""One look; told since when something is new, it says when to look again if nothing changes."""


async def rounds(bell: Bell, turn: Turn, *, settle: float = SETTLE) -> None:
    """Call `turn` whenever the bell rang, until cancelled.

    What it raises ends the rounds, and the bell rings for whoever begins them again.
    """
    since: float | None = await bell.heard()
    while True:
        await asyncio.sleep(settle)
        since = since or bell.since
        bell.taken()
        try:
            again = await turn(since)
        except Exception:
            bell.ring()
            raise
        try:
            async with asyncio.timeout(again):
                since = await bell.heard()
        except TimeoutError:
            since = None
