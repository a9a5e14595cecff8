"""Every store behind one fixture, and real etcd processes for as long as a test needs them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from benches import Bench, Etcd, need_etcd
from typed import Typed

from muslin.kube import Api
from muslin.kube.values import KINDS
from muslin.store import Store
from muslin.store.etcd import EtcdStore
from muslin.store.kubernetes import SERVED, KubernetesStore
from muslin.store.memory import MemoryStore
from muslin.store.promises import Expiry
from muslin.store.sqlite import SqliteStore
from muslin.store.url import EtcdAt
from servers import Serve

_numbers = itertools.count()


@pytest.fixture
def etcd_process(tmp_path: Path) -> Iterator[Callable[..., Etcd]]:
    """Start etcd processes of this test's own; they end with it."""
    started: list[Etcd] = []

    def start(*options: str, scheme: str = "http") -> Etcd:
        need_etcd()
        directory = tmp_path / f"etcd{len(started)}"
        directory.mkdir()
        etcd = Etcd(directory, *options, scheme=scheme)
        started.append(etcd)
        etcd.start()
        return etcd

    yield start
    for etcd in started:
        etcd.stop()


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Etcd]]:
    """One etcd for all tests that do not harm it, started by the first."""
    started: list[Etcd] = []

    def get() -> Etcd:
        if not started:
            need_etcd()
            etcd = Etcd(tmp_path_factory.mktemp("etcd"))
            started.append(etcd)
            etcd.start()
        return started[0]

    yield get
    for etcd in started:
        etcd.stop()


@asynccontextmanager
async def _api_server(serve: Serve) -> AsyncIterator[Callable[[], Store]]:
    """Stores on an API server with our kinds, and one who ends leases, as the controller does."""
    kinds = [KINDS[k] for k in SERVED]
    async with serve() as server, AsyncExitStack() as stack:
        await server.define()

        def open_() -> Store:
            store = KubernetesStore(Api(server.access()), namespace="default")
            return Typed(store)

        api = await stack.enter_async_context(Api(server.access()))
        expiry = asyncio.create_task(Expiry(api, "default", kinds, grace=0.5).run(pause=0.1))
        yield open_
        expiry.cancel()
        await asyncio.gather(expiry, return_exceptions=True)


@pytest.fixture(params=["memory", "sqlite", "etcd", "kubernetes"])
async def bench(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    shared_etcd: Callable[[], Etcd],
    serve: Serve,
) -> AsyncIterator[Bench]:
    """Each store in turn, empty."""
    if request.config.getoption("--cluster") and request.param != "kubernetes":
        pytest.skip(f"{request.param} is no cluster")
    opened: list[Store] = []

    def keep(store: Store) -> Store:
        opened.append(store)
        return store

    match request.param:
        case "memory":
            clock = _Clock()
            memory = keep(MemoryStore(clock))

            async def elapse(seconds: float) -> None:
                clock.now += seconds
                assert isinstance(memory, MemoryStore)
                memory.tick()

            yield Bench("memory", lambda: memory, elapse)
        case "sqlite":
            path = tmp_path / "store.db"
            yield Bench("sqlite", lambda: keep(SqliteStore(path)), asyncio.sleep)
        case "etcd":
            at = EtcdAt(members=(shared_etcd().address,), prefix=f"/test{next(_numbers)}/")
            yield Bench("etcd", lambda: keep(EtcdStore(at)), asyncio.sleep)
        case "kubernetes":
            async with _api_server(serve) as open_:
                yield Bench("kubernetes", lambda: keep(open_()), asyncio.sleep)
                for store in opened:
                    await store.close()
    for store in opened:
        await store.close()


@pytest.fixture
def store(bench: Bench) -> Store:
    """One handle on an empty store."""
    return bench.open()


@dataclass
class _Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now
