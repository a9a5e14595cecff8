"""Each part's figures as a table and a few words below it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.scale import bars
from bench.scale.cost import writes
from bench.scale.estate import Json

Cell = Callable[[Json], str]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table's lines."""
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def conditions(figures: Json) -> str:
    """What was simulated, and on what."""
    size, noise = figures["size"], figures["noise"]
    return (
        f"{size['nodes']} nodes with {size['pods']} pods each, {size['own']} on the measured one,"
        f" {size['services']} services; {figures['cpus']} CPUs for everything, Linux"
        f" {figures['kernel']}, Python {figures['python']}; {figures['seconds'] / 60:.1f} minutes."
        f" Load average {noise['load_before']:.1f} before, {noise['load_after']:.1f} after;"
        f" {noise['stolen']:.1%} of the CPU stolen by the hypervisor."
    )


def agent(found: Json) -> Iterator[str]:
    """One agent, by backend."""
    rows: list[tuple[str, Cell]] = [
        ("memory, all processes, each page once, MB", _together),
        (f"the same as PSS: {', '.join(bars.PROCESSES)}, MB", _pss),
        ("start to ready, s", lambda x: f"{x['ready_seconds']:.1f}"),
        ("CPU of sync until then, s", lambda x: f"{x['start']['agent_cpu']['sync']:.2f}"),
        ("ADD of a pod, the plugin from exec to exit, p50 / p99 / most, ms", _times("add_ms")),
        ("CPU of sync, nothing happening", lambda x: f"{x['idle']['cpu']['sync']:.1%}"),
        ("CPU of sync, churn", lambda x: f"{x['churn']['cpu']['sync']:.1%}"),
        ("CPU of cni, churn", lambda x: f"{x['churn']['cpu']['cni']:.1%}"),
        ("pod bound → row in node.db, p50 / p99 / most, ms", _times("churn", "pod_ms")),
        ("a peer's block → route, p50 / p99 / most, ms", _times("churn", "block_ms")),
        ("requests in the churn", lambda x: str(sum(x["churn"]["server"]["requests"].values()))),
        ("routes / neighbours / FDB entries", lambda x: _slashed(x["kernel"].values())),
    ]
    yield "### One agent\n"
    yield from table(
        ["", *found], [[what, *(cell(x) for x in found.values())] for what, cell in rows]
    )
    one = next(iter(found.values()))
    rates, told = one["churn"]["rates"], one["churn"]["server"]
    lists = sum(n for what, n in one["start"]["bytes"].items() if what.startswith("list"))
    yield (
        f"\nChurn, per second: {rates['blocks']:.0f} nodes that take a block and give one back,"
        f" {rates['pods']:.0f} pods elsewhere that come and go, {rates['own']:.0f} pods with wishes"
        f" here, {rates['beats']:.1f} kubelets' reports.  An agent is sent"
        f" {sum(told['bytes'].values()) / told['seconds'] / 1e3:.1f} kB/s of it.  At its start it"
        f" is sent {lists / 1e6:.2f} MB in lists and writes"
        f" {_words(writes(one['start']['requests']))}."
    )


def _together(one: Json) -> str:
    first, last = (one[f"memory_{when}"]["together"] * bars.MB for when in ("synced", "churned"))
    return f"{first:.1f}, after the churn {last:.1f}"


def _pss(one: Json) -> str:
    parts = one["memory_churned"]
    return ", ".join(f"{parts[part]['pss'] * bars.MB:.1f}" for part in bars.PROCESSES)


def _times(*where: str) -> Cell:
    def cell(one: Json) -> str:
        q: Any = one
        for name in where:
            q = q[name]
        return f"{q['p50']:.1f} / {q['p99']:.0f} / {q['max']:.0f} of {q['count']}"

    return cell


def _slashed(counts: Iterable[object]) -> str:
    return " / ".join(str(n) for n in counts)


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} × {what}" for what, n in sorted(counts.items())) or "nothing"


