"""The webhook's HTTPS end, byte by byte; and a whole replica, with its own rights only."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator

import pytest

from apiserver import ApiServer, Settings
from muslin.config import Controller
from muslin.controller import certificates, issuing, manifests, webhook
from muslin.controller.main import Replica
from muslin.controller.rollout import Rollout
from muslin.controller.webhook import MOST, Door
from muslin.errors import ConfigError
from muslin.kube import Access, Api
from muslin.kube.kinds import VALIDATING_WEBHOOKS
from muslin.kube.values import KINDS
from muslin.model import Pool
from muslin.store.url import KubernetesAt

HOST = "muslin-webhook.muslin-system.svc"
MATERIAL = issuing.make(certificates.Material(), "all", HOST, time.time())
POST = b"POST /validate?timeout=2s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"


class Client:
    """One connection, verified."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        async with asyncio.timeout(8):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            return int(head.split()[1]), await self.reader.readexactly(int(length or b"0"))

    async def ended(self) -> bool:
        async with asyncio.timeout(8):
            with contextlib.suppress(OSError):
                return await self.reader.read() == b""
        return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Bench:
    """A door that says how long the body was, and its clients."""

    def __init__(self) -> None:
        self.door = Door(lambda body: (200, str(len(body)).encode()))
        self.port = 0
        self._clients: list[Client] = []

    async def client(self) -> Client:
        context = ssl.create_default_context(cadata=MATERIAL.bundle)
        made = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname=HOST
        )
        self._clients.append(Client(*made))
        return self._clients[-1]

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await self.door.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates.install(context, MATERIAL)
    made.port = await made.door.open("127.0.0.1", 0, context)
    yield made
    await made.close()


async def test_one_connection_serves_many_requests(bench: Bench) -> None:
    client = await bench.client()
    for size in (0, 5, 100_000):
        await client.send(POST + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
        assert await client.answer() == (200, str(size).encode())


async def test_a_body_may_come_in_any_pieces(bench: Bench) -> None:
    client = await bench.client()
    for byte in POST + b"Content-Length: 3\r\n\r\nabc":
        await client.send(bytes([byte]))
    assert await client.answer() == (200, b"3")
    await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
    assert await client.answer() == (200, b"3")


async def test_requests_may_come_before_their_answers(bench: Bench) -> None:
    client = await bench.client()
    await client.send(b"".join(POST + b"Content-Length: %d\r\n\r\n" % n + b"x" * n for n in (1, 2)))
    assert [await client.answer(), await client.answer()] == [(200, b"1"), (200, b"2")]


async def test_who_asks_whether_to_go_on_is_told(bench: Bench) -> None:
    client = await bench.client()
    await client.send(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert await client.answer() == (100, b"")
    await client.send(b"abc")
    assert await client.answer() == (200, b"3")


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET /validate HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (POST.replace(b"/validate", b"/metrics") + b"Content-Length: 0\r\n\r\n", 404),
        (POST.replace(b"application/json", b"text/plain") + b"Content-Length: 0\r\n\r\n", 400),
        (POST + b"Content-Length: %d\r\n\r\n" % (MOST + 1), 413),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"X: " + b"y" * 200_000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01 nonsense\r\n\r\n", 400),
    ],
)
async def test_what_is_no_request_for_it_is_told_so_and_hung_up_on(
    bench: Bench, request_: bytes, code: int
) -> None:
    client = await bench.client()
    await client.send(request_)
    assert (await client.answer())[0] == code
    assert await client.ended()


async def test_more_than_it_takes_is_not_kept(bench: Bench) -> None:
    """Without a length it is found out on the way."""
    client = await bench.client()
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with contextlib.suppress(OSError):
        await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 49)
        assert (await client.answer())[0] == 413
    assert await client.ended()


async def test_who_is_slow_is_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "PATIENCE", 0.2)
    client = await bench.client()
    await client.send(POST[:20])
    assert await client.ended()
    monkeypatch.setattr(webhook, "IDLE", 0.2)
    client = await bench.client()
    assert await client.ended()


async def test_in_a_crowd_the_longest_idle_goes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "CROWD", 3)
    first, second, third = [await bench.client() for _ in range(3)]
    for client in (second, third, first):
        await client.send(POST + b"Content-Length: 0\r\n\r\n")
        assert (await client.answer())[0] == 200
    last = await bench.client()
    await last.send(POST + b"Content-Length: 0\r\n\r\n")
    assert (await last.answer())[0] == 200
    assert await second.ended()
    for client in (third, first):
        await client.send(POST)
    busy = await bench.client()
    assert await last.ended()
    await busy.send(POST + b"Content-Length: 0\r\n\r\n")
    assert (await busy.answer())[0] == 200


async def test_without_a_certificate_handshakes_fail_and_nothing_else() -> None:
    door = Door(lambda _: (200, b""))
    port = await door.open("127.0.0.1", 0, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context = ssl.create_default_context(cadata=MATERIAL.bundle)
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=HOST)
    with pytest.raises(ConfigError, match="MUSLIN_WEBHOOK"):
        await Door(lambda _: (200, b"")).open("127.0.0.1", port, context)
    await door.close()


@pytest.mark.steers
async def test_a_replica_with_its_own_rights_answers(unused_port: int) -> None:
    """From the manifests on: RBAC as it stands there, a Secret, a caBundle, a refusal."""
    async with ApiServer(settings=Settings(rbac=True)) as server:
        server.router.admission.resolve(lambda *_: f"https://127.0.0.1:{unused_port}")
        async with Api(Access(server=server.url, token="admin")) as admin:
            async for _ in Rollout(admin).apply(manifests.targets("vxlan")):
                pass
            token = server.accounts.service_account(
                "muslin-system", "muslin-controller", pod="x", node="n1"
            )
            listen, ours = "127.0.0.1:0", f"127.0.0.1:{unused_port}"
            given = Controller(identity="c", listen=listen, webhook=ours, lease=1)
            access = Access(server=server.url, token=token)
            running = asyncio.create_task(Replica(given, KubernetesAt(), access).run())
            try:
                async with asyncio.timeout(20):
                    while not await _refused(server):  # noqa: ASYNC110 - of a server
                        await asyncio.sleep(0.1)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            assert not await _refused(server), "it has gone, and nobody misses it"
            removed = [o.what async for o in Rollout(admin, dry_run=True).remove(purge=True)]
    named = "ValidatingWebhookConfiguration muslin"
    assert removed.count(named) == 1
    assert removed.index(named) < removed.index("Network default")


async def _refused(server: ApiServer) -> bool:
    async with Api(Access(server=server.url, token="admin"), dry_run=True) as dry:
        wide = {"metadata": {"name": "wide"}, "spec": {"cidr": "10.0.0.0/8"}}
        try:
            await dry.create(KINDS[Pool], wide)
        except ConfigError as e:
            assert "pool wide: 10.0.0.0/8 overlaps 10.244.0.0/16 of pool pods4" in str(e)
            found = await dry.get(VALIDATING_WEBHOOKS, "muslin") or {}
            assert found["webhooks"][0]["clientConfig"]["caBundle"]
            return True
        return False


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
