"""Wiring of the part that follows the store: the sync loop and the api socket."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from muslin.agent.api import Api
from muslin.agent.attach import Attachments
from muslin.agent.sync import Sync
from muslin.config import Config
from muslin.kernel.linux import LinuxKernel
from muslin.log import log
from muslin.store.ledger import Ledger
from muslin.store.open import open_store


def run(config: Config, ledger: Ledger) -> None:
    """Until SIGTERM or SIGINT."""
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_run(config, ledger))


async def _run(config: Config, ledger: Ledger) -> None:
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, this.cancel)
    async with open_store(config.store, config.store_options) as store:
        kernel = LinuxKernel()
        sync = Sync(config, store, ledger, kernel, Attachments(ledger, kernel))
        log.info("agent.started", part="sync", node=config.node, store=config.store)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(sync.run())
                tasks.create_task(Api(sync, ledger, config.journal_dir).serve(config.api_socket))
        finally:
            config.api_socket.unlink(missing_ok=True)
