"""Structural schemas of custom resources: pruning, defaulting, validation, list types.

Follows what a real server does with `openAPIV3Schema`, words of its complaints included.
Not covered: `format` beyond those in `formats.py`, `oneOf`/`anyOf`/`not` beyond accepting or
refusing as a whole, `nullable` with defaults, ratcheting (an unchanged invalid field is
refused here, tolerated there).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .encode import Json
from .formats import FORMATS
from .status import Fault, quoted

_EMBEDDED = ("apiVersion", "kind", "metadata")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "number": (int, float),
    "integer": (int,),
}


class Schema:
    """One node of a schema; also the shape of what it describes."""

    def __init__(self, raw: Json) -> None:
        self.raw = raw
        self.type: str = raw.get("type", "")
        self.preserves = bool(raw.get("x-kubernetes-preserve-unknown-fields"))
        self.int_or_string = bool(raw.get("x-kubernetes-int-or-string"))
        self.embedded = bool(raw.get("x-kubernetes-embedded-resource"))
        self.properties = {k: Schema(v) for k, v in (raw.get("properties") or {}).items()}
        extra = raw.get("additionalProperties")
        self.extra = Schema(extra) if isinstance(extra, dict) else None
        self.any_extra = extra is True
        items = raw.get("items")
        self.items = Schema(items) if isinstance(items, dict) else None
        self.rules: list[Json] = raw.get("x-kubernetes-validations") or []

    # ── shape ──────────────────────────────────────────────────────────────
    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.raw.get("x-kubernetes-list-map-keys") or ())

    @property
    def listing(self) -> str:
        return str(self.raw.get("x-kubernetes-list-type") or "atomic")

    @property
    def atomic(self) -> bool:
        return self.raw.get("x-kubernetes-map-type") == "atomic"

    def known(self, name: str) -> bool:
        return name in self.properties

    def child(self, name: str) -> Schema:
        return self.properties.get(name) or self.extra or UNTYPED

    def item(self) -> Schema:
        return self.items or UNTYPED

    @cached_property
    def has_rules(self) -> bool:
        """Whether CEL is found here or below."""
        below = [*self.properties.values(), self.extra, self.items]
        return bool(self.rules) or any(node is not None and node.has_rules for node in below)

    @cached_property
    def has_defaults(self) -> bool:
        below = [*self.properties.values(), self.extra, self.items]
        here = "default" in self.raw
        return here or any(node is not None and node.has_defaults for node in below)


UNTYPED = Schema({})


def pruned(value: Any, schema: Schema, *, top: bool = False, path: str = "") -> Any:
    """`value` without the fields that the schema does not know."""
    if isinstance(value, dict):
        result = {}
        for name, below in value.items():
            if (top or schema.embedded) and name in _EMBEDDED:
                result[name] = below
            elif (node := schema.properties.get(name)) or (node := schema.extra):
                result[name] = pruned(below, node)
            elif schema.preserves or schema.any_extra:
                result[name] = below
        return result
    if isinstance(value, list) and schema.items:
        return [pruned(item, schema.items) for item in value]
    return value


def unknown(value: Any, schema: Schema, path: str = "") -> Iterator[str]:
    """The paths that pruning removes, for fieldValidation=Strict."""
    if isinstance(value, dict):
        for name, below in value.items():
            here = f"{path}.{name}" if path else name
            if (not path or schema.embedded) and name in _EMBEDDED:
                continue
            if (node := schema.properties.get(name)) or (node := schema.extra):
                yield from unknown(below, node, here)
            elif not (schema.preserves or schema.any_extra):
                yield here
    elif isinstance(value, list) and schema.items:
        for number, item in enumerate(value):
            yield from unknown(item, schema.items, f"{path}[{number}]")


def defaulted(value: Any, schema: Schema) -> Any:
    """`value` with the schema's defaults where a field is absent."""
    if not schema.has_defaults:
        return value
    if isinstance(value, dict):
        result = dict(value)
        for name, node in schema.properties.items():
            # null is dropped for a default, unless the field may be null.
            absent = name not in result or (result[name] is None and not node.raw.get("nullable"))
            if absent and "default" in node.raw:
                result[name] = node.raw["default"]
            if name in result:
                result[name] = defaulted(result[name], node)
        if schema.extra:
            for name, below in result.items():
                if name not in schema.properties:
                    result[name] = defaulted(below, schema.extra)
        return result
    if isinstance(value, list) and schema.items:
        return [defaulted(item, schema.items) for item in value]
    return value


