"""Network namespaces: enter one for a moment, make and drop named ones, without running anything.

`inside` moves the calling thread only (setns(2)); other threads, and asyncio
tasks that do not run meanwhile, see nothing.  There must be no `await` within.
A thread that cannot be brought back would do the rest of its work in a
stranger's namespace, so the process ends instead.

Named namespaces are what `ip netns` makes: a bind mount of the namespace's
file on /run/netns/<name> (ip-netns(8)).  `create` makes it in a thread of its
own: the namespace is that thread's, and the mount keeps it when the thread ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from muslin.errors import KernelError

DIRECTORY = Path("/run/netns")
_NEWNET = 0x40000000  # CLONE_NEWNET
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 0x100000, 2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")

_libc = ctypes.CDLL(None, use_errno=True)  # os.setns and os.unshare exist from Python 3.12
_CURRENT = "/proc/thread-self/ns/net"  # /proc/self is the main thread


@contextlib.contextmanager
def inside(path: str | None) -> Iterator[None]:
    """Put the calling thread into the namespace at `path` for the body; None changes nothing.

    KernelError names the path if it is missing or no network namespace.
    """
    if path is None:
        yield
        return
    home = os.open(_CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(path)
        try:
            yield
        finally:
            _return(home)
    finally:
        os.close(home)


def exists(path: str) -> bool:
    """Whether `path` can be entered."""
    try:
        with inside(path):
            return True
    except KernelError:
        return False


def identity(path: str | None = None) -> tuple[int, int]:
    """What two paths of one namespace have in common; None is the calling thread's own."""
    try:
        found = Path(path or _CURRENT).stat()
    except OSError as e:
        raise _error("look at", path or _CURRENT, e.errno or 0) from e
    return found.st_dev, found.st_ino


def path_of(name: str) -> str:
    """Where the namespace called `name` is found."""
    if not _NAME.fullmatch(name):
        raise KernelError("name", f"network namespace {name!r}", errno.EINVAL)
    return str(DIRECTORY / name)


def inhabited(path: str) -> bool:
    """Whether a process lives in the namespace at `path`; one that is gone has none.

    Sees the processes of our own PID namespace and those below it, so an
    agent in a container needs the host's.
    """
    try:
        wanted = identity(path)
    except KernelError:
        return False
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                found = (process / "ns/net").stat()
                if (found.st_dev, found.st_ino) == wanted:
                    return True
    return False


def names() -> list[str]:
    """Every named namespace."""
    try:
        return sorted(p.name for p in DIRECTORY.iterdir())
    except FileNotFoundError:
        return []


def create(name: str) -> str:
    """Make an empty namespace called `name`; return its path.  One that exists is refused."""
    path = path_of(name)
    _share_directory()
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except OSError as e:
        raise _error("create", path, e.errno or 0) from e
    failure: list[int] = []

    def make() -> None:
        if _libc.unshare(_NEWNET) or _mount(_CURRENT, path, _MS_BIND):
            failure.append(ctypes.get_errno())

    worker = threading.Thread(target=make)
    worker.start()
    worker.join()
    if failure:
        Path(path).unlink()
        raise _error("create", path, failure[0])
    return path


def delete(name: str) -> None:
    """Drop the name; the namespace ends with its last user.  Absent is success."""
    path = path_of(name)
    # EINVAL: the file is there but nothing is mounted on it, as after an interrupted create.
    if _libc.umount2(path.encode(), _MNT_DETACH):
        code = ctypes.get_errno()
        if code not in {errno.EINVAL, errno.ENOENT}:
            raise _error("delete", path, code)
    Path(path).unlink(missing_ok=True)


def _enter(path: str) -> None:
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise _error("enter", path, e.errno or 0) from e
    try:
        if _libc.setns(there, _NEWNET):
            raise _error("enter", path, ctypes.get_errno())
    finally:
        os.close(there)


def _return(home: int) -> None:
    if _libc.setns(home, _NEWNET):
        why = os.strerror(ctypes.get_errno())
        sys.stderr.write(f"muslin: cannot return from a network namespace ({why}): ending here\n")
        sys.stderr.flush()
        os._exit(70)  # EX_SOFTWARE; not an exception, which somebody might handle


def _share_directory() -> None:
    """Make /run/netns a shared mount, so that a name deleted in one mount namespace is gone in all.

    As `ip netns add` does; without it containers keep namespaces alive.
    """
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    here = str(DIRECTORY)
    if _mount("", here, _MS_SHARED | _MS_REC) == 0:
        return
    if _mount(here, here, _MS_BIND | _MS_REC) or _mount("", here, _MS_SHARED | _MS_REC):
        raise _error("share", here, ctypes.get_errno())


def _mount(source: str, target: str, flags: int) -> int:
    result: int = _libc.mount(source.encode(), target.encode(), b"none", flags, None)
    return result


def _error(op: str, path: str, code: int) -> KernelError:
    details = {
        errno.ENOENT: "there is no such namespace",
        errno.EINVAL: "this is not a network namespace",
    }
    # setns() of a file that is no namespace at all; EPERM means what it says
    detail = details.get(code, "")
    hint = "run as root, or within `unshare -Urn`" if code in {errno.EPERM, errno.EACCES} else ""
    return KernelError(op, f"network namespace {path}", code, detail, hint=hint)


_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.mount.argtypes = (
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p,
)  # fmt: skip
