"""A structural schema (OpenAPI v3 as Kubernetes restricts it) out of a msgspec struct.

Every description is the comment behind the field in the struct's source, so
that there is one place to write it.  Every string, list and map is bounded:
the API server multiplies these bounds to judge what a CEL rule may cost, and
refuses a rule over something unbounded.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from msgspec import inspect as shape

from muslin.kube import rules
from muslin.model import Address, Interface, Prefix, to_builtins

# What the types leave open, by struct and field.  Strings are at most 253 characters (the longest
# name there is), lists and maps 64 entries, unless it says so here.
LIMITS: Mapping[str, Mapping[str, Any]] = {
    "Network.backend": {"maxLength": 32},
    "Network.pools": {"maxItems": 16, "items": {"maxLength": 63}},
    "Pool.block": {"minimum": 0, "maximum": 128},
    "Block.pool": {"minLength": 1, "maxLength": 63},
    "Block.node": {"minLength": 1},
    "Node.addresses": {"maxItems": 16},
    "Node.mtu": {"minimum": 68, "maximum": 65536},  # RFC 791's least; loopback's
    "Node.uplink": {"maxLength": 15},  # IFNAMSIZ - 1
    "Node.data": {"additionalProperties": {"additionalProperties": {"maxLength": 4096}}},
    "Owner.kind": {"minLength": 1, "maxLength": 63},
    "Owner.namespace": {"maxLength": 63},
    "Owner.name": {"minLength": 1},
    "Reservation.pool": {"minLength": 1, "maxLength": 63},
    "Reservation.nic": {"maxLength": 15},
    "Reservation.mac": {"maxLength": 17, "pattern": "^(([0-9a-f]{2}:){5}[0-9a-f]{2})?$"},
    "Workload.addresses": {"maxItems": 16},
    # As k8s.io/apimachinery has them (pkg/apis/meta/v1/types.go, Condition).
    "Condition.type": {
        "maxLength": 316,
        "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
        "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
    },
    "Condition.reason": {
        "minLength": 1,
        "maxLength": 1024,
        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
    },
    "Condition.message": {"maxLength": 32768},
    "Status.conditions": {
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    },
}
"""Keyed by the struct that declares the field."""

# The longest text: ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255, and /128.
_IP: Mapping[Any, int] = {Address: 45, Prefix: 49, Interface: 49}


def schema(
    kind: type[msgspec.Struct], *, without: Collection[str] = (), defaults: bool = True
) -> dict[str, Any]:
    """The schema of a struct, fields in declaration order; TypeError for a type it cannot say."""
    shown = [f for f in fields(kind) if f.name not in without]
    required = [f.encode_name for f in shown if f.required]
    return {
        "type": "object",
        "description": summary(kind),
        **({"required": required} if required else {}),
        "properties": {f.encode_name: _field(kind, f, defaults) for f in shown},
    }


def fields(kind: type[msgspec.Struct]) -> tuple[shape.Field, ...]:
    """A struct's fields as msgspec sees them."""
    found = shape.type_info(kind)
    assert isinstance(found, shape.StructType)
    return found.fields


def default_of(field: shape.Field) -> Any:
    """A field's default in plain data; not for a field that is required."""
    if field.default_factory is not msgspec.NODEFAULT:
        return to_builtins(field.default_factory())
    found = to_builtins(field.default)
    return list(found) if isinstance(found, tuple) else found


def summary(kind: type[msgspec.Struct]) -> str:
    """A struct's docstring as one paragraph."""
    return " ".join((inspect.getdoc(kind) or "").split())


def description(kind: type[msgspec.Struct], name: str) -> str:
    """The comment behind a field, where the field is declared."""
    owner = _owner(kind, name)
    source = inspect.getsource(sys.modules[owner.__module__])
    return comments(source, owner.__name__).get(name, "")


@functools.cache
def comments(source: str, class_name: str) -> Mapping[str, str]:
    """Field of a class in `source` → the comment above it or behind it."""
    lines = source.splitlines()
    tree = ast.parse(source)
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name).body
    found: dict[str, str] = {}
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above: list[str] = []
        at = node.lineno - 2
        while lines[at].strip().startswith("#"):
            above.insert(0, lines[at].strip().lstrip("# "))
            at -= 1
        behind = lines[node.end_lineno - 1].partition("  # ")[2] if node.end_lineno else ""
        found[node.target.id] = " ".join(above) or behind
    return found


def _field(kind: type[msgspec.Struct], field: shape.Field, defaults: bool) -> dict[str, Any]:
    name = f"{_owner(kind, field.name).__name__}.{field.name}"
    made = _merge(_of(field.type, defaults), LIMITS.get(name, {}))
    if checks := rules.FIELDS.get(name):
        found = made.get("x-kubernetes-validations", [])
        made["x-kubernetes-validations"] = [*found, *(rule.schema() for rule in checks)]
    if defaults and not field.required:
        made["default"] = default_of(field)
    return {"description": description(kind, field.name), **made}


def _owner(kind: type[msgspec.Struct], name: str) -> type[msgspec.Struct]:
    return next(c for c in kind.__mro__ if name in vars(c).get("__annotations__", ()))


def _of(found: shape.Type, defaults: bool) -> dict[str, Any]:
    match found:
        case shape.BoolType():
            return {"type": "boolean"}
        case shape.IntType():
            return {"type": "integer", "format": "int64"}
        case shape.FloatType():
            return {"type": "number"}
        case shape.StrType():
            return {"type": "string", "maxLength": 253}
        case shape.LiteralType():
            return {"type": "string", "enum": list(found.values)}
        case shape.DateTimeType():
            return {"type": "string", "format": "date-time", "maxLength": 64}
        case shape.CustomType() if found.cls in _IP:
            checks = [rule.schema() for rule in rules.TYPES[found.cls]]
            return {
                "type": "string",
                "maxLength": _IP[found.cls],
                "x-kubernetes-validations": checks,
            }
        case shape.VarTupleType():
            items = _of(found.item_type, defaults)
            return {
                "type": "array",
                "maxItems": 64,
                "items": items,
                "x-kubernetes-list-type": "atomic",
            }
        case shape.DictType(value_type=shape.AnyType()):
            # A backend's options: only the backend knows what they are.
            return {
                "type": "object",
                "maxProperties": 64,
                "x-kubernetes-preserve-unknown-fields": True,
            }
        case shape.DictType():
            values = _of(found.value_type, defaults)
            return {"type": "object", "maxProperties": 64, "additionalProperties": values}
        case shape.StructType():
            return schema(found.cls, defaults=defaults)
    raise TypeError(f"no schema for {found}")


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, dicts within dicts."""
    made = dict(base)
    for key, value in over.items():
        before = made.get(key)
        made[key] = _merge(before, value) if isinstance(before, dict) else value
    return made
