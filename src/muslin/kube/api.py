"""One API server: the requests, and the way into watches.

The contract is in `muslin.kube`; how a request travels is in `wire`, what an
answer means in `faults`, how a watch survives in `watch`.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, overload

import msgspec

from muslin.errors import ConfigError, NotReady
from muslin.kube.access import Access
from muslin.kube.faults import Ask, explain, status_of
from muslin.kube.kinds import Kind
from muslin.kube.pauses import SPREAD
from muslin.kube.told import Change, Listed
from muslin.kube.watch import Query, Watch, list_all
from muslin.kube.wire import Wire

T = TypeVar("T")

Object = dict[str, Any]  # one object as JSON, unread
How = Literal["merge", "json", "strategic"]

_CONTENT = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",  # of which JSON is a part
}


class Api:
    """One API server; safe to use from many tasks of one loop.

    Every request is answered within `timeout` seconds or fails; a watch that
    hears nothing for `idle` seconds is begun again.  `manager` is the name
    under which the server keeps our fields.  `uniform` draws all pauses.
    After a 410 a watch lists again at some moment within `spread` seconds
    (kube/pauses.py).  With `dry_run` writes are judged and answered as ever, and not kept.
    Nothing is connected before the first request, but ConfigError is raised
    here for certificates that cannot be used.
    """

    def __init__(
        self,
        at: Access,
        *,
        manager: str = "muslin",
        timeout: float = 10.0,
        idle: float = 100.0,  # bookmarks come each 60 s
        uniform: Callable[[float, float], float] = random.uniform,
        spread: float = SPREAD,
        dry_run: bool = False,
    ) -> None:
        self.namespace = at.namespace
        self._manager, self._spread = manager, spread
        self._dry = {"dryRun": "All"} if dry_run else {}
        self._wire = Wire(at, timeout=timeout, idle=idle, uniform=uniform)

    @overload
    async def get(self, kind: Kind, name: str, *, namespace: str = "") -> Object | None: ...
    @overload
    async def get(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str = "",
        type: type[T],
    ) -> T | None: ...
    async def get(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str = "",
        type: type[Any] = dict,  # noqa: A002
    ) -> Any:
        """One object as `type`, or None; ConfigError if it does not fit `type`."""
        ask = Ask("get", kind, namespace, name)
        answer = await self._wire.ask("GET", kind.path(namespace, name))
        if answer.code == 404 and _is_absent(answer.body):
            return None
        if not answer.ok:
            raise explain(ask, answer)
        try:
            return msgspec.json.decode(answer.body, type=type)
        except msgspec.ValidationError as e:
            raise ConfigError(kind.title(namespace, name), [str(e)]) from e
        except msgspec.DecodeError as e:
            raise NotReady(f"{ask}: the answer is no object: {e}") from e

    async def list(
        self,
        kind: Kind,
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        type: type[T],  # noqa: A002
    ) -> Listed[T]:
        """All objects from one instant, of all namespaces unless one is given.

        `labels` and `fields` are selectors as kubectl has them.  An object
        that does not fit `type` is logged and left out.
        """
        return await list_all(self._wire, Query(kind, namespace, labels, fields), type)

    async def create(self, kind: Kind, body: Mapping[str, Any], *, namespace: str = "") -> Object:
        """Create what is not there; Conflict if it is.

        Kind and version are added to `body`.  `metadata.generateName` works.
        """
        body = _typed(kind, body)
        metadata = body["metadata"]
        namespace = namespace or metadata.get("namespace", "")
        if kind.namespaced and not namespace:
            raise ValueError(f"{kind.resource} need a namespace")
        ask = Ask("create", kind, namespace, metadata.get("name") or "")
        return await self._write(ask, kind.path(namespace), body, "application/json")

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
        """Change parts of one object and return the whole.

        A merge patch deletes what it sets to None, and is a compare-and-swap
        if it holds `metadata.resourceVersion`; a JSON patch is one by `test`.
        Conflict when that fails and when the object is gone.  `strategic`
        merges lists by their keys and is for the server's own kinds only.
        """
        ask = Ask("patch", kind, namespace, name, how, subresource)
        path = kind.path(namespace, name, subresource)
        return await self._write(ask, path, body, _CONTENT[how])

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
        """Server-side apply: these fields are ours and so; what we no longer name is removed.

        Creates the object if need be.  Conflict names other managers that
        hold one of the fields at another value, and the fields; `force` takes
        these over.
        """
        body = _typed(kind, body)
        body["metadata"]["name"] = name
        ask = Ask("patch", kind, namespace, name, "apply", subresource)
        path = kind.path(namespace, name, subresource)
        return await self._write(ask, path, body, _CONTENT["apply"], force=force)

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
        """Delete one object; say whether it was there.

        With `version` or `uid`, Conflict if it is another.  An object with
        finalizers, and a pod with a grace period, is gone only later.
        """
        ask = Ask("delete", kind, namespace, name)
        conditions = {k: v for k, v in (("resourceVersion", version), ("uid", uid)) if v}
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if conditions:
            options["preconditions"] = conditions
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        path = kind.path(namespace, name)
        body = msgspec.json.encode(options)
        answer = await self._wire.ask("DELETE", path, self._dry, body=body)
        if answer.code == 404 and _is_absent(answer.body):
            return False
        if not answer.ok:
            raise explain(ask, answer)
        return True

    def watch(
        self,
        kind: Kind,
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        type: type[T],  # noqa: A002
        heard: Callable[[str], None] = lambda _: None,
        spread: float | None = None,
    ) -> AsyncGenerator[tuple[Change[T], ...], None]:
        """Follow all objects for ever: the whole state first (perhaps empty), then what changes.

        After the first batch every object's final state comes once, whatever
        was lost in between; a batch holds one change per object.  An object
        that does not fit `type` is logged once and passed over.

        Never ends by itself but when the Api is closed; read it inside
        `aclosing`.  Raises only ConfigError, and only instead of the first
        batch, for a selector that makes no sense; what has worked once may
        work again.  Missing rights (403) and a kind that is not served (404)
        are logged once and tried again, at last every 30 s: a role may be
        bound, and a CRD installed, after the agents have started.

        `heard` is told "" whenever a watch has been opened, and once what
        keeps us from it while that fails.  `spread` is for this watch alone.
        """
        query = Query(kind, namespace, labels, fields)
        seconds = self._spread if spread is None else spread
        return Watch(self._wire, query, type, heard, spread=seconds).batches()

    async def version(self) -> str:
        """The server's version, such as `v1.36.2`.

        A server that was built without one says `v0.0.0-…`, and knows its release all the same:
        then both, `v1.36 (v0.0.0-…)`.
        """
        answer = await self._wire.ask("GET", "/version")
        if not answer.ok:
            raise NotReady(f"{self._wire}: version: {status_of(answer.body).message}")
        try:
            found = msgspec.json.decode(answer.body, type=_Version)
        except msgspec.MsgspecError as e:
            raise NotReady(f"{self._wire}: not an API server: {e}") from e
        release = f"v{found.major}.{found.minor.rstrip('+')}"  # `27+` of some vendors
        if not found.major or found.gitVersion.startswith(release):
            return found.gitVersion
        return f"{release} ({found.gitVersion})"

    async def close(self) -> None:
        """Close all connections and end all watches.  Repeating it is success."""
        await self._wire.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _write(
        self,
        ask: Ask,
        path: str,
        body: object,
        content_type: str,
        *,
        force: bool = False,
    ) -> Object:
        query = {"fieldManager": self._manager, **self._dry}
        query |= {"force": "true"} if force else {}
        method = "POST" if ask.verb == "create" else "PATCH"
        data = msgspec.json.encode(body)
        answer = await self._wire.ask(method, path, query, data, content_type)
        if not answer.ok:
            raise explain(ask, answer)
        try:
            return msgspec.json.decode(answer.body, type=Object)
        except msgspec.MsgspecError as e:
            raise NotReady(f"{ask}: the answer is no object: {e}") from e


class _Version(msgspec.Struct, frozen=True):
    gitVersion: str  # noqa: N815  (the wire's word)
    major: str = ""
    minor: str = ""


def _typed(kind: Kind, body: Mapping[str, Any]) -> Object:
    """A copy of `body` that says what it is."""
    metadata = dict(body.get("metadata") or {})
    return {**body, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


def _is_absent(body: bytes) -> bool:
    """Whether a 404 is of the object, not of the whole kind, which the server says without one."""
    status = status_of(body)
    return status.reason == "NotFound" and bool(status.details and status.details.name)
