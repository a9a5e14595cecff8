"""The admission webhook: the API server asks, over HTTPS, before it writes an object of ours.

    POST /validate    AdmissionReview v1 in, the same with a response out (verdicts.py)

It is asked about Networks, Pools and Addresses alone (deploy/base/webhook.yaml),
so it is on the path of people and never of pods, agents or the controller.
Every replica answers, out of its own watch of what it judges by.  Whatever it
cannot judge it lets pass with a warning: nothing may depend on it, and its
configuration says failurePolicy Ignore for when nobody answers at all.

Anybody who reaches the port may ask, and so learn the names of pools, nodes
and owners of addresses; nothing is changed by asking.

HTTP by h11, which is there for httpcore2 anyway.  Connections are kept: the
API server's end closes one that was idle for 90 s, and then ours may not be
first, or it would find a question unanswered.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Literal

import h11
import msgspec

from muslin.controller.certificates import Certificates
from muslin.controller.verdicts import FORCE, Operation, Verdict, World, judge
from muslin.controller.writes import MANAGER
from muslin.errors import ConfigError
from muslin.kube import Access, Api
from muslin.kube.kinds import MUSLIN_GROUP
from muslin.kube.slim import Meta
from muslin.kube.values import KINDS, from_object
from muslin.log import log
from muslin.model import Block, Network, Node, Pool, Reservation

PATH = "/validate"
MOST = 3 << 20  # bytes of a request; the API server takes no larger object
HEAD = 16 << 10  # bytes of headers
PATIENCE = 5.0  # seconds for a handshake, for a request to arrive, for its answer to be taken
IDLE = 120.0  # seconds between two requests; Go's end closes after 90
CROWD = 64  # connections at a time: each may hold a request; one more ends the longest idle

_JUDGED: dict[str, type[Any]] = {KINDS[k].kind: k for k in (Network, Pool, Reservation)}
_WORLD = (Network, Pool, Node, Block, Reservation)


async def serve_webhook(
    access: Access,
    namespace: str,
    address: tuple[str, int],
    *,
    leading: Callable[[], bool],
    wall: Callable[[], float] = time.time,
    listening: Callable[[int], None] = lambda _: None,
) -> None:
    """Answer until cancelled; ConfigError when `address` cannot be had.

    `leading`: whether this replica writes the caBundle.  `listening` is told
    the port; before there is a certificate, handshakes fail.
    """
    known = Known()
    async with Api(access, manager=MANAGER) as api:
        certificates = Certificates(api, namespace, leading=leading, wall=wall)
        door = Door(known.answer)
        listening(await door.open(*address, certificates.context))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(known.follow(api))
                tasks.create_task(certificates.run())
        finally:
            await door.close()


# ── what is known ───────────────────────────────────────────────────────────────────────────────


class _Object(msgspec.Struct, frozen=True):
    metadata: Meta = Meta()
    spec: msgspec.Raw = msgspec.Raw(b"{}")


class Known:
    """What requests are judged by; `follow` fills it."""

    def __init__(self) -> None:
        self.world = World(networks={}, pools={}, nodes={}, blocks={}, addresses={})
        self._missing = {KINDS[kind].plural: "not listed yet" for kind in _WORLD}

    @property
    def fault(self) -> str:
        """Why nothing can be judged just now; "" when all watches are heard."""
        return "; ".join(f"{kind}: {why}" for kind, why in self._missing.items())

    async def follow(self, api: Api) -> None:
        """Watch until cancelled."""
        world = self.world
        async with asyncio.TaskGroup() as tasks:
            for kind, values in (
                (Network, world.networks),
                (Pool, world.pools),
                (Node, world.nodes),
                (Block, world.blocks),
                (Reservation, world.addresses),
            ):
                tasks.create_task(self._follow(api, kind, values))  # type: ignore[arg-type]

    async def _follow(self, api: Api, kind: type[Any], values: dict[str, Any]) -> None:
        plural, listed = KINDS[kind].plural, False

        def heard(why: str) -> None:
            if why:
                self._missing[plural] = why
            elif listed:
                self._missing.pop(plural, None)

        async with aclosing(api.watch(KINDS[kind], type=_Object, heard=heard)) as batches:
            async for batch in batches:
                for change in batch:
                    found = change.object
                    value = _read(kind, found)
                    if value is None or isinstance(value, str):  # its own status says why
                        values.pop(change.name, None)
                    else:
                        values[change.name] = value
                listed = True
                self._missing.pop(plural, None)

    def answer(self, body: bytes) -> tuple[int, bytes]:
        """HTTP status and body for one AdmissionReview."""
        try:
            request = _reviews.decode(body).request
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            return 400, f"not an AdmissionReview of admission.k8s.io/v1: {e}\n".encode()
        try:
            verdict = review(request, self.world, self.fault)
        except Exception:  # a fault of ours must not keep anybody from writing
            log.exception("webhook.failed", operation=request.operation, name=request.name)
            verdict = _passed("the webhook failed; its log says why")
        if verdict.faults:
            log.info(
                "webhook.refused",
                operation=request.operation,
                kind=request.kind.kind,
                name=request.name,
                by=request.user_info.username,
                why="; ".join(verdict.faults),
            )
        return 200, msgspec.json.encode(_response(request.uid, verdict))


# ── one review: pure ────────────────────────────────────────────────────────────────────────────


class _Kind(msgspec.Struct, frozen=True):
    group: str = ""
    kind: str = ""


class _User(msgspec.Struct, frozen=True):
    username: str = ""


class Request(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is asked, as far as it is read."""

    uid: str
    operation: Operation | Literal["CONNECT"]
    kind: _Kind = _Kind()
    name: str = ""
    sub_resource: str = ""
    user_info: _User = _User()
    object: _Object | None = None
    old_object: _Object | None = None


