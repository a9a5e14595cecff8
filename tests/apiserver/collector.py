"""The two controllers whose work a client sees: namespaces end empty, orphans go.

`await api.collector.sweep()` does one round; with `Settings(collect=True)` rounds run in the
background.  Pods are deleted gracefully, so a namespace ends only when somebody plays the
kubelet (kubelet.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from .call import ADMIN, Call
from .crds import condition
from .encode import Json, decode
from .kinds import NAMESPACE, Kind
from .managed import Manager
from .status import ApiError
from .storage import Entry

if TYPE_CHECKING:
    from .server import ApiServer

_MANAGER = Manager("kube-controller-manager", "Update", "v1", "status")


class Collector:
    """One round, or one after another."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api

    async def run(self) -> None:
        while True:
            await self.sweep()
            await asyncio.sleep(self._api.settings.collect_interval)

    async def sweep(self) -> None:
        """Delete orphans, then what terminating namespaces hold, then those that hold nothing."""
        await self.orphans()
        await self.namespaces()

    async def namespaces(self) -> None:
        """Delete what terminating namespaces hold, and those that hold nothing any more."""
        core = self._api.core
        for entry in list(core.storage.table(NAMESPACE.storage).entries.values()):
            if decode(entry.raw)["metadata"].get("deletionTimestamp"):
                await self._empty(entry)

    async def _delete(self, kind: Kind, entry: Entry) -> None:
        call = Call("delete", kind, ADMIN, *entry.key, agent="kube-controller-manager")
        with contextlib.suppress(ApiError):
            await self._api.router.deletes.delete(call)

    async def _empty(self, namespace: Entry) -> None:
        core, name = self._api.core, namespace.key[1]
        left: list[tuple[Kind, Entry]] = []
        for resource, table in list(core.storage.tables.items()):
            kind = core.registry.of_resource(resource)
            if kind is None or not kind.namespaced:
                continue
            for key in [key for key in table.order() if key[0] == name]:
                if (entry := table.entries.get(key)) is None:
                    continue
                if not decode(entry.raw)["metadata"].get("deletionTimestamp"):
                    await self._delete(kind, entry)
                if key in table.entries:
                    left.append((kind, table.entries[key]))
        self._tell(name, left)
        if not left:
            core.remove(NAMESPACE, core.get(NAMESPACE, "", name))

    def _tell(self, name: str, left: list[tuple[Kind, Entry]]) -> None:
        """Write the conditions of a terminating namespace, if they differ."""
        core, now = self._api.core, self._api.core.time()
        fresh = _conditions(name, left, now)
        status = decode(core.get(NAMESPACE, "", name).raw)["status"]
        before = {one["type"]: one for one in status.get("conditions") or ()}
        for one in fresh:
            was = before.get(one["type"])
            if was and was["status"] == one["status"]:
                one["lastTransitionTime"] = was["lastTransitionTime"]
        if list(before.values()) == fresh:
            return
        old = decode(core.get(NAMESPACE, "", name).raw)
        new = {**old, "metadata": dict(old["metadata"])}
        new["status"] = {**old["status"], "conditions": fresh}
        core.tracked(NAMESPACE, old, new, _MANAGER)
        core.commit(NAMESPACE, new)

    async def orphans(self) -> None:
        """Delete objects all of whose owners are gone."""
        core = self._api.core
        tables = core.storage.tables
        alive = {entry.uid for table in tables.values() for entry in table.entries.values()}
        for resource, table in list(tables.items()):
            kind = core.registry.of_resource(resource)
            if kind is None:
                continue
            for entry in list(table.entries.values()):
                if b'"ownerReferences"' not in entry.raw:
                    continue
                meta = decode(entry.raw)["metadata"]
                owners = meta.get("ownerReferences") or ()
                orphaned = owners and not any(one["uid"] in alive for one in owners)
                if orphaned and not meta.get("deletionTimestamp"):
                    await self._delete(kind, entry)


def _conditions(name: str, left: list[tuple[Kind, Entry]], now: str) -> list[Json]:
    """As recorded; what is left is counted by kind."""
    kinds = sorted({f"/{kind.api_version}, Resource={kind.plural}" for kind, _ in left})
    failed = (
        f"Failed to delete all resource types, {len(kinds)} remaining: unexpected items still "
        f"remain in namespace: {name} for gvr: {', '.join(kinds)}"
    )
    done = "All content successfully deleted, may be waiting on finalization"
    content = (
        ("True", "ContentDeletionFailed", failed) if left else ("False", "ContentDeleted", done)
    )
    return [
        condition(
            "NamespaceDeletionDiscoveryFailure",
            "False",
            "ResourcesDiscovered",
            "All resources successfully discovered",
            now,
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            "False",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
            now,
        ),
        condition("NamespaceDeletionContentFailure", *content, now),
        condition(
            "NamespaceContentRemaining",
            "False",
            "ContentRemoved",
            "All content successfully removed",
            now,
        ),
        condition(
            "NamespaceFinalizersRemaining",
            "False",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
            now,
        ),
    ]
