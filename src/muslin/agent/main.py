"""Wiring: the two processes of one node's agent, each from its settings to its end.

    cni     ledger, kernel ─> recover ─> replay ─> reaper, server   the main path
    sync    store ─> sync loop ─> kernel        api socket          everything else

`supervise` runs both.  Recovery comes before the first call is served.
Nothing is undone at the end: pods keep talking while no agent runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from muslin import config as settings
from muslin.agent.supervise import EX_CONFIG
from muslin.config import Config
from muslin.errors import ConfigError, MuslinError
from muslin.kernel import boot
from muslin.kernel.linux import LinuxKernel
from muslin.log import log
from muslin.store.ledger import Ledger

REPLAY = 5.0  # seconds between two looks for DELs whose plugin found nobody
GARBAGE = 50_000  # objects between two collections; a call makes 400, hardly one in a cycle
LOCK_WAIT = 20.0  # seconds for a part of a former agent to be gone
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(arguments: list[str]) -> int:
    """`cni` or `sync`, optionally `--config FILE`; the exit status."""
    part, *rest = arguments
    parts: dict[str, Callable[[Config, Ledger], None]] = {"cni": serve_cni, "sync": follow_store}
    _end_with_parent()
    try:
        config = settings.load(Path(rest[1]) if rest[:1] == ["--config"] else None)
        log.set_level(config.log_level)
        with _only_one(Path(config.state_dir), part):
            ledger = Ledger(config.ledger, boot.clock)
            try:
                parts[part](config, ledger)
            finally:
                ledger.close()
    except ConfigError as e:
        log.error("agent.refused", part=part, error=str(e))
        return EX_CONFIG
    except MuslinError as e:
        log.error("agent.failed", part=part, error=str(e))
        return 1
    log.info("agent.stopped", part=part, node=config.node)
    return 0


def serve_cni(config: Config, ledger: Ledger) -> None:
    """Answer the runtime until SIGTERM or SIGINT."""
    from muslin.agent.attach import Attachments
    from muslin.agent.journal import replay
    from muslin.agent.known import Known
    from muslin.agent.server import CniServer

    wanted = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)  # before any thread is made
    pods = Known(ledger) if config.kubernetes else None
    attachments = Attachments(ledger, LinuxKernel(), refill=ledger.ring, pods=pods)
    attachments.recover(boot.identity())
    replay(config.journal_dir, attachments)  # before any ADD can come
    stop = threading.Event()
    reaper = threading.Thread(target=attachments.reap_until, args=(stop,), name="reaper")
    server = CniServer(config.cni_socket, attachments)
    server.start()
    reaper.start()
    gc.freeze()  # what is there now stays: collections need not look at it
    gc.set_threshold(GARBAGE)
    log.info("agent.started", part="cni", node=config.node, pid=os.getpid())
    try:
        while signal.sigtimedwait(wanted, REPLAY) is None:
            replay(config.journal_dir, attachments)
    finally:
        server.stop()
        stop.set()
        attachments.wake_reaper()
        reaper.join(10)


def follow_store(config: Config, ledger: Ledger) -> None:
    """Keep the node's part of the kernel as the store would have it, until SIGTERM or SIGINT."""
    from muslin.agent import following  # late, as above: asyncio is 8 MB that the other part spares

    following.run(config, ledger)


@contextlib.contextmanager
def _only_one(directory: Path, part: str) -> Iterator[None]:
    """Two of one part on one ledger would each undo what the other is in the middle of.

    Waits for a former agent that is still ending; the kernel lets go of the
    lock when its holder dies.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (directory / f"{part}.lock").open("w") as lock:
            until = time.monotonic() + LOCK_WAIT
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.05)
            yield
    except BlockingIOError as e:
        hint = "stop it, or give this one its own state_dir and run_dir"
        raise ConfigError(str(directory), ["another agent uses it"], hint=hint) from e
    except OSError as e:
        hint = "give the agent a writable state_dir"
        raise ConfigError(str(directory), [e.strerror or str(e)], hint=hint) from e


def _end_with_parent() -> None:
    """Get SIGTERM when the supervisor dies: an orphan would keep the next agent waiting."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
