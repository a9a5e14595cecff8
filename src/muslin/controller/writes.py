"""The leader's way to the API server: nothing is written outside its term, everything is counted.

`Writer` brings objects up to date one after the other.  Each is written at
most once a second, since what it is written for may change a hundred times in
one; one that the server refuses is left for longer and longer, and the others
do not wait for it.  A server that does not answer stops the round: it would
say the same of every object.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from muslin.controller.election import Lost, Term
from muslin.controller.metrics import Metrics
from muslin.errors import ConfigError, Conflict, MuslinError, NotReady
from muslin.kube import Access, Kind, Listed
from muslin.kube.api import Api, How, Object
from muslin.log import log

MANAGER = "muslin-controller"
LEAST = 1.0  # seconds between two writes of one object
LONGEST = 60.0  # seconds, of the pauses after failures

T = TypeVar("T")


class Fenced(Api):
    """An Api whose writes raise Lost when the term is over."""

    def __init__(self, at: Access, term: Term, metrics: Metrics) -> None:
        super().__init__(at, manager=MANAGER)
        self._term, self._metrics = term, metrics

    async def list(
        self,
        kind: Kind,
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        type: type[T],  # noqa: A002
    ) -> Listed[T]:
        with self._counted("list", kind):
            return await super().list(
                kind, namespace=namespace, labels=labels, fields=fields, type=type
            )

    async def create(self, kind: Kind, body: Mapping[str, Any], *, namespace: str = "") -> Object:
        with self._written("create", kind):
            return await super().create(kind, body, namespace=namespace)

    async def patch(
        self,
        kind: Kind,
        name: str,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        namespace: str = "",
        how: How = "merge",
        subresource: str = "",
    ) -> Object:
        with self._written("patch", kind, subresource):
            return await super().patch(
                kind, name, body, namespace=namespace, how=how, subresource=subresource
            )

    async def apply(
        self,
        kind: Kind,
        name: str,
        body: Mapping[str, Any],
        *,
        namespace: str = "",
        force: bool = False,
        subresource: str = "",
    ) -> Object:
        with self._written("apply", kind, subresource):
            return await super().apply(
                kind, name, body, namespace=namespace, force=force, subresource=subresource
            )

    async def delete(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str = "",
        version: str = "",
        uid: str = "",
        grace: int | None = None,
    ) -> bool:
        with self._written("delete", kind):
            return await super().delete(
                kind, name, namespace=namespace, version=version, uid=uid, grace=grace
            )

    @contextlib.contextmanager
    def _written(self, verb: str, kind: Kind, subresource: str = "") -> Iterator[None]:
        self._term.check()
        with self._counted(verb, kind, subresource):
            yield

    @contextlib.contextmanager
    def _counted(self, verb: str, kind: Kind, subresource: str = "") -> Iterator[None]:
        result = "ok"
        try:
            yield
        except MuslinError as e:
            result = _RESULTS.get(type(e), "refused" if isinstance(e, ConfigError) else "failed")
            raise
        finally:
            resource = f"{kind.resource}/{subresource}" if subresource else kind.resource
            self._metrics.requests.labels(verb, resource, result).inc()


_RESULTS: Mapping[type[MuslinError], str] = {Conflict: "conflict"}


class Writer:
    """One kind's objects, brought up to date in rounds."""

    def __init__(self, what: str, now: Callable[[], float]) -> None:
        self._what, self._now = what, now
        self._due: dict[str, float] = {}  # object → before when it is not written again
        self._failures: dict[str, int] = {}
        self._away = 0  # rounds in a row that the server did not answer

    async def bring(self, wanted: Mapping[str, Callable[[], Awaitable[None]]]) -> float | None:
        """Make the writes that are due; seconds until another round is worth while, if one is.

        Raise Lost when the term is over.
        """
        for name in [n for n, at in self._due.items() if at <= self._now() and n not in wanted]:
            self._due.pop(name)
            self._failures.pop(name, None)
        for name, write in wanted.items():
            if self._due.get(name, 0.0) > self._now():
                continue
            try:
                await write()
            except Lost:
                raise
            except Conflict as e:
                log.debug("write.again", what=self._what, name=name, why=str(e))
            except NotReady as e:
                self._away += 1
                log.warning("write.failed", what=self._what, name=name, error=str(e))
                return self._pause(self._away)
            except ConfigError as e:
                self._refused(name, e)
                continue
            else:
                self._away = 0
                self._failures.pop(name, None)
            self._due[name] = self._now() + LEAST
        left = [at for name in wanted if (at := self._due.get(name)) is not None]
        return max(min(left) - self._now(), 0.0) if left else None

    def _refused(self, name: str, why: ConfigError) -> None:
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        if failures == 1:
            log.error("write.refused", what=self._what, name=name, error=str(why))
        self._due[name] = self._now() + self._pause(failures)

    @staticmethod
    def _pause(failures: int) -> float:
        return float(min(LEAST * 2 ** min(failures, 10), LONGEST))
