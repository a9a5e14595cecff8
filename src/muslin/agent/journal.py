"""DELs that no agent was there for: what the plugin left, done when there is one.

A DEL whose request lies in the journal was answered with success (`cni.plugin`),
so nobody will ask again: an entry goes only when it is done or makes no sense.
Entries are the plugin's request in a file named by time, process and boot; a
name that begins with a dot is not finished.

No entry takes the NIC of a newer pod of the same container and interface:

1. While no agent listens no ADD succeeds, and `replay` runs before the server
   listens.  What was left till then is older than every ADD that follows.
2. A plugin that found nobody may be done writing only after that, and one that
   gave up on a busy agent writes while ADDs are served.  A runtime calls ADD
   after its DEL was answered, hence after the entry took its time, and the
   attachment's `since` is later than it; an ADD that finds all in place renews
   `since`.  `Attachments.delete` compares the two where no other call for the
   attachment can come between.
3. Both are times since the machine started (kernel/boot.py), which nobody sets.
   An entry of a former boot is older than all there is: nothing outlived it.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from muslin.agent.server import MAX_REQUEST, split
from muslin.cni.protocol import Request, parse
from muslin.errors import MuslinError, RequestError
from muslin.kernel import boot
from muslin.log import log

BAD = "bad"  # the directory of what made no sense, for a person to look at
MAX_BAD = 100
ABANDONED = 60.0  # seconds after which the writer of an unfinished entry is dead

# Nanoseconds since the boot, process, boot (shim.c, cni.plugin).  Without the last, the time is
# Unix time: a plugin that was installed before layout 2 of node.db, and not since.
_ENTRY = re.compile(r"(\d{20})-\d{10}(?:-([0-9a-f-]{36}))?")
_UNFINISHED = re.compile(rf"\.{_ENTRY.pattern}")


class Deleter(Protocol):
    """What an entry is given to: DEL for whatever is older than `before`; repeatable."""

    def delete(self, request: Request, *, before: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Waiting:
    """The DELs that nobody has done yet."""

    count: int
    oldest: float  # seconds since it was asked for; 0 where none waits


def waiting(directory: Path, clock: Callable[[], float] = boot.clock) -> Waiting:
    """What is in the journal now, by the names of its entries; a directory not there is empty."""
    try:
        names = map(_ENTRY.fullmatch, os.listdir(directory))
        asked = [_asked(name, clock()) for name in names if name]
    except OSError:
        asked = []
    return Waiting(len(asked), max(clock() - min(asked), 0.0) if asked else 0.0)


def replay(directory: Path, attachments: Deleter, clock: Callable[[], float] = boot.clock) -> int:
    """Do what is in the journal; how many entries are left for another call.

    Newest first: what a runtime asked again and again while nobody was there
    is done once, and the older entries of the same NIC only go.  Idempotent,
    and killed at any point it has lost nothing.  Never raises: an entry that
    fails stays, and what may pass by itself ends the call.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = sorted(os.listdir(directory), reverse=True)
    except OSError as e:
        log.error("journal.unreadable", path=directory, error=e.strerror)
        return 0
    entries = []
    for name in names:
        if unfinished := _UNFINISHED.fullmatch(name):
            if _asked(unfinished, clock()) < clock() - ABANDONED:
                _remove_abandoned(directory / name)
        elif name != BAD and not name.startswith("."):
            entries.append(name)
    left, why = 0, ""
    done: dict[tuple[str, str], float] = {}
    for number, name in enumerate(entries):
        # Whatever is wrong with one entry, the agent starts and the others are done.
        try:
            _replay(directory / name, attachments, clock(), done)
        except Exception as e:
            why = why or f"{name}: {type(e).__name__}: {e}"
            left += 1
            if isinstance(e, MuslinError) and e.retry:  # the others would meet the same
                left += len(entries) - number - 1
                break
    if left:
        log.warning("journal.waiting", entries=left, error=why)
    return left


def _replay(
    path: Path, attachments: Deleter, now: float, done: dict[tuple[str, str], float]
) -> None:
    try:
        asked, request = _read(path, now)
    except FileNotFoundError:
        return  # a person tidied up
    except RequestError as e:
        _set_aside(path)
        log.error("journal.bad", entry=path.name, moved_to=path.parent / BAD, error=e.message)
        return
    which = (request.container, request.ifname)
    if done.get(which, -1.0) < asked:  # a name of a former boot may stand before a later one
        attachments.delete(request, before=asked)
        done[which] = asked
        log.info("journal.done", container=request.container, ifname=request.ifname)
    path.unlink(missing_ok=True)


def _asked(name: re.Match[str], now: float) -> float:
    """When, by this boot's clock; 0 for whatever comes from a former boot."""
    time_, of = int(name[1]) / 1e9, name[2]
    if of is None:
        return max(time_ - (time.time() - now), 0.0)
    return time_ if of == boot.identity() else 0.0


def _read(path: Path, now: float) -> tuple[float, Request]:
    """When an entry was asked for, and what; RequestError if it is none."""
    name = _ENTRY.fullmatch(path.name)
    if not name:
        raise RequestError(6, "not the name of an entry")
    # As at the socket: who may write a request may take any pod's NIC.
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        raise RequestError(6, "not a regular file of root's")
    with path.open("rb") as file:
        content = file.read(4 + MAX_REQUEST + 1)
    size, body = int.from_bytes(content[:4], "big"), content[4:]
    if len(content) < 4 or size != len(body):
        raise RequestError(6, f"{len(body)} bytes where {size} were announced")
    request = parse(*split(body))
    if request.verb != "DEL":
        raise RequestError(6, f"{request.verb} instead of DEL")
    return _asked(name, now), request


def _set_aside(path: Path) -> None:
    """Move a malformed entry out of the way, keeping only the newest of its kind."""
    aside = path.parent / BAD
    aside.mkdir(mode=0o700, exist_ok=True)
    path.replace(aside / path.name)
    for name in sorted(os.listdir(aside))[:-MAX_BAD]:
        (aside / name).unlink()


def _remove_abandoned(path: Path) -> None:
    try:
        path.unlink()
        log.info("journal.abandoned", entry=path.name)
    except FileNotFoundError:
        pass  # finished, and renamed
    except OSError as e:
        log.warning("journal.abandoned", entry=path.name, error=e.strerror)
