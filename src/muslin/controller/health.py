"""`/metrics`, `/healthz` and `/readyz` over HTTP/1.1, one request a connection.

    /healthz   200 while the event loop turns: a kubelet restarts what does not
    /readyz    200 while the API server answers and, leading, all is listed

Nothing else is served, nothing is read but the request line and headers, and
that for five seconds at most: forty lines do, where a web server would double
what the process weighs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from muslin.errors import ConfigError
from muslin.log import log

BLOCKED = 10.0  # seconds that the loop may stand still
BEAT = 1.0
LONGEST = 8192  # bytes of a request
PATIENCE = 5.0  # seconds for it to arrive and for the answer to be taken

Page = Callable[[], tuple[int, str, bytes]]
"""Status, content type, body."""


class Pulse:
    """Whether the event loop turns."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._last, self._stood = now, now(), 0.0

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self._beat()
            await asyncio.sleep(BEAT)

    def _beat(self) -> None:
        now = self._now()
        self._stood, self._last = now - self._last, now

    def fault(self) -> str:
        """How long it stood still just now, if that is too long."""
        stood = max(self._stood, self._now() - self._last)
        return f"the event loop stood still for {stood:.1f} s" if stood > BLOCKED else ""


def verdict(fault: str) -> tuple[int, str, bytes]:
    """The page of a probe."""
    return 503 if fault else 200, "text/plain; charset=utf-8", f"{fault or 'ok'}\n".encode()


class Pages:
    """The server."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self.port = 0

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Begin to serve; ConfigError names the setting when the address cannot be had."""
        try:
            server = await asyncio.start_server(self._serve, host, port, limit=LONGEST)
        except (OSError, OverflowError) as e:
            why = getattr(e, "strerror", None) or str(e)
            hint = "choose another with MUSLIN_LISTEN=host:port"
            raise ConfigError(f"setting listen = {host}:{port}", [why], hint=hint) from e
        self.port = server.sockets[0].getsockname()[1]
        log.info("pages.served", listen=f"{host}:{self.port}", paths=",".join(self._pages))
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        faults = (OSError, EOFError, ValueError, asyncio.LimitOverrunError, TimeoutError)
        with contextlib.suppress(*faults):
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        writer.transport.abort()  # whoever is slow is left; nothing when it is closed

    def _answer(self, head: bytes) -> bytes:
        method, target, *_ = [*head.split(b"\r\n", 1)[0].decode("latin-1").split(" "), "", ""]
        page = self._pages.get(target.partition("?")[0])
        if method not in ("GET", "HEAD"):
            code, kind, body = 405, "text/plain", b"only GET\n"
        elif page is None:
            code, kind, body = 404, "text/plain", " ".join([*self._pages, "\n"]).encode()
        else:
            code, kind, body = page()
        lines = (
            f"HTTP/1.1 {code} {'OK' if code == 200 else 'No'}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        return "\r\n".join((*lines, "", "")).encode() + (b"" if method == "HEAD" else body)