def validated(value: Any, schema: Schema, path: str = "", *, top: bool = False) -> Iterator[Fault]:
    """Every fault of `value` against the schema, rules in CEL excepted."""
    if value is None and schema.raw.get("nullable"):
        return
    wrong = _type_fault(value, schema, path)
    if wrong:
        yield wrong
        return
    yield from _enum(value, schema, path)
    if isinstance(value, str):
        yield from _string(value, schema.raw, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number(value, schema.raw, path)
    elif isinstance(value, dict):
        yield from _object(value, schema, path, top=top)
    elif isinstance(value, list):
        yield from _array(value, schema, path)
    yield from _combined(value, schema, path)


def _type_fault(value: Any, schema: Schema, path: str) -> Fault | None:
    if schema.int_or_string:
        if isinstance(value, int | str) and not isinstance(value, bool):
            return None
        expected = "integer,string"
    elif not schema.type or _is(value, schema.type):
        return None
    else:
        expected = schema.type
    shown = quoted(_type_name(value))
    text = f"{shown}: {path} in body must be of type {expected}: {shown}"
    return Fault("FieldValueTypeInvalid", path, text)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    for name in ("string", "object", "array", "integer"):
        if isinstance(value, _TYPES[name]):
            return name
    return "number"


def _enum(value: Any, schema: Schema, path: str) -> Iterator[Fault]:
    allowed = schema.raw.get("enum")
    if allowed is not None and value not in allowed:
        listed = ", ".join(quoted(one) for one in allowed)
        detail = f"{quoted(value)}: supported values: {listed}"
        yield Fault("FieldValueNotSupported", path, detail)


def _string(value: str, raw: Json, path: str) -> Iterator[Fault]:
    longest, shortest = raw.get("maxLength"), raw.get("minLength")
    if longest is not None and len(value) > longest:
        yield Fault("FieldValueTooLong", path, f"may not be more than {longest} bytes")
    if shortest is not None and len(value) < shortest:
        text = f"{quoted(value)}: {path} in body should be at least {shortest} chars long"
        yield Fault("FieldValueInvalid", path, text)
    pattern = raw.get("pattern")
    if pattern and not re.search(pattern, value):
        text = f"{quoted(value)}: {path} in body should match '{pattern}'"
        yield Fault("FieldValueInvalid", path, text)
    check = FORMATS.get(raw.get("format", ""))
    if check and not check(value):
        name = raw["format"]
        text = f"{quoted(value)}: {path} in body must be of type {name}: {quoted(value)}"
        yield Fault("FieldValueInvalid", path, text)


def _number(value: float, raw: Json, path: str) -> Iterator[Fault]:
    def fault(words: str) -> Fault:
        return Fault("FieldValueInvalid", path, f"{value}: {path} in body should be {words}")

    top, bottom, step = raw.get("maximum"), raw.get("minimum"), raw.get("multipleOf")
    if bottom is not None:
        if raw.get("exclusiveMinimum") and value <= bottom:
            yield fault(f"greater than {bottom}")
        elif value < bottom:
            yield fault(f"greater than or equal to {bottom}")
    if top is not None:
        if raw.get("exclusiveMaximum") and value >= top:
            yield fault(f"less than {top}")
        elif value > top:
            yield fault(f"less than or equal to {top}")
    if step and value % step:
        yield fault(f"a multiple of {step}")


def _object(value: Json, schema: Schema, path: str, *, top: bool) -> Iterator[Fault]:
    for name in schema.raw.get("required") or ():
        if name not in value:
            yield Fault("FieldValueRequired", f"{path}.{name}" if path else name)
    size, most, least = len(value), schema.raw.get("maxProperties"), schema.raw.get("minProperties")
    if most is not None and size > most:
        yield Fault("FieldValueTooMany", path, f"{size}: must have at most {most} items")
    if least is not None and size < least:
        text = f"{size}: {path} in body should have at least {least} properties"
        yield Fault("FieldValueInvalid", path, text)
    for name, below in value.items():
        if top and name in _EMBEDDED:
            continue
        if node := schema.properties.get(name):
            yield from validated(below, node, f"{path}.{name}" if path else name)
        elif schema.extra:
            yield from validated(below, schema.extra, f"{path}.{name}" if path else name)


def _array(value: list[Any], schema: Schema, path: str) -> Iterator[Fault]:
    size, most, least = len(value), schema.raw.get("maxItems"), schema.raw.get("minItems")
    if most is not None and size > most:
        yield Fault("FieldValueTooMany", path, f"{size}: must have at most {most} items")
    if least is not None and size < least:
        text = f"{size}: {path} in body should have at least {least} items"
        yield Fault("FieldValueInvalid", path, text)
    if schema.items:
        for number, item in enumerate(value):
            yield from validated(item, schema.items, f"{path}[{number}]")
    if schema.listing in ("set", "map"):
        yield from _duplicates(value, schema, path)


def _duplicates(value: list[Any], schema: Schema, path: str) -> Iterator[Fault]:
    seen: list[Any] = []
    for number, item in enumerate(value):
        key = item
        if schema.listing == "map":
            if not isinstance(item, dict):
                continue
            key = {name: item.get(name) for name in schema.keys}
        if key in seen:
            yield Fault("FieldValueDuplicate", f"{path}[{number}]", quoted(key))
        seen.append(key)


def _combined(value: Any, schema: Schema, path: str) -> Iterator[Fault]:
    def fits(raw: Json) -> bool:
        return next(validated(value, Schema(raw), path), None) is None

    raw = schema.raw
    for part in raw.get("allOf") or ():
        yield from validated(value, Schema(part), path)
    word = f"{path or '<nil>'} in body must validate"
    if (parts := raw.get("anyOf")) and not schema.int_or_string and not any(map(fits, parts)):
        yield Fault("FieldValueInvalid", path, f"{quoted(value)}: {word} at least one schema")
    if (parts := raw.get("oneOf")) and sum(map(fits, parts)) != 1:
        yield Fault("FieldValueInvalid", path, f"{quoted(value)}: {word} one and only one schema")
    if (part := raw.get("not")) and fits(part):
        text = f"{quoted(value)}: {path or '<nil>'} in body must not validate the schema (not)"
        yield Fault("FieldValueInvalid", path, text)


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule at one place of one object."""

    path: str
    raw: Json
    value: Any
    old: Any  # or the same as `value` where there was none
    had_old: bool


def rules(
    value: Any, old: Any, schema: Schema, path: str = "", *, had_old: bool = False
) -> Iterator[Rule]:
    """Every rule that applies to `value`, with what was there before."""
    if not schema.has_rules or value is None:
        return
    for raw in schema.rules:
        yield Rule(path, raw, value, old, had_old)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, below in value.items():
            if node := schema.properties.get(name) or schema.extra:
                here = f"{path}.{name}" if path else name
                yield from rules(below, before.get(name), node, here, had_old=name in before)
    elif isinstance(value, list) and schema.items:
        # Items of a plain list have no identity: no transition rules below it.
        before_by_key = _by_key(old, schema) if schema.listing == "map" else {}
        for number, item in enumerate(value):
            key = _key(item, schema)
            was = before_by_key.get(key)
            here = f"{path}[{number}]"
            yield from rules(item, was, schema.items, here, had_old=was is not None)


def _key(item: Any, schema: Schema) -> tuple[Any, ...]:
    return tuple(item.get(name) for name in schema.keys) if isinstance(item, dict) else ()


def _by_key(items: Any, schema: Schema) -> dict[tuple[Any, ...], Any]:
    return {_key(item, schema): item for item in items} if isinstance(items, list) else {}
