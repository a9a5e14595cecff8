"""As much of Go's text/template and sprig as the chart uses; anything else is an error.

`{{ if }}`, `{{ with }}`, `{{ range }}` with `{{ else }}`, trimming by `{{-` and `-}}`, pipelines,
parentheses, fields of `.` and `$`, texts and numbers, and the functions below.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_ACTION = re.compile(r"\{\{(-)?\s*(.*?)\s*(?:(-)\}\}|\}\})", re.DOTALL)
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\||\(|\)|[^\s|()]+)')


_Part = tuple[str, str]  # "text" or "action", and what it is


class _Env(NamedTuple):
    """What `.` and `$` are."""

    dot: Any
    root: Any


class Chart:
    """The templates of a chart, rendered with values."""

    def __init__(self, directory: Path, data: Mapping[str, Any]) -> None:
        self._texts = {p.name: p.read_text() for p in sorted((directory / "templates").iterdir())}
        self._data = {**data, "Template": {"BasePath": "muslin/templates"}}
        self._functions: dict[str, Callable[..., Any]] = {
            "default": lambda other, value="": value or other,
            "include": lambda name, data: self._render(name.rpartition("/")[2], data),
            "nindent": lambda n, text: "\n" + "\n".join(" " * n + ln for ln in text.split("\n")),
            "print": lambda *words: "".join(map(str, words)),
            "regexFind": lambda what, text: m[0] if (m := re.search(what, text)) else "",
            "quote": lambda text: json.dumps(str(text)),
            "sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
            "toYaml": _yaml,
        }

    def rendered(self) -> dict[str, str]:
        """Template → text."""
        return {name: self._render(name, self._data) for name in self._texts}

    def _render(self, name: str, data: Any) -> str:
        parts = list(_parts(self._texts[name]))
        out: list[str] = []
        end = self._run(parts, 0, _Env(data, data), out.append)
        assert end == len(parts), f"{name}: one end too many"
        return "".join(out)

    def _run(self, parts: list[_Part], at: int, env: _Env, write: Callable[[str], object]) -> int:
        """Up to the end of this block; where that is."""
        while at < len(parts):
            kind, text = parts[at]
            word = text.partition(" ")[0]
            if kind == "text":
                write(text)
            elif word in ("end", "else"):
                return at
            elif word in ("if", "with", "range"):
                at = self._block(parts, at, env, write)
            else:
                value = self._value(text, env)
                write(str(value).lower() if isinstance(value, bool) else str(value))
            at += 1
        return at

    def _block(self, parts: list[_Part], at: int, env: _Env, write: Callable[[str], object]) -> int:
        word, _, rest = parts[at][1].partition(" ")
        value = self._value(rest, env)
        dots: list[Any] = []
        if word == "range":
            dots = [value[k] for k in sorted(value)] if isinstance(value, Mapping) else value
        elif value:
            dots = [value if word == "with" else env.dot]
        for one in dots:
            self._run(parts, at + 1, _Env(one, env.root), write)
        end = self._skip(parts, at + 1)
        if parts[end][1] == "else":
            if not dots:
                self._run(parts, end + 1, env, write)
            end = self._skip(parts, end + 1)
        assert parts[end] == ("action", "end"), parts[end]
        return end

    @staticmethod
    def _skip(parts: list[_Part], at: int) -> int:
        """Where the block that is begun ends, or has its `else`."""
        depth = 0
        for number in range(at, len(parts)):
            kind, text = parts[number]
            word = text.partition(" ")[0] if kind == "action" else ""
            if not depth and word in ("end", "else"):
                return number
            depth += (word in ("if", "with", "range")) - (word == "end")
        raise AssertionError("a block has no end")

    def _value(self, text: str, env: _Env) -> Any:
        value, rest = self._pipeline(_TOKEN.findall(text), env)
        assert not rest, text
        return value

    def _pipeline(self, tokens: list[str], env: _Env) -> tuple[Any, list[str]]:
        piped: list[Any] = []
        while True:
            words: list[Any] = []
            while tokens and tokens[0] not in ("|", ")"):
                if tokens[0] == "(":
                    word, tokens = self._pipeline(tokens[1:], env)
                    assert tokens.pop(0) == ")"
                else:
                    word, tokens = self._word(tokens[0], env), tokens[1:]
                words.append(word)
            first, *others = words
            piped = [first(*others, *piped) if callable(first) else first]
            if not tokens or tokens[0] == ")":
                return piped[0], tokens
            tokens = tokens[1:]

    def _word(self, token: str, env: _Env) -> Any:
        if token.startswith('"'):
            return json.loads(token)
        if re.fullmatch(r"-?\d+", token):
            return int(token)
        if token.startswith((".", "$")):
            value = env.root if token.startswith("$") else env.dot
            for name in filter(None, token.lstrip("$").split(".")):
                value = value.get(name) if isinstance(value, Mapping) else None
            return value
        return self._functions[token]


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=False)
    return text.removesuffix("\n").removesuffix("\n...")  # which ends a text that is no map or list


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """Texts and actions, trimmed as their markers say."""
    at, trim = 0, False
    for found in _ACTION.finditer(text):
        between = text[at : found.start()]
        between = between.lstrip() if trim else between
        yield "text", between.rstrip() if found[1] else between
        yield "action", found[2]
        at, trim = found.end(), bool(found[3])
    yield "text", text[at:].lstrip() if trim else text[at:]
