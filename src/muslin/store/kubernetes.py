"""The store of a cluster that is one already: the Kubernetes API server, an object for every key.

    networks/<name>                    Network  <name>
    pools/<name>                       Pool     <name>
    nodes/<name>                       Node     <name>
    blocks/<pool>/<address>-<length>   Block    <pool>.<address>-<length>     (kube/values.py)

of group muslin.io/v1alpha1, so everything is there for kubectl, RBAC and
`kubectl wait`, and nothing else can be kept: the objects have a schema.  A
record's value is the object's `spec` in our own encoding, its revision the
`resourceVersion`, which is etcd's and grows with every write of the cluster.

Compare-and-swap is a JSON patch that tests the resourceVersion and replaces
the spec: labels, annotations, finalizers and status of others stay.  Leases
are objects too (`promises`), since nothing expires in an API server by itself.

`list("")` and a watch of more than one kind are several requests: each kind
is from one instant, all of them together are not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec

from muslin.errors import ConfigError, Conflict, NotReady
from muslin.kube import Api, Change
from muslin.kube.slim import Meta
from muslin.kube.values import KINDS, from_object, key_of_object, object_of_key, to_object
from muslin.log import log
from muslin.model import Block, Network, Node, Pool, decode, encode
from muslin.store import Event, Lease, Record, Store
from muslin.store.promises import LABEL, Promise, promise

Value = Network | Pool | Node | Block
Owner = Mapping[str, object] | None
SERVED: tuple[type[Value], ...] = (Network, Pool, Node, Block)


class Held(msgspec.Struct, frozen=True):
    """One of our objects, its spec not looked into yet."""

    metadata: Meta
    spec: msgspec.Raw = msgspec.Raw(b"{}")


class KubernetesStore(Store):
    """The contract on an API server.

    Lease objects are kept in `namespace`; `owner` names what they end with
    (an ownerReference), in Kubernetes the node's own Node object; a function
    is asked for each new lease, and may raise NotReady.
    """

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        owner: Owner | Callable[[], Owner] = None,
    ) -> None:
        self._api, self._namespace, self._owner = api, namespace, owner
        self._closed = False

    async def get(self, key: str) -> Record | None:
        kind, name = _place(key)
        found = await self._open().get(KINDS[kind], name, type=Held)
        return _record(kind, found) if found else None

    async def list(self, prefix: str) -> tuple[Record, ...]:
        found: list[Record] = []
        for kind in _within(prefix):
            listed = await self._open().list(KINDS[kind], type=Held)
            records = (_record(kind, o) for o in listed.items)
            found += (r for r in records if r and r.key.startswith(prefix))
        return tuple(sorted(found, key=lambda r: r.key))

    async def create(self, key: str, value: bytes, *, lease: Lease | None = None) -> Record:
        kind, _ = _place(key)
        promised = await _standing(lease, key)
        body = to_object(_value(key, kind, value), labels={LABEL: promised} if promised else {})
        try:
            made = await self._open().create(KINDS[kind], body)
        except Conflict as e:
            raise Conflict(key, f"{key}: already exists") from e
        return _written(kind, made)

    async def put(
        self, key: str, value: bytes, *, if_revision: int, lease: Lease | None = None
    ) -> Record:
        kind, name = _place(key)
        promised = await _standing(lease, key)
        spec = to_object(_value(key, kind, value))["spec"]
        before = await self._open().get(KINDS[kind], name, type=Held)
        if before is None or _revision(before) != if_revision:
            raise Conflict(key)
        steps: list[Mapping[str, object]] = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": str(if_revision)},
            {"op": "replace", "path": "/spec", "value": spec},
            *_relabel(before.metadata.labels or {}, promised),
        ]
        try:
            done = await self._open().patch(KINDS[kind], name, steps, how="json")
        except Conflict as e:
            raise Conflict(key) from e
        return _written(kind, done)

    async def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        kind, name = _place(key)
        version = "" if if_revision is None else str(if_revision)
        try:
            return await self._open().delete(KINDS[kind], name, version=version)
        except Conflict as e:
            raise Conflict(key) from e

    async def watch(self, prefix: str) -> AsyncGenerator[tuple[Event, ...], None]:
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(aclosing(self._follow(kind, prefix)))
                for kind in _within(prefix)
            ]
            first = [await anext(s, None) for s in streams]
            if None in first:
                return  # closed
            yield tuple(event for batch in first for event in batch or ())
            del first  # the whole state, as in kube/watch.py
            async with aclosing(_merged(streams)) as batches:
                async for batch in batches:
                    yield batch
                    del batch

    async def _follow(
        self, kind: type[Value], prefix: str
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        """One kind's batches, narrowed to the prefix; the first may be empty, no other is."""
        begun = False
        async with aclosing(self._open().watch(KINDS[kind], type=Held)) as batches:
            async for batch in batches:
                told = (_event(kind, c) for c in batch)
                events = tuple(e for e in told if e and e.key.startswith(prefix))
                if events or not begun:
                    begun = True
                    yield events
                del batch, told, events

    async def lease(self, ttl: float) -> Lease:
        kinds = (KINDS[k] for k in SERVED)
        owner = self._owner() if callable(self._owner) else self._owner
        return await promise(self._open(), self._namespace, ttl, kinds, owner=owner)

    @property
    def api(self) -> Api:
        """The API server, for what is no store's business."""
        return self._api

    async def close(self) -> None:
        self._closed = True
        await self._api.close()

    def _open(self) -> Api:
        if self._closed:
            raise NotReady("kubernetes: the store is closed")
        return self._api


