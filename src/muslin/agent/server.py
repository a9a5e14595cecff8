"""The agent's end of the CNI socket: read one call, do it, answer.

Threads block in accept(2) on one listening socket, and each serves one
connection from end to end.  That is less than an event loop with an executor
(ADD p50 1.97 against 2.35 ms), and netlink may wait for the kernel's RTNL
without anybody else waiting for it.  More than a few threads only queue on
RTNL; who finds none free waits in the listen queue, where the plugin's
deadline bounds it.

    request   4 bytes length, six variables each with a NUL after it, the configuration
    answer    4 bytes length, 1 byte status, what the plugin prints     (cni.plugin has the rest)

Who may ask is decided three times: by the directory, by the socket's mode
and by the peer's uid, since a call creates devices and enters namespaces.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Protocol

from muslin.cni.environment import VARIABLES, VERBS, plain
from muslin.cni.protocol import (
    NEWEST,
    Attached,
    Request,
    error_reply,
    parse,
    result,
    spoken,
    version_reply,
)
from muslin.errors import ConfigError, MuslinError, RequestError
from muslin.log import log

WORKERS = 8  # measured best on 2 cores; RTNL serialises the rest
BACKLOG = 512  # a full node restarting all its pods at once (kubelet allows 110, some estates 500)
MAX_REQUEST = 2 << 20  # bytes: 1 MiB of configuration, and six variables of 128 KiB (execve(2))
READ_DEADLINE = 10.0  # seconds for a whole request; a plugin sends it in one piece
PAUSE = 0.1  # seconds, when accept(2) finds no free descriptor or memory

_SUN_PATH_MAX = 107  # unix(7): 108 with the closing NUL
_UCRED = struct.Struct("3i")  # socket(7), SO_PEERCRED: pid, uid, gid


class Attachments(Protocol):
    """What the node does for a runtime.  Called from several threads at once.

    A MuslinError is answered under its code, anything else as an internal
    error.  All but `add` are repeatable; `delete` of what is not there is
    success.  `status` raises Unavailable while `add` could not succeed.
    """

    def add(self, request: Request) -> Attached: ...
    def delete(self, request: Request) -> None: ...
    def check(self, request: Request) -> None: ...
    def gc(self, request: Request) -> None: ...
    def status(self, request: Request) -> None: ...


def peer_uid(connection: socket.socket) -> int:
    """Whose process is at the other end, as the kernel noted at connect(2)."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(packed)[1]
    return uid


