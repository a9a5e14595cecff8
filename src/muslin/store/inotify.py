"""Hearing, without polling, that another process has touched a file.

`os.utime` on a path is an IN_ATTRIB event to whoever watches the file.
Neither side opens it, which matters for a SQLite database: closing any
descriptor of one drops all POSIX locks this process holds on it
(sqlite.org/howtocorrupt.html, 2.2).

inotify(7) by ctypes, since the standard library has no binding and a
dependency for three calls is too many.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

IN_ATTRIB = 0x00000004  # linux/inotify.h
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK  # inotify.h: IN_CLOEXEC and IN_NONBLOCK are these


class Touches:
    """A descriptor that becomes readable when `path` is touched.

    Raise OSError where the kernel has no inotify or its limit of instances
    (fs.inotify.max_user_instances) is used up.
    """

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = libc.inotify_init1(_FLAGS)
        if self.fd < 0:
            raise _last_error("inotify_init1", path)
        if libc.inotify_add_watch(self.fd, os.fsencode(path), IN_ATTRIB) < 0:
            error = _last_error("inotify_add_watch", path)
            self.close()
            raise error

    def drain(self) -> None:
        """Forget the touches so far; never blocks."""
        try:
            while os.read(self.fd, 4096):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Stop hearing.  Repeating it is success."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _last_error(call: str, path: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}", str(path))
