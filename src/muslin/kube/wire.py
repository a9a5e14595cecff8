"""Requests and streams over HTTP/1.1: deadlines, credentials, connections.

By httpcore2, the lower half of httpx2, and not through lightkube or httpx2
itself.  Measured over asyncio, ssl and msgspec (23.3 MiB), each with one
client made: httpcore2 +6.5 MiB and 48 ms, httpx2 +9.0 MiB and 69 ms,
lightkube +13.0 MiB and 120 ms.  What lightkube adds for requests is a class
per kind; what would have to be worked around is more: no delete
preconditions, a KeyError for answers without Content-Type, a second client
for watches, custom transports that lose its TLS settings and proxies.  What
httpx2 adds is cookies, redirects, and proxies found in the environment, all
of which must be turned off.

Two pools.  HTTP/2 would put watches and requests on one connection, and there
a request was seen to hang 34 s behind a half-open watch despite its timeout.
Requests keep a few connections.  Every watch has one of its own and never
uses it twice: a watch that is begun again may then reach another API server
behind a load balancer, so that they do not all stay with the one that did
not restart.

A connection that has died without a word is found by TCP in half a minute
(`sockets`), if the other end's kernel is gone; if only the API server behind it hangs, a
watch is given up after `idle` seconds and a request at its deadline.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import quote, unquote, urlencode, urlsplit

import httpcore2

from muslin.errors import NotReady
from muslin.kube.access import Access
from muslin.kube.credentials import Bearer, Tls
from muslin.kube.faults import Answer, pause
from muslin.kube.sockets import Backend

_KEPT = 4  # connections that wait for the next request
_KEPT_FOR = 30.0  # seconds; load balancers cut idle connections after 60 s and more
_UNSAID = 1.0  # seconds to wait after 429 when the server did not say

# What httpcore2 raises; its exceptions have no common base.  OSError is what anyio lets through.
_FAULTS = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.ProxyError,
    httpcore2.UnsupportedProtocol,
    OSError,
)


class QuietError(NotReady):
    """A stream brought nothing for `idle` seconds."""


class Wire:
    """One API server over HTTP: answers are answers, whatever their status code.

    NotReady when there is no answer: no connection, none in time, closed.
    ConfigError for credentials that are none.
    """

    def __init__(
        self,
        at: Access,
        *,
        timeout: float,
        idle: float,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._at = at
        self._timeout = timeout
        self._idle = idle
        self.uniform = uniform
        url = urlsplit(at.server)
        self._tls = Tls(at) if url.scheme == "https" else None
        self._bearer = Bearer(at)
        self._scheme, self._host, self._port = url.scheme, url.hostname or "", url.port
        self._root = quote(url.path.rstrip("/"), safe="/%")
        self._netloc = url.netloc
        self._requests = self._pool(kept=_KEPT)
        self._streams = self._pool(kept=0)
        self._limits: set[asyncio.Timeout] = set()
        self.closed = asyncio.Event()

    async def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        content_type: str = "application/json",
    ) -> Answer:
        """Send one request and return the answer.

        Two answers lead to the same request again, since a server that gives
        them has done nothing: 401, once, with the credentials read again; and
        429, after the time that it names, while that is before the deadline.
        """
        end = asyncio.get_running_loop().time() + self._timeout
        again = True
        while True:
            authorization = await self._bearer.header()
            headers = self._headers(authorization, content_type if body else "")
            async with self._within(end):
                response = await self._requests.request(
                    method,
                    self._url(path, query),
                    headers=headers,
                    content=body or None,
                    extensions=self._extensions,
                )
            answer = Answer(response.status, response.content, _retry_after(response))
            if answer.code == 401 and again:
                again = False
                self._bearer.refused(authorization)
                continue
            if answer.code != 429:
                return answer
            wait = (pause(answer) or _UNSAID) * self.uniform(1.0, 1.5)
            if asyncio.get_running_loop().time() + wait >= end:
                return answer
            await self.rest(wait)

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str]
    ) -> AsyncIterator[tuple[Answer, AsyncGenerator[bytes, None]]]:
        """Begin a stream: the answer, and for a success its bytes as they come.

        A server that does not answer is left at the deadline of requests;
        QuietError when nothing came for `idle` seconds.  A 401 is the
        caller's to try again, which will be with other credentials.
        """
        authorization = await self._bearer.header()
        request = self._streams.stream(
            "GET",
            self._url(path, query),
            headers=self._headers(authorization),
            extensions=self._extensions,
        )
        async with AsyncExitStack() as stack:
            body = b""
            async with self._within(asyncio.get_running_loop().time() + self._timeout):
                response = await stack.enter_async_context(request)
                if not 200 <= response.status < 300:
                    body = await response.aread()
            if response.status == 401:
                self._bearer.refused(authorization)
            chunks = self._chunks(response)
            await stack.enter_async_context(aclosing(chunks))
            yield Answer(response.status, body, _retry_after(response)), chunks

    async def rest(self, seconds: float) -> None:
        """Return after `seconds`, or when closed."""
        try:
            async with asyncio.timeout(seconds):
                await self.closed.wait()
        except TimeoutError:
            return

    async def close(self) -> None:
        """Close every connection; what waits for an answer gets NotReady."""
        self.closed.set()
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())
        await asyncio.sleep(0)  # they leave their connections before these are closed
        await self._requests.aclose()
        await self._streams.aclose()

    async def _chunks(self, response: httpcore2.Response) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        async with aclosing(response.aiter_stream()) as stream:
            while True:
                # Around each read and not around the loop: no timeout may be open at a `yield`.
                async with self._within(loop.time() + self._idle, QuietError):
                    chunk = await anext(stream, None)
                if chunk is None:
                    return
                yield chunk

    @asynccontextmanager
    async def _within(self, end: float, late: type[NotReady] = NotReady) -> AsyncIterator[None]:
        """What happens inside is done by `end` and fails only with NotReady."""
        if self.closed.is_set():
            raise NotReady(f"{self}: closed")
        limit = asyncio.timeout_at(end)
        self._limits.add(limit)
        try:
            async with limit:
                yield
        except _FAULTS as e:
            if self.closed.is_set():
                raise NotReady(f"{self}: closed") from e
            if limit.expired():
                raise late(f"{self}: no answer in time") from e
            words = _words(e)
            hint = ""
            if "certificate verify failed" in words.lower():
                hint = f"check the certificate authority in {self._at.source or 'the settings'}"
            raise NotReady(f"{self}: {words}", hint=hint) from e
        finally:
            self._limits.discard(limit)

    def __str__(self) -> str:
        return f"kubernetes {self._netloc}"

    def _url(self, path: str, query: Mapping[str, str] | None) -> httpcore2.URL:
        if self._tls:
            self._tls.refresh()
        target = self._root + path + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        # In parts, so that nobody parses or normalizes it again.
        return httpcore2.URL(
            scheme=self._scheme, host=self._host, port=self._port, target=target.encode("ascii")
        )

    @property
    def _extensions(self) -> dict[str, str]:
        return {"sni_hostname": self._at.server_name} if self._at.server_name else {}

    def _headers(self, authorization: str, content_type: str = "") -> list[tuple[str, str]]:
        given = {
            "Host": self._netloc,  # httpcore2 would forget the brackets of an IPv6 address
            "User-Agent": _AGENT,
            "Accept": "application/json",
            # Compressed lists cost an API server more than they save inside one data centre, which
            # is why its own controllers turn it off (--disable-compression).
            "Accept-Encoding": "identity",
            "Authorization": authorization,
            "Content-Type": content_type,
        }
        return [(name, value) for name, value in given.items() if value]

    def _pool(self, *, kept: int) -> httpcore2.AsyncConnectionPool:
        tls = self._tls.context if self._tls else None
        if not self._at.proxy:
            return httpcore2.AsyncConnectionPool(
                ssl_context=tls,
                max_connections=None,
                max_keepalive_connections=kept,
                keepalive_expiry=_KEPT_FOR,
                network_backend=Backend(),
            )
        url = urlsplit(self._at.proxy)
        auth = (unquote(url.username), unquote(url.password or "")) if url.username else None
        return httpcore2.AsyncHTTPProxy(
            httpcore2.URL(scheme=url.scheme, host=url.hostname or "", port=url.port, target="/"),
            proxy_auth=auth,
            ssl_context=tls,
            max_connections=None,
            max_keepalive_connections=kept,
            keepalive_expiry=_KEPT_FOR,
            network_backend=Backend(),
        )


def _agent() -> str:
    try:
        return f"muslin/{version('muslin')}"
    except PackageNotFoundError:
        return "muslin"


_AGENT = _agent()


def _retry_after(response: httpcore2.Response) -> float:
    """Seconds; a date, which API servers do not send, counts as not said."""
    for name, value in response.headers:
        if name.lower() == b"retry-after":
            try:
                said = float(value)
            except ValueError:
                return 0.0
            return said if math.isfinite(said) and said > 0 else 0.0
    return 0.0


def _words(error: BaseException) -> str:
    """The most telling words of an error: anyio and httpcore2 wrap the one of the kernel."""
    while True:
        inner = error.__cause__ or error.__context__
        if isinstance(inner, BaseExceptionGroup):  # one per address of the host
            inner = inner.exceptions[0]
        if inner is None or isinstance(inner, asyncio.CancelledError):
            break
        error = inner
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio puts words of its own in `strerror`
    return str(error) or type(error).__name__
