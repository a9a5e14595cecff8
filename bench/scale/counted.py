"""The tests' API server, counting what it is asked over HTTP and what it sends."""

from __future__ import annotations

import resource
import time
from collections import Counter
from typing import Any

from aiohttp import web
from tests.apiserver import ApiServer
from tests.apiserver.call import Answer
from tests.apiserver.core import Core
from tests.apiserver.reads import Reads
from tests.apiserver.selectors import Selector
from tests.apiserver.storage import Entry, Event, Key, Table
from tests.apiserver.watch import Watcher

from bench.scale.estate import Json

_WRITES = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Indexed(Reads):
    """Finds a node's pods by an index, as a real server's cache does, and not among 30 000."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._pods = core.storage.table(("", "pods"))
        self._on: dict[str, set[Key]] = {}
        for entry in self._pods.entries.values():
            self._on.setdefault(entry.fields["spec.nodeName"], set()).add(entry.key)
        self._pods.listeners.append(self._changed)

    def _changed(self, event: Event) -> None:
        if event.before is not None:
            self._on[event.before.fields["spec.nodeName"]].discard(event.entry.key)
        if event.kind != "DELETED":
            self._on.setdefault(event.entry.fields["spec.nodeName"], set()).add(event.entry.key)

    def _page(
        self, table: Table, wanted: Selector, at: int, start: Key, limit: int
    ) -> tuple[list[Entry], int]:
        node = wanted.field("spec.nodeName")
        if table is not self._pods or not node:
            return super()._page(table, wanted, at, start, limit)
        return [table.entries[key] for key in sorted(self._on.get(node, ()))], 0


class Counted(ApiServer):
    """Counts requests, bytes and events since `clear`."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.router.reads = Indexed(self.core)
        self.clear()
        self._count_pushes()

    def clear(self) -> None:
        """Count from now on."""
        self.requests: Counter[str] = Counter()  # "verb plural"
        self.bytes: Counter[str] = Counter()  # of answers, and of watches as "watch plural"
        self.events: Counter[str] = Counter()  # "plural selector"
        self.gone = 0  # watches that were told 410
        self.series: list[tuple[float, str]] = []  # when, "verb plural"
        self._cleared, self._cpu = time.monotonic(), _cpu()

    def figures(self) -> Json:
        """Everything since `clear`."""
        return {
            "seconds": time.monotonic() - self._cleared,
            "requests": dict(self.requests),
            "bytes": dict(self.bytes),
            "events": dict(self.events),
            "gone": self.gone,
            "watchers": self.watchers,
            "cpu": _cpu() - self._cpu,
            "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    async def _answer(self, http: web.BaseRequest) -> Answer | Watcher:
        answer = await super()._answer(http)
        what = f"{_verb(http)} {_plural(http.path)}"
        self.requests[what] += 1
        self.bytes[what] += len(answer.body) if isinstance(answer, Answer) else 0
        self.series.append((time.monotonic(), what))
        return answer

    def _count_pushes(self) -> None:
        """Every line of every watch; a watch has lines before `_answer` hands it out."""
        push = Watcher.push

        def pushed(watcher: Watcher, data: bytes) -> None:
            self._pushed(watcher, data)
            push(watcher, data)

        Watcher.push = pushed  # type: ignore[method-assign, assignment]

    def _pushed(self, watcher: Watcher, data: bytes) -> None:
        plural = watcher.shape.kind.plural
        self.bytes[f"watch {plural}"] += len(data)
        if b'"type":"ERROR"' in data[:40]:
            self.gone += 1
        elif b'"type":"BOOKMARK"' not in data[:40]:
            self.events[f"{plural} {watcher.call.query.get('fieldSelector', '')}".strip()] += 1


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _verb(http: web.BaseRequest) -> str:
    if http.method != "GET":
        return _WRITES.get(http.method, http.method)
    if http.query.get("watch") in {"1", "true"}:
        return "watch"
    return "list" if "limit" in http.query else "get"


def _plural(path: str) -> str:
    """`pods`, `nodes.muslin.io`, `nodes.muslin.io/status`."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    sub = "/" + rest[2] if len(rest) > 2 else ""
    return f"{rest[0]}{'.muslin.io' if group == 'muslin.io' else ''}{sub}"
