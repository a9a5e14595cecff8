"""How lists and ends of watches are counted, and who shows it."""

from __future__ import annotations

import pytest
from test_kube_watch_faults import watcher

from muslin.controller.metrics import Metrics
from muslin.kube import watch as watching
from muslin.tally import Tally
from scripted import GONE, Script, Scripted, config_map, event, silent, status, stream


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Tally:
    """What this test's watches do, and no other's."""
    fresh = Tally()
    monkeypatch.setattr(watching, "tally", fresh)
    monkeypatch.setattr("muslin.controller.metrics.tally", fresh)
    return fresh


@pytest.mark.parametrize(
    ("answer", "why", "lists"),
    [
        (status(410, "too old"), "gone", 2),
        (stream(event("ERROR", GONE)), "gone", 2),
        (stream(end=True), "ended", 1),
        (stream(drop=True), "error", 1),
        (status(500, "boom"), "error", 1),
        (status(403, "no"), "error", 1),
    ],
)
async def test_every_end_of_a_watch_is_counted_once_by_its_reason(
    counts: Tally, answer: Script, why: str, lists: int
) -> None:
    """And a list only where one was made: none for an end from which the watch resumes."""
    async with Scripted() as server:
        server.watches = [answer, stream(event("ADDED", config_map("a", 9)))]
        async with watcher(server) as it:
            await it.next()
            assert await it.next() == {"a": {}}
            assert counts.shown() == {"configmaps": {"lists": lists, "ends": {why: 1}}}
    assert counts.ends.total() == 1  # our own closing is none


async def test_a_half_open_connection_is_counted_as_silent(counts: Tally) -> None:
    async with Scripted() as server:
        server.watches = [stream()]
        async with watcher(server, idle=0.05) as it:
            await it.next()
            await it.until(lambda: counts.ends["configmaps", "silent"] > 0)
    assert {why for _, why in counts.ends} == {"silent"}
    assert counts.lists == {"configmaps": 1}


async def test_a_server_that_never_answers_is_an_error(counts: Tally) -> None:
    """Left at the deadline of requests: the watch was never open, so it could not fall silent."""
    async with Scripted() as server:
        server.watches = [silent, stream(event("ADDED", config_map("a", 2)))]
        async with watcher(server) as it:
            await it.next()
            await it.next()
    assert counts.shown() == {"configmaps": {"lists": 1, "ends": {"error": 1}}}


async def test_lists_that_fail_are_lists_and_no_ends_of_watches(counts: Tally) -> None:
    async with Scripted() as server:
        server.lists = [status(500, "boom")] * 2
        async with watcher(server) as it:
            await it.next()
    assert counts.shown() == {"configmaps": {"lists": 3, "ends": {}}}


def test_prometheus_is_told_as_counters(counts: Tally) -> None:
    counts.listed("pools.muslin.io")
    counts.listed("pools.muslin.io")
    counts.ended("pools.muslin.io", "gone")
    page = Metrics().text().decode().splitlines()
    assert "# TYPE muslin_watch_lists_total counter" in page
    assert 'muslin_watch_lists_total{resource="pools.muslin.io"} 2.0' in page
    assert 'muslin_watch_ends_total{reason="gone",resource="pools.muslin.io"} 1.0' in page
