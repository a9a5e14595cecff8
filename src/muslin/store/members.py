"""Reaching one of several etcd members, within a deadline.

Built on `aetcd.rpc`, the generated messages and stubs, and not on aetcd's
client: that one knows neither TLS nor more than one address, its watcher
ends silently when a stream ends without an error, and it does not tell which
revision a watch has come to.

A member that refuses is passed over at once.  One that does not answer (a
half-open connection, a stopped process) costs a request its deadline, and
gRPC's keepalive finds it for watches, which have none.

Only a read is repeated at the next member.  A write that was sent may have
happened although its answer was lost; repeated, a compare-and-swap would
lose against itself and say Conflict of a change that it made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from aetcd import rpc

from muslin.errors import ConfigError, Conflict, MuslinError, NotReady
from muslin.store.url import EtcdAt

Metadata = tuple[tuple[str, str], ...]

# Seconds without a word until a connection is pinged; after 0.3 of that again it is dead.  etcd
# closes connections that ping more often than every 5 s (--grpc-keepalive-min-time).
KEEPALIVE = 10.0

_CHANNEL = (
    ("grpc.http2.max_pings_without_data", 0),  # 0: an idle watch is pinged for ever
    # gRPC's own reconnecting must not be slower than ours (its defaults: 1 s, 20 s, 120 s).
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # also how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", -1),  # a list of a large prefix is one message
    ("grpc.enable_http_proxy", 0),  # http_proxy is for the web, not for the store
)


class Member:
    """One etcd process: its channel and stubs."""

    def __init__(
        self, address: str, credentials: grpc.ChannelCredentials | None, keepalive: float
    ) -> None:
        self.address = address
        options = (
            *_CHANNEL,
            ("grpc.keepalive_time_ms", round(keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", round(keepalive * 300)),
            # No keepalive ping is sent while a bandwidth ping is unanswered, and that one has
            # 60 s by default (seen with grpcio 1.85).
            ("grpc.http2.ping_timeout_ms", round(keepalive * 300)),
        )
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials, options=options)
        self.kv: Any = rpc.KVStub(self.channel)
        self.leases: Any = rpc.LeaseStub(self.channel)
        self.watches: Any = rpc.WatchStub(self.channel)
        self.auth: Any = rpc.AuthStub(self.channel)

    async def connect(self) -> None:
        """Return once connected; NotReady as soon as an attempt has failed."""
        ready, failed = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE
        try:
            while (state := self.channel.get_state(try_to_connect=True)) != ready:
                if state == failed:
                    raise await self._why()
                await self.channel.wait_for_state_change(state)
        except grpc.aio.UsageError as e:  # closed meanwhile
            raise NotReady(f"etcd {self.address}: {e}") from e

    async def _why(self) -> NotReady:
        """Why there is no connection: only a request that fails is told."""
        try:
            await self.kv.Range(rpc.RangeRequest(key=b"\0", count_only=True))
        except grpc.aio.AioRpcError as e:
            why = e.details() or "no connection"
            hint = "check the store's options ca, cert and key" if "andshak" in why else ""
            return NotReady(f"etcd {self.address}: {why}", hint=hint)
        return NotReady(f"etcd {self.address}: the connection comes and goes")


Call = Callable[[Member, Metadata], Awaitable[Any]]


class Members:
    """All members of one cluster; requests go to the one that answered last.

    Channels belong to the running loop, so they are made by the first call.
    """

    def __init__(self, at: EtcdAt, timeout: float, keepalive: float) -> None:
        self._at = at
        self._keepalive = keepalive
        self._timeout = timeout
        self._credentials = _credentials(at)
        self._members: tuple[Member, ...] = ()
        self._current = 0
        self._token: Metadata | None = None if at.user else ()
        self._signing_in = asyncio.Lock()
        self._limits: set[asyncio.Timeout] = set()
        self.closed = asyncio.Event()

    async def read(self, call: Call) -> Any:
        """The answer to a request that may safely be sent twice."""
        return await self._request(call, repeat=True)

    async def write(self, call: Call) -> Any:
        """The answer to a request that is sent at most once."""
        return await self._request(call, repeat=False)

    async def close(self) -> None:
        """Close every connection; what waits for an answer gets NotReady."""
        self.closed.set()
        for limit in self._limits:  # gRPC leaves a call that was about to begin without an answer
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())
        members, self._members = self._members, ()
        for member in members:
            await member.channel.close()

    async def _request(self, call: Call, *, repeat: bool) -> Any:
        """Try each member once, in one deadline for all, until one answers."""
        if self.closed.is_set():
            raise NotReady("etcd: the store is closed")
        if not self._members:
            self._members = tuple(
                Member(address, self._credentials, self._keepalive) for address in self._at.members
            )
        members = self._members
        now = asyncio.get_running_loop().time
        end = now() + self._timeout
        fault: NotReady = NotReady("etcd: no member was tried")
        first = self._current
        for left in range(len(members), 0, -1):
            at = (first - left) % len(members)  # the current one, then those after it
            member = members[at]
            sent = False
            try:
                # An even share of what is left, so that a silent member leaves time for the rest.
                async with self._within((end - now()) / left):
                    await member.connect()
                    token = await self._sign_in(member)
                async with self._within((end - now()) / (left if repeat else 1)):
                    sent = True
                    answer = await self._ask(member, call, token)
                self._current = at
                return answer
            except TimeoutError:
                fault = NotReady(f"etcd {member.address}: no answer in time")
            except Conflict:
                raise
            except NotReady as e:
                fault = e
            if self._current == at:  # else another request has already moved on
                self._current = (at + 1) % len(members)
            if sent and not repeat:
                break
        raise fault

    @asynccontextmanager
    async def _within(self, seconds: float) -> AsyncIterator[None]:
        """Raise TimeoutError after `seconds`, or when the store is closed."""
        async with asyncio.timeout(seconds) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    async def _ask(self, member: Member, call: Call, token: Metadata) -> Any:
        try:
            return await self.checked(member, call(member, token))
        except _TokenExpiredError:  # refused before anything was done: a write may be sent again
            self._token = None
            return await self.checked(member, call(member, await self._sign_in(member)))

    async def _sign_in(self, member: Member) -> Metadata:
        if self._token is None:
            async with self._signing_in:
                if self._token is None:  # else another task was faster
                    self._token = await self._new_token(member)
        return self._token

    async def _new_token(self, member: Member) -> Metadata:
        request = rpc.AuthenticateRequest(name=self._at.user, password=self._at.password)
        try:
            answer = await self.checked(member, member.auth.Authenticate(request))
        except NotReady as e:
            if "authentication is not enabled" in e.message:
                return ()  # a password that nobody asks for is no fault
            raise
        return (("token", answer.token),)

    @staticmethod
    async def checked(member: Member, answer: Awaitable[Any]) -> Any:
        """Await an answer of gRPC; its errors become ours (`explain`)."""
        try:
            return await answer
        except grpc.aio.AioRpcError as e:
            raise explain(e, member.address) from e
        except asyncio.CancelledError:
            # gRPC says "cancelled" for its own reasons too, such as a channel that we closed.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise NotReady(f"etcd {member.address}: the request was cut off") from None


class _TokenExpiredError(NotReady):
    """Sign in again: etcd forgets a simple token after 5 idle minutes."""


def explain(error: grpc.aio.AioRpcError, address: str) -> MuslinError:
    """What a gRPC error means: ConfigError to a person, Conflict of a lost lease, else NotReady."""
    details = error.details() or error.code().name
    text = f"etcd {address}: {details}"
    code = grpc.StatusCode
    if error.code() == code.UNAUTHENTICATED or "revision of auth store is old" in details:
        return _TokenExpiredError(text)
    if "lease not found" in details:
        return Conflict("lease", "the lease is gone")
    fault: MuslinError = NotReady(text)
    if error.code() == code.PERMISSION_DENIED:
        hint = "grant the user a role that may read and write the store's prefix"
        fault = ConfigError(f"etcd {address}", [details], hint=hint)
    elif error.code() == code.INVALID_ARGUMENT and "authentication failed" in details:
        hint = "correct the store's options user and password"
        fault = ConfigError(f"etcd {address}", [details], hint=hint)
    elif error.code() == code.INVALID_ARGUMENT and "user name is empty" in details:
        hint = "set the store's options user and password"
        fault = ConfigError(f"etcd {address}", ["it asks for a password"], hint=hint)
    elif error.code() == code.RESOURCE_EXHAUSTED:
        hint = "compact and defragment etcd, or raise its quota"
        fault = NotReady(text, hint=hint)
    return fault


def _credentials(at: EtcdAt) -> grpc.ChannelCredentials | None:
    if not (at.ca or at.cert):
        return None
    faults: list[str] = []
    ca, cert, key = (_pem(name, getattr(at, name), faults) for name in ("ca", "cert", "key"))
    if faults:
        raise ConfigError("store etcd", faults, hint="correct the store's options")
    return grpc.ssl_channel_credentials(ca, key, cert)


def _pem(option: str, path: str, faults: list[str]) -> bytes | None:
    if not path:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        faults.append(f"option {option}: {path}: {e.strerror}")
        return None
    if b"-----BEGIN" not in data:
        faults.append(f"option {option}: {path}: not a PEM file")
    return data
