"""From samples to what people read: a table of ratios, plots, and how noisy it was."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import svg

PEER = "bridge + host-local"
# docs: the bars we set ourselves; ratios of ours to the peer
BARS = {
    "ADD p50 to bridge": 0.25, "ADD p50 to macvlan": 0.20, "ADD p99 to bridge": 0.5,
    "DEL p50 to bridge": 0.10,
}  # fmt: skip


def write(figures: dict[str, Any], directory: Path) -> None:
    """`performance.md`, `performance.json` and the plots."""
    plots = directory / "performance"
    plots.mkdir(parents=True, exist_ok=True)
    for verb in ("ADD", "DEL"):
        samples = {n: [s["wall"] * 1000 for s in v[verb]] for n, v in figures["single"].items()}
        text = svg.distribution(f"{verb}, one pod at a time", samples, "ms")
        (plots / f"{verb.lower()}.svg").write_text(text)
    rates = {n: c["ADD rate"] for n, c in figures["crowd"]["200"].items()}
    (plots / "crowd.svg").write_text(svg.bars("200 pods at once: ADDs per second", rates, "/s"))
    (directory / "performance.md").write_text(_page(figures))
    short = {k: v for k, v in figures.items() if k != "single"}
    short["single"] = {
        n: {v: quantiles(s) for v, s in verbs.items()} for n, verbs in figures["single"].items()
    }
    (directory / "performance.json").write_text(json.dumps(short, indent=1) + "\n")


def _page(figures: dict[str, Any]) -> str:
    return f"""\
# Performance of the main path

Written by `make bench` (`python -m bench.cni --write docs`): read the ratios, not the
milliseconds, and run it on your own machine.

{markdown(figures)}
![ADD](performance/add.svg)
![DEL](performance/del.svg)
![200 at once](performance/crowd.svg)
"""


def quantiles(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """p50, p90 and p99 of the wall time and the mean CPU, in milliseconds."""
    walls = sorted(s["wall"] * 1000 for s in samples)
    return {
        "p50": statistics.median(walls),
        "p90": walls[int(len(walls) * 0.9)],
        "p99": walls[int(len(walls) * 0.99)],
        "cpu": statistics.fmean(s["cpu"] for s in samples) * 1000,
    }


def markdown(figures: dict[str, Any]) -> str:
    """The tables."""
    noise = figures["noise"]
    lines = [
        f"{figures['samples']} samples each, interleaved; {figures['cpus']} CPUs, Linux"
        f" {figures['kernel']}, Python {figures['python']}. Load average {noise['load_before']:.1f}"
        f" before, {noise['load_after']:.1f} after; {noise['stolen']:.1%} of the CPU stolen by the"
        " hypervisor.",
        "",
        "One pod at a time, exec to exit, ms; in brackets the ratio to"
        f" {PEER}. CPU is the plugin's, for Muslin with the agent's share of ADD and DEL added.",
        "",
        "| | ADD p50 | ADD p99 | ADD CPU | DEL p50 | DEL p99 |",
        "|---|---|---|---|---|---|",
    ]
    told = {
        n: {v: quantiles(s) for v, s in verbs.items()} for n, verbs in figures["single"].items()
    }
    peer = told.get(PEER)
    for name, verbs in told.items():
        add, gone = verbs["ADD"], verbs["DEL"]
        extra = figures["agent_cpu_per_pod"].get(name, 0.0) * 1000
        cells = [
            _cell(add["p50"], peer and peer["ADD"]["p50"]),
            _cell(add["p99"], peer and peer["ADD"]["p99"]),
            _cell(add["cpu"] + extra, peer and peer["ADD"]["cpu"]),
            _cell(gone["p50"], peer and peer["DEL"]["p50"]),
            _cell(gone["p99"], peer and peer["DEL"]["p99"]),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for count, crowd in figures["crowd"].items():
        lines += ["", f"{count} at once, medians of three interleaved rounds.", ""]
        lines += [
            "| | ADDs per second | ADD p50 ms | ADD p99 ms | DELs per second |",
            "|---|---|---|---|---|",
        ]
        base = crowd.get(PEER)
        for name, took in crowd.items():
            lines.append(
                f"| {name} | {_cell(took['ADD rate'], base and base['ADD rate'], 0)}"
                f" | {took['ADD p50'] * 1000:.0f} | {took['ADD p99'] * 1000:.0f}"
                f" | {_cell(took['DEL rate'], base and base['DEL rate'], 0)} |"
            )
    for what, kind in (("pss_kib", "what it costs the node (PSS)"), ("rss_kib", "resident (RSS)")):
        parts = ", ".join(f"{name} {kib / 1024:.1f}" for name, kib in figures[what].items())
        whole = sum(figures[what].values()) / 1024
        lines += ["", f"Memory of the agent after it all, MiB, {kind}: {whole:.0f} ({parts})."]
    lines.append("")
    for name, why in figures["missing"].items():
        lines.append(f"Not measured here: {name} ({why}).")
    return "\n".join(lines) + "\n"


def _cell(value: float, base: float | None, digits: int = 2) -> str:
    return f"{value:.{digits}f} ({value / base:.2f})" if base else f"{value:.{digits}f}"
