"""Creating, updating and patching: from a request body to the next revision."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import yaml

from . import cel, crds, managed, names, patches, policies, schema, validate
from .admission import Admission
from .call import Answer, Call
from .core import Core, refuse
from .defaults import accepted, decoded
from .deletes import emptied, forget
from .encode import Json, clone, decode, encode
from .events import from_core, to_core
from .kinds import CRD, EVENT, NAMESPACE, Kind
from .managed import Manager
from .status import (
    Fault,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    not_found,
    quoted,
    unsupported,
)
from .storage import Entry

_PATCHES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
_TRIES = 5  # a patch or an unconditional update that met another writer


def parse(call: Call) -> Any:
    """The body of a request as JSON values."""
    kind = call.content_type.partition(";")[0].strip()
    try:
        if "yaml" in kind:
            return yaml.safe_load(call.body)
        if kind in ("application/json", "", *_PATCHES):
            return decode(call.body)
    except (ValueError, yaml.YAMLError) as error:
        raise bad_request(f"error decoding request body: {error}") from error
    raise unsupported(kind, ("application/json", "application/yaml"))


class Writes:
    """The verbs that change."""

    def __init__(self, core: Core, admission: Admission) -> None:
        self._core, self._admission = core, admission

    # ── create ─────────────────────────────────────────────────────────────
    async def create(self, call: Call) -> Answer:
        return await self.created(call, self._readable(call, parse(call)), call.manager())

    async def created(
        self, call: Call, obj: Json, manager: Manager, entries: list[Json] | None = None
    ) -> Answer:
        """Store a new object; `entries` are its managedFields if apply made them."""
        core, kind = self._core, call.kind
        self._check_namespace(call)
        obj = self._decoded(kind, obj)
        meta = self._new_metadata(call, obj)
        if kind.status and kind.custom:
            obj.pop("status", None)
        if entries is not None:
            meta["managedFields"] = entries
        elif core.settings.managed_fields:
            meta.pop("managedFields", None)
            core.tracked(kind, managed.empty(kind), obj, manager)
        if kind.generation:
            meta["generation"] = 1
        if core.storage.get(kind.storage, (call.namespace, meta["name"])):
            self._refuse_faults(kind, obj, None)
            raise already_exists(kind.group, kind.plural, meta["name"])
        obj = accepted(kind, obj, core.addresses, self._addresses(kind))
        self._refuse_faults(kind, obj, None)
        await self._admission.check(call, obj, None)
        if core.storage.get(kind.storage, (call.namespace, meta["name"])):
            raise already_exists(kind.group, kind.plural, meta["name"])
        if not call.dry:
            obj = core.commit(kind, self._stored_form(kind, obj))
        answer = self._answer(call, obj, 201)
        if kind is CRD and not call.dry:
            crds.later(0, lambda: core.establish(obj))
        return answer

    def _new_metadata(self, call: Call, obj: Json) -> Json:
        meta: Json = obj["metadata"]
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = names.generate(meta["generateName"])
        for name in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"):
            meta.pop(name, None)
        meta["uid"] = str(uuid.uuid4())
        meta["creationTimestamp"] = self._core.time()
        if call.kind.namespaced:
            if meta.get("namespace") not in (None, "", call.namespace):
                raise bad_request(
                    f"the namespace of the provided object does not match the namespace sent on "
                    f"the request ({meta['namespace']} does not match {call.namespace})"
                )
            meta["namespace"] = call.namespace
        else:
            meta.pop("namespace", None)
        if faults := names.faults(call.kind, meta):
            raise refuse(call.kind, meta.get("name", ""), faults)
        return meta

    def _check_namespace(self, call: Call) -> None:
        if not call.kind.namespaced:
            return
        entry = self._core.storage.get(NAMESPACE.storage, ("", call.namespace))
        if entry is None:
            raise not_found("", "namespaces", call.namespace)
        if decode(entry.raw)["status"].get("phase") == "Terminating":
            why = f"unable to create new content in namespace {call.namespace} because it is "
            error = forbidden(
                call.kind.group, call.kind.plural, call.name, why + "being terminated"
            )
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {call.namespace} is being terminated",
                "field": "metadata.namespace",
            }
            error.body["details"]["causes"] = [cause]
            raise error

    def _addresses(self, kind: Kind) -> set[str]:
        if kind.kind != "Service":
            return set()
        entries = self._core.storage.table(kind.storage).entries.values()
        return {entry.fields.get("spec.clusterIP", "") for entry in entries}

    # ── update and patch ───────────────────────────────────────────────────
    async def update(self, call: Call) -> Answer:
        body = self._readable(call, parse(call))
        kind = call.kind
        name = body.get("metadata", {}).get("name")
        if name != call.name:
            raise bad_request(
                f"the name of the object ({name}) does not match the name on the URL ({call.name})"
            )
        there = self._core.storage.get(kind.storage, (call.namespace, call.name))
        if there is None and kind.create_on_update and not call.subresource:
            return await self.created(call, body, call.manager())
        if not body["metadata"].get("resourceVersion") and not kind.unconditional:
            detail = "0x0: must be specified for an update"
            fault = Fault("FieldValueInvalid", "metadata.resourceVersion", detail)
            self._core.get(kind, call.namespace, call.name)
            raise refuse(kind, call.name, [fault])
        return await self._changed(call, lambda old: body, call.manager())

    async def patch(self, call: Call) -> Answer:
        kind = call.content_type.partition(";")[0].strip()
        body = parse(call)
        if kind in ("application/apply-patch+yaml", "application/apply-patch+json"):
            return await self._apply(call, body)
        change: Callable[[Json], Json]
        if kind == "application/merge-patch+json":
            change = lambda old: patches.merge(old, body)  # noqa: E731
        elif kind == "application/json-patch+json":
            change = lambda old: patches.json_patch(old, body)  # noqa: E731
        elif kind == "application/strategic-merge-patch+json" and not call.kind.custom:
            change = lambda old: patches.strategic(old, body, call.kind.shape)  # noqa: E731
        else:
            known = [one for one in _PATCHES if "strategic" not in one or not call.kind.custom]
            raise unsupported(kind, known)
        return await self._changed(call, change, call.manager())

    async def _apply(self, call: Call, body: Json) -> Answer:
        """Server-side apply."""
        core, kind = self._core, call.kind
        if not call.query.get("fieldManager"):
            fault = Fault("FieldValueRequired", "fieldManager", "is required for apply patch")
            raise refuse(Kind("meta.k8s.io", "v1", "", "PatchOptions"), "", [fault])
        if (body.get("metadata") or {}).get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        body = self._readable(call, body)
        meta = body["metadata"] = {**(body.get("metadata") or {}), "name": call.name}
        if kind.namespaced:
            meta["namespace"] = call.namespace
        manager, force = call.manager("Apply"), call.query.get("force") == "true"

        def change(old: Json | None) -> Json:
            applied = schema.pruned(body, kind.crd.schema, top=True) if kind.custom else body
            return managed.apply(kind, old, applied, manager, core.time(), force=force)

        if core.storage.get(kind.storage, (call.namespace, call.name)) is None:
            if call.subresource:
                raise not_found(kind.group, kind.plural, call.name)
            new = change(None)
            return await self.created(call, new, manager, new["metadata"]["managedFields"])
        return await self._changed(call, change, None)

    async def _changed(
        self, call: Call, change: Callable[[Json], Json], manager: Manager | None
    ) -> Answer:
        """Write what `change` makes of the object, against whoever else writes meanwhile."""
        core, kind = self._core, call.kind
        for _ in range(_TRIES):
            entry = core.get(kind, call.namespace, call.name)
            old = core.read(kind, entry)
            new = self._next(call, old, change(old), manager)
            if not call.subresource or call.subresource == "status":
                self._refuse_faults(kind, new, old, status=call.subresource == "status")
            await self._admission.check(call, new, old)
            if core.storage.get(kind.storage, entry.key) is entry:
                return self._stored(call, entry, old, new)
        raise conflict(kind.group, kind.plural, call.name)

    def _next(self, call: Call, old: Json, new: Json, manager: Manager | None) -> Json:
        """The object as it will be: what may not change restored, ownership tracked."""
        core, kind = self._core, call.kind
        self._check_identity(call, old, new)
        if manager is None:  # apply has tracked it already
            entries = new["metadata"].get("managedFields")
        new = self._decoded(kind, new)
        new["apiVersion"], new["kind"] = kind.api_version, kind.kind
        _restore_metadata(old, new)
        new = _restore_parts(kind, call.subresource, old, new)
        if manager is not None:
            core.tracked(kind, old, new, manager)
        elif entries and core.settings.managed_fields:
            new["metadata"]["managedFields"] = entries
        else:
            new["metadata"].pop("managedFields", None)
        if kind.generation and _counts(kind, old, new):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        return new

    def _check_identity(self, call: Call, old: Json, new: Json) -> None:
        kind, was = call.kind, old["metadata"]
        meta = new.get("metadata")
        if not isinstance(meta, dict):
            raise bad_request("metadata is required")
        version = meta.get("resourceVersion")
        if version and version != was["resourceVersion"]:
            raise conflict(kind.group, kind.plural, call.name)
        if meta.get("uid") and meta["uid"] != was["uid"]:
            why = f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: "
            raise conflict(kind.group, kind.plural, call.name, why + was["uid"])
        for name in ("name", "namespace"):
            if meta.get(name, was.get(name)) != was.get(name):
                detail = f"{quoted(meta[name])}: field is immutable"
                fault = Fault("FieldValueInvalid", f"metadata.{name}", detail)
                raise refuse(kind, call.name, [fault])

    def _stored(self, call: Call, entry: Entry, old: Json, new: Json) -> Answer:
        core, kind = self._core, call.kind
        if emptied(kind, old, new):
            if not call.dry:
                forget(core, kind, entry)
            return self._answer(call, new, 200)
        if not call.dry and new != old:
            new = core.commit(kind, self._stored_form(kind, new))
        return self._answer(call, new, 200)

    # ── pieces ─────────────────────────────────────────────────────────────
    def _readable(self, call: Call, obj: Any) -> Json:
        """The body as an object of this kind, or 400."""
        kind = call.kind
        if not isinstance(obj, dict):
            raise bad_request("the object provided is unrecognized (must be a JSON object)")
        for name, right in (("kind", kind.kind), ("apiVersion", kind.api_version)):
            if not obj.get(name) and not kind.custom:
                obj = {**obj, name: right}
            elif obj.get(name) != right:
                raise bad_request(
                    f"{obj.get('kind')} in version {quoted(obj.get('apiVersion'))} cannot be "
                    f"handled as a {kind.kind}: expected {kind.api_version}, Kind={kind.kind}"
                )
        validate.readable(kind, obj)
        strict = kind.custom and call.query.get("fieldValidation") == "Strict"
        if strict and (lost := list(schema.unknown(obj, kind.crd.schema))):
            listed = ", ".join(f'unknown field "{path}"' for path in lost)
            raise bad_request(
                f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
                f"strict decoding error: {listed}"
            )
        return {**obj, "metadata": dict(obj.get("metadata") or {})}

    def _decoded(self, kind: Kind, obj: Json) -> Json:
        if kind.custom:
            obj = schema.pruned(clone(obj), kind.crd.schema, top=True)
            result: Json = schema.defaulted(obj, kind.crd.schema)
            return result
        return decoded(kind, obj)

    def _stored_form(self, kind: Kind, obj: Json) -> Json:
        return to_core(obj) if kind.stored_as else obj

    def _refuse_faults(
        self, kind: Kind, obj: Json, old: Json | None, *, status: bool = False
    ) -> None:
        name = obj["metadata"].get("name", "")
        faults = names.faults(kind, obj["metadata"]) if old is not None else []
        if old is not None and obj["metadata"].get("deletionTimestamp"):
            faults += _new_finalizers(old, obj)
        if kind is CRD and not status:
            faults += crds.faults(obj)
        elif kind.kind == "ValidatingAdmissionPolicy":
            faults += policies.faults(obj)
        elif kind.custom:
            faults += custom_faults(kind, obj, old)
        else:
            checked = to_core(obj) if kind.stored_as else obj
            faults += validate.faults(EVENT if kind.stored_as else kind, checked)
        if faults:
            raise refuse(kind, name, faults)

    def _answer(self, call: Call, obj: Json, status: int) -> Answer:
        core, kind = self._core, call.kind
        if kind.stored_as:
            obj = from_core(obj)
            return Answer(status, encode(obj), obj=obj)
        return Answer(status, core.outbound(kind, core.raw(kind, obj)), obj=obj)


def custom_faults(kind: Kind, obj: Json, old: Json | None) -> list[Fault]:
    """The schema's complaints, then those of its rules if the object can be asked at all."""
    root = kind.crd.schema
    faults = list(schema.validated(obj, root, top=True))
    blocking = {
        "FieldValueRequired",
        "FieldValueTypeInvalid",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueDuplicate",
    }
    if root.has_rules and any(fault.reason in blocking for fault in faults):
        detail = (
            '"null": some validation rules were not checked because the object was invalid; '
            "correct the existing errors to complete validation"
        )
        return [*faults, Fault("FieldValueInvalid", "<nil>", detail)]
    before = old if old is not None else {}
    for rule in schema.rules(obj, before, root, had_old=old is not None):
        if fault := cel.rule_fault(rule):
            faults.append(fault)
    return faults


