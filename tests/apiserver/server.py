"""The HTTP front: `async with ApiServer() as api: ... api.url, api.kubeconfig(path)`.

The front can be stopped and started again on the same port while the storage stays, as when
an API server is killed and etcd is not.  `api.send(...)` asks it without HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from aiohttp import web

from .accepting import stop_accepting
from .auth import ADMIN_TOKEN, Accounts
from .call import Answer
from .collector import Collector
from .core import Core
from .encode import Json, encode
from .faults import Dropped, Faults
from .router import Request, Router
from .settings import Settings
from .status import ApiError, internal
from .storage import Storage
from .tls import Certificate
from .watch import Watcher

_BODY_LIMIT = 3 << 20  # what a real server takes
_BEFORE_END = 2.0  # a last bookmark comes this long before a watch's time is over


class ApiServer:
    """One API server on a loopback port."""

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        storage: Storage | None = None,
        port: int = 0,
        tls: Certificate | None = None,
        host: str = "127.0.0.1",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.settings = settings or Settings()
        self._now = now
        self.core = Core(storage, self.settings, now=now)
        self.host, self.port, self.tls = host, port, tls
        self.router = Router(self.core)
        self.send = self.router.send
        self.core.faults.drop_watches = self._abort_watches
        self.core.faults.mute_watches = self._mute_watches
        self.collector = Collector(self)
        self._runner: web.ServerRunner | None = None
        self._listener: socket.socket | None = None
        self._collecting: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @property
    def storage(self) -> Storage:
        return self.core.storage

    @property
    def faults(self) -> Faults:
        return self.core.faults

    @property
    def accounts(self) -> Accounts:
        return self.core.accounts

    @property
    def watchers(self) -> int:
        """How many watches are open."""
        return self.router.watches.count

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; on the same port if it ran before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        self.port = listener.getsockname()[1]
        self.router.address = f"{self.host}:{self.port}"
        server = web.Server(
            self._handle, request_factory=_request, handler_cancellation=True, access_log=None
        )
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        context = self.tls.server_context() if self.tls else None
        self._listener = listener
        await web.SockSite(self._runner, listener, ssl_context=context, backlog=4096).start()
        if self.settings.collect:
            self._collecting = asyncio.create_task(self.collector.run())

    async def stop(self, *, abort: bool = False) -> None:
        """Stop listening and end every connection; `abort` leaves no word to clients."""
        if self._collecting is not None:
            self._collecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collecting
            self._collecting = None
        if self._listener is not None:
            await stop_accepting([self._listener])
            self._listener = None
        if abort:
            self.router.watches.abort_all()
        self.router.watches.finish_all()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self.router.admission.close()

    async def restart(self, *, keep_history: bool = False, abort: bool = True) -> None:
        """Stop and start on the same port.

        As with a real server, the new front knows no change from before: a watch from an
        older version than now is told 410, and custom kinds' caches fill again.
        """
        await self.stop(abort=abort)
        accounts, faults = self.core.accounts, self.core.faults
        if not keep_history:
            self.storage.forget_history()
        self.storage.detach()
        self.core = Core(self.storage, self.settings, now=self._now)
        self.core.accounts, self.core.faults = accounts, faults
        admission = self.router.admission
        self.router = Router(self.core, f"{self.host}:{self.port}")
        self.router.admission.adopt(admission)
        self.send = self.router.send
        await self.start()

    def bookmark(self) -> None:
        """Send a bookmark to every watch that asked for them, now."""
        self.router.watches.bookmark_all()

    def _abort_watches(self) -> None:
        self.router.watches.abort_all()

    def _mute_watches(self) -> None:
        self.router.watches.mute_all()

    def kubeconfig(self, path: Path | str, *, token: str = ADMIN_TOKEN) -> Path:
        """Write a kubeconfig for one of the accounts."""
        cluster: Json = {"server": self.url}
        if self.tls:
            authority = base64.b64encode(self.tls.authority.read_bytes()).decode()
            cluster["certificate-authority-data"] = authority
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": cluster}],
            "users": [{"name": "fake", "user": {"token": token}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        }
        path = Path(path)
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o600)  # it holds a token
        return path

    # ── HTTP ───────────────────────────────────────────────────────────────
    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = await self._answer(http)
        except Dropped:
            if http.transport is not None:
                http.transport.abort()
            return web.Response()
        except ApiError as error:
            if error.text is not None:
                return web.Response(status=error.code, text=error.text)
            answer = Answer(error.code, encode(error.body) + b"\n", headers=error.headers)
        if self.core.faults.delay:
            await asyncio.sleep(self.core.faults.delay)
        if isinstance(answer, Watcher):
            return await self._stream(http, answer)
        headers = {**answer.headers, "Content-Type": answer.content_type}
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    async def _answer(self, http: web.BaseRequest) -> Answer | Watcher:
        body = await http.read() if http.can_read_body else b""
        if len(body) > _BODY_LIMIT:
            why = f"Request entity too large: limit is {_BODY_LIMIT}"
            raise ApiError(413, "RequestEntityTooLarge", why)
        request = Request(
            http.method,
            http.path,
            dict(http.query),
            body,
            http.headers.get("Content-Type", "application/json"),
            http.headers.get("Accept", "application/json"),
            http.headers.get("User-Agent", "unknown"),
            http.headers.get("Authorization"),
        )
        try:
            return await self.router.handle(request)
        except (ApiError, Dropped):
            raise
        except Exception as error:  # the fake's own fault, told as a server tells it
            raise internal(f"fake API server: {type(error).__name__}: {error}") from error

    async def _stream(self, http: web.BaseRequest, watcher: Watcher) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": watcher.shape.content_type})
        response.enable_chunked_encoding()
        try:
            await response.prepare(http)
            watcher.wire = _Wire(http)
            watcher.flush()
            await self._until_over(watcher)
            watcher.flush()
        finally:
            self.router.watches.close(watcher)
            watcher.finish()
        if not watcher.mute:
            with contextlib.suppress(ConnectionError):
                await response.write_eof()
        return response

    async def _until_over(self, watcher: Watcher) -> None:
        """Wait for the end of a watch, with bookmarks where they are asked for."""
        loop = asyncio.get_running_loop()
        limit = self.router.watches.timeout(watcher.call)
        end = loop.time() + limit
        every = self.settings.bookmark_interval
        last = end - _BEFORE_END if limit > _BEFORE_END else None
        due = loop.time() + every
        while not watcher.done.done() and (now := loop.time()) < end:
            until = min(due, end, last or end) if watcher.bookmarks else end
            await asyncio.wait([watcher.done], timeout=max(0.0, until - now))
            if watcher.bookmarks and not watcher.done.done() and loop.time() >= until < end:
                watcher.bookmark()
                due = loop.time() + every
                last = None if last is not None and until >= last else last
        if watcher.mute:
            await asyncio.wait([watcher.done])


def _request(*parts: Any) -> web.BaseRequest:
    """As aiohttp makes it, but for bodies of the size that a real server takes."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(*parts, loop, client_max_size=_BODY_LIMIT + 1)


class _Wire:
    """A connection's raw end."""

    def __init__(self, http: web.BaseRequest) -> None:
        self._transport = http.transport

    def send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def unsent(self) -> int:
        found = self._transport
        return found.get_write_buffer_size() if isinstance(found, asyncio.WriteTransport) else 0

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
