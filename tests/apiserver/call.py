"""One request, read and understood, and one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .encode import Json
from .kinds import Kind
from .managed import Manager


@dataclass(frozen=True, slots=True)
class User:
    """Who asks."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def master(self) -> bool:
        return "system:masters" in self.groups


ADMIN = User("kubernetes-admin", ("system:masters", "system:authenticated"))
ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


@dataclass(slots=True)
class Call:
    """A request for a resource."""

    verb: str
    kind: Kind
    user: User
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    content_type: str = "application/json"
    accept: str = "application/json"
    agent: str = "unknown"

    @property
    def dry(self) -> bool:
        return self.query.get("dryRun") == "All"

    def manager(self, operation: str = "Update") -> Manager:
        name = self.query.get("fieldManager") or self.agent.partition("/")[0][:128] or "unknown"
        return Manager(name, operation, self.kind.api_version, self.subresource)


@dataclass(slots=True)
class Answer:
    """What goes back."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    obj: Json | None = None  # what the body says, for callers in the same process

    @property
    def json(self) -> Any:
        from .encode import decode

        return decode(self.body)
