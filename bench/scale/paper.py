"""The same cluster with more nodes, by arithmetic on what one run has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.scale.estate import Json
from bench.scale.tables import table
from muslin.config import Config
from muslin.kube.pauses import AGENTS

QUIET = 2 * 3600.0  # seconds between two changes of one node's blocks: supposed
RENEWAL = (
    Config(node="n").block_ttl / 4
)  # seconds between two renewals of an agent's Lease (agent/sync.py)
SERVERS = 100e6  # bytes a second that API servers may send for one restart: supposed

Cell = Callable[[Json], str]


def paper(figures: Json) -> Iterator[str]:
    """One column for each number of nodes that was held, what each cell grows with at the end."""
    held = figures["holding"]
    rows: list[tuple[str, Cell, str]] = [
        ("MB of Nodes and Blocks in an agent", lambda h: f"{_values(h) / 1e6:.1f}", "n"),
        ("MB of plan in an agent, vxlan / hostgw", _plans, "n"),
        ("kernel objects per node, vxlan / hostgw", _objects, "n"),
        ("leases renewed per second", lambda h: f"{h['nodes'] / RENEWAL:.2g}", "n"),
        ("blocks that change hands per second", lambda h: f"{_changes(h):.2g}", "n"),
        ("events that API servers send for that, per second", lambda h: f"{_events(h):.0f}", "n²"),
        ("bytes of these per second", lambda h: size(_events(h) * _event(figures)), "n²"),
        ("CPU of one agent for that, vxlan", _cpu, "n²"),
        ("lists of all agents after a restart", lambda h: size(_relist(figures, h)), "n²"),
        (f"the same a second, over {AGENTS:.0f} s", lambda h: _rate(figures, h), "n²"),
        (f"the same at {size(SERVERS)} a second, s", lambda h: _long(figures, h), "n²"),
    ]
    head = ["", *(f"{h['nodes']} nodes" for h in held), "grows with"]
    yield from table(head, [[what, *(cell(h) for h in held), by] for what, cell, by in rows])


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit, words in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {words}"
    return f"{count:.0f} B"


def _values(held: Json) -> float:
    return float((held["node_bytes"] + held["block_bytes"]) * held["nodes"])


def _plans(held: Json) -> str:
    return " / ".join(f"{held[f'{b}_pass']['plan_bytes'] / 1e6:.1f}" for b in ("vxlan", "hostgw"))


def _objects(held: Json) -> str:
    return " / ".join(str(held[f"{b}_pass"]["objects"]) for b in ("vxlan", "hostgw"))


def _changes(held: Json) -> float:
    return float(held["nodes"] / QUIET)


def _events(held: Json) -> float:
    return _changes(held) * float(held["nodes"])


def _event(figures: Json) -> float:
    """Bytes of one Block's change, as the agents were sent them."""
    told = next(iter(figures["agent"].values()))["churn"]["server"]
    return float(told["bytes"]["watch blocks"] / told["events"]["blocks"])


def _cpu(held: Json) -> str:
    took = held["vxlan_pass"]
    return f"{_changes(held) * (took['sites'] + took['again']) / 1000:.2%}"


def _relist(figures: Json, held: Json) -> float:
    """What the storm's agents were sent, with more of what grows and as much of what does not."""
    storm, nodes = figures["storm"], held["nodes"]
    told = storm["relist"]["bytes"]
    growing = told["list nodes.muslin.io"] + told["list blocks.muslin.io"]
    lists = sum(count for what, count in told.items() if what.startswith("list"))
    each = growing / storm["agents"] / figures["size"]["nodes"] * nodes
    return float((each + (lists - growing) / storm["agents"]) * nodes)


def _rate(figures: Json, held: Json) -> str:
    return size(_relist(figures, held) / AGENTS)


def _long(figures: Json, held: Json) -> str:
    return f"{_relist(figures, held) / SERVERS:.0f}"
