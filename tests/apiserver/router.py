"""From method and path to an answer: everything between HTTP and the verbs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from . import discovery, openapi, rbac
from .admission import Admission
from .call import Answer, Call, User
from .core import Core
from .deletes import Deletes
from .encode import Json, encode
from .kinds import Kind
from .reads import Reads
from .reviews import Reviews
from .status import bad_request, method_not_allowed, page_not_found
from .subresources import Subresources
from .watch import Watcher, Watches
from .writes import Writes

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}
_HEALTH = ("/healthz", "/livez", "/readyz")


@dataclass(slots=True)
class Request:
    """What came in, from HTTP or from the same process."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    content_type: str = "application/json"
    accept: str = "application/json"
    agent: str = "in-process"
    authorization: str | None = None

    @classmethod
    def to(cls, method: str, url: str, **more: str | bytes | None) -> Request:
        path, _, query = url.partition("?")
        return cls(method, path, dict(parse_qsl(query)), **more)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Place:
    """A path of the API, taken apart."""

    kind: Kind
    namespace: str
    name: str
    subresource: str


class Router:
    """One API server, asked without HTTP."""

    def __init__(self, core: Core, address: str = "") -> None:
        self.core, self.address = core, address
        self.admission = Admission(core)
        self.reads = Reads(core)
        self.watches = Watches(core)
        self.writes = Writes(core, self.admission)
        self.deletes = Deletes(core, self.admission)
        self.subresources = Subresources(core, self.writes, self.deletes)
        self.reviews = Reviews(core)

    async def handle(self, request: Request) -> Answer | Watcher:
        """Answer, or open a watch for the caller to serve; raises ApiError."""
        who = request.authorization
        user = self.core.accounts.who(who, open_door=not self.core.settings.rbac)
        if (answer := await self._plain(request, user)) is not None:
            return answer
        call = self.call(request, user)
        self.core.faults.check(request.path, call.verb)
        if self.core.settings.rbac:
            rbac.require(self.core, call)
        return await self._dispatch(call)

    async def _plain(self, request: Request, user: User) -> Answer | None:
        """What is not a resource."""
        path = request.path.rstrip("/") or "/"
        registry = self.core.registry
        body: Json | None = None
        if path in _HEALTH or path.startswith(tuple(f"{one}/" for one in _HEALTH)):
            return Answer(200, b"ok", "text/plain; charset=utf-8")
        if path == "/version":
            body = discovery.VERSION
        elif path == "/api":
            body = discovery.versions(self.address)
        elif path == "/apis":
            body = discovery.groups(registry)
        elif path == "/openapi/v3":
            body = openapi.index(registry)
        elif path.startswith("/openapi/v3/"):
            body = openapi.document(registry, path.removeprefix("/openapi/v3/"))
        elif path == "/api/v1":
            body = discovery.resources(registry, "", "v1")
        elif path.startswith("/apis/") and path.count("/") == 2:
            name = path.split("/")[2]
            if found := registry.groups().get(name):
                head = {"kind": "APIGroup", "apiVersion": "v1"}
                body = {**head, **discovery.group(name, found)}
        elif path.startswith("/apis/") and path.count("/") == 3:
            body = discovery.resources(registry, *path.split("/")[2:])
        elif self.reviews.serves(path):
            return await self.reviews.answer(request.path, request.body, user)
        if body is None:
            return None
        if self.core.settings.rbac:
            rbac.require_path(self.core, user, path)
        return Answer(200, encode(body), obj=body)

    def call(self, request: Request, user: User) -> Call:
        place = self.place(request.path)
        return Call(
            self._verb(request, place),
            place.kind,
            user,
            place.namespace,
            place.name,
            place.subresource,
            request.query,
            request.body,
            request.content_type,
            request.accept,
            request.agent,
        )

    def place(self, path: str) -> Place:
        """Take a path apart, or 404."""
        parts = [part for part in path.split("/") if part]
        if parts[:1] == ["api"] and len(parts) > 2:
            group, version, rest = "", parts[1], parts[2:]
        elif parts[:1] == ["apis"] and len(parts) > 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            raise page_not_found()
        namespace = ""
        known = ("status", "finalize")
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in known:
            namespace, rest = rest[1], rest[2:]
        kind = self.core.registry.lookup(group, version, rest[0])
        name, subresource = (*rest[1:], "", "")[:2]
        if kind is None or len(rest) > 3:
            raise page_not_found()
        if bool(namespace) != kind.namespaced and (namespace or name):
            raise page_not_found()
        return Place(kind, namespace, name, subresource)

    def _verb(self, request: Request, place: Place) -> str:
        match request.method:
            case "GET" | "HEAD":
                if place.name:
                    return "get"
                return "watch" if request.query.get("watch") in ("true", "1") else "list"
            case "DELETE":
                return "delete" if place.name else "deletecollection"
            case method if method in _VERBS:
                return _VERBS[method]
        raise method_not_allowed()

    async def _dispatch(self, call: Call) -> Answer | Watcher:
        if call.subresource and not (call.subresource == "status" and call.kind.status):
            return await self.subresources.answer(call)
        if call.kind.namespaced and not call.namespace and call.verb in ("create", "delete"):
            raise bad_request("an empty namespace may not be set during creation")
        match call.verb:
            case "get":
                return self.reads.get(call)
            case "list":
                return self.reads.list(call)
            case "watch":
                return self.watches.open(call)
            case "create" if not call.name:
                return await self.writes.create(call)
            case "update" if call.name:
                return await self.writes.update(call)
            case "patch" if call.name:
                return await self.writes.patch(call)
            case "delete":
                return await self.deletes.delete(call)
            case "deletecollection":
                return await self._delete_collection(call)
        raise method_not_allowed()

    async def _delete_collection(self, call: Call) -> Answer:
        """The answer lists what was there, at the version of the first deletion."""
        from .forms import form

        entries = self.reads.selected(call)
        shape = form(self.core, call.kind, call.accept)
        body = self.reads.shown(shape, entries)
        await self.deletes.collection(call, entries)
        return Answer(200, body)

    async def send(
        self,
        method: str,
        url: str,
        body: Json | bytes | None = None,
        *,
        content_type: str = "application/json",
        agent: str = "in-process",
        token: str | None = None,
    ) -> Answer:
        """A request from the same process; raises ApiError."""
        raw = body if isinstance(body, bytes) else b"" if body is None else encode(body)
        who = f"Bearer {token}" if token else None
        request = Request.to(
            method, url, body=raw, content_type=content_type, agent=agent, authorization=who
        )
        answer = await self.handle(request)
        assert isinstance(answer, Answer), "a watch needs HTTP"
        return answer
