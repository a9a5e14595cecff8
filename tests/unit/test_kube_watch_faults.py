"""What can befall a watch, a test for each trap that lightkube's falls into; a scripted server."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import msgspec
import pytest

from muslin.errors import ConfigError
from muslin.kube import Access, Api, Change
from muslin.kube import watch as watching
from muslin.kube.kinds import CONFIG_MAPS, PODS, muslin
from muslin.kube.pauses import AGENTS, RESUME, SPREAD, pauses, relists
from muslin.kube.slim import ConfigMap, Pod
from muslin.log import log
from scripted import (
    GONE,
    Reply,
    Request,
    Script,
    Scripted,
    bookmark,
    config_map,
    event,
    silent,
    status,
    stream,
    text,
)

Batches = AsyncGenerator[tuple[Change[ConfigMap], ...], None]


def quick(_: float, high: float) -> float:
    """Pauses a thousandth as long."""
    return high / 1000


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with Scripted() as server:
        yield server


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    lines: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(log, "sink", lambda _, name, fields: lines.append((name, fields)))
    return lines


class Watcher:
    """A watch that is read step by step, and what it was told so far."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._reader: asyncio.Future[tuple[Change[ConfigMap], ...]] | None = None
        self.state: dict[str, dict[str, str]] = {}
        self.told: list[str] = []

    async def next(self) -> dict[str, dict[str, str]]:
        """Read one batch more."""
        reader = self._reading()
        async with asyncio.timeout(10):
            batch = await reader
        self._reader = None
        assert len({(c.namespace, c.name) for c in batch}) == len(batch)
        for change in batch:
            if change.object is None:
                del self.state[change.name]
                self.told.append(f"-{change.name}")
            else:
                self.state[change.name] = change.object.data or {}
                self.told.append(f"+{change.name}")
        return self.state

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let it go on until something holds that it does not tell."""
        reader = self._reading()
        async with asyncio.timeout(10):
            while not condition():
                assert not reader.done(), reader.result()
                await asyncio.sleep(0.005)

    async def nothing_for(self, seconds: float) -> None:
        reader = self._reading()
        await asyncio.wait([reader], timeout=seconds)
        assert not reader.done(), reader.result()

    async def stop(self) -> None:
        if self._reader:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    def _reading(self) -> asyncio.Future[tuple[Change[ConfigMap], ...]]:
        self._reader = self._reader or asyncio.ensure_future(anext(self._batches))
        return self._reader


@asynccontextmanager
async def watcher(
    server: Scripted | Access, *, idle: float = 100.0, uniform: Callable[..., float] = quick
) -> AsyncIterator[Watcher]:
    at = server.access if isinstance(server, Scripted) else server
    async with (
        Api(at, idle=idle, timeout=2.0, uniform=uniform) as api,
        aclosing(api.watch(CONFIG_MAPS, type=ConfigMap)) as batches,
    ):
        it = Watcher(batches)
        try:
            yield it
        finally:
            await it.stop()


async def test_the_first_batch_is_the_whole_state(server: Scripted) -> None:
    server.put("a", 1, x="1")
    server.put("b", 2, x="2")
    async with watcher(server) as it:
        assert await it.next() == {"a": {"x": "1"}, "b": {"x": "2"}}


class Weak(msgspec.Struct, weakref=True, eq=False):
    """An object whose end can be seen."""


async def test_a_watch_that_waits_keeps_nothing_of_what_it_told(server: Scripted) -> None:
    """The first batch may be ten thousand objects, with the pages that they came in."""
    server.put("a", 1)
    server.watches = [stream(event("ADDED", config_map("b", 2)))]
    alive: weakref.WeakSet[Weak] = weakref.WeakSet()
    counts: list[int] = []

    async def read() -> None:
        async with aclosing(api.watch(CONFIG_MAPS, type=Weak)) as batches:
            async for batch in batches:
                alive.update(c.object for c in batch if c.object)
                counts.append(len(alive))
                del batch

    async with Api(server.access, uniform=quick) as api:
        reader = asyncio.create_task(read())
        async with asyncio.timeout(10):
            while len(counts) < 2:  # noqa: ASYNC110 - a generator tells nobody
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        gc.collect()
        assert counts == [1, 1]
        assert not alive
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def test_the_first_batch_may_be_empty(server: Scripted) -> None:
    server.watches = [stream(event("ADDED", config_map("a", 2)))]
    async with watcher(server) as it:
        assert await it.next() == {}
        assert await it.next() == {"a": {}}


async def test_a_watch_asks_for_bookmarks_and_names_the_version_of_the_list(
    server: Scripted,
) -> None:
    """Without a version a server streams all as ADDED, or fails where etcd cannot tell progress."""
    server.put("a", 7)
    async with watcher(server, uniform=random.uniform) as it:
        await it.next()
        await it.until(lambda: len(server.requests) == 2)
    query = server.requests[1].query
    assert query["resourceVersion"] == "7"
    assert query["allowWatchBookmarks"] == "true"
    assert 240 <= int(query["timeoutSeconds"]) <= 480


async def test_lists_are_read_in_pages(server: Scripted) -> None:
    async def page(request: Request, reply: Reply) -> None:
        first = "continue" not in request.query
        meta = {"resourceVersion": "9", **({"continue": "n=x"} if first else {})}
        item = config_map("a" if first else "b", 1)
        await reply.json(200, {"metadata": meta, "items": [item]})

    server.lists = [page, page]
    async with watcher(server) as it:
        assert await it.next() == {"a": {}, "b": {}}
        await it.until(lambda: len(server.requests) == 3)
    assert [r.query.get("limit") for r in server.requests] == ["500", "500", None]
    assert server.asked[2] == "9"


async def test_a_line_ends_at_a_newline_and_nowhere_else(server: Scripted) -> None:
    """U+0085, sent as it is by API servers, ends a line for whoever decodes text first."""
    nasty = "".join(map(chr, (0x85, 0x2028, 0x2029, 0x0B, 0x0C, 0x1C, 0x1D, 0x1E))) + "\"'\\ü"
    server.watches = [stream(event("ADDED", config_map("a", 2, x=nasty)))]
    async with watcher(server) as it:
        await it.next()
        assert await it.next() == {"a": {"x": nasty}}


async def test_lines_come_cut_anywhere(server: Scripted) -> None:
    data = event("ADDED", config_map("a", 2, x="ü\x85")) + event("ADDED", config_map("b", 3))
    server.watches = [stream(*(data[i : i + 7] for i in range(0, len(data), 7)))]
    async with watcher(server) as it:
        await it.next()
        await it.next()
        assert await it.next() == {"a": {"x": "ü\x85"}, "b": {}}


async def test_a_batch_holds_one_change_per_object(server: Scripted) -> None:
    lines = [event("ADDED", config_map("a", n, x=str(n))) for n in (2, 3, 4)]
    lines += [event("ADDED", config_map("b", 5)), event("DELETED", config_map("b", 6))]
    server.watches = [stream(b"".join(lines))]
    async with watcher(server) as it:
        await it.next()
        assert await it.next() == {"a": {"x": "4"}}
        assert it.told == ["+a"]


async def test_a_bookmark_with_nulls_moves_the_version(server: Scripted) -> None:
    """1.36 sends `"containers": null` in a Pod's bookmark, which no full model accepts."""
    server.watches = [stream(bookmark(50), end=True)]
    async with (
        Api(server.access, uniform=quick) as api,
        aclosing(api.watch(PODS, type=Pod)) as batches,
    ):
        assert await anext(batches) == ()
        it = Watcher(batches)  # type: ignore[arg-type]
        await it.until(lambda: len(server.requests) == 3)
        await it.stop()
    assert server.asked == ["list", "1", "50"]


