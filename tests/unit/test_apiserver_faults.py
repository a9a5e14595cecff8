"""What the fake API server does wrong when it is told to, and what outlives it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from apiserver import ApiServer, Settings
from apiserver.client import Client

ROOT = Path(__file__).parents[2]
MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    async with ApiServer() as api:
        yield api


@pytest.fixture
async def client(api: ApiServer) -> AsyncIterator[Client]:
    async with Client(api.url) as client:
        yield client


async def put(api: ApiServer, name: str) -> None:
    await api.send("POST", MAPS, {"metadata": {"name": name}})


def now(api: ApiServer) -> str:
    return f"resourceVersion={api.storage.revision}"


async def test_refusals_come_as_often_as_asked_and_where_asked(
    api: ApiServer, client: Client
) -> None:
    api.faults.refuse(429, retry_after=2, times=2, where=lambda path: "configmaps" in path)
    assert (await client.ask("GET", "/api/v1/pods"))[0] == 200
    codes = [await client.ask("GET", MAPS) for _ in range(3)]
    assert [code for code, _ in codes] == [429, 429, 200]
    assert codes[0][1]["details"] == {"retryAfterSeconds": 2}
    api.faults.refuse(503, verbs=frozenset({"create"}))
    assert (await client.ask("GET", MAPS))[0] == 200
    assert (await client.ask("POST", MAPS, {"metadata": {"name": "a"}}))[0] == 503


async def test_a_dropped_connection_has_no_answer(api: ApiServer, client: Client) -> None:
    api.faults.drop()
    with pytest.raises(aiohttp.ClientError):
        await client.ask("POST", MAPS, {"metadata": {"name": "a"}})
    assert (await client.ask("GET", f"{MAPS}/a"))[0] == 404


async def test_answers_can_be_late(api: ApiServer, client: Client) -> None:
    api.faults.delay = 0.2
    started = asyncio.get_running_loop().time()
    assert (await client.ask("GET", MAPS))[0] == 200
    assert asyncio.get_running_loop().time() - started >= 0.2


async def test_a_silent_watch_stays_open_and_says_nothing(api: ApiServer, client: Client) -> None:
    async with client.watch(f"{MAPS}?{now(api)}&timeoutSeconds=1") as watch:
        with api.faults.silent_watches():
            await put(api, "a")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):  # not even an end after its time
                    await watch.line()
        await put(api, "b")
        with pytest.raises(TimeoutError):  # nor does it wake up
            async with asyncio.timeout(0.1):
                await watch.line()
        assert api.watchers == 1
    async with client.watch(f"{MAPS}?{now(api)}") as watch:
        await put(api, "c")
        assert await watch.told(1) == [("ADDED", "c")]


async def test_a_line_can_end_in_the_middle(api: ApiServer, client: Client) -> None:
    async with client.watch(f"{MAPS}?{now(api)}") as watch:
        api.faults.truncate()
        await put(api, "a")
        line = await watch.line()
        assert line.startswith(b'{"type":"ADDED"')
        assert not line.endswith(b"\n")
        assert await watch.line() == b""


async def test_a_line_cut_off_is_the_last_also_of_what_a_watch_has_missed(
    api: ApiServer, client: Client
) -> None:
    old = now(api)
    await put(api, "a")
    await put(api, "b")
    api.faults.truncate()
    async with client.watch(f"{MAPS}?{old}") as watch:
        line = await watch.line()
        assert line.startswith(b'{"type":"ADDED"')
        assert not line.endswith(b"\n")
        assert await watch.line() == b""
    async with client.watch(f"{MAPS}?{old}") as watch:
        assert await watch.told(2) == [("ADDED", "a"), ("ADDED", "b")]


async def test_watches_can_be_cut(api: ApiServer, client: Client) -> None:
    async with client.watch(f"{MAPS}?{now(api)}") as watch:
        api.faults.drop_watches()
        with pytest.raises(aiohttp.ClientPayloadError):
            await watch.rest()


async def test_a_restarted_front_has_the_objects_but_not_the_history(
    api: ApiServer, client: Client
) -> None:
    old = now(api)
    await put(api, "a")
    url = api.url
    await api.restart()
    assert api.url == url
    assert (await client.ask("GET", f"{MAPS}/a"))[0] == 200
    async with client.watch(f"{MAPS}?{old}") as watch:
        [event] = await watch.rest()
        assert event["object"]["code"] == 410
    async with client.watch(f"{MAPS}?{now(api)}") as watch:
        await put(api, "b")
        assert await watch.told(1) == [("ADDED", "b")]


async def test_a_restart_may_keep_the_history(api: ApiServer, client: Client) -> None:
    old = now(api)
    await put(api, "a")
    await api.restart(keep_history=True)
    async with client.watch(f"{MAPS}?{old}") as watch:
        assert await watch.told(1) == [("ADDED", "a")]


async def test_a_stopped_front_refuses_connections(api: ApiServer, client: Client) -> None:
    await api.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.ask("GET", MAPS)
    await api.start()
    assert (await client.ask("GET", MAPS))[0] == 200


POOLS = {
    "metadata": {"name": "pools.muslin.io"},
    "spec": {
        "group": "muslin.io",
        "scope": "Cluster",
        "names": {"plural": "pools", "kind": "Pool"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


async def test_a_new_kind_takes_its_time() -> None:
    """404 until it is served; then its lists work before its watches do."""
    settings = Settings(establish_delay=0.15, cache_delay=0.15)
    async with ApiServer(settings=settings) as api, Client(api.url) as client:
        await api.send("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", POOLS)
        path = "/apis/muslin.io/v1/pools"
        assert await client.ask("GET", path) == (404, "404 page not found\n")
        await asyncio.sleep(0.2)
        assert (await client.ask("GET", path))[0] == 200
        status, body = await client.ask("GET", f"{path}?watch=true")
        assert (status, body["message"]) == (429, "storage is (re)initializing")
        await asyncio.sleep(0.2)
        async with client.watch(f"{path}?{now(api)}") as watch:
            assert watch.response.status == 200


async def test_a_kind_that_goes_takes_its_objects_and_ends_its_watches(
    api: ApiServer, client: Client
) -> None:
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    await api.send("POST", crds, POOLS)
    pool = {"apiVersion": "muslin.io/v1", "kind": "Pool", "metadata": {"name": "a"}}
    await api.send("POST", "/apis/muslin.io/v1/pools", pool)
    async with client.watch(f"/apis/muslin.io/v1/pools?{now(api)}") as watch:
        await api.send("DELETE", f"{crds}/pools.muslin.io")
        assert [event["type"] for event in await watch.rest()] == ["DELETED"]
    assert (await client.ask("GET", "/apis/muslin.io/v1/pools"))[0] == 404


@pytest.fixture
def process(tmp_path: Path) -> Iterator[object]:
    """Start servers in processes of their own, on one state."""
    started: list[subprocess.Popen[str]] = []

    def start(port: int = 0) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "tests.apiserver", "--port", str(port)]
        command += ["--state", str(tmp_path / "state"), "--kubeconfig", str(tmp_path / "config")]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(server)
        assert server.stdout is not None
        return server, server.stdout.readline().strip()

    yield start
    for server in started:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


async def test_a_killed_process_leaves_its_state_to_the_next(process: object) -> None:
    assert callable(process)
    server, url = await asyncio.to_thread(process)
    async with Client(url) as client:
        for name in ("a", "b"):
            await client.ask("POST", MAPS, {"metadata": {"name": name}})
        await client.ask("DELETE", f"{MAPS}/a")
        before = (await client.ask("GET", MAPS))[1]
    server.send_signal(signal.SIGKILL)
    server.wait()
    _, again = await asyncio.to_thread(process, int(url.rpartition(":")[2]))
    assert again == url
    async with Client(url) as client:
        assert (await client.ask("GET", MAPS))[1] == before
        version = before["metadata"]["resourceVersion"]
        async with client.watch(f"{MAPS}?resourceVersion={version}") as watch:
            await client.ask("POST", MAPS, {"metadata": {"name": "c"}})
            assert await watch.told(1) == [("ADDED", "c")]
