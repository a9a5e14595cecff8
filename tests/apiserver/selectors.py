"""Label and field selectors: parsed once, asked often."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .kinds import Kind
from .status import ApiError, bad_request

_CLAUSE = re.compile(
    r"\s*(?P<key>!?\s*[\w./-]+)\s*"
    r"(?:(?P<op>==|=|!=|>|<)\s*(?P<value>[\w.-]*)"
    r"|(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?\s*(?:,|$)"
)


@dataclass(frozen=True, slots=True)
class Need:
    """One clause: `op` is one of = != in notin exists absent > <."""

    key: str
    op: str
    values: tuple[str, ...] = ()

    def met_by(self, have: Mapping[str, str]) -> bool:
        value = have.get(self.key)
        match self.op:
            case "exists":
                return value is not None
            case "absent":
                return value is None
            case "=" | "in":
                return value is not None and value in self.values
            case "!=" | "notin":
                return value is None or value not in self.values
            case _:
                return value is not None and self._compare(value)

    def _compare(self, value: str) -> bool:
        try:
            left, right = int(value), int(self.values[0])
        except ValueError:
            return False
        return left > right if self.op == ">" else left < right


@dataclass(frozen=True, slots=True)
class Selector:
    """What a list or a watch asks for."""

    namespace: str = ""
    labels: tuple[Need, ...] = ()
    fields: tuple[Need, ...] = ()

    @property
    def everything(self) -> bool:
        return not self.labels and not self.fields

    def wants(
        self, key: tuple[str, str], labels: Mapping[str, str], fields: Mapping[str, str]
    ) -> bool:
        if self.namespace and key[0] != self.namespace:
            return False
        if not all(need.met_by(labels) for need in self.labels):
            return False
        return not self.fields or all(need.met_by(_with_key(key, fields)) for need in self.fields)

    def field(self, name: str) -> str | None:
        """The one value that a field must have, if the selector says so."""
        for need in self.fields:
            if need.key == name and need.op == "=":
                return need.values[0]
        return None


def _with_key(key: tuple[str, str], fields: Mapping[str, str]) -> dict[str, str]:
    return {"metadata.namespace": key[0], "metadata.name": key[1], **fields}


def parse_labels(text: str) -> tuple[Need, ...]:
    """Parse a labelSelector, equality- or set-based."""
    needs, at = [], 0
    while at < len(text):
        found = _CLAUSE.match(text, at)
        if not found or found.end() == at:
            raise _unreadable(text)
        at = found.end()
        needs.append(_need(found, text))
    return tuple(needs)


def _need(found: re.Match[str], text: str) -> Need:
    key = found["key"].strip()
    if key.startswith("!"):
        if found["op"] or found["set"]:
            raise _unreadable(text)
        return Need(key[1:].strip(), "absent")
    if found["set"]:
        return Need(key, found["set"], tuple(v.strip() for v in found["values"].split(",")))
    if found["op"]:
        return Need(key, "=" if found["op"] == "==" else found["op"], (found["value"],))
    return Need(key, "exists")


def _unreadable(text: str) -> ApiError:
    return bad_request(f'unable to parse requirement: found "{text}", expected a selector')


def parse_fields(text: str, kind: Kind) -> tuple[Need, ...]:
    """Parse a fieldSelector; a field that this kind does not offer is refused."""
    known = {"metadata.name", "metadata.namespace", *kind.selectable}
    needs = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", part)
        if not found:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        name, op, value = found.groups()
        if name not in known:
            raise bad_request(
                f'Unable to find "{kind.plural}" that match label selector "", field selector '
                f'"{text}": field label not supported: {name}'
            )
        needs.append(Need(name, "=" if op == "==" else op, (value,)))
    return tuple(needs)


def from_object(selector: Mapping[str, object] | None) -> tuple[Need, ...]:
    """A LabelSelector object as needs; {} and None want everything."""
    selector = selector or {}
    labels = selector.get("matchLabels") or {}
    assert isinstance(labels, Mapping)
    needs = [Need(key, "=", (value,)) for key, value in labels.items()]
    words = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "absent"}
    expressions = selector.get("matchExpressions") or []
    assert isinstance(expressions, list)
    for one in expressions:
        needs.append(Need(one["key"], words[one["operator"]], tuple(one.get("values") or ())))
    return tuple(needs)
