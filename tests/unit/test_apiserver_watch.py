"""Watches of the fake API server: what the recording of a real one does not show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from apiserver import ApiServer, Settings
from apiserver.client import Client
from apiserver.encode import decode
from apiserver.kubelet import Kubelet, pod

MAPS = "/api/v1/namespaces/default/configmaps"
MERGE = "application/merge-patch+json"


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    async with ApiServer() as api:
        yield api


@pytest.fixture
async def client(api: ApiServer) -> AsyncIterator[Client]:
    async with Client(api.url) as client:
        yield client


def config(name: str, data: str = "", **labels: str) -> dict[str, object]:
    meta = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"x": data}}


async def label(api: ApiServer, name: str, value: str | None) -> None:
    patch = {"metadata": {"labels": {"app": value}}}
    await api.send("PATCH", f"{MAPS}/{name}", patch, content_type=MERGE)


def now(api: ApiServer) -> str:
    return f"resourceVersion={api.storage.revision}"


async def test_an_object_that_enters_a_selector_is_added_and_one_that_leaves_is_deleted(
    api: ApiServer, client: Client
) -> None:
    await api.send("POST", MAPS, config("a", app="other"))
    async with client.watch(f"{MAPS}?labelSelector=app%3Dweb&{now(api)}") as watch:
        await label(api, "a", "web")
        await label(api, "a", "web2")
        await label(api, "a", "web")
        await api.send("DELETE", f"{MAPS}/a")
        kinds = ["ADDED", "DELETED", "ADDED", "DELETED"]
        assert await watch.told(4) == [(kind, "a") for kind in kinds]


async def test_what_leaves_a_selector_is_shown_as_it_was_at_the_new_version(
    api: ApiServer, client: Client
) -> None:
    await api.send("POST", MAPS, config("a", app="web"))
    async with client.watch(f"{MAPS}?labelSelector=app%3Dweb&{now(api)}") as watch:
        await label(api, "a", None)
        gone = (await watch.next())["object"]["metadata"]
        assert gone["labels"] == {"app": "web"}
        assert gone["resourceVersion"] == str(api.storage.revision)


async def test_a_pod_enters_the_watch_of_its_node_when_it_is_bound(
    api: ApiServer, client: Client
) -> None:
    kubelet = Kubelet(api.send)
    path = f"/api/v1/pods?fieldSelector=spec.nodeName%3Dn1&{now(api)}"
    async with client.watch(path) as watch:
        for name, node in (("elsewhere", "n2"), ("here", "n1")):
            await kubelet.create(pod(name))
            await kubelet.schedule("default", name, node)
        await kubelet.delete("default", "here", grace=0)
        told = await watch.told(3)
        assert told == [("ADDED", "here"), ("MODIFIED", "here"), ("DELETED", "here")]


async def test_a_resumed_watch_misses_nothing_and_repeats_nothing(
    api: ApiServer, client: Client
) -> None:
    start = now(api)
    await api.send("POST", MAPS, config("a"))
    middle = now(api)
    await label(api, "a", "1")
    await api.send("DELETE", f"{MAPS}/a")
    async with client.watch(f"{MAPS}?{start}") as watch:
        assert [kind for kind, _ in await watch.told(3)] == ["ADDED", "MODIFIED", "DELETED"]
    async with client.watch(f"{MAPS}?{middle}") as watch:
        assert [kind for kind, _ in await watch.told(2)] == ["MODIFIED", "DELETED"]


async def test_a_compacted_watch_gets_an_error_event(api: ApiServer, client: Client) -> None:
    await api.send("POST", MAPS, config("a"))
    api.faults.compact()
    async with client.watch(f"{MAPS}?resourceVersion=1") as watch:
        assert watch.response.status == 200
        [event] = await watch.rest()
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
    api.settings.plain_gone = True
    async with client.watch(f"{MAPS}?resourceVersion=1") as watch:
        assert watch.response.status == 410


async def test_a_watch_from_the_future_waits_for_it(api: ApiServer, client: Client) -> None:
    later = api.storage.revision + 2
    async with client.watch(f"{MAPS}?resourceVersion={later}") as watch:
        for name in ("a", "b", "c"):
            await api.send("POST", MAPS, config(name))
        assert await watch.told(1) == [("ADDED", "c")]


async def test_without_a_version_what_is_there_comes_first(api: ApiServer, client: Client) -> None:
    await api.send("POST", MAPS, config("a"))
    async with client.watch(MAPS) as watch:
        await api.send("POST", MAPS, config("b"))
        assert await watch.told(2) == [("ADDED", "a"), ("ADDED", "b")]


async def test_initial_events_end_with_a_bookmark_where_etcd_reports_progress(
    api: ApiServer, client: Client
) -> None:
    api.settings.progress = True
    await api.send("POST", MAPS, config("a"))
    path = f"{MAPS}?sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    async with client.watch(f"{path}&allowWatchBookmarks=true") as watch:
        first, mark = await watch.next(), await watch.next()
    assert (first["type"], mark["type"]) == ("ADDED", "BOOKMARK")
    assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_bookmarks_come_in_their_interval_and_only_where_asked_for() -> None:
    settings = Settings(bookmark_interval=0.05)
    async with ApiServer(settings=settings) as api, Client(api.url) as client:
        await api.send("POST", MAPS, config("a"))
        path = f"{MAPS}?{now(api)}"
        async with (
            client.watch(f"{path}&allowWatchBookmarks=true") as asked,
            client.watch(path) as silent,
        ):
            assert [kind for kind, _ in await asked.told(2)] == ["BOOKMARK", "BOOKMARK"]
            await api.send("POST", MAPS, config("b"))
            assert await silent.told(1) == [("ADDED", "b")]


async def test_a_quiet_resource_gets_no_bookmark(api: ApiServer, client: Client) -> None:
    path = f"/api/v1/secrets?allowWatchBookmarks=true&timeoutSeconds=1&{now(api)}"
    async with client.watch(path) as watch:
        api.bookmark()
        assert await watch.rest() == []


async def test_lines_are_escaped_as_go_does(api: ApiServer, client: Client) -> None:
    """U+0085 stays as it is: a client that splits lines there breaks, as with a real server."""
    async with client.watch(f"{MAPS}?{now(api)}") as watch:
        await api.send("POST", MAPS, config("a", "<&>\u0085\u2028\u2029"))
        line = await watch.line()
    assert "\\u003c\\u0026\\u003e\u0085\\u2028\\u2029".encode() in line
    assert line.count(b"\n") == 1


async def test_a_watch_ends_after_its_time(api: ApiServer, client: Client) -> None:
    async with client.watch(f"{MAPS}?timeoutSeconds=1") as watch:
        assert await watch.rest() == []
    assert api.watchers == 0


async def test_a_client_that_goes_is_forgotten(api: ApiServer, client: Client) -> None:
    async with client.watch(f"{MAPS}?{now(api)}") as watch:
        assert api.watchers == 1
        watch.response.close()
    await api.send("POST", MAPS, config("a"))
    assert await _becomes(lambda: api.watchers == 0)


async def _becomes(condition: Callable[[], bool]) -> bool:
    for _ in range(200):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_table_watch_shows_rows(api: ApiServer) -> None:
    await api.send("POST", MAPS, config("a"))
    headers = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{api.url}{MAPS}") as response,
    ):
        table = decode(await response.read())
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Data", "Age"]
    assert table["rows"][0]["cells"][:2] == ["a", 1]
