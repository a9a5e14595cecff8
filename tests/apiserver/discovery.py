"""What a client asks first: which groups, which kinds, which version."""

from __future__ import annotations

from .crds import Registry
from .encode import Json
from .kinds import VERBS, Kind

VERSION: Json = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.2",
    "gitCommit": "$Format:%H$",
    "gitTreeState": "",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "go1.27.3",
    "compiler": "gc",
    "platform": "linux/amd64",
}


def versions(address: str) -> Json:
    where = [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": where}


def group(name: str, found: list[str]) -> Json:
    each = [{"groupVersion": f"{name}/{version}", "version": version} for version in found]
    return {"name": name, "versions": each, "preferredVersion": each[0]}


def groups(registry: Registry) -> Json:
    each = [group(name, found) for name, found in registry.groups().items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": each}


def resources(registry: Registry, name: str, version: str) -> Json | None:
    """The kinds of one group and version, or None if there are none."""
    kinds = [kind for kind in registry.kinds() if (kind.group, kind.version) == (name, version)]
    if not kinds:
        return None
    each: list[Json] = []
    for kind in kinds:
        each.append(_resource(kind))
        each += [_subresource(kind, one) for one in subresources(kind)]
    head = {"kind": "APIResourceList", "apiVersion": "v1"}
    return {**head, "groupVersion": f"{name}/{version}" if name else version, "resources": each}


def subresources(kind: Kind) -> list[str]:
    found = ["status"] if kind.status else []
    return found + {"Pod": ["binding", "eviction"], "ServiceAccount": ["token"]}.get(kind.kind, [])


def _resource(kind: Kind) -> Json:
    found: Json = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(VERBS),
    }
    if kind.short:
        found["shortNames"] = list(kind.short)
    if kind.categories:
        found["categories"] = list(kind.categories)
    return found


def _subresource(kind: Kind, name: str) -> Json:
    verbs = ["get", "patch", "update"] if name == "status" else ["create"]
    return {
        "name": f"{kind.plural}/{name}",
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": kind.kind if name == "status" else name.capitalize(),
        "verbs": verbs,
    }
