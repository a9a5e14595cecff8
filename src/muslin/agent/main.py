"""Wiring: one node's agent, from its settings to its end.

    settings ─> ledger, kernel ─> recover ─> cni server (threads)   the main path
                                        └──> sync loop (asyncio)    store → kernel
                                             └─ api socket

Recovery comes before the first call is served.  Nothing is undone at the end:
pods keep talking while no agent runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from muslin.agent.api import Api
from muslin.agent.attach import Attachments
from muslin.agent.server import CniServer
from muslin.agent.sync import Sync
from muslin.config import Config
from muslin.errors import ConfigError
from muslin.kernel.linux import LinuxKernel
from muslin.store.ledger import Ledger
from muslin.store.open import open_store

log = structlog.get_logger()
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def run(config: Config) -> None:
    """Be this node's agent until SIGTERM or SIGINT."""
    logging_to_stderr(config.log_level)
    with _only_one(Path(config.state_dir)):
        ledger = Ledger(config.ledger, time.time)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                asyncio.run(_serve(config, ledger))
        finally:
            ledger.close()
    log.info("agent.stopped", node=config.node)


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Two agents on one ledger would each undo what the other is in the middle of."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (directory / "agent.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go when we die
            yield
    except BlockingIOError as e:
        hint = "stop it, or give this one its own state_dir and run_dir"
        raise ConfigError(str(directory), ["another agent uses it"], hint=hint) from e
    except OSError as e:
        hint = "give the agent a writable state_dir"
        raise ConfigError(str(directory), [e.strerror or str(e)], hint=hint) from e


async def _serve(config: Config, ledger: Ledger) -> None:
    loop, boot_id = asyncio.get_running_loop(), await asyncio.to_thread(_boot_id)
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, this.cancel)
    kernel = LinuxKernel()
    more = asyncio.Event()
    attachments = Attachments(
        ledger, kernel, refill=lambda: _from_thread(loop, more.set), clock=time.time
    )
    cni = CniServer(config.cni_socket, attachments)
    await asyncio.to_thread(attachments.recover, boot_id)
    cni.start()
    try:
        store = open_store(config.store, config.store_options)
        async with store:
            sync = Sync(config, store, ledger, kernel, attachments)
            log.info("agent.started", node=config.node, store=config.store, pid=os.getpid())
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(sync.run())
                tasks.create_task(Api(sync, ledger).serve(config.api_socket))
                tasks.create_task(_pass_on(more, sync))
    finally:
        await asyncio.to_thread(cni.stop)
        config.api_socket.unlink(missing_ok=True)


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()


async def _pass_on(more: asyncio.Event, sync: Sync) -> None:
    """ADDs that ran out of addresses ask for a pass."""
    while True:
        await more.wait()
        more.clear()
        sync.wake()


def _from_thread(loop: asyncio.AbstractEventLoop, call: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended: nobody will claim blocks
        loop.call_soon_threadsafe(call)  # type: ignore[arg-type]


def logging_to_stderr(level: str) -> None:
    """Events with fields, one line each; coloured only for a person."""
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=20),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