async def test_empty_lines_and_unknown_events_are_passed_over(server: Scripted) -> None:
    odd = event("FUTURE", config_map("odd", 9))
    server.watches = [stream(b"\n\r\n", odd, event("ADDED", config_map("a", 2)), end=True)]
    async with watcher(server) as it:
        await it.next()
        assert await it.next() == {"a": {}}
        await it.until(lambda: len(server.requests) == 3)
    assert server.asked == ["list", "1", "2"]


@pytest.mark.parametrize("how", ["status", "event"])
async def test_after_410_the_difference_is_told_deletes_included(
    server: Scripted, how: str
) -> None:
    """Old servers say so by status, 1.36 by 200 and an ERROR event.  lightkube leaves ghosts."""
    server.put("kept", 1)
    server.put("changed", 2, x="1")
    server.put("gone", 3)

    async def meanwhile(request: Request, reply: Reply) -> None:
        del server.objects["gone"]
        server.put("changed", 8, x="2")
        server.put("new", 9)
        script = stream(event("ERROR", GONE)) if how == "event" else status(410, "too old")
        await script(request, reply)

    server.watches = [meanwhile]
    async with watcher(server) as it:
        await it.next()
        assert await it.next() == {"kept": {}, "changed": {"x": "2"}, "new": {}}
        assert it.told[3:] == ["+changed", "+new", "-gone"]


