"""What a user may: the ClusterRoles, Roles and bindings that are stored, evaluated as they are.

Not covered: aggregation rules (no controller fills aggregated roles), and the protection
against granting oneself more than one has (`bind`, `escalate`).
"""

from __future__ import annotations

from collections.abc import Iterator

from .call import Call, User
from .core import Core
from .encode import Json, decode
from .status import ApiError, forbidden

_GROUP = "rbac.authorization.k8s.io"
# What everybody who is known may read without any role (system:discovery).
_OPEN_PATHS = ("/api", "/apis", "/version", "/openapi", "/healthz", "/livez", "/readyz")


def allowed(
    core: Core,
    user: User,
    verb: str,
    *,
    group: str = "",
    resource: str = "",
    name: str = "",
    namespace: str = "",
    path: str = "",
) -> bool:
    """Whether a rule lets the user do this."""
    if user.master:
        return True
    for rule in _rules(core, user, namespace):
        if not _has(rule, "verbs", verb):
            continue
        if path:
            if any(_path_fits(one, path) for one in rule.get("nonResourceURLs") or ()):
                return True
        elif _has(rule, "apiGroups", group) and _resource_fits(rule, resource):
            names = rule.get("resourceNames")
            if not names or name in names:
                return True
    return False


def require(core: Core, call: Call) -> None:
    """403 in the standard words if the call is not allowed."""
    kind = call.kind
    resource = f"{kind.plural}/{call.subresource}" if call.subresource else kind.plural
    # A list or watch of one object by its name is authorized as one of that object
    # (k8s.io/apiserver pkg/endpoints/request/requestinfo.go).
    key, _, name = call.query.get("fieldSelector", "").partition("=")
    one = name.lstrip("=") if key == "metadata.name" and "," not in name else ""
    if allowed(
        core,
        call.user,
        call.verb,
        group=kind.group,
        resource=resource,
        name=call.name or one,
        namespace=call.namespace,
    ):
        return
    where = f'in the namespace "{call.namespace}"' if call.namespace else "at the cluster scope"
    why = (
        f'User "{call.user.name}" cannot {call.verb} resource "{resource}" in API group '
        f'"{kind.group}" {where}'
    )
    raise forbidden(kind.group, kind.plural, call.name, why)


def require_path(core: Core, user: User, path: str) -> None:
    known = "system:authenticated" in user.groups
    if (known and path.startswith(_OPEN_PATHS)) or allowed(core, user, "get", path=path):
        return
    why = f'User "{user.name}" cannot get path "{path}"'
    raise ApiError(403, "Forbidden", f"forbidden: {why}", {})


def _rules(core: Core, user: User, namespace: str) -> Iterator[Json]:
    for binding in _all(core, "clusterrolebindings", ""):
        if _binds(binding, user, ""):
            yield from _role(core, binding, "")
    if namespace:
        for binding in _all(core, "rolebindings", namespace):
            if _binds(binding, user, namespace):
                yield from _role(core, binding, namespace)


def _all(core: Core, plural: str, namespace: str) -> Iterator[Json]:
    for key, entry in core.storage.table((_GROUP, plural)).entries.items():
        if key[0] == namespace:
            yield decode(entry.raw)


def _binds(binding: Json, user: User, namespace: str) -> bool:
    for subject in binding.get("subjects") or ():
        name = subject["name"]
        match subject["kind"]:
            case "User":
                found = name == user.name
            case "Group":
                found = name in user.groups
            case _:
                home = subject.get("namespace") or namespace
                found = user.name == f"system:serviceaccount:{home}:{name}"
        if found:
            return True
    return False


def _role(core: Core, binding: Json, namespace: str) -> Iterator[Json]:
    ref = binding["roleRef"]
    cluster = ref["kind"] == "ClusterRole"
    plural, where = ("clusterroles", "") if cluster else ("roles", namespace)
    entry = core.storage.get((_GROUP, plural), (where, ref["name"]))
    if entry is not None:
        yield from decode(entry.raw).get("rules") or ()


def _has(rule: Json, field: str, value: str) -> bool:
    listed = rule.get(field) or ()
    return "*" in listed or value in listed


def _resource_fits(rule: Json, resource: str) -> bool:
    listed = rule.get("resources") or ()
    if "*" in listed or resource in listed:
        return True
    return "/" in resource and f"*/{resource.partition('/')[2]}" in listed


def _path_fits(pattern: str, path: str) -> bool:
    if pattern.endswith("*"):
        return path.startswith(pattern[:-1])
    return path == pattern
