"""Just enough OpenAPI v3 for kubectl: that the server validates fields, and custom schemas.

Built-in kinds have no schema here, so `kubectl explain` knows custom kinds only.
"""

from __future__ import annotations

from .crds import Registry
from .encode import Json
from .kinds import Kind

_PARAMETERS = [
    {"name": name, "in": "query", "schema": {"type": "string"}}
    for name in ("dryRun", "fieldManager", "fieldValidation", "force")
]


def index(registry: Registry) -> Json:
    paths = [_path(kind) for kind in registry.kinds()]
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in paths}}


def document(registry: Registry, path: str) -> Json | None:
    """What one group and version offers, or None."""
    kinds = [kind for kind in registry.kinds() if _path(kind) == path]
    if not kinds:
        return None
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.2"},
        "paths": {_url(path, kind): _operations(kind) for kind in kinds},
        "components": {"schemas": {_name(kind): _schema(kind) for kind in kinds}},
    }


def _path(kind: Kind) -> str:
    return f"apis/{kind.group}/{kind.version}" if kind.group else f"api/{kind.version}"


def _url(path: str, kind: Kind) -> str:
    home = "namespaces/{namespace}/" if kind.namespaced else ""
    return f"/{path}/{home}{kind.plural}/{{name}}"


def _name(kind: Kind) -> str:
    group = ".".join(reversed(kind.group.split("."))) or "io.k8s.api.core"
    return f"{group}.{kind.version}.{kind.kind}"


def _gvk(kind: Kind) -> Json:
    return {"group": kind.group, "version": kind.version, "kind": kind.kind}


def _operations(kind: Kind) -> Json:
    ref = {"schema": {"$ref": f"#/components/schemas/{_name(kind)}"}}
    answers = {"200": {"description": "OK", "content": {"application/json": ref}}}

    def operation(action: str) -> Json:
        return {
            "parameters": _PARAMETERS,
            "responses": answers,
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": _gvk(kind),
        }

    return {"get": operation("get"), "put": operation("put"), "patch": operation("patch")}


def _schema(kind: Kind) -> Json:
    raw = dict(kind.crd.schema.raw) if kind.custom else {"type": "object"}
    texts = {name: {"type": "string"} for name in ("apiVersion", "kind")}
    properties = {**texts, "metadata": {"type": "object"}, **(raw.get("properties") or {})}
    gvk = {"x-kubernetes-group-version-kind": [_gvk(kind)]}
    return {**raw, "properties": properties, **gvk}
