"""Custom kinds: which exist, since when they are served, and the life of their definitions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import cel
from .encode import Json, decode
from .kinds import BUILTINS, CRD, GROUP_ORDER, Kind
from .schema import Schema
from .settings import Settings
from .status import Fault, quoted
from .storage import Event, Storage

DEFAULT_COLUMNS: tuple[Json, ...] = (
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """What a definition says of one version."""

    schema: Schema
    columns: tuple[Json, ...]
    stored: str  # the apiVersion under which objects are kept
    selectable: tuple[str, ...]


class Registry:
    """Every kind that this server knows, built in or defined."""

    def __init__(self, storage: Storage, settings: Settings) -> None:
        self._storage, self._settings = storage, settings
        self._custom: dict[tuple[str, str, str], Kind] = {}
        self._served: dict[tuple[str, str], float] = {}  # when a path starts to be served
        self._touched: dict[tuple[str, str], float] = {}  # when its cache began to fill
        self.removed: Callable[[tuple[str, str]], None] = lambda resource: None
        table = storage.table(CRD.storage)
        table.listeners.append(self._changed)
        for entry in table.entries.values():
            self._define(decode(entry.raw), delay=0)

    def lookup(self, group: str, version: str, plural: str) -> Kind | None:
        """The kind behind a path, or None while it is not served."""
        key = (group, version, plural)
        if found := BUILTINS.get(key):
            return found
        kind = self._custom.get(key)
        if kind is None or time.monotonic() < self._served[kind.storage]:
            return None
        self._touched.setdefault(kind.storage, time.monotonic())
        return kind

    def filling(self, kind: Kind) -> bool:
        """Whether a custom kind's cache is not ready yet for watches."""
        since = self._touched.get(kind.storage)
        return since is not None and time.monotonic() < since + self._settings.cache_delay

    def kinds(self) -> Iterator[Kind]:
        yield from BUILTINS.values()
        now = time.monotonic()
        yield from (kind for kind in self._custom.values() if self._served[kind.storage] <= now)

    def groups(self) -> dict[str, list[str]]:
        """Group to versions, in the order of /apis; the core group is ''."""
        found: dict[str, list[str]] = {group: [] for group in GROUP_ORDER}
        for kind in self.kinds():
            versions = found.setdefault(kind.group, [])
            if kind.version not in versions:
                versions.append(kind.version)
        return found

    def of_resource(self, resource: tuple[str, str]) -> Kind | None:
        """The kind as which a resource is stored."""
        for kind in (*BUILTINS.values(), *self._custom.values()):
            named = (kind.group, kind.plural) == resource and not kind.stored_as
            if named and (not kind.custom or kind.crd.stored == kind.api_version):
                return kind
        return None

    def of_object(self, api_version: str, name: str) -> Kind | None:
        for kind in (*BUILTINS.values(), *self._custom.values()):
            if kind.api_version == api_version and kind.kind == name:
                return kind
        return None

    def _changed(self, event: Event) -> None:
        obj = decode(event.entry.raw)
        resource = (obj["spec"]["group"], obj["spec"]["names"]["plural"])
        gone = {key for key, kind in self._custom.items() if kind.storage == resource}
        for key in gone:
            del self._custom[key]
        if event.kind == "DELETED":
            self._served.pop(resource, None)
            self._touched.pop(resource, None)
            self.removed(resource)
        elif _established(obj):
            self._define(obj, delay=self._settings.establish_delay)

    def _define(self, obj: Json, *, delay: float) -> None:
        for kind in _kinds(obj):
            self._custom[kind.group, kind.version, kind.plural] = kind
            self._served.setdefault(kind.storage, time.monotonic() + delay)


def _established(obj: Json) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def _kinds(obj: Json) -> Iterator[Kind]:
    spec = obj["spec"]
    names = spec["names"]
    stored = next(one["name"] for one in spec["versions"] if one.get("storage"))
    for one in spec["versions"]:
        if not one.get("served"):
            continue
        schema = Schema((one.get("schema") or {}).get("openAPIV3Schema") or {})
        fields = tuple(
            field["jsonPath"].removeprefix(".") for field in one.get("selectableFields") or ()
        )
        columns = tuple(one.get("additionalPrinterColumns") or DEFAULT_COLUMNS)
        yield Kind(
            spec["group"],
            one["name"],
            names["plural"],
            names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            singular=names.get("singular") or names["kind"].lower(),
            list_kind=names.get("listKind", ""),
            short=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            status="status" in (one.get("subresources") or {}),
            generation=True,
            unconditional=False,
            selectable=fields,
            shape=schema,
            crd=Version(schema, columns, f"{spec['group']}/{stored}", fields),
        )


