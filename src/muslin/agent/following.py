"""Wiring of the part that follows the store: the sync loop and the api socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import signal
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import muslin
from muslin.agent import known
from muslin.agent.api import Api
from muslin.agent.attach import Attachments
from muslin.agent.sync import Sync
from muslin.config import Config
from muslin.kernel.linux import LinuxKernel
from muslin.log import log
from muslin.store import Store
from muslin.store.ledger import Ledger
from muslin.store.open import open_store

if TYPE_CHECKING:
    from muslin.agent.cluster import Cluster


# Seconds that a thread keeps the interpreter while another waits for it, 5 ms by default.  A pass
# gives it away at every question to node.db, and would get it back from a look 5 ms later.
SWITCH = 0.0005
GARBAGE = 20_000  # objects between two collections; a pass makes 5000 and frees them again


def run(config: Config, ledger: Ledger) -> None:
    """Until SIGTERM or SIGINT."""
    sys.setswitchinterval(SWITCH)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_run(config, ledger))


async def _run(config: Config, ledger: Ledger) -> None:
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, this.cancel)
    async with contextlib.AsyncExitStack() as stack:
        store, cluster = await _open(config, ledger, stack)
        kernel = LinuxKernel()
        attachments = Attachments(ledger, kernel)
        sync = Sync(config, store, ledger, kernel, attachments, cluster=cluster)
        log.info("agent.started", part="sync", node=config.node, store=config.store)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(sync.run())
                tasks.create_task(_keep(sync))
                tasks.create_task(Api(sync, ledger, config.journal_dir).serve(config.api_socket))
        finally:
            config.api_socket.unlink(missing_ok=True)


async def _keep(sync: Sync) -> None:
    """Spare collections what is there once the node is ready, and make them rare.

    With a thousand nodes one takes 40 ms, during which nothing else happens.
    """
    await sync.synced.wait()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)


@contextlib.contextmanager
def _lightly() -> Iterator[None]:
    """Import an HTTP client without what it brings along and we never use: 4 of 27 MiB.

    It asks importlib.metadata for its own version, which loads email, csv and
    zipfile, and takes HTTP/2 where that is installed.
    """
    told = types.ModuleType("importlib.metadata")
    told.__dict__.update(version=lambda _: muslin.__version__, PackageNotFoundError=LookupError)
    stand_ins: dict[str, Any] = {"importlib.metadata": told, "h2": None}  # None: ImportError
    mine = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del sys.modules[name]


async def _open(
    config: Config, ledger: Ledger, stack: contextlib.AsyncExitStack
) -> tuple[Store, Cluster | None]:
    """The store, and the cluster where the store is one's API server."""
    if not config.kubernetes:
        known.forget(ledger)
        return await stack.enter_async_context(open_store(config.store, config.store_options)), None
    with _lightly():
        from muslin.agent.cluster import Cluster, Own  # late: see sync.py
        from muslin.kube.pauses import AGENTS
        from muslin.store.kubernetes import KubernetesStore

        importlib.import_module("muslin.kube.api")
    own = Own(config.node, required=config.pods)
    store = open_store(config.store, config.store_options, owner=own.owner, spread=AGENTS)
    await stack.enter_async_context(store)
    assert isinstance(store, KubernetesStore)
    return store, Cluster(store.api, ledger, own, pods=config.pods, flannel=config.flannel)