class CniServer:
    """Serve `handler` on a unix socket from `start` to `stop`; once each."""

    def __init__(
        self,
        path: Path,
        handler: Attachments,
        *,
        workers: int = WORKERS,
        read_deadline: float = READ_DEADLINE,
        peer_uid: Callable[[socket.socket], int] = peer_uid,
    ) -> None:
        self._path = path
        self._handler = handler
        self._read_deadline = read_deadline
        self._peer_uid = peer_uid
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._inode: tuple[int, int] | None = None
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"cni-{n}", daemon=True)
            for n in range(workers)
        ]

    def start(self) -> None:
        """Listen and return; ConfigError if another agent does, or others could take the path."""
        self._listen()
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """Take no new call, wait for those that run; whether all ended within `timeout` seconds."""
        self._stopping.set()
        with contextlib.suppress(OSError):  # ENOTCONN where start() failed
            # Linux wakes every accept(2) with EINVAL, and connect(2) is refused from here on.
            self._listener.shutdown(socket.SHUT_RDWR)
        until = monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - monotonic()))
        # A new agent may have put its own socket there by now.
        with contextlib.suppress(FileNotFoundError):
            if self._inode is not None and _inode(self._path) == self._inode:
                self._path.unlink()
        self._listener.close()
        return not any(thread.is_alive() for thread in self._threads)

    def _listen(self) -> None:
        path, directory = self._path, self._path.parent
        if len(os.fsencode(path)) > _SUN_PATH_MAX:
            raise ConfigError(str(path), [f"longer than {_SUN_PATH_MAX} bytes"])
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            hint = f"chown root {directory} && chmod go-w {directory}"
            raise ConfigError(str(directory), ["others may replace the socket in it"], hint=hint)
        with _locked(directory):  # of two agents that start together, one sees the other
            _remove_stale(path)
            # unix_bind() takes the mode from the unbound socket and the umask from the
            # process; the umask would be that of every thread, so this is the one to set.
            os.fchmod(self._listener.fileno(), 0o600)
            self._listener.bind(str(path))
            self._inode = _inode(path)
            self._listener.listen(BACKLOG)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as e:
                if not self._stopping.is_set() and e.errno != errno.ECONNABORTED:
                    log.error("cni.accept", error=str(e))
                    self._stopping.wait(PAUSE)
                continue
            with connection:
                try:
                    self._serve(connection)
                except OSError as e:  # this client's end; nobody else's
                    log.warning("cni.connection", error=str(e) or type(e).__name__)

    def _serve(self, connection: socket.socket) -> None:
        uid = self._peer_uid(connection)
        if uid not in (0, os.geteuid()):
            log.warning("cni.refused", uid=uid)
            return
        try:
            env, stdin = split(_receive(connection, self._read_deadline))
        except RequestError as e:
            log.warning("cni.garbage", error=e.message)
            answer = (1, error_reply(e, NEWEST))
        else:
            answer = self._answer(env, stdin)
        status, output = answer
        connection.settimeout(self._read_deadline)
        connection.sendall(struct.pack(">IB", 1 + len(output), status) + output)

    def _answer(self, env: dict[str, str], stdin: bytes) -> tuple[int, bytes]:
        """Do one call and log it: the status and what the plugin prints."""
        began = monotonic()
        verb = env["CNI_COMMAND"]
        facts = {
            "container": plain(env["CNI_CONTAINERID"][:64]),
            "ifname": plain(env["CNI_IFNAME"][:16]),
            "outcome": "ok",
        }
        # The one door: whatever goes wrong in a call is that call's answer, so the runtime
        # hears of it and the next call is served.
        try:
            status, output = 0, self._call(parse(env, stdin))
        except MuslinError as e:
            status, output = 1, error_reply(e, spoken(stdin))
            facts |= {"outcome": str(e.cni_code), "error": plain(str(e))}
        except Exception as e:
            status, output = 1, error_reply(e, spoken(stdin))
            log.exception("cni.fault", container=facts["container"], ifname=facts["ifname"])
            facts |= {"outcome": "fault", "error": plain(repr(e))}
        # Runtimes poll STATUS every few seconds.
        tell = log.warning if status else log.debug if verb in ("STATUS", "VERSION") else log.info
        event = verb.lower() if verb in VERBS else "unknown"
        tell(f"cni.{event}", **facts, ms=round((monotonic() - began) * 1000, 2))
        return status, output

    def _call(self, request: Request) -> bytes:
        match request.verb:
            case "ADD":
                return result(request.version, self._handler.add(request), request.dns)
            case "DEL":
                self._handler.delete(request)
            case "CHECK":
                self._handler.check(request)
            case "GC":
                self._handler.gc(request)
            case "STATUS":
                self._handler.status(request)
            case _:
                return version_reply(request.version)
        return b""


# ── frames ──────────────────────────────────────────────────────────────────────────────────────


def _receive(connection: socket.socket, seconds: float) -> bytes:
    """One request without its length; TimeoutError or ConnectionError if it does not all come."""
    until = monotonic() + seconds
    size = int.from_bytes(_exactly(connection, 4, until), "big")
    if size > MAX_REQUEST:
        raise RequestError(6, f"a request of {size} bytes; {MAX_REQUEST} is the most")
    return bytes(_exactly(connection, size, until))


def _exactly(connection: socket.socket, size: int, until: float) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        # One deadline for the whole: a byte now and then must not hold a thread.
        left = until - monotonic()
        if left <= 0:
            raise TimeoutError("the request did not come in time")
        connection.settimeout(left)
        count = connection.recv_into(rest)
        if not count:
            raise ConnectionResetError("the request ended early")
        rest = rest[count:]
    return data


def split(body: bytes) -> tuple[dict[str, str], bytes]:
    """A request's variables and configuration."""
    *values, stdin = body.split(b"\0", len(VARIABLES))
    if len(values) != len(VARIABLES):
        raise RequestError(6, f"a request with {len(values)} of {len(VARIABLES)} variables")
    # What is not UTF-8 becomes lone surrogates, which parse() refuses by the variable's name.
    texts = (value.decode("utf-8", "surrogateescape") for value in values)
    return dict(zip(VARIABLES, texts, strict=True)), stdin


# ── the path ────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nothing listens on; ConfigError for anything else there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(str(path), ["exists and is not a socket"], hint="move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue is EAGAIN: somebody listens
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    hint = "stop it first, or give this one its own run_dir"
    raise ConfigError(str(path), [f"another agent is running on {path}"], hint=hint)


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
