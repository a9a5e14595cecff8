"""Leave a node as if Muslin had never been there: what carries our mark goes, nothing else.

    kernel      devices, routes and rules of ours, the nft table `muslin`
    CNI         the plugin, and every configuration that names it and nothing beside it
    files       sockets, node.db, locks and the journal

What is not ours stays, in a directory of ours too: another file keeps the
directory.  Two things cannot be told from a stranger's and stay as they are:
the switches of devices that we did not make (`net.ipv4.conf.<uplink>.forwarding`),
whose former values nobody knows, and a store in a file, which is the estate's
and not the node's.

Pods lose their network by it, so it refuses while an agent runs and while a
process lives in a pod's namespace, unless forced.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from muslin.cni.install import CONFLIST, PLUGIN
from muslin.config import Config
from muslin.errors import ConfigError
from muslin.kernel import Kernel, boot, netns
from muslin.plan.diff import diff
from muslin.plan.objects import Plan
from muslin.plan.render import render_changes
from muslin.store.ledger import Ledger

PARTS = ("cni", "sync")  # agent/main.py keeps a lock of each
# How the two executables can be told: a mark within the compiled one, the script's first words.
_MARKS = (b"muslin-cni settings ", b'"""The CNI plugin')
_NOTHING: Plan = frozenset()


@dataclass(slots=True)
class Cleaned:
    """What was, or would be, removed: commands for the kernel, files and directories."""

    kernel: str = ""
    files: list[Path] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # what is not ours, or may not be

    def __bool__(self) -> bool:
        return bool(self.kernel or self.files)


def clean(config: Config, kernel: Kernel, *, dry_run: bool = False, force: bool = False) -> Cleaned:
    """Remove everything of ours from the namespace of the calling thread, and from the disk.

    Repeating it is success and removes nothing.  ConfigError says who still
    needs it; `force` is for whoever knows better.  The CNI files go first, so
    that no runtime calls a plugin whose agent is gone.
    """
    if not force and (faults := [*_running(config), *_in_use(config)]):
        hint = "stop the agent and delete the pods, or --force"
        raise ConfigError("node clean", faults, hint=hint)
    done = Cleaned()
    for path in _cni_files(config, done.left):
        _remove(path, done, dry_run)
    changes = list(diff(_NOTHING, kernel.observe()))
    if changes:
        done.kernel = render_changes(changes)
        if not dry_run:
            kernel.apply(changes)
    for path in _own_files(config):
        _remove(path, done, dry_run)
    for directory in (config.journal_dir, Path(config.state_dir), Path(config.run_dir)):
        _remove_directory(directory, done, dry_run)
    return done


def _running(config: Config) -> Iterator[str]:
    """The parts of an agent that hold their locks."""
    for part in PARTS:
        path = Path(config.state_dir) / f"{part}.lock"
        with contextlib.suppress(FileNotFoundError), path.open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield f"the agent's part `{part}` is running ({path} is locked)"


def _in_use(config: Config) -> Iterator[str]:
    """The pods in whose namespaces somebody lives."""
    if not config.ledger.exists():
        return
    ledger = Ledger(config.ledger, boot.clock)
    try:
        living = [a for a in ledger.attachments() if netns.inhabited(a.netns)]
    finally:
        ledger.close()
    if living:
        names = ", ".join(a.container[:13] for a in living[:5])
        more = f" and {len(living) - 5} more" if len(living) > 5 else ""
        yield f"{len(living)} pods use the network: {names}{more}"


def _cni_files(config: Config, left: list[str]) -> Iterator[Path]:
    conf_dir = Path(config.cni_conf_dir)
    for path in sorted(conf_dir.glob("*")) if conf_dir.is_dir() else ():
        if path.is_symlink() or not path.is_file():
            continue
        types = _types(path)
        if types == {PLUGIN}:
            yield path
        elif PLUGIN in types or path.name == CONFLIST:
            left.append(f"{path}: holds what is not ours")
        elif path.name.startswith(f".{CONFLIST}."):  # a writer of ours that was killed
            yield path
    plugin = Path(config.cni_bin_dir) / PLUGIN
    for path in (*plugin.parent.glob(f".{PLUGIN}.*.new"), plugin):
        with contextlib.suppress(OSError):
            if any(mark in path.read_bytes() for mark in _MARKS) or path != plugin:
                yield path
            else:
                left.append(f"{path}: not a program of ours")


def _types(path: Path) -> set[str]:
    """The plugins that a network configuration names; none for what is no configuration."""
    try:
        found = json.loads(path.read_bytes())
        plugins = found.get("plugins", [found])
        return {str(p["type"]) for p in plugins}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return set()


def _own_files(config: Config) -> Iterator[Path]:
    """What agents keep: the ledger with SQLite's two files beside it, locks, journal, sockets."""
    ledger = config.ledger
    names = (ledger, *(ledger.with_name(f"{ledger.name}-{end}") for end in ("wal", "shm")))
    locks = (Path(config.state_dir) / f"{part}.lock" for part in PARTS)
    journal = config.journal_dir
    entries = sorted(p for p in journal.rglob("*") if not p.is_dir()) if journal.is_dir() else ()
    for path in (*names, *locks, *entries, config.cni_socket, config.api_socket):
        if path.exists() or path.is_symlink():
            yield path


def _remove(path: Path, done: Cleaned, dry_run: bool) -> None:
    if not dry_run:
        path.unlink(missing_ok=True)
    done.files.append(path)


def _remove_directory(path: Path, done: Cleaned, dry_run: bool) -> None:
    """An empty directory and its empty ones; a mount point or one with other things in it stays."""
    if not path.is_dir() or path.is_symlink():
        return
    if dry_run:
        done.files.append(path)
        return
    for below in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            below.rmdir()
    try:
        path.rmdir()
    except OSError:
        if any(path.iterdir()):
            done.left.append(f"{path}: holds what is not ours")
        return
    done.files.append(path)
