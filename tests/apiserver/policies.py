"""ValidatingAdmissionPolicy: CEL that may refuse a write.

Not covered: params, the authorizer, audit annotations, the actions Audit and Warn.  A policy
that uses params denies every request it matches (unless its failurePolicy is Ignore), and
says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import cel
from .encode import Json, decode
from .kinds import NAMESPACE
from .matching import Write
from .status import ApiError, Fault, forbidden, quoted

_GROUP = "admissionregistration.k8s.io"
_BINDINGS = (_GROUP, "validatingadmissionpolicybindings")
_POLICIES = (_GROUP, "validatingadmissionpolicies")
_CODES = {"Invalid": 422, "Forbidden": 403, "Unauthorized": 401, "RequestEntityTooLarge": 413}


def check(write: Write) -> None:
    """Raise what the first policy that denies says."""
    storage = write.core.storage
    if write.call.kind.storage in (_BINDINGS, _POLICIES):
        return  # as in a real server: they cannot lock themselves in
    for entry in storage.table(_BINDINGS).entries.values():
        binding = decode(entry.raw)
        stored = storage.get(_POLICIES, ("", binding["spec"]["policyName"]))
        if stored is None or "Deny" not in (binding["spec"].get("validationActions") or ()):
            continue
        policy = decode(stored.raw)
        if _matches(write, policy["spec"], binding["spec"]):
            _ask(write, policy, binding)


def _matches(write: Write, policy: Json, binding: Json) -> bool:
    own = policy.get("matchConstraints") or {}
    if not write.concerns(own.get("resourceRules"), own):
        return False
    narrow = binding.get("matchResources")
    if narrow is None:
        return True
    return write.concerns(narrow.get("resourceRules") or own.get("resourceRules"), narrow)


def _ask(write: Write, policy: Json, binding: Json) -> None:
    spec, names = policy["spec"], (policy["metadata"]["name"], binding["metadata"]["name"])
    try:
        if spec.get("paramKind"):
            raise cel.CelError("params are not covered by this fake API server")
        data = _data(write)
        for one in spec.get("matchConditions") or ():
            if cel.evaluate(one["expression"], data) is not True:
                return
        data["variables"] = _variables(spec, data)
        for one in spec.get("validations") or ():
            if cel.evaluate(one["expression"], data) is not True:
                raise _denied(write, names, _message(one, data), one.get("reason", "Invalid"))
    except cel.CelError as error:
        if spec.get("failurePolicy", "Fail") == "Fail":
            raise _denied(write, names, f"expression resulted in error: {error}") from error


def _data(write: Write) -> dict[str, Any]:
    data: dict[str, Any] = {"object": write.new, "oldObject": write.old, "params": None}
    data["request"] = write.request()
    home = write.call.namespace
    entry = write.core.storage.get(NAMESPACE.storage, ("", home)) if home else None
    data["namespaceObject"] = decode(entry.raw) if entry else None
    return data


def _variables(spec: Json, data: dict[str, Any]) -> dict[str, Any]:
    """Each may use those before it.  One that fails is absent, so that its use is an error."""
    found: dict[str, Any] = {}
    for one in spec.get("variables") or ():
        try:
            found[one["name"]] = cel.evaluate(one["expression"], {**data, "variables": found})
        except cel.CelError:
            continue
    return found


def _message(one: Json, data: dict[str, Any]) -> str:
    if expression := one.get("messageExpression"):
        try:
            return str(cel.evaluate(expression, data))
        except cel.CelError:
            pass  # a real server falls back to `message`, too
    return str(one.get("message") or f"failed expression: {one['expression'].strip()}")


def _denied(
    write: Write, names: tuple[str, str], message: str, reason: str = "Invalid"
) -> ApiError:
    policy, binding = names
    text = f"ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: "
    kind = write.call.kind
    error = forbidden(kind.group, kind.plural, write.name, text + message)
    error.code = error.body["code"] = _CODES.get(reason, 422)
    error.body["reason"] = reason
    error.body["details"]["causes"] = [{"message": text + message}]
    return error


def faults(obj: Json) -> Iterator[Fault]:
    """Expressions of a policy that do not compile."""
    for part in ("validations", "variables", "matchConditions"):
        for number, one in enumerate(obj["spec"].get(part) or ()):
            for field in ("expression", "messageExpression"):
                try:
                    if one.get(field):
                        cel.compiled(one[field])
                except cel.CelError as error:
                    where = f"spec.{part}[{number}].{field}"
                    yield Fault("FieldValueInvalid", where, f"{quoted(one[field])}: {error}")
