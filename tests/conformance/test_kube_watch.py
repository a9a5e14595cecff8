"""Watches beside an API server that is written to, killed, compacted: in the end they know all.

The server is the one in `tests/apiserver`, which answers as a recorded 1.36 does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from apiserver import ApiServer, Certificate, Settings
from muslin.errors import Conflict, NotReady
from muslin.kube import Api, kubeconfig
from muslin.kube.kinds import CONFIG_MAPS, NAMESPACES, PODS, Kind
from muslin.kube.slim import ConfigMap, Pod
from muslin.log import log

NASTY = ("\x85", "\u2028", "\u2029", '"', "'", "\\", "\n", "\r\n", "\x0b\x0c\x1c", "ü€𝄞", "")
Uniform = Callable[[float, float], float]


def quick(low: float, high: float) -> float:
    """Pauses a hundredth as long."""
    return random.uniform(low, high) / 100


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "sink", lambda *_: None)


@pytest.fixture(params=["event", "status"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[ApiServer]:
    """One that says 410 in either way."""
    settings = Settings(plain_gone=request.param == "status", bookmark_interval=0.3)
    async with ApiServer(settings=settings) as made:
        yield made


@asynccontextmanager
async def reach(
    server: ApiServer, path: Path, *, idle: float = 100.0, uniform: Uniform = quick
) -> AsyncIterator[Api]:
    at = kubeconfig(server.kubeconfig(path / "kubeconfig"))
    async with Api(at, timeout=2.0, idle=idle, uniform=uniform) as api:
        yield api


class Follower:
    """A watch that is read all the time, and checks that it is told only what is news."""

    def __init__(self, api: Api, kind: Kind, type_: type[Any], **query: str) -> None:
        self._watch = api.watch(kind, type=type_, **query)
        self.state: dict[tuple[str, str], Any] = {}
        self.batches = 0
        self._news = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with aclosing(self._watch) as batches:
            async for batch in batches:
                self.batches += 1
                assert len({(c.namespace, c.name) for c in batch}) == len(batch)
                for change in batch:
                    self._take((change.namespace, change.name), change.object)
                self._news.set()

    def _take(self, key: tuple[str, str], found: Any) -> None:
        if found is None:
            del self.state[key]  # which was told, then
        else:
            assert self._version(key) != found.metadata.resource_version, "told twice"
            self.state[key] = found

    def _version(self, key: tuple[str, str]) -> str:
        return self.state[key].metadata.resource_version if key in self.state else ""

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._news.clear()
                waiting = asyncio.create_task(self._news.wait())
                await asyncio.wait([waiting, self._reader], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self._reader.done():
                    self._reader.result()
                    pytest.fail("the watch has ended")

    @property
    def versions(self) -> dict[str, str]:
        return {name: found.metadata.resource_version for (_, name), found in self.state.items()}

    async def stop(self) -> None:
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader


async def insist(action: Callable[[], Any]) -> None:
    """Do it until the server could be asked; a Conflict or a missing object is an answer."""
    while True:
        try:
            await action()
        except Conflict:
            return
        except NotReady:
            await asyncio.sleep(0.01)
        else:
            return


async def write(api: Api, seed: int, times: int) -> None:
    """One writer: creates, patches and deletes among twenty names, values as bad as they come."""
    draw = random.Random(seed)
    for n in range(times):
        name = f"m{draw.randrange(20)}"
        value = "".join(draw.choices(NASTY, k=5)) + f"{seed}.{n}"
        body = {"metadata": {"name": name}, "data": {"x": value}}
        at: dict[str, Any] = {"namespace": "ns"}
        do: list[Callable[[], Any]] = [
            lambda b=body, a=at: api.create(CONFIG_MAPS, b, **a),
            lambda m=name, b=body, a=at: api.patch(CONFIG_MAPS, m, b, **a),
            lambda m=name, b=body, a=at: api.patch(CONFIG_MAPS, m, b, **a),
            lambda m=name, a=at: api.delete(CONFIG_MAPS, m, **a),
        ]
        await insist(draw.choice(do))
        await asyncio.sleep(draw.random() * 0.01)


async def harm(server: ApiServer, seed: int, done: asyncio.Event) -> None:
    """What befalls the server meanwhile."""
    draw = random.Random(seed)
    while not done.is_set():
        await asyncio.sleep(draw.random() * 0.15)
        match draw.randrange(8):
            case 0:
                await server.restart(keep_history=True)
            case 1:
                await server.restart()  # forgets what was before
            case 2:
                server.faults.compact()
                server.faults.drop_watches()
            case 3:
                server.faults.drop_watches()
            case 4:
                server.faults.truncate()
            case 5:
                server.faults.refuse(draw.choice([429, 500, 503, 504]), times=3)
            case 6:
                server.faults.drop(times=2)
            case 7:
                server.bookmark()
    server.faults.clear()


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_befalls_a_server_a_watch_ends_with_the_truth(
    server: ApiServer, tmp_path: Path, seed: int
) -> None:
    done = asyncio.Event()
    async with reach(server, tmp_path) as api, reach(server, tmp_path) as writer:
        await api.create(NAMESPACES, {"metadata": {"name": "ns"}})
        followers = [Follower(api, CONFIG_MAPS, ConfigMap, namespace="ns") for _ in range(3)]
        harming = asyncio.create_task(harm(server, seed, done))
        await asyncio.gather(*(write(writer, seed * 8 + n, 60) for n in range(8)))
        done.set()
        await harming
        last = {"metadata": {"name": "last"}, "data": {}}
        await insist(lambda: writer.create(CONFIG_MAPS, last, namespace="ns"))
        listed = await writer.list(CONFIG_MAPS, namespace="ns", type=ConfigMap)
        truth = {o.metadata.name: o.metadata.resource_version for o in listed.items}
        for follower in followers:
            await follower.until(lambda f=follower: f.versions == truth)  # type: ignore[misc]
            shown = {name: found.data for (_, name), found in follower.state.items()}
            assert shown == {o.metadata.name: o.data for o in listed.items}
            await follower.stop()


async def test_a_server_that_comes_back_is_not_listed_again(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(server.faults, "check", lambda path, verb: asked.append(verb))
    async with reach(server, tmp_path) as api:
        await api.create(NAMESPACES, {"metadata": {"name": "ns"}})
        follower = Follower(api, CONFIG_MAPS, ConfigMap, namespace="ns")
        await follower.until(lambda: follower.batches > 0)
        for n in range(5):
            await server.restart(keep_history=True)
            body = {"metadata": {"name": f"m{n}"}}
            await insist(lambda b=body: api.create(CONFIG_MAPS, b, namespace="ns"))  # type: ignore[misc]
            await follower.until(lambda n=n: len(follower.state) == n + 1)  # type: ignore[misc]
        await follower.stop()
    assert asked.count("list") == 1
    assert asked.count("watch") >= 5


async def test_a_line_cut_off_among_those_that_were_missed_comes_again(
    server: ApiServer, tmp_path: Path
) -> None:
    async with reach(server, tmp_path) as api:
        await api.create(NAMESPACES, {"metadata": {"name": "ns"}})
        follower = Follower(api, CONFIG_MAPS, ConfigMap, namespace="ns")
        await follower.until(lambda: follower.batches > 0)
        await server.stop(abort=True)
        for name in ("a", "b"):
            await server.send("POST", CONFIG_MAPS.path("ns"), {"metadata": {"name": name}})
        server.faults.truncate()
        await server.start()
        await follower.until(lambda: set(follower.versions) == {"a", "b"})
        assert server.faults.torn == 0
        await follower.stop()


async def test_a_half_open_connection_is_left_and_nothing_is_missed(
    server: ApiServer, tmp_path: Path
) -> None:
    """Silent from its first byte on: what it does not say, the next one does."""
    server.settings.bookmark_interval = 60.0
    async with reach(server, tmp_path, idle=0.5) as api:
        await api.create(NAMESPACES, {"metadata": {"name": "ns"}})
        with server.faults.silent_watches():
            follower = Follower(api, CONFIG_MAPS, ConfigMap, namespace="ns")
            await follower.until(lambda: follower.batches > 0)
            await api.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, namespace="ns")
            await asyncio.sleep(0.2)
            assert follower.state == {}
        await follower.until(lambda: len(follower.state) == 1)
        await follower.stop()


async def test_the_pods_of_a_node_come_when_they_are_bound_and_go_when_deleted(
    server: ApiServer, tmp_path: Path
) -> None:
    async with reach(server, tmp_path) as api:
        await api.create(NAMESPACES, {"metadata": {"name": "ns"}})
        follower = Follower(api, PODS, Pod, fields="spec.nodeName=n1")
        for name in ("mine", "other", "early"):
            spec: dict[str, Any] = {"containers": [{"name": "c", "image": "i"}]}
            if name == "early":
                spec["nodeName"] = "n1"
            await api.create(PODS, {"metadata": {"name": name}, "spec": spec}, namespace="ns")
        for name, node in (("mine", "n1"), ("other", "n2")):
            target = {"apiVersion": "v1", "kind": "Node", "name": node}
            body = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": name},
                "target": target,
            }
            await server.send("POST", PODS.path("ns", name, "binding"), body)
        await follower.until(lambda: set(follower.versions) == {"early", "mine"})
        assert follower.state["ns", "mine"].spec.node_name == "n1"
        await api.delete(PODS, "mine", namespace="ns", grace=0)
        await follower.until(lambda: set(follower.versions) == {"early"})
        await follower.stop()


async def test_a_label_that_is_lost_is_a_deletion(server: ApiServer, tmp_path: Path) -> None:
    async with reach(server, tmp_path) as api:
        await api.create(NAMESPACES, {"metadata": {"name": "ns"}})
        body = {"metadata": {"name": "a", "labels": {"k": "1"}}}
        await api.create(CONFIG_MAPS, body, namespace="ns")
        follower = Follower(api, CONFIG_MAPS, ConfigMap, labels="k=1")
        await follower.until(lambda: len(follower.state) == 1)
        change = {"metadata": {"labels": {"k": None}}}
        await api.patch(CONFIG_MAPS, "a", change, namespace="ns")
        await follower.until(lambda: not follower.state)
        await follower.stop()


async def test_lists_of_many_pages_are_of_one_instant(server: ApiServer, tmp_path: Path) -> None:
    async with reach(server, tmp_path) as api:
        await api.create(NAMESPACES, {"metadata": {"name": "ns"}})
        for n in range(1100):
            await server.send(
                "POST", CONFIG_MAPS.path("ns"), {"metadata": {"name": f"m{n}"}, "data": {}}
            )
        listed = await api.list(CONFIG_MAPS, namespace="ns", type=ConfigMap)
        assert len({o.metadata.name for o in listed.items}) == 1100
        follower = Follower(api, CONFIG_MAPS, ConfigMap, namespace="ns")
        await follower.until(lambda: len(follower.state) == 1100)
        await follower.stop()


async def test_watches_go_over_tls(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path)
    async with ApiServer(tls=certificate) as server, reach(server, tmp_path) as api:
        await api.create(NAMESPACES, {"metadata": {"name": "ns"}})
        follower = Follower(api, NAMESPACES, ConfigMap)
        await follower.until(lambda: ("", "ns") in follower.state)
        await server.restart()
        await insist(lambda: api.delete(NAMESPACES, "ns"))
        await follower.until(lambda: follower.batches > 1)
        await follower.stop()