async def test_what_came_before_an_error_in_the_same_chunk_is_told(server: Scripted) -> None:
    server.watches = [stream(event("ADDED", config_map("a", 2)) + event("ERROR", GONE))]
    async with watcher(server) as it:
        await it.next()
        assert await it.next() == {"a": {}}
        server.put("b", 3)
        server.put("a", 2)
        assert await it.next() == {"a": {}, "b": {}}
        assert it.told == ["+a", "+b"]


async def test_410_on_a_page_starts_the_list_over(server: Scripted) -> None:
    server.put("a", 5)

    async def first(_: Request, reply: Reply) -> None:
        meta = {"resourceVersion": "4", "continue": "n=x"}
        await reply.json(200, {"metadata": meta, "items": [config_map("ghost", 4)]})

    server.lists = [first, status(410, "The provided continue parameter is too old")]
    async with watcher(server) as it:
        assert await it.next() == {"a": {}}


@pytest.mark.parametrize(("own", "first"), [({}, 20.0), ({"spread": 3.0}, 3.0)])
async def test_relists_after_410_are_spread_as_told_and_ever_slower(
    own: dict[str, float], first: float
) -> None:
    """A server that was restarted says 410 to all its 1000 watchers in the same second."""
    async with Scripted() as server:
        server.watches = [status(410)] * 6
        drawn = []

        def uniform(low: float, high: float) -> float:
            drawn.append((low, high))
            return 0.001

        async with (
            Api(server.access, timeout=2.0, spread=20.0, uniform=uniform) as api,
            aclosing(api.watch(CONFIG_MAPS, type=ConfigMap, **own)) as batches,
        ):
            it = Watcher(batches)
            await it.next()
            await it.until(lambda: server.asked.count("list") == 7)
            await it.stop()
    relists = [(low, high) for low, high in drawn if high != 480.0]  # how long a watch may live
    bounds = [min(2**i * first, 60.0) for i in range(6)]
    assert relists == [(0.2, first), *((high / 4, high) for high in bounds[1:])]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (500, "RequestWatchProgress is disabled"),
        (504, "Too large resource version: 9, current: 5"),
        (429, "storage is (re)initializing"),
        (403, "pods is forbidden"),
        (401, "Unauthorized"),
    ],
)
async def test_other_errors_in_a_stream_resume_from_the_same_version(
    server: Scripted, code: int, message: str
) -> None:
    fault = {"kind": "Status", "code": code, "message": message}
    server.watches = [
        stream(event("ADDED", config_map("a", 5)), event("ERROR", fault)),
        stream(event("ADDED", config_map("b", 6))),
    ]
    async with watcher(server) as it:
        await it.next()
        await it.next()
        assert await it.next() == {"a": {}, "b": {}}
    assert server.asked == ["list", "1", "5"]