def condition(name: str, status: str, reason: str, message: str, now: str) -> Json:
    return {
        "type": name,
        "status": status,
        "lastTransitionTime": now,
        "reason": reason,
        "message": message,
    }


def life(obj: Json, now: str) -> Iterator[Json]:
    """The statuses that the server's own controllers give a new definition, in order."""
    accepted = condition("NamesAccepted", "True", "NoConflicts", "no conflicts found", now)
    words = "the initial names have been accepted"
    status = {**obj["status"], "acceptedNames": obj["spec"]["names"]}
    installing = condition("Established", "False", "Installing", words, now)
    yield {**obj, "status": {**status, "conditions": [accepted, installing]}}
    done = condition("Established", "True", "InitialNamesAccepted", words, now)
    yield {**obj, "status": {**status, "conditions": [accepted, done]}}


def faults(obj: Json) -> list[Fault]:
    """What is wrong with a definition; not all that a real server would find."""
    spec, found = obj["spec"], []
    names = spec["names"]
    name, wanted = obj["metadata"].get("name", ""), f"{names.get('plural')}.{spec.get('group')}"
    if name != wanted:
        detail = f'{quoted(name)}: must be spec.names.plural+"."+spec.group'
        found.append(Fault("FieldValueInvalid", "metadata.name", detail))
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        found.append(Fault("FieldValueRequired", "spec.scope"))
    versions = spec.get("versions") or []
    if sum(bool(one.get("storage")) for one in versions) != 1:
        detail = "must have exactly one version marked as storage version"
        found.append(Fault("FieldValueInvalid", "spec.versions", f"null: {detail}"))
    for number, one in enumerate(versions):
        path = f"spec.versions[{number}].schema.openAPIV3Schema"
        root = (one.get("schema") or {}).get("openAPIV3Schema")
        if root is None:
            found.append(Fault("FieldValueRequired", path, "schemas are required"))
        else:
            found += _schema_faults(root, path, top=True)
    return found


_WITHOUT_TYPE = ("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields")


def _schema_faults(node: Json, path: str, *, top: bool = False) -> list[Fault]:
    found = []
    if top and node.get("type") != "object":
        detail = f"{quoted(node.get('type', ''))}: must be object at the root"
        found.append(Fault("FieldValueInvalid", f"{path}.type", detail))
    elif not node.get("type") and not any(node.get(word) for word in _WITHOUT_TYPE):
        detail = "must not be empty for specified object fields"
        found.append(Fault("FieldValueRequired", f"{path}.type", detail))
    for number, rule in enumerate(node.get("x-kubernetes-validations") or ()):
        for field in ("rule", "messageExpression"):
            try:
                if rule.get(field):
                    cel.compiled(rule[field])
            except cel.CelError as error:
                where = f"{path}.x-kubernetes-validations[{number}].{field}"
                detail = f"{quoted(rule[field])}: {error}"
                found.append(Fault("FieldValueInvalid", where, detail))
    if node.get("x-kubernetes-list-type") == "map":
        properties = (node.get("items") or {}).get("properties") or {}
        for key in node.get("x-kubernetes-list-map-keys") or ():
            if key not in properties:
                where = f"{path}.x-kubernetes-list-map-keys"
                detail = f"{quoted(key)}: entries must all be names of item properties"
                found.append(Fault("FieldValueInvalid", where, detail))
    for name, below in (node.get("properties") or {}).items():
        if not (top and name == "metadata"):
            found += _schema_faults(below, f"{path}.properties[{name}]")
    for name in ("items", "additionalProperties"):
        below = node.get(name)
        if isinstance(below, dict):
            found += _schema_faults(below, f"{path}.{name}")
    return found


def later(delay: float, action: Callable[[], Any]) -> None:
    """Run now, or after a delay where a loop runs."""
    if delay <= 0:
        action()
    else:
        asyncio.get_running_loop().call_later(delay, action)
