"""A reachability report as a person reads it: one matrix, a legend, a line per failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from muslin.lab.check import Finding, Mark, Report

SIGNS: dict[Mark, tuple[str, str]] = {
    "own": ("✓", "green"),
    "node": ("◐", "cyan"),
    "refused": ("∅", "blue"),
    "failed": ("✗", "bold red"),
}
LEGEND: tuple[tuple[Mark, str], ...] = (
    ("own", "own address seen"),
    ("node", "node's address seen (masqueraded)"),
    ("refused", "refused, as it must be"),
    ("failed", "wrong"),
)
SHOWN = 12  # failures in words; a broken lab has hundreds and they say the same


def render(report: Report) -> RenderableType:
    """The whole report; a cell is IPv4 then IPv6."""
    connects = report.of("connect")
    used = {f.mark for f in connects}
    legend = Text("   ".join(f"{SIGNS[m][0]} {words}" for m, words in LEGEND if m in used))
    parts: list[RenderableType] = [_matrix(report, connects), legend, Text("")]
    parts += [_tally(report.of("spoof"), "datagrams with a false source address",
                     "refused", "got through or were not tested"),
              _tally(report.of("unused"), "addresses that no pod has",
                     "lead nowhere, without going round", "do not lead nowhere")]  # fmt: skip
    failures = report.failures
    parts += [_line(f) for f in failures[:SHOWN]]
    if len(failures) > SHOWN:
        parts.append(Text(f"… and {len(failures) - SHOWN} more (--json shows all)"))
    good = sum(f.ok for f in connects)
    verdict = f"{good} of {len(connects)} connections as they should be"
    if report.ok:
        parts.append(Text(f"{verdict}; nothing passed that must not", style="bold green"))
    else:
        count = f"{len(failures)} failure{'s' if len(failures) != 1 else ''}"
        parts.append(Text(f"{verdict}; {count}", style="bold red"))
    return Group(*parts)


def _matrix(report: Report, connects: Sequence[Finding]) -> Table:
    cells: dict[tuple[str, str], list[Finding]] = {}
    for finding in connects:
        cells.setdefault((finding.source, finding.target), []).append(finding)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    grid.add_column("from \\ to", style="bold", no_wrap=True)
    for name in report.endpoints:
        grid.add_column(name, justify="center", no_wrap=True)
    for source in report.endpoints:
        row = [_cell(cells.get((source, target), [])) for target in report.endpoints]
        if any(cell.plain.strip() for cell in row):
            grid.add_row(source, *row)
    return grid


def _cell(findings: Sequence[Finding]) -> Text:
    cell = Text()
    for finding in sorted(findings, key=lambda f: f.version):
        sign, style = SIGNS[finding.mark]
        cell.append(sign, style=style)
    return cell


def _tally(findings: Sequence[Finding], what: str, good: str, bad: str) -> Text:
    """`24 of 24 datagrams with a false source address refused`, split by failure."""
    count = Counter(f.ok for f in findings)
    text = Text(f"{count[True]} of {len(findings)} {what} {good}")
    if count[False]:
        text.append(f"; {count[False]} {bad}", style="bold red")
    return text


def _line(finding: Finding) -> Text:
    text = Text("✗ ", style="bold red")
    where = f"{finding.source} → {finding.target} IPv{finding.version}"
    text.append(where, style="bold").append(
        f": expected {finding.expected}, saw {finding.seen}", style="default not bold"
    )
    if finding.hint:
        text.append(f"\n    {finding.hint}", style="dim not bold")
    return text
