"""Closing a listener of asyncio so that no connection is lost between it and its protocol.

From `accept(2)` to the protocol it is three turns of the loop: the task that makes a transport, its
call of `connection_made`, and what that starts.  Whoever closes the listener or looks for open
connections in between misses one.  3.11 even loses the socket itself (`Server._attach` asserts that
the server is not closed), and it ends as a ResourceWarning in whatever test is running by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_TURNS = 4  # the three above, and the first step of a task that `connection_made` starts


async def stop_accepting(listeners: Iterable[Any]) -> None:
    """Accept nothing more; return when what was accepted is a connection of its protocol.

    With TLS a protocol hears of a connection only after the handshake: such
    a one is its client's to give up.
    """
    loop = asyncio.get_running_loop()
    for listener in listeners:
        loop.remove_reader(listener.fileno())
    for _ in range(_TURNS):
        await asyncio.sleep(0)
