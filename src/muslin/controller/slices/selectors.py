"""Label selectors as text, as `kubectl -l` takes them: `app=db,tier in (a, b),!old`.  Pure.

`<` and `>` are of node affinity only, and refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = rf"(?:[a-z0-9](?:[-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME}"
_VALUE = rf"(?:{_NAME})?"  # of a label: "" is one
_TERM = re.compile(
    rf"!\s*(?P<absent>{_KEY})"
    rf"|(?P<key>{_KEY})(?:\s*(?P<sign>==?|!=)\s*(?P<value>{_VALUE})"
    r"|\s+(?P<word>in|notin)\s*\((?P<values>[^()]*)\))?"
)
_COMMA = re.compile(r",(?![^()]*\))")  # not those within a set
LONGEST = 1024  # characters; the time to split them grows with the square


class Term(NamedTuple):
    """One requirement: the label has one of these values (None: any), or not so."""

    key: str
    values: frozenset[str] | None = None
    wanted: bool = True

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels are as this asks; `!=` and `notin` are also true of what has no label."""
        value = labels.get(self.key)
        there = value is not None and (self.values is None or value in self.values)
        return there is self.wanted


def parse(text: str) -> tuple[Term, ...]:
    """The requirements, all of which must hold; ValueError says what cannot be read."""
    if not text.strip():
        raise ValueError("is empty, which would be everything")
    if len(text) > LONGEST:
        raise ValueError(f"is longer than {LONGEST} characters")
    return tuple(_term(part.strip()) for part in _COMMA.split(text))


def equal(labels: Mapping[str, str]) -> tuple[Term, ...]:
    """The requirements of a Service's own selector."""
    return tuple(Term(key, frozenset((value,))) for key, value in labels.items())


def _term(text: str) -> Term:
    found = _TERM.fullmatch(text)
    if not found:
        raise ValueError(f"{text[:80]!r} is none of: a=b, a!=b, a in (b, c), a notin (b, c), a, !a")
    if key := found["absent"]:
        return Term(key, wanted=False)
    if found["sign"]:
        return Term(found["key"], frozenset((found["value"],)), found["sign"] != "!=")
    if not found["word"]:
        return Term(found["key"])
    values = frozenset(word.strip() for word in found["values"].split(","))
    if wrong := sorted(v for v in values if not re.fullmatch(_VALUE, v)):
        raise ValueError(f"{wrong[0][:80]!r} is no value of a label")
    return Term(found["key"], values, found["word"] == "in")