async def _merged(
    streams: list[AsyncGenerator[tuple[Event, ...], None]],
) -> AsyncGenerator[tuple[Event, ...], None]:
    """The batches of all, as they come; ends with the first that ends."""
    if len(streams) == 1:
        async for only in streams[0]:
            yield only
            del only
        return
    queue: asyncio.Queue[tuple[Event, ...] | None] = asyncio.Queue(maxsize=1)

    async def pump(stream: AsyncGenerator[tuple[Event, ...], None]) -> None:
        async for batch in stream:
            await queue.put(batch)
            del batch
        await queue.put(None)

    tasks = [asyncio.create_task(pump(s)) for s in streams]
    try:
        while (batch := await queue.get()) is not None:
            yield batch
            del batch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _place(key: str) -> tuple[type[Value], str]:
    """The kind and the object's name of a key."""
    ref = object_of_key(key)
    for kind in SERVED:
        if ref.kind is kind:
            return kind, ref.name
    raise ConfigError(key, ["no such key in a Kubernetes store"])


def _within(prefix: str) -> list[type[Value]]:
    """The kinds that may have keys with this prefix."""
    places = {kind: f"{KINDS[kind].plural}/" for kind in SERVED}
    return [k for k, d in places.items() if d.startswith(prefix) or prefix.startswith(d)]


async def _standing(lease: Lease | None, key: str) -> str:
    """The name of a lease that is there, "" for none.

    One that goes at this moment leaves an orphan, which is ended like any other (`Expiry`).
    """
    if lease is None:
        return ""
    assert isinstance(lease, Promise)
    if not await lease.stands():
        raise Conflict(key, f"{key}: its lease is gone")
    return lease.name


def _relabel(labels: Mapping[str, str], lease: str) -> list[Mapping[str, object]]:
    """Move an object from the lease it is under to another one, or to none."""
    path = "/metadata/labels"
    slot = f"{path}/{LABEL.replace('/', '~1')}"  # RFC 6901
    if not lease:
        return [{"op": "remove", "path": slot}] if LABEL in labels else []
    made: list[Mapping[str, object]] = [] if labels else [{"op": "add", "path": path, "value": {}}]
    return [*made, {"op": "add", "path": slot, "value": lease}]


def _value(key: str, kind: type[Value], data: bytes) -> Value:
    value = decode(kind, data, subject=key)
    if key_of_object(kind, to_object(value)["metadata"]["name"]) != key:
        raise ConfigError(key, ["the value belongs under another key"])
    return value


def _event(kind: type[Value], change: Change[Held]) -> Event | None:
    if change.object is None:
        key = _key(kind, change.name)
        return Event(key, None) if key else None
    record = _record(kind, change.object)
    return Event(record.key, record) if record else None


def _record(kind: type[Any], found: Held) -> Record | None:
    """None for an object whose name no value has: it hides nothing and is nobody's.

    One that is no value for another reason keeps its own words, and who reads
    them says what is wrong (store/objects.py).
    """
    name, spec = found.metadata.name, msgspec.json.decode(found.spec)
    key = _key(kind, name)
    if key is None:
        return None
    try:
        value = encode(from_object(kind, {"metadata": {"name": name}, "spec": spec}))
    except ConfigError:
        value = msgspec.json.encode({"name": name, **spec})
    return Record(key, value, _revision(found))


def _key(kind: type[Value], name: str) -> str | None:
    try:
        return key_of_object(kind, name)
    except ConfigError as e:
        log.warning("store.object_ignored", error=str(e))
        return None


def _written(kind: type[Value], answer: Mapping[str, Any]) -> Record:
    record = _record(kind, msgspec.json.decode(msgspec.json.encode(answer), type=Held))
    assert record is not None  # its name is one that we gave
    return record


def _revision(found: Held) -> int:
    # Opaque by the API's older word, and etcd's revision ever since; KEP-5504 makes it official.
    return int(found.metadata.resource_version)
