"""TCP connections that are noticed when they die, and closed when nobody wants them any more.

httpcore2 (2.16.2) closes a connection whose TLS handshake failed or took too
long by its own clock, but not one whose request was cancelled meanwhile: the
socket stays registered with the loop, for ever.  Deadlines are cancellations,
so a server that accepts and then hangs would cost a descriptor per request.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore2

_DEAD = 30  # seconds; several lost packets, not a slow link
OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _DEAD // 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _DEAD // 6),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    # The same for data that is sent and not acknowledged, which keepalive leaves to 15 minutes of
    # retransmission (tcp_retries2).
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD * 1000),
)


class Backend(httpcore2.AnyIOBackend):
    """What opens connections for a pool."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore2's)
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        # Our options always: a pool forgets to hand them on when it uses a proxy.
        return _Stream(await super().connect_tcp(host, port, timeout, local_address, OPTIONS))


class _Stream(httpcore2.AsyncNetworkStream):
    """A TCP connection; a TLS one is httpcore2's own from then on."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await self._stream.aclose()
            raise

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
