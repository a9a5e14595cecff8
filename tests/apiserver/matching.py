"""Whether a write concerns a policy or a webhook: resource rules and selectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .call import Call
from .core import Core
from .encode import Json, decode
from .kinds import NAMESPACE
from .selectors import Need, from_object


@dataclass(frozen=True, slots=True)
class Write:
    """One write under question: what will be, and what was; None where there is nothing."""

    core: Core
    call: Call
    new: Json | None
    old: Json | None

    @property
    def operation(self) -> str:
        """What the write is; an apply that finds nothing creates."""
        if self.call.verb in ("delete", "deletecollection"):
            return "DELETE"
        return "CREATE" if self.old is None else "UPDATE"

    @property
    def name(self) -> str:
        found = self.new or self.old or {}
        return self.call.name or str(found.get("metadata", {}).get("name", ""))

    def request(self) -> Json:
        """The request as policies see it, and as an AdmissionReview tells it."""
        call, kind, user = self.call, self.call.kind, self.call.user
        gvk = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        gvr = {"group": kind.group, "version": kind.version, "resource": kind.plural}
        return {
            "kind": gvk,
            "resource": gvr,
            "subResource": call.subresource,
            "requestKind": gvk,
            "requestResource": gvr,
            "requestSubResource": call.subresource,
            "name": self.name,
            "namespace": call.namespace,
            "operation": self.operation,
            "userInfo": {
                "username": user.name,
                "uid": user.uid,
                "groups": list(user.groups),
                "extra": {name: list(values) for name, values in user.extra.items()},
            },
            "dryRun": call.dry,
            "options": {},
        }

    def concerns(self, rules: Any, match: Json) -> bool:
        """Whether any rule fits, no exclusion does, and both selectors agree."""
        if not any(self._fits(rule) for rule in rules or ()):
            return False
        if any(self._fits(rule) for rule in match.get("excludeResourceRules") or ()):
            return False
        return self._namespace_fits(match) and self._object_fits(match)

    def _fits(self, rule: Json) -> bool:
        call, kind = self.call, self.call.kind
        resource = f"{kind.plural}/{call.subresource}" if call.subresource else kind.plural
        return (
            _any(rule.get("operations"), self.operation)
            and _any(rule.get("apiGroups"), kind.group)
            and _any(rule.get("apiVersions"), kind.version)
            and _resource(rule.get("resources") or (), resource)
            and rule.get("scope", "*") in ("*", "Namespaced" if kind.namespaced else "Cluster")
            and (not rule.get("resourceNames") or self.name in rule["resourceNames"])
        )

    def _namespace_fits(self, match: Json) -> bool:
        needs = from_object(match.get("namespaceSelector"))
        if not needs:
            return True
        if self.call.kind is NAMESPACE:
            return _met(needs, self.new or self.old or {})
        if not self.call.kind.namespaced:
            return True
        entry = self.core.storage.get(NAMESPACE.storage, ("", self.call.namespace))
        return entry is not None and _met(needs, decode(entry.raw))

    def _object_fits(self, match: Json) -> bool:
        needs = from_object(match.get("objectSelector"))
        found = (obj for obj in (self.new, self.old) if obj is not None)
        return not needs or any(_met(needs, obj) for obj in found)


def _any(listed: Any, value: str) -> bool:
    return "*" in (listed or ()) or value in (listed or ())


def _resource(listed: Any, resource: str) -> bool:
    plural, slash, sub = resource.partition("/")
    if not slash:
        return any(one in ("*", "*/*", resource) for one in listed)
    return any(one in ("*/*", resource, f"{plural}/*", f"*/{sub}") for one in listed)


def _met(needs: tuple[Need, ...], obj: Json) -> bool:
    labels = obj.get("metadata", {}).get("labels") or {}
    return all(need.met_by(labels) for need in needs)
