"""From figures to docs/scale.md: what is between its marks is written here, all else by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.scale import tables
from bench.scale.bars import Bar, bars
from bench.scale.estate import Json
from bench.scale.paper import paper

_PART = re.compile(r"(<!-- make scale: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write(figures: Json, directory: Path) -> None:
    """The figures into `scale.md` and `scale.json`."""
    path = directory / "scale.md"
    path.write_text(filled(path.read_text(), figures))
    (directory / "scale.json").write_text(json.dumps(figures, indent=1) + "\n")


def filled(text: str, figures: Json) -> str:
    """A page with everything between its marks as the figures of a whole run have it."""
    parts: dict[str, Callable[[Json], Iterator[str]]] = {
        "bars": lambda f: met(bars(f)),
        "figures": lambda f: iter([markdown(f)]),
        "paper": paper,
    }

    def fill(found: re.Match[str]) -> str:
        body = "\n".join(parts[found[2]](figures)).strip()
        return f"{found[1]}\n{body}\n\n{found[3]}"

    return _PART.sub(fill, text)


def met(found: Iterator[Bar]) -> Iterator[str]:
    """The table of the bars."""
    rows = []
    for bar in found:
        limit = f"{'≥' if bar.least else '≤'} {bar.limit:g} {bar.unit}".strip()
        values = ", ".join(f"{name} {_short(v)}".strip() for name, v in bar.found.items())
        rows.append([bar.what, limit, values, "met" if bar.met else "**not met**"])
    yield from tables.table(["bar", "", "measured", ""], rows)


def markdown(figures: Json) -> str:
    """All tables of what was measured, of a whole run or some parts."""
    made = [tables.conditions(figures)]
    for name, make in tables.PARTS.items():
        if name in figures:
            made.append("\n".join(make(figures[name])))
    return "\n\n".join(made)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