@pytest.mark.parametrize(
    "answer",
    [
        status(500, "boom"),
        status(503, "apiserver is shutting down"),
        status(401, "Unauthorized"),
        status(403, 'User "x" cannot watch resource "configmaps"'),
        text(404, b"404 page not found\n", Content_Type="text/plain"),
        text(502, b"<html>Bad Gateway</html>"),  # without a Content-Type
        text(302, b"", Location="http://elsewhere/"),
    ],
)
async def test_a_watch_that_is_refused_resumes(server: Scripted, answer: Script) -> None:
    server.watches = [answer, answer, stream(event("ADDED", config_map("a", 2)))]
    async with watcher(server) as it:
        await it.next()
        assert await it.next() == {"a": {}}
    assert server.asked == ["list", "1", "1", "1"]


async def test_retry_after_of_a_watch_is_honoured(server: Scripted) -> None:
    """429 for a second or two after a CRD was made; lightkube comes back at once."""
    server.watches = [status(429, "storage is (re)initializing", "1"), stream(bookmark(2))]
    async with watcher(server) as it:
        await it.next()
        await it.until(lambda: len(server.requests) == 3)
    assert server.requests[2].at - server.requests[1].at >= 1.0


async def test_missing_rights_and_crds_are_waited_for_and_logged_once(
    server: Scripted, logged: list[tuple[str, dict[str, object]]]
) -> None:
    refusals = [status(403, 'User "u" cannot list resource "pools"'), text(404, b"404 page")]
    server.lists = [*refusals, *refusals]
    async with (
        Api(server.access, uniform=quick) as api,
        aclosing(api.watch(muslin("pools", "Pool"), type=ConfigMap)) as batches,
    ):
        assert await anext(batches) == ()
        it = Watcher(batches)
        await it.until(lambda: server.asked[-1] == "1" and len(logged) == 2)
        await it.stop()
    assert [name for name, _ in logged] == ["kube.watch.lost", "kube.watch.back"]
    assert "grant the verb list on pools" in str(logged[0][1]["why"])


async def test_a_selector_that_makes_no_sense_is_a_configuration_error(server: Scripted) -> None:
    server.lists = [status(400, "unable to parse requirement")]
    async with watcher(server) as it:
        with pytest.raises(ConfigError, match="unable to parse requirement"):
            await it.next()


@pytest.mark.parametrize("how", ["status", "event"])
async def test_what_has_worked_once_is_tried_again(server: Scripted, how: str) -> None:
    """A version that a server calls malformed ends no watch; in the end all is listed anew."""
    fault = {"kind": "Status", "code": 400, "message": "resourceVersion: Invalid value"}
    answer = status(400, "resourceVersion") if how == "status" else stream(event("ERROR", fault))
    server.watches = [answer] * 8
    async with watcher(server) as it:
        await it.next()
        server.put("a", 2)
        assert await it.next() == {"a": {}}
    assert server.asked[:10] == ["list", *["1"] * 8, "list"]


async def test_a_killed_server_is_waited_for_and_needs_no_new_list(server: Scripted) -> None:
    """lightkube's generator dies of the first ConnectError."""
    server.put("a", 5)
    server.watches = [stream(event("MODIFIED", config_map("a", 6)))]
    async with watcher(server) as it:
        await it.next()
        await it.next()
        port = server.port
        await server.kill()
        await it.nothing_for(0.2)
        server.watches = [stream(event("DELETED", config_map("a", 7)))]
        await server.start(port)
        assert await it.next() == {}
    assert server.asked == ["list", "5", "6"]


async def test_a_stream_that_breaks_resumes(server: Scripted) -> None:
    server.watches = [
        stream(event("ADDED", config_map("a", 2)), drop=True),
        stream(event("DELETED", config_map("a", 3))),
    ]
    async with watcher(server) as it:
        await it.next()
        await it.next()
        assert await it.next() == {}
    assert server.asked == ["list", "1", "2"]


@pytest.mark.parametrize("end", [True, False])
async def test_a_last_line_that_is_cut_off_comes_again(server: Scripted, end: bool) -> None:
    line = event("ADDED", config_map("b", 3))
    cut = event("ADDED", config_map("a", 2)) + line[:-20]
    server.watches = [stream(cut, end=end, drop=not end), stream(line)]
    async with watcher(server) as it:
        await it.next()
        await it.next()
        assert await it.next() == {"a": {}, "b": {}}
    assert server.asked == ["list", "1", "2"]


