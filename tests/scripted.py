"""An HTTP server that does what a test tells it, down to the byte: for faults no API server makes.

A test sets what the next lists and watches get; when these run out, a list
shows `objects` and a watch stays open and silent.  Everything asked for is in
`requests`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from apiserver.accepting import stop_accepting
from muslin.kube import Access

Json = Mapping[str, Any]
Script = Callable[["Request", "Reply"], Awaitable[None]]

GONE = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}


def config_map(name: str, version: int, **data: object) -> dict[str, Any]:
    """An object as small as they come."""
    meta = {"name": name, "namespace": "ns", "resourceVersion": str(version)}
    return {"kind": "ConfigMap", "apiVersion": "v1", "metadata": meta, "data": data}


def event(kind: str, obj: Json) -> bytes:
    """One line of a watch."""
    return json.dumps({"type": kind, "object": obj}, ensure_ascii=False).encode() + b"\n"


def bookmark(version: int) -> bytes:
    """As 1.36 sends it for pods: with a null where no pod has one."""
    meta = {"resourceVersion": str(version)}
    return event("BOOKMARK", {"kind": "Pod", "metadata": meta, "spec": {"containers": None}})


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Reply:
    """One connection's other direction."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        with suppress(ConnectionError):
            await self._writer.drain()

    async def text(self, code: int, body: bytes, **headers: str) -> None:
        fields = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
        head = f"HTTP/1.1 {code} X\r\nContent-Length: {len(body)}\r\n{fields}\r\n"
        await self.raw(head.encode() + body)

    async def json(self, code: int, body: object, **headers: str) -> None:
        data = json.dumps(body, ensure_ascii=False).encode()
        await self.text(code, data, Content_Type="application/json", **headers)

    async def status(self, code: int, message: str = "", **more: Any) -> None:
        await self.json(code, {"kind": "Status", "message": message, "code": code, **more})

    async def begin(self) -> None:
        """Begin a stream."""
        await self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def send(self, *parts: bytes) -> None:
        """One chunk of a stream."""
        data = b"".join(parts)
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def drop(self) -> None:
        """As a killed server: the connection is reset."""
        self._writer.transport.abort()

    async def silence(self) -> None:
        """Nothing more ever comes."""
        await asyncio.Event().wait()


def stream(*chunks: bytes, end: bool = False, drop: bool = False) -> Script:
    """A watch that sends `chunks` and then stays, ends or breaks."""

    async def script(_: Request, reply: Reply) -> None:
        await reply.begin()
        for chunk in chunks:
            await reply.send(chunk)
            await asyncio.sleep(0.01)  # a read of its own for each
        if end:
            await reply.end()
        elif drop:
            await reply.drop()
        else:
            await reply.silence()

    return script


def status(code: int, message: str = "", retry_after: str = "", **more: Any) -> Script:
    """An answer that is an error of the API server."""

    async def script(_: Request, reply: Reply) -> None:
        headers = {"Retry_After": retry_after} if retry_after else {}
        await reply.json(
            code, {"kind": "Status", "message": message, "code": code, **more}, **headers
        )

    return script


def text(code: int, body: bytes, **headers: str) -> Script:
    """An answer of something else."""

    async def script(_: Request, reply: Reply) -> None:
        await reply.text(code, body, **headers)

    return script


async def silent(_: Request, reply: Reply) -> None:
    """Accept and never answer."""
    await reply.silence()


class Scripted:
    """The server; `async with` starts it."""

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = 1
        self.lists: list[Script] = []
        self.watches: list[Script] = []
        self.others: list[Script] = []
        self.always: Script | None = None  # instead of all of these
        self._tls = tls
        self._host = host
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, name: str, version: int, **data: object) -> dict[str, Any]:
        """Let lists show this object."""
        self.objects[name] = config_map(name, version, **data)
        self.version = max(self.version, version)
        return self.objects[name]

    @property
    def asked(self) -> list[str]:
        """What lists and watches were asked for, in order: "list", or the watch's version."""
        return [r.query["resourceVersion"] if "watch" in r.query else "list" for r in self.requests]

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def access(self) -> Access:
        return Access(server=self.url)

    async def asked_times(self, count: int) -> None:
        """Return when there have been so many requests."""
        async with asyncio.timeout(10):
            while len(self.requests) < count:
                self._news.clear()
                await self._news.wait()

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(
            self._serve, self._host, port, ssl=self._tls, limit=1 << 20
        )

    async def kill(self) -> None:
        """Break every connection and refuse new ones."""
        await stop_accepting(self._server.sockets)
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                self._news.set()
                await self._script(request)(request, Reply(writer))
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    def _script(self, request: Request) -> Script:
        if self.always:
            return self.always
        if "watch" in request.query:
            return self.watches.pop(0) if self.watches else stream()
        if request.method == "GET" and not self.others:
            return self.lists.pop(0) if self.lists else self._list
        return self.others.pop(0)

    async def _list(self, _: Request, reply: Reply) -> None:
        items = list(self.objects.values())
        meta = {"resourceVersion": str(self.version)}
        await reply.json(200, {"kind": "List", "metadata": meta, "items": items})


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode().strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, target, headers, body)
