"""Two plots as SVG text: no library, no script, readable in a diff."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

COLOURS = ("#0b6e4f", "#c1440e", "#3b5b92", "#8c6d1f", "#7a3e8e", "#555555")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 320, 60, 40, 30


def distribution(title: str, samples: Mapping[str, Sequence[float]], unit: str) -> str:
    """The share of samples at or below each value, on a logarithmic scale."""
    everything = [v for values in samples.values() for v in values if v > 0]
    low, high = math.floor(math.log10(min(everything))), math.ceil(math.log10(max(everything)))

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - low) / max(high - low, 1) * (WIDTH - LEFT - 20)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    parts = [_text(LEFT, 18, title, weight="bold")]
    for power in range(low, high + 1):
        at = x(10**power)
        parts.append(_line(at, y(0), at, y(1), "#dddddd"))
        parts.append(_text(at - 10, HEIGHT - 22, f"{10**power:g}"))
    for share in (0, 0.5, 0.99):
        parts.append(_line(LEFT, y(share), WIDTH - 20, y(share), "#dddddd"))
        parts.append(_text(8, y(share) + 4, f"{share:.0%}"))
    parts.append(_text(WIDTH - 60, HEIGHT - 6, unit))
    for n, (name, values) in enumerate(samples.items()):
        colour, ordered = COLOURS[n % len(COLOURS)], sorted(values)
        points = " ".join(
            f"{x(v):.1f},{y((i + 1) / len(ordered)):.1f}" for i, v in enumerate(ordered)
        )
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>'
        )
        parts.append(_text(LEFT + 8, TOP + 16 + 15 * n, name, colour=colour))
    return _page(parts)


def bars(title: str, values: Mapping[str, float], unit: str) -> str:
    """One bar a name."""
    most, parts = max(values.values()), [_text(LEFT, 18, title, weight="bold")]
    step = (HEIGHT - TOP - 10) / len(values)
    for n, (name, value) in enumerate(values.items()):
        top = TOP + n * step
        width = value / most * (WIDTH - 330)
        colour = COLOURS[n % len(COLOURS)]
        parts.append(_text(8, top + step / 2 + 4, name))
        parts.append(
            f'<rect x="210" y="{top + 4:.1f}" width="{width:.1f}" height="{step - 8:.1f}"'
            f' fill="{colour}"/>'
        )
        parts.append(_text(216 + width, top + step / 2 + 4, f"{value:.0f} {unit}"))
    return _page(parts)


def _page(parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, *, colour: str = "#222222", weight: str = "normal") -> str:
    safe = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-weight="{weight}">{safe}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