def controller(found: Json) -> Iterator[str]:
    """The controller, by what was going on."""

    def phase(name: str) -> list[str]:
        one = found[name]
        heard = sum(n for what, n in one["bytes"].items() if what.startswith("watch"))
        return [
            name,
            f"{one['seconds']:.0f} s, {one['lives']} pods, {one['moves']} blocks",
            f"{one['cpu']:.1%}",
            _words(one["writes"]),
            str(one["renewals"]),
            f"{heard / 1e6:.2f}",
        ]

    yield "### The controller\n"
    yield from table(
        ["", "what came and went", "CPU", "writes", "renewals of its Lease", "MB heard"],
        [phase(name) for name in ("pods", "blocks", "idle")],
    )
    blocks, start = found["blocks"], found["start"]
    first, last = found["memory_synced"], found["memory_churned"]
    lists = {what: n for what, n in start["requests"].items() if what.startswith("list")}
    sent = sum(n for what, n in start["bytes"].items() if what.startswith("list"))
    yield (
        f"\nWrites per pod that comes and goes: {bars.per_life(found):.2f}.  Writes per block:"
        f" {sum(blocks['writes'].values()) / blocks['moves']:.2f}.  Memory:"
        f" {first['rss'] * bars.MB:.0f} MB RSS synced (peak {first['peak'] * bars.MB:.0f}),"
        f" {last['rss'] * bars.MB:.0f} after it all.  To begin it takes"
        f" {start['controller_cpu']:.1f} s of CPU and {sent / 1e6:.1f} MB: {_words(lists)}."
        f"  From a change to the write that follows: {found['lag']:.2f} s on average."
    )


def storm(found: Json) -> Iterator[str]:
    """The agents' lists and watches, and when they were whole again."""
    agents = found["agents"]

    def row(name: str) -> list[str]:
        one = found[name]
        lists, seconds = one["lists_at"], one["by_second"]
        sent = sum(one["bytes"].values())
        times = [f"{lists[q]:.0f}" for q in ("first", "p5", "p95", "last") if q in lists]
        return [
            name,
            _slashed([sum(seconds[verb]) for verb in ("list", "watch")]),
            _slashed([max(seconds[verb], default=0) for verb in ("list", "watch")]),
            _slashed(times) or "-",
            f"{sent / 1e6:.0f} MB, {sent / agents / 1e3:.0f} kB",
            f"{one['cpu']:.1f} s, {one['cpu'] / agents * 1000:.1f} ms",
            *(_back(one.get(f"{who}_back")) for who in ("agents", "pods")),
        ]

    yield f"### {agents} agents and a server that is killed and comes back\n"
    yield from table(
        [
            "", "lists / watches", "most a second", "lists at: first / 5 % / 95 % / last, s",
            "sent, per agent", "server's CPU, per agent", "whole again: p50 / all, s",
            "own pods: p50 / all, s",
        ],
        [row(name) for name in ("first", "relist", "resume")],
    )  # fmt: skip
    lists = found["relist"]["by_second"]["list"]
    fives = [sum(lists[i : i + 5]) / 5 for i in range(0, len(lists), 5)]
    yield (
        "\n*first*: the agents are started one after the other.  *relist*: the server has forgotten"
        f" what happened, {found['relist']['gone']} watches are told 410.  *resume*: it has not."
        "  Seconds are since the new server listens; a list of more than 500 objects is several."
        f"  Lists of *relist* a second, by fives: {', '.join(f'{n:.0f}' for n in fives)}."
    )


def _back(times: Json | None) -> str:
    return f"{times['p50']:.0f} / {times['max']:.0f}" if times else "-"


def holding(found: Sequence[Json]) -> Iterator[str]:
    """Values and plans in one process."""
    rows = []
    for one in found:
        for backend in ("vxlan", "hostgw"):
            took = one[f"{backend}_pass"]
            rows.append([
                f"{one['nodes']}",
                backend,
                f"{one['node_bytes'] / 1e3:.1f} + {one['block_bytes'] / 1e3:.1f}",
                f"{took['objects']}",
                f"{took['plan_bytes'] / 1e6:.1f}",
                f"{took['sites']:.1f} + {took['again']:.1f}",
                f"{took['desired']:.0f}",
            ])  # fmt: skip
    yield "### What an agent holds\n"
    yield from table(
        [
            "nodes", "backend", "kB per Node + Block", "objects in the plan", "MB of these",
            "ms of a change: view + plan", "ms of all from nothing",
        ],
        rows,
    )  # fmt: skip
    last = found[-1]
    yield (
        f"\nOn the wire {last['node_wire']} bytes a Node and {last['block_wire']} a Block, without"
        f" managedFields; {last['node_decode_us']:.0f} and {last['block_decode_us']:.0f} µs to"
        " decode."
    )


PARTS: Mapping[str, Callable[[Any], Iterator[str]]] = {
    "agent": agent,
    "controller": controller,
    "storm": storm,
    "holding": holding,
}
