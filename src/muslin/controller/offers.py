"""Settings that a newer version brings, put among those that are there.  Pure.

The ConfigMap is its owner's: an upgrade changes no line of it.  But a setting
that is new in deploy/base, such as the webhook's address, would never come to
an older installation.  So each is offered once: an annotation holds which were
offered so far, and what was taken out again, or never wanted, stays out.

    muslin.io/offered: agent.toml/store agent.toml/cni_install ... controller.toml/webhook

New lines go to the top of a file, with the comments that deploy/base has on
them: there they are in no table, whatever follows.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from muslin.errors import ConfigError

OFFERED = "muslin.io/offered"
# What there was before the annotation was.
_FIRST = frozenset(
    (
        "agent.toml/store",
        "agent.toml/cni_install",
        "controller.toml/store",
        "controller.toml/listen",
    )
)
_KEY = re.compile(r"([A-Za-z0-9_]+) = ")


class Offer(NamedTuple):
    """Our files as they are to be, the lines that are new, and what has been offered by now."""

    files: dict[str, str]
    lines: tuple[str, ...]
    offered: str


def offer(base: Mapping[str, Any], live: Mapping[str, Any]) -> Offer:
    """What `live` becomes by the settings of `base` that it was not offered yet.

    Both are ConfigMaps.  Nothing that was there changes, and a second time
    nothing is new.  ConfigError if a file of `live` cannot be read: no program
    would start with it.
    """
    said = (live["metadata"].get("annotations") or {}).get(OFFERED)
    known = frozenset(said.split()) if said is not None else _FIRST
    before: Mapping[str, str] = live.get("data") or {}
    files: dict[str, str] = {}
    lines: list[str] = []
    offered = (said or "").split()
    for name, text in base["data"].items():
        there = _read(before.get(name, ""), f"{live['metadata']['name']}: {name}")
        new: list[str] = []
        for key, block in _blocks(text):
            at = f"{name}/{key}"
            offered += [at] if at not in offered else []
            if key not in there and (name not in before or at not in known):
                new.append(block)
                lines.append(f"{name}: {block.splitlines()[-1]}")
        files[name] = "".join(new) + before.get(name, "")
    return Offer(files, tuple(lines), " ".join(offered))


def keys(text: str) -> list[str]:
    """The settings that a file of deploy/base has, in its order."""
    return [key for key, _ in _blocks(text)]


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Each setting of a file of ours with the comments above it; one is one line there."""
    block = ""
    for line in text.splitlines(keepends=True):
        block += line
        if found := _KEY.match(line):
            yield found[1], block
            block = ""


def _read(text: str, what: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"ConfigMap {what}", [str(e)], hint="mend it: nothing starts so") from e
