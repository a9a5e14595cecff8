"""A small HTTP client for tests of the API server: `ask` for answers, `watch` for events."""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp

from .encode import Json, decode, encode

PATIENCE = 5.0  # seconds until "never"


class Stream:
    """An open watch."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def line(self) -> bytes:
        """The next line; empty at the end of the stream."""
        async with asyncio.timeout(PATIENCE):
            return await self.response.content.readline()

    async def next(self) -> Json:
        """The next event."""
        event: Json = decode(await self.line())
        return event

    async def told(self, count: int) -> list[tuple[str, str]]:
        """The type and name of the next events."""
        events = [await self.next() for _ in range(count)]
        return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]

    async def rest(self) -> list[Json]:
        """Everything until the server ends the stream."""
        found = []
        while line := await self.line():
            found.append(decode(line))
        return found


class Client:
    """One user of one server."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        context: ssl.SSLContext | None = None,
        agent: str = "test",
    ) -> None:
        headers = {"User-Agent": f"{agent}/1"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._url, self._headers, self._context = url, headers, context
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._context) if self._context else None
        self._session = aiohttp.ClientSession(headers=self._headers, connector=connector)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        """Status and body of one answer."""
        assert self._session is not None
        data = None if body is None else io.BytesIO(encode(body))
        headers = {"Content-Type": content_type}
        async with self._session.request(
            method, self._url + path, data=data, headers=headers
        ) as response:
            raw = await response.read()
            is_json = response.content_type == "application/json"
            return response.status, decode(raw) if is_json else raw.decode()

    @asynccontextmanager
    async def watch(self, path: str) -> AsyncIterator[Stream]:
        """A watch; `watch=true` is added."""
        assert self._session is not None
        url = f"{self._url}{path}{'&' if '?' in path else '?'}watch=true"
        async with self._session.get(url) as response:
            yield Stream(response)
