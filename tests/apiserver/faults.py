"""Faults on demand: what a network, an overloaded server or a compaction does to clients.

api.faults.refuse(429, retry_after=2, times=3)        # the next three requests
api.faults.refuse(503, where=lambda path: "/pods" in path)
api.faults.drop(times=1)                              # the connection closes, no answer
api.faults.delay = 0.5                                # seconds before every answer
with api.faults.silent_watches(): ...                 # open, but nothing comes: half-open
api.faults.truncate(1)                                # the next event ends in mid-line
api.faults.compact()                                  # older revisions are gone
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .status import ApiError
from .storage import Storage

_WORDS = {
    429: (
        "TooManyRequests",
        "the server has received too many requests and has asked us to try again later",
    ),
    500: ("InternalError", "Internal error occurred: a fault of the test"),
    503: ("ServiceUnavailable", "apiserver not ready"),
    504: ("Timeout", "the server was unable to return a response in the time allotted"),
}


class Dropped(Exception):
    """Close this connection without an answer."""


@dataclass
class _Plan:
    error: Callable[[], Exception]
    times: int
    where: Callable[[str], bool]
    verbs: frozenset[str]


def _anywhere(_path: str) -> bool:
    return True


class Faults:
    """What goes wrong next; nothing, unless told."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._plans: list[_Plan] = []
        self.delay = 0.0
        self.silent = False
        self.torn = 0
        self.requests = 0  # how many were seen, for tests that count
        self.drop_watches: Callable[[], None] = lambda: None
        """Abort every open watch (set by the server)."""
        self.mute_watches: Callable[[], None] = lambda: None

    def refuse(
        self,
        code: int,
        *,
        retry_after: int | None = None,
        times: int = 1,
        where: Callable[[str], bool] = _anywhere,
        verbs: frozenset[str] = frozenset(),
    ) -> None:
        """Answer the next requests with an error; `verbs` as in RBAC, all if empty."""

        def error() -> ApiError:
            reason, message = _WORDS.get(code, ("", f"HTTP {code}"))
            details = None if retry_after is None else {"retryAfterSeconds": retry_after}
            return ApiError(code, reason, message, details)

        self._plans.append(_Plan(error, times, where, verbs))

    def drop(
        self,
        *,
        times: int = 1,
        where: Callable[[str], bool] = _anywhere,
        verbs: frozenset[str] = frozenset(),
    ) -> None:
        """Close the next connections instead of answering."""
        self._plans.append(_Plan(Dropped, times, where, verbs))

    def truncate(self, times: int = 1) -> None:
        """Send half of the next event's line to each watcher it reaches, then close."""
        self.torn += times

    def compact(self, revision: int | None = None) -> None:
        """Forget the changes up to a revision, or up to now."""
        self._storage.compact(revision)

    def clear(self) -> None:
        self._plans.clear()
        self.delay, self.silent, self.torn = 0.0, False, 0

    @contextmanager
    def silent_watches(self) -> Iterator[None]:
        """Every watch that is open now or is opened meanwhile stays open and says nothing.

        They stay so afterwards, like connections whose packets a firewall has begun to drop:
        no event, no bookmark, no end.
        """
        self.silent = True
        self.mute_watches()
        try:
            yield
        finally:
            self.silent = False

    def check(self, path: str, verb: str) -> None:
        """Raise what was planned for this request."""
        self.requests += 1
        for plan in self._plans:
            if plan.where(path) and (not plan.verbs or verb in plan.verbs):
                plan.times -= 1
                if plan.times <= 0:
                    self._plans.remove(plan)
                raise plan.error()