class _Review(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    api_version: Literal["admission.k8s.io/v1"]
    kind: Literal["AdmissionReview"]
    request: Request


_reviews = msgspec.json.Decoder(_Review)


def review(request: Request, world: World, unknown: str = "") -> Verdict:
    """The verdict; `unknown` is why the world is not known, if it is not."""
    kind = _JUDGED.get(request.kind.kind)
    if kind is None or request.kind.group != MUSLIN_GROUP or request.sub_resource:
        return Verdict()
    if request.operation == "CONNECT":
        return Verdict()
    if unknown:
        return _passed(f"other objects are not known: {unknown}")
    old, new = _read(kind, request.old_object), _read(kind, request.object)
    if isinstance(new, str):
        return _passed(new)
    # What stands there and is no value takes nothing from anybody; what follows it is as if new.
    before = None if isinstance(old, str) else old
    operation = request.operation
    if operation == "UPDATE" and before is None:
        operation = "CREATE"
    carrier = request.object if operation != "DELETE" else request.old_object
    notes = (carrier.metadata.annotations or {}) if carrier else {}
    return judge(operation, before, new, world, forced=notes.get(FORCE) == "true")


def _read(kind: type[Any], found: _Object | None) -> Any:
    """The value in an object; as text, why there is none."""
    if found is None:
        return None
    plain = {"metadata": {"name": found.metadata.name}, "spec": msgspec.json.decode(found.spec)}
    try:
        return from_object(kind, plain)
    except ConfigError as e:
        return str(e)


def _passed(why: str) -> Verdict:
    return Verdict(warnings=(f"muslin: let pass unchecked: {why}",))


def _response(uid: str, verdict: Verdict) -> dict[str, Any]:
    response: dict[str, Any] = {"uid": uid, "allowed": not verdict.faults}
    if verdict.faults:
        response["status"] = {
            "code": 422,
            "reason": "Invalid",
            "message": "; ".join(verdict.faults),
            "details": {"causes": [{"message": fault} for fault in verdict.faults]},
        }
    if verdict.warnings:
        response["warnings"] = list(verdict.warnings)
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


# ── HTTP ────────────────────────────────────────────────────────────────────────────────────────


class _Refused(Exception):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Door:
    """The HTTPS server; `answer` is asked for each body that was posted to PATH."""

    def __init__(self, answer: Callable[[bytes], tuple[int, bytes]]) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._open = set[asyncio.Task[None]]()
        self._idle = dict[asyncio.Task[None], None]()  # of these, the longest idle first

    async def open(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """Listen; the port.  ConfigError when it cannot be had."""
        try:
            self._server = await asyncio.start_server(
                self._begin,
                host,
                port,
                ssl=context,
                ssl_handshake_timeout=PATIENCE,
                ssl_shutdown_timeout=1.0,
            )
        except (OSError, OverflowError) as e:
            why = getattr(e, "strerror", None) or str(e)
            hint = "choose another with MUSLIN_WEBHOOK=host:port"
            raise ConfigError(f"setting webhook = {host}:{port}", [why], hint=hint) from e
        found = int(self._server.sockets[0].getsockname()[1])
        log.info("webhook.served", listen=f"{host}:{found}")
        return found

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CROWD:
            if not self._idle:
                writer.transport.abort()
                return
            longest = next(iter(self._idle))
            del self._idle[longest]
            longest.cancel()
        task = asyncio.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        faults = (OSError, EOFError, TimeoutError, h11.ProtocolError)
        wire = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD)
        try:
            with contextlib.suppress(*faults):
                while await self._one(wire, reader, writer):
                    wire.start_next_cycle()
                async with asyncio.timeout(1.0):
                    writer.close()
                    await writer.wait_closed()
        finally:
            writer.transport.abort()  # nothing when it is closed

    async def _one(
        self, wire: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """One request and its answer; whether another may follow."""
        if not wire.trailing_data[0]:
            first = await self._first(reader)
            wire.receive_data(first)
            if not first:
                return False
        try:
            async with asyncio.timeout(PATIENCE):
                code, body = self._answer(await self._body(wire, reader, writer))
        except _Refused as e:
            code, body = e.code, f"{e}\n".encode()
        except h11.RemoteProtocolError as e:
            code, body = e.error_status_hint, f"{e}\n".encode()
        kind = b"application/json" if code == 200 else b"text/plain; charset=utf-8"
        headers = [(b"Content-Type", kind), (b"Content-Length", str(len(body)).encode())]
        if code != 200:
            headers.append((b"Connection", b"close"))
        async with asyncio.timeout(PATIENCE):
            for event in (
                h11.Response(status_code=code, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                writer.write(wire.send(event) or b"")
            await writer.drain()
        return wire.our_state is h11.DONE and wire.their_state is h11.DONE

    async def _first(self, reader: asyncio.StreamReader) -> bytes:
        this = asyncio.current_task()
        assert this is not None
        self._idle[this] = None
        try:
            async with asyncio.timeout(IDLE):
                return await reader.read(HEAD)
        finally:
            self._idle.pop(this, None)

    async def _body(
        self, wire: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        """The body of a request that is one for us."""
        body = bytearray()
        while True:
            event = wire.next_event()
            if event is h11.NEED_DATA:
                if wire.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    writer.write(wire.send(go_on) or b"")
                wire.receive_data(await reader.read(64 << 10))
            elif isinstance(event, h11.Request):
                _check(event)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MOST:
                    raise _Refused(413, f"at most {MOST} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            else:
                raise EOFError


def _check(request: h11.Request) -> None:
    headers: Mapping[bytes, bytes] = dict(request.headers)
    if request.target.partition(b"?")[0] != PATH.encode():
        raise _Refused(404, f"there is only {PATH}")
    if request.method != b"POST":
        raise _Refused(405, "only POST")
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise _Refused(400, "only application/json")
    if int(headers.get(b"content-length", b"0")) > MOST:  # h11 has seen that it is a number
        raise _Refused(413, f"at most {MOST} bytes")
