"""docs/scale.md: its tables are those of docs/scale.json, and a missed bar is said to be one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from bench.scale import bars, page

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def figures() -> Any:
    return json.loads((DOCS / "scale.json").read_text())


def verdicts(figures: Any) -> dict[str, bool]:
    return {bar.what: bar.met for bar in bars.bars(figures)}


def test_the_page_says_what_its_figures_say(figures: Any) -> None:
    text = (DOCS / "scale.md").read_text()
    assert page.filled(text, figures) == text


def test_every_mark_of_the_page_is_filled(figures: Any) -> None:
    text = (DOCS / "scale.md").read_text()
    bare = "\n".join(line for line in text.splitlines() if not line.startswith("| "))
    assert bare.count("<!-- make scale: ") == bare.count("<!-- end -->") == 3
    other = copy.deepcopy(figures)
    other["size"]["services"] = 4321
    assert "4321 services" in page.filled(text, other)


@pytest.mark.parametrize(
    ("kind", "latency"), [("block_ms", "a peer's block"), ("pod_ms", "pod bound")]
)
def test_a_latency_above_its_bar_with_one_backend_is_not_met(
    figures: Any, kind: str, latency: str
) -> None:
    for agent in figures["agent"].values():
        agent["churn"][kind]["p99"] = 99.0
    (what,) = (w for w in verdicts(figures) if w.startswith(latency))
    assert verdicts(figures)[what]
    figures["agent"]["hostgw"]["churn"][kind]["p99"] = 101.0
    assert not verdicts(figures)[what]
    (row,) = (line for line in page.met(bars.bars(figures)) if what in line)
    assert "vxlan 99, hostgw 101" in row
    assert row.endswith("| **not met** |")


def test_memory_is_compared_in_the_unit_of_its_bar(figures: Any) -> None:
    """60 MB are 57.2 MiB, and /proc tells MiB."""
    (what,) = (w for w in verdicts(figures) if "each page counted once" in w)
    for agent in figures["agent"].values():
        agent["memory_synced"]["together"] = agent["memory_churned"]["together"] = 57.0
    assert verdicts(figures)[what]
    figures["agent"]["vxlan"]["memory_churned"]["together"] = 58.0
    assert not verdicts(figures)[what]


def test_lists_that_come_together_miss_the_bar(figures: Any) -> None:
    (what,) = (w for w in verdicts(figures) if w.startswith("lists"))
    figures["storm"]["relist"]["lists_at"] |= {"p5": 2.0, "p95": 32.0}
    assert verdicts(figures)[what]
    figures["storm"]["relist"]["lists_at"] |= {"p95": 31.0, "last": 60.0}
    assert not verdicts(figures)[what]