async def test_a_half_open_connection_is_given_up_after_idle_seconds(server: Scripted) -> None:
    """Packets are dropped, nobody says a word: lightkube hangs for ever."""
    server.watches = [stream(), stream(event("ADDED", config_map("a", 2)))]
    async with watcher(server, idle=0.2) as it:
        await it.next()
        assert await it.next() == {"a": {}}
    assert server.asked == ["list", "1", "1"]
    assert 0.2 <= server.requests[2].at - server.requests[1].at < 1.0


async def test_an_idle_kind_without_bookmarks_is_no_fault(
    server: Scripted, logged: list[tuple[str, dict[str, object]]]
) -> None:
    async with watcher(server, idle=0.05) as it:
        await it.next()
        await it.until(lambda: len(server.requests) == 12)
    assert set(server.asked[1:]) == {"1"}
    assert logged == []


async def test_a_server_that_accepts_a_watch_and_never_answers_is_left_at_the_deadline(
    server: Scripted,
) -> None:
    server.watches = [silent, stream(event("ADDED", config_map("a", 2)))]
    async with watcher(server) as it:
        await it.next()
        assert await it.next() == {"a": {}}
    assert 2.0 <= server.requests[2].at - server.requests[1].at < 3.0


async def test_requests_do_not_wait_for_a_watch_that_hangs(server: Scripted) -> None:
    """On one HTTP/2 connection a get was seen to wait 34 s for a half-open watch."""
    async with (
        Api(server.access) as api,
        aclosing(api.watch(CONFIG_MAPS, type=ConfigMap)) as batches,
    ):
        await anext(batches)
        it = Watcher(batches)
        await it.until(lambda: len(server.requests) == 2)
        before = server.connections
        listed = await api.list(CONFIG_MAPS, type=ConfigMap)
        assert listed.version == "1"
        assert server.connections == before  # the list's connection, not the watch's
        await it.stop()


