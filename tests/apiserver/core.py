"""What all parts share: the storage, the kinds, who may ask, and how an object is written down."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from . import crds
from .auth import Accounts
from .defaults import Addresses
from .encode import Json, decode, encode
from .events import from_core
from .faults import Faults
from .kinds import CRD, NAMESPACE, Kind
from .managed import Manager, after_update
from .settings import Settings
from .status import ApiError, invalid, not_found
from .storage import Entry, Storage

_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")


class Core:
    """One API server without its HTTP front."""

    def __init__(
        self,
        storage: Storage | None = None,
        settings: Settings | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.settings = settings or Settings()
        self.storage = storage or Storage()
        self.registry = crds.Registry(self.storage, self.settings)
        self.accounts = Accounts()
        self.addresses = Addresses(self.settings.services)
        self.faults = Faults(self.storage)
        self._now = now
        if not self.storage.table(NAMESPACE.storage).entries:
            for name in _NAMESPACES:
                self._make_namespace(name)

    def time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%SZ")

    # ── objects ────────────────────────────────────────────────────────────
    def get(self, kind: Kind, namespace: str, name: str) -> Entry:
        entry = self.storage.get(kind.storage, (namespace, name))
        if entry is None:
            raise not_found(kind.group, kind.plural, name)
        return entry

    def read(self, kind: Kind, entry: Entry) -> Json:
        """An object as `kind` shows it."""
        obj: Json = decode(entry.raw)
        if kind.stored_as:
            return from_core(obj)
        if kind.custom:
            obj["apiVersion"] = kind.api_version
        return obj

    def outbound(self, kind: Kind, raw: bytes) -> bytes:
        """Stored bytes as `kind` shows them."""
        if kind.stored_as:
            return encode(from_core(decode(raw)))
        if kind.custom and kind.crd.stored != kind.api_version:
            stored = f'{{"apiVersion":"{kind.crd.stored}"'.encode()
            assert raw.startswith(stored)
            return f'{{"apiVersion":"{kind.api_version}"'.encode() + raw[len(stored) :]
        return raw

    def raw(self, kind: Kind, obj: Json) -> bytes:
        """An object as it is stored, and for most kinds as it is sent."""
        if kind.custom:
            return encode({**obj, "apiVersion": kind.crd.stored}, ordered=True)
        head = {"kind": kind.kind, "apiVersion": obj["apiVersion"], "metadata": obj["metadata"]}
        return encode({**head, **{k: v for k, v in obj.items() if k not in head}})

    def entry(self, kind: Kind, obj: Json, revision: int) -> Entry:
        meta = obj["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        fields = {path: _field(obj, path) for path in kind.selectable}
        raw = self.raw(kind, obj)
        return Entry(key, revision, raw, meta["uid"], meta.get("labels") or {}, fields)

    def commit(self, kind: Kind, obj: Json) -> Json:
        """Store an object under the next revision."""
        revision = self.storage.revision + 1
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(revision)}}
        self.storage.put(kind.storage, self.entry(kind, obj, revision))
        return obj

    def remove(self, kind: Kind, entry: Entry) -> None:
        """Forget an object; watchers see what was stored, under the next revision."""
        obj = decode(entry.raw)
        revision = self.storage.revision + 1
        obj["metadata"]["resourceVersion"] = str(revision)
        stored = self.registry.of_resource(kind.storage) or kind
        last = Entry(
            entry.key, revision, self.raw(stored, obj), entry.uid, entry.labels, entry.fields
        )
        self.storage.delete(kind.storage, last)

    def tracked(self, kind: Kind, old: Json, new: Json, manager: Manager) -> None:
        """Give `new` the managedFields that follow from the change."""
        if not self.settings.managed_fields:
            new["metadata"].pop("managedFields", None)
            return
        entries = after_update(kind, old, new, manager, self.time())
        if entries:
            new["metadata"]["managedFields"] = entries
        else:
            new["metadata"].pop("managedFields", None)

    def rewrite(self, kind: Kind, key: tuple[str, str], change: Callable[[Json], None]) -> Json:
        """Change an object as the server's own controllers do: no checks, no managers."""
        obj: Json = decode(self.storage.table(kind.storage).entries[key].raw)
        change(obj)
        return self.commit(kind, obj)

    # ── what the server's own controllers do ───────────────────────────────
    def establish(self, obj: Json) -> None:
        """Bring a new definition to life, as recorded: two changes of its status."""
        manager = Manager("kube-apiserver", "Update", CRD.api_version, "status")
        for status in crds.life(obj, self.time()):
            old = decode(self.get(CRD, "", obj["metadata"]["name"]).raw)
            new = {**copy.deepcopy(old), "status": status["status"]}
            self.tracked(CRD, old, new, manager)
            self.commit(CRD, new)

    def _make_namespace(self, name: str) -> None:
        labels = {"kubernetes.io/metadata.name": name}
        obj: Json = {
            "kind": "Namespace",
            "apiVersion": "v1",
            "metadata": {
                "name": name,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": self.time(),
                "labels": labels,
            },
            "spec": {},
            "status": {},
        }
        self.tracked(NAMESPACE, {**NAMESPACE.zero, "metadata": {}}, obj, _SELF)
        obj["spec"] = {"finalizers": ["kubernetes"]}
        obj["status"] = {"phase": "Active"}
        self.commit(NAMESPACE, obj)


_SELF = Manager("kube-apiserver", "Update", "v1")


def _field(obj: Json, path: str) -> str:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def refuse(kind: Kind, name: str, faults: list[Any]) -> ApiError:
    """422 for an object; a kind shown under two names is named as stored."""
    group = "" if kind.stored_as else kind.group
    return invalid(group, kind.kind, name, faults)
