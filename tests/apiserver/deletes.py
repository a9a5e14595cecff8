"""Deletion: preconditions, grace, finalizers, and whole collections."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from .admission import Admission
from .call import Answer, Call
from .core import Core
from .encode import Json, decode, encode
from .kinds import CRD, NAMESPACE, POD, Kind
from .status import bad_request, conflict
from .storage import Entry

_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def emptied(kind: Kind, old: Json, new: Json) -> bool:
    """Whether this update takes the last thing that kept a deleted object."""
    meta = new["metadata"]
    if not old["metadata"].get("deletionTimestamp") or meta.get("finalizers"):
        return False
    if kind is NAMESPACE and new["spec"].get("finalizers"):
        return False
    return not meta.get("deletionGracePeriodSeconds")


def forget(core: Core, kind: Kind, entry: Entry) -> None:
    """Remove an object now; a definition takes its objects with it."""
    if kind is CRD:
        spec = decode(entry.raw)["spec"]
        resource = (spec["group"], spec["names"]["plural"])
        custom = core.registry.of_resource(resource)
        for one in list(core.storage.table(resource).entries.values()):
            if custom is not None:
                core.remove(custom, one)
    core.remove(kind, entry)


class Deletes:
    """The verbs delete and deletecollection."""

    def __init__(self, core: Core, admission: Admission) -> None:
        self._core, self._admission = core, admission

    async def delete(self, call: Call) -> Answer:
        core, kind = self._core, call.kind
        options = self._options(call)
        entry = core.get(kind, call.namespace, call.name)
        self._check_preconditions(call, entry, options)
        await self._admission.check(call, None, core.read(kind, entry))
        entry = core.get(kind, call.namespace, call.name)
        gone, obj = self._delete(kind, entry, options, dry=call.dry)
        if gone and not kind.returns_object:
            return self._success(kind, entry)
        accepted = not gone and options.get("propagationPolicy") == "Foreground"
        shown = core.read(kind, core.entry(kind, obj, 0)) if kind.stored_as else obj
        raw = encode(shown) if kind.stored_as else core.outbound(kind, core.raw(kind, obj))
        return Answer(202 if accepted else 200, raw, obj=shown)

    async def collection(self, call: Call, entries: list[Entry]) -> None:
        """Delete what was selected; the caller answers with the list of before."""
        options = self._options(call)
        for entry in entries:
            old = self._core.read(call.kind, entry)
            await self._admission.check(call, None, old)
            if self._core.storage.get(call.kind.storage, entry.key) is not None:
                self._delete(call.kind, entry, options, dry=call.dry)

    def _options(self, call: Call) -> Json:
        """DeleteOptions from the body or, as a client may send them too, from the query."""
        options: Json = {}
        if call.body.strip():
            from .writes import parse

            parsed = parse(call)
            options = parsed if isinstance(parsed, dict) else {}
            if options.get("kind", "DeleteOptions") != "DeleteOptions":
                raise bad_request("converting (...) to DeleteOptions: unknown conversion")
        for name, read in (("gracePeriodSeconds", int), ("propagationPolicy", str)):
            if name in call.query and name not in options:
                options[name] = read(call.query[name])
        return options

    def _check_preconditions(self, call: Call, entry: Entry, options: Json) -> None:
        wanted = options.get("preconditions") or {}
        kind = call.kind
        checks = (
            ("uid", "UID", entry.uid),
            ("resourceVersion", "ResourceVersion", str(entry.revision)),
        )
        for name, word, actual in checks:
            if wanted.get(name) is not None and wanted[name] != actual:
                why = (
                    f"Precondition failed: {word} in precondition: {wanted[name]}, "
                    f"{word} in object meta: {actual}"
                )
                raise conflict(kind.group, kind.plural, call.name, why)

    def _delete(
        self, kind: Kind, entry: Entry, options: Json, *, dry: bool = False
    ) -> tuple[bool, Json]:
        """Delete as far as finalizers and grace allow: whether it is gone, and what it was."""
        core = self._core
        obj: Json = decode(entry.raw)
        change = self._marked(kind, obj, options)
        if dry:
            return change is None, obj
        if change is not None:
            obj = core.rewrite(kind, entry.key, change)
        if obj["metadata"].get("finalizers") or (
            kind is NAMESPACE and obj["spec"].get("finalizers")
        ):
            return False, obj
        if obj["metadata"].get("deletionGracePeriodSeconds"):
            return False, obj
        forget(core, kind, core.storage.table(kind.storage).entries[entry.key])
        if kind is POD:
            obj["metadata"]["resourceVersion"] = str(core.storage.revision)
        return True, obj

    def _marked(self, kind: Kind, obj: Json, options: Json) -> Callable[[Json], None] | None:
        """How the object changes before it goes, if it does."""
        meta = obj["metadata"]
        grace = self._grace(kind, obj, options)
        finalizers = _propagation(options) - set(meta.get("finalizers") or ())
        if meta.get("deletionTimestamp"):
            left = meta.get("deletionGracePeriodSeconds")
            if grace is None or left is None or grace >= left:
                return None
            return lambda new: self._shorten(new, left, grace)
        held = bool(meta.get("finalizers") or finalizers) or kind is NAMESPACE
        if kind is not POD and not held:
            return None

        def mark(new: Json) -> None:
            self._mark(kind, new, grace or 0)
            if finalizers:
                new["metadata"]["finalizers"] = [
                    *(new["metadata"].get("finalizers") or ()),
                    *finalizers,
                ]

        return mark

    def _grace(self, kind: Kind, obj: Json, options: Json) -> int | None:
        given = options.get("gracePeriodSeconds")
        if kind is not POD:
            return None if given is None else int(given)
        spec = obj["spec"]
        if given is None:
            if obj["metadata"].get("deletionTimestamp"):
                return None
            given = spec.get("terminationGracePeriodSeconds", 0)
        done = obj["status"].get("phase") in ("Failed", "Succeeded")
        if not spec.get("nodeName") or done:
            return 0
        return 1 if given < 0 else int(given)

    def _mark(self, kind: Kind, new: Json, grace: int) -> None:
        meta = new["metadata"]
        now = datetime.strptime(self._core.time(), _FORMAT)
        meta["deletionTimestamp"] = (now + timedelta(seconds=grace)).strftime(_FORMAT)
        if kind is NAMESPACE:
            new["status"] = {**new["status"], "phase": "Terminating"}
        else:
            meta["deletionGracePeriodSeconds"] = grace
        if meta.get("generation"):
            meta["generation"] += 1

    def _shorten(self, new: Json, left: int, grace: int) -> None:
        """A shorter grace counts from when deletion began, but never ends in the past."""
        meta = new["metadata"]
        end = datetime.strptime(meta["deletionTimestamp"], _FORMAT)
        end += timedelta(seconds=grace - left)
        now = datetime.strptime(self._core.time(), _FORMAT)
        meta["deletionTimestamp"] = max(end, now).strftime(_FORMAT)
        meta["deletionGracePeriodSeconds"] = grace

    def _success(self, kind: Kind, entry: Entry) -> Answer:
        details: dict[str, Any] = {"name": entry.key[1]}
        if kind.group:
            details["group"] = kind.group
        details |= {"kind": kind.plural, "uid": entry.uid}
        body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": details,
        }
        return Answer(200, encode(body), obj=body)


def _propagation(options: Json) -> set[str]:
    policy = options.get("propagationPolicy")
    if policy == "Foreground":
        return {"foregroundDeletion"}
    if policy == "Orphan" or options.get("orphanDependents"):
        return {"orphan"}
    return set()
