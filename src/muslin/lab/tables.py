"""Paths and measurements as a person reads them, in eighty columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from muslin.lab.bench import Ratio, Row, Sample
from muslin.lab.paths import Path, Way

SIGNS: dict[Way, tuple[str, str]] = {
    "local": ("·", "dim"),
    "direct": ("─", "green"),
    "routed": ("→", "cyan"),
    "tunnel": ("═", "yellow"),
    "none": ("✗", "bold red"),
}
LEGEND: tuple[tuple[Way, str], ...] = (
    ("local", "same node"),
    ("direct", "plain route, no router between"),
    ("routed", "plain route through a router"),
    ("tunnel", "tunnel"),
    ("none", "no route"),
)


def path_matrix(found: Sequence[Path]) -> RenderableType:
    """Rows are pods, columns everything; a cell is IPv4 then IPv6."""
    cells: dict[tuple[str, str], Text] = {}
    for path in sorted(found, key=lambda p: p.version):
        sign, style = SIGNS[path.way]
        cells.setdefault((path.source, path.target), Text()).append(sign, style=style)
    sources = dict.fromkeys(p.source for p in found)
    targets = dict.fromkeys([*sources, *(p.target for p in found)])
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("from \\ to", style="bold", no_wrap=True)
    for name in targets:
        grid.add_column(name, justify="center", no_wrap=True)
    for source in sources:
        grid.add_row(source, *(cells.get((source, target), Text()) for target in targets))
    used = {p.way for p in found}
    tunnels = ", ".join(sorted({p.dev for p in found if p.way == "tunnel"}))
    words = dict(LEGEND) | {"tunnel": f"tunnel ({tunnels})"}
    legend = "   ".join(f"{SIGNS[way][0]} {words[way]}" for way, _ in LEGEND if way in used)
    return Group(grid, Text(legend))


def bench_table(rows: Sequence[Row], *, rounds: int) -> RenderableType:
    """One line per pair of pods; ratios with the lowest and highest round in brackets."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("link", "way"):
        grid.add_column(name, no_wrap=True)
    for name in ("p50 µs", "p99 µs", "Gb/s", "latency ×", "throughput ×"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(
            f"{row.pods[0]} → {row.pods[1]}", row.way, *_figures(row.pod), _words(row.latency),
            _words(row.throughput),
        )  # fmt: skip
        grid.add_row(
            f"{row.nodes[0]} → {row.nodes[1]}", "", *_figures(row.node), "1", "1",
            style="dim", end_section=True,
        )  # fmt: skip
    notes = [
        "each pair of pods, and below it the pair of their nodes, which is the limit",
        f"medians of {rounds} interleaved rounds; in brackets the lowest and the highest round",
        "Python at both ends, no hardware between: trust the latency ratios most",
    ]
    if any(r.noisy for row in rows for r in (row.latency, row.throughput)):
        notes.append("≈ its rounds differ by more than a quarter: too noisy to say")
    return Group(grid, *map(Text, notes))


def _figures(sample: Sample) -> tuple[str, str, str]:
    return f"{sample.p50 * 1e6:.1f}", f"{sample.p99 * 1e6:.1f}", f"{sample.rate * 8 / 1e9:.1f}"


def _words(ratio: Ratio) -> str:
    mark = "≈" if ratio.noisy else ""
    return f"{mark}{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
