"""What lets us in, kept fresh: bearer tokens and the certificates of TLS.

Everything here may change while we run.  The kubelet renews a pod's token
each hour (by a symbolic link, so the file that the path leads to is another
one), kubeadm and the kubelet renew client certificates in place.  So files
are looked at before each request, by `stat`, and read again when they are
others than before: 2 µs, no watch, no timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from muslin.errors import ConfigError, NotReady
from muslin.kube.access import Access, Exec
from muslin.kube.times import parse_time
from muslin.log import log

_REREAD = 60.0  # seconds; client-go's: a file system may not tell of a change (overlay, NFS)
_EXEC_LIMIT = 30.0  # seconds for a credential plugin; there is nobody to answer its questions
_EARLY = 10.0  # seconds before it expires that a plugin's token is renewed


class Bearer:
    """The `Authorization` header for the next request, or none."""

    def __init__(self, at: Access, now: Callable[[], float] = time.time) -> None:
        self._at = at
        self._now = now
        self._file = _File(at.token_file, now) if at.token_file else None
        self._printed = ""
        self._expires = 0.0
        self._running = asyncio.Lock()

    async def header(self) -> str:
        """`Bearer ...`, or "" where certificates do.

        NotReady when a token cannot be had now; ConfigError when what the
        file or the plugin gave is no token.
        """
        if self._file:
            token = self._file.text() or self._at.token
        elif self._at.exec and not self._at.token:
            token = await self._run(self._at.exec)
        else:
            token = self._at.token
        if not token.isprintable() or not token.isascii():
            raise ConfigError(self._at.source, ["what should be a token is none"])
        return f"Bearer {token}" if token else ""

    def refused(self, header: str) -> None:
        """The server did not accept `header`: read or ask again next time."""
        if self._file:
            self._file.forget()
        if header == f"Bearer {self._printed}":  # else another task has renewed it already
            self._expires = 0.0

    async def _run(self, plugin: Exec) -> str:
        async with self._running:  # one run for all who wait
            if not self._printed or self._now() > self._expires - _EARLY:
                self._printed, self._expires = await _printed(plugin)
            return self._printed


class _File:
    """A token's file."""

    def __init__(self, path: str, now: Callable[[], float]) -> None:
        self._path = Path(path)
        self._now = now
        self._seen: object = None
        self._until = 0.0
        self._text = ""

    def text(self) -> str:
        """What it holds; what it last held while it cannot be read."""
        seen, now = _look(self._path), self._now()
        if seen == self._seen and now < self._until and self._text:
            return self._text
        try:
            text = self._path.read_text().strip()
        except (OSError, ValueError) as e:
            if not self._text:
                raise NotReady(f"token file {self._path}: {_words(e)}") from e
            return self._text
        self._text, self._seen, self._until = text or self._text, seen, now + _REREAD
        if not self._text:
            raise NotReady(f"token file {self._path}: empty")
        return self._text

    def forget(self) -> None:
        self._until = 0.0


class Tls:
    """The TLS settings of an Access; `context` stays the same object and learns of new files.

    ConfigError at once when a file or a text in them is unusable.
    """

    def __init__(self, at: Access) -> None:
        self._at = at
        if at.ca_file or at.ca_data:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        else:  # reads the system's CAs, which takes 25 ms
            self.context = ssl.create_default_context()
        # Python 3.13 sets this by default; it refuses the CAs of many clusters (no Authority Key
        # Identifier), which every other client accepts.
        self.context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        if at.insecure:
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE
        self._files = tuple(Path(p) for p in (at.ca_file, at.cert_file, at.key_file) if p)
        self._seen = self._look()
        faults: list[str] = []
        self._load(faults)
        if faults:
            raise ConfigError(at.source or "kubernetes", faults)

    def refresh(self) -> None:
        """Use files that have changed for the connections that come; while they are bad, the old.

        A CA is added and the former stays known until we restart, as
        while a cluster changes its CA both are in use.
        """
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        faults: list[str] = []
        self._load(faults)
        if faults:
            log.warning("kube.tls.unreadable", source=self._at.source, why="; ".join(faults))

    def _look(self) -> tuple[object, ...]:
        return tuple(map(_look, self._files))

    def _load(self, faults: list[str]) -> None:
        at = self._at
        if at.ca_data or at.ca_file:
            try:
                if at.ca_data:
                    self.context.load_verify_locations(cadata=at.ca_data)
                else:
                    self.context.load_verify_locations(at.ca_file)
            except (OSError, ValueError) as e:  # SSLError is an OSError
                faults.append(f"CA {at.ca_file or 'data'}: {_words(e)}")
        if at.cert_data or at.cert_file:
            try:
                with (
                    _path(at.cert_data, at.cert_file) as cert,
                    _path(at.key_data, at.key_file) as key,
                ):
                    # No password: else OpenSSL would ask for one on the terminal.
                    self.context.load_cert_chain(cert, key, password=lambda: b"")
            except (OSError, ValueError) as e:
                faults.append(f"client certificate {at.cert_file or 'data'}: {_words(e)}")


@contextlib.contextmanager
def _path(data: str, file: str) -> Iterator[str]:
    """A path to `data`, which never touches a disk, or `file`."""
    if not data:
        yield file
        return
    fd = os.memfd_create("pem")
    try:
        os.write(fd, data.encode())
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _look(path: Path) -> object:
    """What changes when the file that `path` leads to does; None while it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _words(e: Exception) -> str:
    if isinstance(e, ssl.SSLError):
        return (e.reason or "not a PEM file").replace("_", " ").lower()
    return (e.strerror if isinstance(e, OSError) else "") or str(e)


class _Status(msgspec.Struct, frozen=True):
    token: str | None = None
    expirationTimestamp: str | None = None  # noqa: N815  (the wire's word)
    clientCertificateData: str | None = None  # noqa: N815


class _Credential(msgspec.Struct, frozen=True):
    status: _Status | None = None


async def _printed(plugin: Exec) -> tuple[str, float]:
    """Run a credential plugin; its token and when that expires.

    KEP-541.  NotReady when the program fails, since what it asks may be away;
    ConfigError when it cannot be what a person meant.
    """
    subject = f"credential plugin {plugin.command}"
    info = {
        "apiVersion": plugin.api_version,
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }
    environ = dict(os.environ) | dict(plugin.env)
    environ["KUBERNETES_EXEC_INFO"] = msgspec.json.encode(info).decode()
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            plugin.command,
            *plugin.args,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )
    except (OSError, ValueError) as e:
        raise ConfigError(subject, [_words(e)], hint=plugin.hint) from e
    try:
        async with asyncio.timeout(_EXEC_LIMIT):
            out, err = await process.communicate()
    except TimeoutError as e:
        raise NotReady(f"{subject}: no answer in {_EXEC_LIMIT:.0f} s") from e
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        words = err.decode(errors="replace").strip()[-300:]
        raise NotReady(f"{subject}: exit code {process.returncode}: {words}", hint=plugin.hint)
    try:
        status = msgspec.json.decode(out, type=_Credential).status or _Status()
        expires = parse_time(status.expirationTimestamp) if status.expirationTimestamp else 0.0
    except (msgspec.MsgspecError, ValueError) as e:
        raise ConfigError(subject, [f"its output is no ExecCredential: {e}"]) from e
    if not status.token:
        what = "a client certificate" if status.clientCertificateData else "no token"
        raise ConfigError(subject, [f"it gave {what}; only tokens are supported"])
    return status.token, expires or float("inf")
