"""Processes of a lab: started so that none is ever lost, ended so that none is ever mistaken.

Two accidents are designed out:

-   The lab is killed between starting a process and writing it down.  A new
    process therefore waits at a gate, a pipe, until it has been written down;
    if the lab dies first the pipe closes and the process goes away by itself.
-   The lab is taken down days later, when the number has come to mean another
    process.  A process is therefore known by its number *and* its start time.

Every process leads a session of its own, and what it started in turn is found
by that session's number.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

GRACE = 5.0  # seconds between asking a process to end and ending it


class Process(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process of a lab, by what no other process shares."""

    name: str
    pid: int
    start: int  # clock ticks since boot (proc(5), stat, field 22)
    log: str

    @property
    def alive(self) -> bool:
        """Whether this very process runs; a zombie does not."""
        found = _stat(self.pid)
        return found is not None and found.start == self.start and found.state not in "ZX"


class _Stat(msgspec.Struct, frozen=True):
    state: str
    session: int
    start: int


def spawn(
    name: str,
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    record: Callable[[Process], None],
) -> Process:
    """Start `argv` detached, its output in `log`, after `record` has written it down."""
    gate, opener = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(opener)
        _become(gate, argv, log, env)  # never returns
    os.close(gate)
    try:
        found = _stat(pid)
        assert found is not None  # our own child, not yet waited for
        process = Process(name=name, pid=pid, start=found.start, log=str(log))
        record(process)
        os.write(opener, b"\n")
    finally:
        os.close(opener)
    return process


def _become(gate: int, argv: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
    """In the child: wait at the gate, then be `argv`.  Only system calls, no Python machinery."""
    status = 126  # as a shell says "found but could not be run"
    try:
        if os.read(gate, 1):
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDONLY)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for source, target in ((nothing, 0), (out, 1), (out, 2)):
                os.dup2(source, target)
            os.chdir("/")  # no file system is kept busy
            os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606 (no shell is the point)
    except OSError as e:
        os.write(2, f"{argv[0]}: {e.strerror}\n".encode())
    finally:
        os._exit(status)


def stop(
    processes: Iterable[Process], *, grace: float = GRACE, within: Iterable[tuple[int, int]] = ()
) -> None:
    """End them and what they started: first asked to, after `grace` made to.

    `within` are the identities of the lab's namespaces: a child is only taken
    for ours if it lives in one of them.
    """
    known = list(processes)
    namespaces = set(within)
    asked = _ours(known, namespaces)
    _signal(asked, signal.SIGTERM)
    _wait(asked, grace)
    # The list is made anew: a child that outlived its parent is in the session still.
    rest = _ours(known, namespaces)
    _signal(rest, signal.SIGKILL)
    _wait(rest, grace)


def last_lines(log: Path, count: int = 8) -> list[str]:
    """The end of a log; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


def _ours(known: list[Process], namespaces: set[tuple[int, int]]) -> list[Process]:
    found = [p for p in known if p.alive]
    sessions = {p.pid: p for p in known if (s := _stat(p.pid)) is None or s.start == p.start}
    for pid in (int(e) for e in os.listdir("/proc") if e.isdigit()):
        stat = _stat(pid)
        if stat is None or stat.state in "ZX" or stat.session not in sessions:
            continue
        leader = sessions[stat.session]
        if pid != leader.pid and _home(pid) in namespaces:
            name = f"child of {leader.name}"
            found.append(Process(name=name, pid=pid, start=stat.start, log=leader.log))
    return found


def _signal(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        # A handle taken first and checked second cannot come to mean somebody else.
        try:
            handle = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        try:
            if process.alive:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def _wait(processes: Iterable[Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        while process.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        # Ours if this process started it: take its exit status, leave no zombie.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, also parentheses.
    fields = text[text.rindex(b")") + 2 :].split()
    return _Stat(state=fields[0].decode(), session=int(fields[3]), start=int(fields[19]))


def _home(pid: int) -> tuple[int, int] | None:
    try:
        found = os.stat(f"/proc/{pid}/ns/net")
    except OSError:  # it has just ended
        return None
    return found.st_dev, found.st_ino