def _restore_metadata(old: Json, new: Json) -> None:
    """Only the server writes these."""
    was, meta = old["metadata"], new["metadata"]
    for name in (
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generateName",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ):
        if name in was:
            meta[name] = was[name]
        else:
            meta.pop(name, None)
    for name in ("labels", "annotations", "finalizers", "ownerReferences"):
        if name in meta and not meta[name]:
            del meta[name]


def _restore_parts(kind: Kind, subresource: str, old: Json, new: Json) -> Json:
    """What this endpoint does not write."""
    if subresource == "status":
        if kind.custom:
            kept = {**old, "metadata": dict(old["metadata"])}
            if sent := new["metadata"].get("managedFields"):
                kept["metadata"]["managedFields"] = sent
            kept.pop("status", None)
            return {**kept, "status": new["status"]} if "status" in new else kept
        return {**new, **{n: v for n, v in old.items() if n not in ("metadata", "status")}}
    if kind.status and not subresource:
        new = dict(new)
        new.pop("status", None)
        if "status" in old:
            new["status"] = old["status"]
    if kind is NAMESPACE and not subresource:
        new["spec"] = old["spec"]
    if kind.kind == "Service" and not subresource:
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if name in old["spec"]:
                new["spec"].setdefault(name, old["spec"][name])
    return new


def _counts(kind: Kind, old: Json, new: Json) -> bool:
    """Whether a change is one of generation."""
    free = {"metadata", "apiVersion", "kind"} | ({"status"} if kind.status else set())
    if any(old.get(name) != new.get(name) for name in {*old, *new} - free):
        return True
    if kind.kind != "EndpointSlice":
        return False
    both = (old["metadata"], new["metadata"])
    return any(both[0].get(name) != both[1].get(name) for name in ("labels", "annotations"))


def _new_finalizers(old: Json, new: Json) -> list[Fault]:
    before = old["metadata"].get("finalizers") or []
    fresh = [one for one in new["metadata"].get("finalizers") or [] if one not in before]
    if not fresh:
        return []
    listed = ", ".join(quoted(one) for one in fresh)
    detail = "no new finalizers can be added if the object is being deleted, found new finalizers "
    return [Fault("FieldValueForbidden", "metadata.finalizers", f"{detail}[]string{{{listed}}}")]
