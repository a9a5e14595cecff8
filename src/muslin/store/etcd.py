"""The store of a cluster: etcd v3.

Keys live under one prefix (`/muslin/` by default) and are etcd's own keys
below it; a record's revision is etcd's mod_revision.  Compare-and-swap is one
transaction.  Leases are etcd's: its clock counts, and survives a change of
leader.

A watch lists its prefix at revision R and follows from R+1.  Whatever ends
the stream (a compaction, a restart, a member cut off from its peers) leads to
the same thing: wait (`backoff`), list again, deliver the difference
(`mirror`), follow on.  `hasleader` asks a member that has lost its cluster to
end the stream rather than go silent.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from aetcd import rpc
from aetcd.utils import prefix_range_end

from muslin.errors import Conflict, NotReady
from muslin.store import Event, Lease, Record, Store
from muslin.store.backoff import wait, waits
from muslin.store.members import KEEPALIVE, Member, Members, Metadata
from muslin.store.mirror import Mirror
from muslin.store.url import EtcdAt

_HAS_LEADER: Metadata = (("hasleader", "true"),)


class EtcdStore(Store):
    """The contract on an etcd cluster; every request is answered within `timeout` seconds.

    `uniform` draws the waits between attempts of a watch (`backoff.waits`); a
    connection that was silent for `keepalive` seconds is tested.
    """

    def __init__(
        self,
        at: EtcdAt,
        *,
        timeout: float = 3.0,
        keepalive: float = KEEPALIVE,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._prefix = at.prefix
        self._uniform = uniform
        self._members = Members(at, timeout, keepalive)

    async def get(self, key: str) -> Record | None:
        request = rpc.RangeRequest(key=self._outer(key))
        answer = await self._members.read(lambda m, t: m.kv.Range(request, metadata=t))
        return self._record(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> tuple[Record, ...]:
        records, _ = await self._list(prefix)
        return records

    async def create(self, key: str, value: bytes, *, lease: Lease | None = None) -> Record:
        record = await self._write(key, value, lease, [self._is_version(key, 0)])
        if record is None:
            raise Conflict(key, f"{key}: already exists")
        return record

    async def put(
        self, key: str, value: bytes, *, if_revision: int, lease: Lease | None = None
    ) -> Record:
        # A revision of 0 is how etcd says "absent"; a put must never create.
        if if_revision < 1:
            raise Conflict(key)
        record = await self._write(key, value, lease, [self._is_revision(key, if_revision)])
        if record is None:
            raise Conflict(key)
        return record

    async def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        outer = self._outer(key)
        request = rpc.TxnRequest(
            compare=[] if if_revision is None else [self._is_revision(key, if_revision)],
            success=[rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=outer))],
            failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=outer, count_only=True))],
        )
        answer = await self._members.write(lambda m, t: m.kv.Txn(request, metadata=t))
        if answer.succeeded:
            return bool(answer.responses[0].response_delete_range.deleted)
        if answer.responses[0].response_range.count:
            raise Conflict(key)
        return False

    async def watch(self, prefix: str) -> AsyncGenerator[tuple[Event, ...], None]:
        mirror = Mirror()
        pauses = waits(self._uniform)
        while not self._members.closed.is_set():
            try:
                records, revision = await self._list(prefix)
                batch = mirror.relist(records)
                if batch is not None:
                    yield batch
                async with aclosing(self._follow(prefix, revision + 1)) as stream:
                    async for events in stream:
                        pauses = waits(self._uniform)  # the store is well: begin anew
                        batch = mirror.changes(events)
                        if batch is not None:
                            yield batch
            except NotReady:
                await wait(self._members.closed, next(pauses))

    async def lease(self, ttl: float) -> Lease:
        request = rpc.LeaseGrantRequest(TTL=math.ceil(max(1.0, ttl)))  # etcd counts whole seconds
        answer = await self._members.read(lambda m, t: m.leases.LeaseGrant(request, metadata=t))
        return EtcdLease(self._members, answer.ID, float(answer.TTL))

    async def close(self) -> None:
        await self._members.close()

    async def _list(self, prefix: str) -> tuple[tuple[Record, ...], int]:
        """The records by key, and the store's revision that they are from."""
        outer = self._outer(prefix)
        request = rpc.RangeRequest(key=outer, range_end=prefix_range_end(outer))
        answer = await self._members.read(lambda m, t: m.kv.Range(request, metadata=t))
        return tuple(self._record(kv) for kv in answer.kvs), int(answer.header.revision)

    async def _write(
        self, key: str, value: bytes, lease: Lease | None, compare: Sequence[Any]
    ) -> Record | None:
        """Put if `compare` holds; None if not."""
        put = rpc.PutRequest(key=self._outer(key), value=value, lease=_number(lease))
        request = rpc.TxnRequest(compare=compare, success=[rpc.RequestOp(request_put=put)])
        try:
            answer = await self._members.write(lambda m, t: m.kv.Txn(request, metadata=t))
        except Conflict as e:
            raise Conflict(key, f"{key}: its lease is gone") from e
        return Record(key, value, int(answer.header.revision)) if answer.succeeded else None

    async def _follow(self, prefix: str, revision: int) -> AsyncGenerator[tuple[Event, ...], None]:
        """Changes from `revision` on; first an empty batch, once the stream stands.

        Ends by NotReady, whatever the reason.
        """
        outer = self._outer(prefix)
        create = rpc.WatchCreateRequest(
            key=outer, range_end=prefix_range_end(outer), start_revision=revision
        )

        async def begin(member: Member, token: Metadata) -> tuple[Member, Any, Any]:
            call = member.watches.Watch(metadata=token + _HAS_LEADER)
            try:
                await call.write(rpc.WatchRequest(create_request=create))
                return member, call, await call.read()
            except BaseException:
                call.cancel()
                raise

        member, call, response = await self._members.read(begin)
        try:
            while response is not grpc.aio.EOF and not response.canceled:
                yield tuple(self._event(e) for e in response.events)
                response = await self._members.checked(member, call.read())
        finally:
            call.cancel()
        raise NotReady("etcd: the watch has ended")

    def _outer(self, key: str) -> bytes:
        return (self._prefix + key).encode()

    def _inner(self, key: bytes) -> str:
        # Another program may write any bytes; a strange key must not end a watch.
        return key.decode(errors="backslashreplace").removeprefix(self._prefix)

    def _record(self, kv: Any) -> Record:
        return Record(self._inner(kv.key), bytes(kv.value), int(kv.mod_revision))

    def _event(self, event: Any) -> Event:
        key = self._inner(event.kv.key)
        return Event(key, None if event.type == rpc.Event.DELETE else self._record(event.kv))

    def _is_version(self, key: str, version: int) -> Any:
        target = rpc.Compare.VERSION
        return rpc.Compare(key=self._outer(key), target=target, version=version)

    def _is_revision(self, key: str, revision: int) -> Any:
        target = rpc.Compare.MOD
        return rpc.Compare(key=self._outer(key), target=target, mod_revision=revision)


class EtcdLease(Lease):
    """A lease of etcd; `ttl` is what was granted: whole seconds, never less than was asked."""

    def __init__(self, members: Members, number: int, ttl: float) -> None:
        self._members = members
        self.number = number
        self.ttl = ttl

    async def keep(self) -> None:
        request = rpc.LeaseKeepAliveRequest(ID=self.number)

        async def once(member: Member, token: Metadata) -> Any:
            call = member.leases.LeaseKeepAlive(metadata=token)
            try:
                await call.write(request)
                return await call.read()
            finally:
                call.cancel()

        answer = await self._members.read(once)
        if answer is grpc.aio.EOF:
            raise NotReady("etcd: no answer to a keepalive")
        if answer.TTL <= 0:
            raise Conflict("lease", "the lease is gone")

    async def revoke(self) -> None:
        request = rpc.LeaseRevokeRequest(ID=self.number)
        try:
            await self._members.read(lambda m, t: m.leases.LeaseRevoke(request, metadata=t))
        except Conflict:
            return


def _number(lease: Lease | None) -> int:
    if lease is None:
        return 0
    if not isinstance(lease, EtcdLease):
        raise TypeError(f"a lease of another store: {lease!r}")
    return lease.number