async def test_a_dead_connection_is_found_by_tcp(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keepalive, and a bound for what was sent and not acknowledged."""
    options = []
    real = socket.socket.setsockopt

    def setsockopt(self: socket.socket, *args: object) -> None:
        options.append(args)
        real(self, *args)  # type: ignore[call-overload]

    monkeypatch.setattr(socket.socket, "setsockopt", setsockopt)
    async with watcher(server) as it:
        await it.next()
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) in options
    assert (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000) in options


async def test_an_object_that_does_not_fit_is_skipped_and_named_once(
    server: Scripted, logged: list[tuple[str, dict[str, object]]]
) -> None:
    """Neither does it hold up the others, nor is it told, nor is its end."""
    server.put("bad", 2, x=5)
    server.put("good", 3)
    odd = config_map("odd", 9) | {"data": "text"}
    server.watches = [
        stream(
            event("MODIFIED", config_map("bad", 4, x=6)) + event("ADDED", config_map("late", 5)),
            event("ADDED", odd),
            event("DELETED", config_map("bad", 6, x=6)) + event("ADDED", config_map("last", 10)),
            end=True,
        )
    ]
    async with watcher(server) as it:
        assert await it.next() == {"good": {}}
        assert await it.next() == {"good": {}, "late": {}}
        assert await it.next() == {"good": {}, "late": {}, "last": {}}
        await it.until(lambda: server.asked[-1] == "10")
    assert [f["name"] for _, f in logged] == ["ns/bad", "ns/odd"]
    assert server.asked.count("list") == 1


async def test_an_object_that_ceases_to_fit_stays_as_it_was_told(server: Scripted) -> None:
    server.put("a", 2, x="1")
    server.watches = [
        stream(
            event("MODIFIED", config_map("a", 3, x=1)),
            event("MODIFIED", config_map("a", 4, x="2")),
            event("MODIFIED", config_map("a", 5, x=1)),
            event("DELETED", config_map("a", 6, x=1)),
        )
    ]
    async with watcher(server) as it:
        assert await it.next() == {"a": {"x": "1"}}
        assert await it.next() == {"a": {"x": "2"}}
        assert await it.next() == {}


async def test_an_object_without_a_name_stops_nobody(
    server: Scripted, logged: list[tuple[str, dict[str, object]]]
) -> None:
    nameless = [{"metadata": None}, {"metadata": {"name": 7}}, {"metadata": {}}, {}]
    lines = [event("ADDED", o) for o in nameless] + [event("ADDED", config_map("a", 2))]
    server.watches = [stream(*lines)]
    async with watcher(server) as it:
        await it.next()
        assert await it.next() == {"a": {}}
    assert len(logged) == 1
    assert server.asked == ["list", "1"]


@pytest.mark.parametrize("line", [b"not json\n", b'{"type":"ADDED","object":{\n', b"[]\n", b"5\n"])
async def test_a_line_that_is_no_event_leads_to_the_same_version_again(
    server: Scripted, line: bytes
) -> None:
    good = event("ADDED", config_map("a", 2))
    server.watches = [stream(good + line), stream(event("ADDED", config_map("b", 3)))]
    async with watcher(server) as it:
        await it.next()
        assert await it.next() == {"a": {}}
        assert await it.next() == {"a": {}, "b": {}}
    assert server.asked == ["list", "1", "2"]


async def test_a_line_that_never_ends_leads_to_a_list(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_LONGEST", 10_000)

    async def endless(_: Request, reply: Reply) -> None:
        server.put("a", 2)
        await reply.begin()
        while True:
            await reply.send(b"x" * 3_000)
            await asyncio.sleep(0)

    server.watches = [endless]
    async with watcher(server) as it:
        await it.next()
        assert await it.next() == {"a": {}}
    assert server.asked == ["list", "1", "list"]


async def test_a_server_restored_from_a_backup_is_listed_anew(server: Scripted) -> None:
    """Its versions are earlier than ours, and it refuses ours for ever."""
    server.put("a", 100, x="1")
    server.put("b", 101)
    too_large = status(504, "Too large resource version: 101, current: 50", reason="Timeout")
    server.watches = [too_large] * 8
    async with watcher(server) as it:
        await it.next()
        del server.objects["b"]
        server.version = 0
        server.put("a", 40, x="0")
        assert await it.next() == {"a": {"x": "0"}}
    assert server.asked[:10] == ["list", *["101"] * 8, "list"]


async def test_an_outage_does_not_force_a_list(server: Scripted) -> None:
    """However long nobody answers: only answers count as refusals."""
    async with watcher(server) as it:
        await it.next()
        await it.until(lambda: len(server.requests) == 2)
        port = server.port
        await server.kill()
        await it.nothing_for(0.5)
        await server.start(port)
        await it.until(lambda: len(server.requests) == 3)
    assert server.asked == ["list", "1", "1"]


@pytest.mark.parametrize(
    "answer",
    [
        status(410, "gone"),
        status(500, "boom"),
        status(429, "busy", "0"),
        status(429, "busy", "nan"),
        text(404, b"no"),
        stream(end=True),
        stream(drop=True),
        stream(b"garbage\n"),
        stream(event("ERROR", GONE)),
        stream(event("ERROR", {"kind": "Status", "code": 500})),
        stream(event("ERROR", {"what": "ever"})),
    ],
)
async def test_no_fault_makes_it_spin(server: Scripted, answer: Script) -> None:
    """lightkube was seen to send 569 requests a second."""
    server.watches = [answer] * 1000
    async with watcher(server, uniform=lambda low, _: low) as it:
        await it.next()
        before = len(server.requests)
        await it.nothing_for(0.3)
    assert 1 <= len(server.requests) - before <= 4


@pytest.mark.parametrize(
    "answer",
    [
        text(200, b"<html>Please log in</html>"),
        text(200, b'{"metadata":{"resourceVersion":""},"items":[]}'),
        text(200, b'{"metadata":null}'),
        text(200, b"{}"),
        status(500, "boom"),
    ],
)
async def test_a_list_that_is_none_is_tried_again_and_does_not_spin(answer: Script) -> None:
    async with Scripted() as server:
        server.lists = [answer] * 1000
        async with watcher(server, uniform=lambda low, _: low) as it:
            await it.nothing_for(0.3)
            assert 2 <= len(server.requests) <= 4


async def test_a_watch_whose_server_is_away_at_first_begins_later() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    server = Scripted()
    async with watcher(Access(server=f"http://127.0.0.1:{port}")) as it:
        await it.nothing_for(0.1)
        await server.start(port)
        try:
            assert await it.next() == {}
        finally:
            await server.kill()


async def test_closing_the_api_ends_its_watches(server: Scripted) -> None:
    api = Api(server.access)
    batches = api.watch(CONFIG_MAPS, type=ConfigMap)
    await anext(batches)
    reader = asyncio.ensure_future(anext(batches, "ended"))
    await server.asked_times(2)
    await api.close()
    async with asyncio.timeout(1):
        assert await reader == "ended"
    assert [b async for b in api.watch(CONFIG_MAPS, type=ConfigMap)] == []
    await api.close()


async def test_a_cancelled_reader_leaves_no_connection(server: Scripted) -> None:
    async with Api(server.access) as api:
        batches = api.watch(CONFIG_MAPS, type=ConfigMap)
        await anext(batches)
        reader = asyncio.ensure_future(anext(batches))
        await server.asked_times(2)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await batches.aclose()
        assert api._wire._streams.connections == []


async def test_selectors_and_namespaces_reach_the_server(server: Scripted) -> None:
    async with (
        Api(server.access) as api,
        aclosing(api.watch(PODS, fields="spec.nodeName=n1", labels="a in (b,c)", type=Pod)) as one,
        aclosing(api.watch(PODS, namespace="shop", type=Pod)) as other,
    ):
        await anext(one)
        it = Watcher(one)  # type: ignore[arg-type]
        await it.until(lambda: len(server.requests) == 2)
        await anext(other)
        await it.stop()
    for request in server.requests[:2]:
        assert request.path == "/api/v1/pods"
        assert request.query["fieldSelector"] == "spec.nodeName=n1"
        assert request.query["labelSelector"] == "a in (b,c)"
    assert server.requests[2].path == "/api/v1/namespaces/shop/pods"


def test_pauses_double_and_are_never_nothing() -> None:
    low = pauses(lambda low, _: low, RESUME)
    assert [next(low) for _ in range(3)] == [0.05, 0.1, 0.2]
    high = pauses(lambda _, high: high, (4, 60))
    assert [next(high) for _ in range(6)] == [4, 8, 16, 32, 60, 60]


def test_lists_after_410_are_spread_evenly_at_first_and_then_rarer() -> None:
    """A thousand agents, each by its own dice: no second of forty has more than twice its share."""
    high = relists(lambda _, high: high, AGENTS)
    assert [next(high) for _ in range(4)] == [40, 60, 60, 60]
    high = relists(lambda _, high: high, SPREAD)
    assert [next(high) for _ in range(7)] == [2, 4, 8, 16, 32, 60, 60]
    low = relists(lambda low, _: low, AGENTS)
    assert [next(low) for _ in range(3)] == [0.2, 15, 15]
    none = relists(random.Random(1).uniform, 0.0)
    assert next(none) == 0.0
    assert next(none) > 0  # no loop spins
    dice = random.Random(1)
    firsts = [next(relists(dice.uniform, AGENTS)) for _ in range(1000)]
    assert max(sum(int(s) == second for s in firsts) for second in range(40)) < 50
    assert max(firsts) - min(firsts) > 39


async def test_after_a_good_stream_the_first_pause_is_short_again(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good: it stood for a while, though it brought nothing."""
    monkeypatch.setattr(watching, "_SETTLED", 0.1)
    drawn: list[float] = []

    def uniform(low: float, high: float) -> float:
        drawn.append(high)
        return 0.001

    async def good(request: Request, reply: Reply) -> None:
        await reply.begin()
        await asyncio.sleep(0.2)
        await reply.drop()

    server.watches = [*[status(500)] * 4, good, *[status(500)] * 2]
    async with watcher(server, uniform=uniform) as it:
        await it.next()
        await it.until(lambda: len(server.requests) == 9)
    assert [high for high in drawn if high < 100] == [0.2, 0.4, 0.8, 1.6, 0.2, 0.4, 0.8]
