"""`muslin agent`: keep the two parts of a node's agent running.

    supervise ──┬─ cni    answers the runtime; small, blocking, never waits for the other
                └─ sync   follows the store; whatever it is busy with, ADDs do not notice

Two processes, because one busy Python thread beside the CNI server triples
the time of an ADD (measured).  They share node.db and nothing else, so each
may die and come back alone.  Two services that run `python -m muslin.agent.main
cni` and `… sync` do as well as this program.

Nothing is imported but the interpreter's own: this process only waits.  It
starts its parts anew and does not fork them from a common beginning, which was
tried: counting references writes to every page that would be shared, so it
saves nothing (62.0 MiB for all three, and 61.8 without).
"""

import os
import signal
import sys
import time

PARTS = ("cni", "sync")
PATIENCE = 15.0  # seconds for a part to end when told to
BACKOFF = (0.1, 5.0)  # seconds before a part is started again: at first, and at most
STEADY = 10.0  # seconds after which a part counts as well again
# For glibc.  Arenas of their own would cost threads more memory than they save time: a second one
# is 1.0 MiB of cni after a while.  Large pieces (a list of a large cluster, a dump of its routes, a
# module's code) come and go, and without a threshold glibc learns to keep them: 2.4 MiB of sync
# with 1000 nodes, 0.6 of cni.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
EX_CONFIG = 78  # sysexits.h: a person must change something, starting again is no use


class Part:
    """One part: its process, and when it may be started again."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        self.pid = 0
        self.due = 0.0
        self._pause = BACKOFF[0]
        self._began = 0.0
        self._argv = [sys.executable, "-m", "muslin.agent.main", name, *arguments]

    def start(self) -> None:
        """Start the process."""
        self._began = time.monotonic()
        environment = {**MALLOC, **os.environ}
        # A signal mask is inherited, and ours would leave a part deaf.
        self.pid = os.posix_spawn(sys.executable, self._argv, environment, setsigmask=())

    def ended(self, status: int) -> None:
        """Say so, and when it is started again: later each time it does not last."""
        self.pid = 0
        if time.monotonic() - self._began > STEADY:
            self._pause = BACKOFF[0]
        self.due = time.monotonic() + self._pause
        how = f"signal {-status}" if status < 0 else f"status {status}"
        say(f"part {self.name} ended with {how}; again in {self._pause:.1f} s")
        self._pause = min(self._pause * 2, BACKOFF[1])


def say(text: str) -> None:
    """One line for the log."""
    os.write(2, f"muslin agent: {text}\n".encode())


def main(arguments: list[str]) -> int:
    """Run both parts until told to stop; the exit status."""
    stop = [False]

    def told(*_: object) -> None:
        stop[0] = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that it ends the wait below
    wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)  # none is lost between look and wait
    parts = [Part(name, arguments) for name in PARTS]
    status = 0
    while not stop[0]:
        now = time.monotonic()
        for part in parts:
            if not part.pid and part.due <= now:
                part.start()
        for part, code in reap(parts):
            if code == EX_CONFIG:
                status, stop[0] = 1, True
            elif not stop[0]:
                part.ended(code)
        due = [p.due for p in parts if not p.pid]
        pause = max(min(due) - time.monotonic(), 0.01) if due else 3600.0
        if not stop[0]:
            info = signal.sigtimedwait(wanted, pause)
            stop[0] = info is not None and info.si_signo != signal.SIGCHLD
    end(parts)
    return status


def reap(parts: list[Part]) -> list[tuple[Part, int]]:
    """The parts that have ended, with their exit status (negative: a signal)."""
    gone = []
    for part in parts:
        if part.pid:
            pid, status = os.waitpid(part.pid, os.WNOHANG)
            if pid:
                part.pid = 0
                gone.append((part, os.waitstatus_to_exitcode(status)))
    return gone


def end(parts: list[Part]) -> None:
    """Tell both to stop, and see to it that they do."""
    for part in parts:
        if part.pid:
            os.kill(part.pid, signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while any(p.pid for p in parts) and time.monotonic() < until:
        reap(parts)
        if any(p.pid for p in parts):
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)
    for part in parts:
        if part.pid:
            say(f"part {part.name} does not end: killing it")
            os.kill(part.pid, signal.SIGKILL)
            os.waitpid(part.pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
