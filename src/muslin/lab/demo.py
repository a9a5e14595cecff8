"""The demo: two racks, six pods, and everything there is to see, in under a minute.

Nothing here knows anything that the commands do not: it is their calls in a
row.  The lab is removed at the end, and after Ctrl-C or any failure too,
unless the person wants to keep it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.text import Text

from muslin.lab import bench, cluster, paths, picture, pods, report, tables
from muslin.lab import check as checking
from muslin.lab.boot import Say
from muslin.lab.check import Report
from muslin.lab.state import State
from muslin.lab.topology import UPLINK

PODS = (("web", 0), ("api", 0), ("db", 1), ("mq", 2), ("job", 2), ("log", 3))  # name, which node
ROUNDS = 4
SECONDS = 0.25
PAIRS = 3

Progress = Callable[[], AbstractContextManager[Say]]


@dataclass(frozen=True, slots=True)
class Demo:
    """What a person sees: results on `out`, and what is going on while they wait."""

    out: Console
    progress: Progress

    def run(self, source: str, *, stem: str, name: str = "demo", keep: bool = False) -> bool:
        """Build, look, measure, remove; whether every check passed."""
        with self.progress() as say:
            now = cluster.up(source, stem=stem, name=name, say=say)
        try:
            return self._tour(now, keep=keep)
        except BaseException:  # Ctrl-C too
            keep = False
            raise
        finally:
            if not keep:
                with self.progress() as say:
                    cluster.down(name, say=say)

    def _tour(self, now: State, *, keep: bool) -> bool:
        nodes = now.topology.of_role("node")
        for pod, index in PODS:
            with self.progress() as say:
                say(f"pod {pod}")
                pods.add(now.lab, pod, nodes[index % len(nodes)].name)
        now = cluster.existing(now.lab)
        self._show("The estate", Text(picture.draw(now.topology, now.pods)))
        found = self._check(now)
        self._show("Which way each pod's packets go", tables.path_matrix(paths.paths(now)))
        self._bench(now)
        self._show("What next", Text(_next(now, keep=keep)))
        return found.ok

    def _check(self, now: State) -> Report:
        with self.progress() as say:
            say("trying every pair, and what must not pass")
            found = checking.check(now)
        self._show("Who reaches whom", report.render(found))
        return found

    def _bench(self, now: State) -> None:
        pairs = bench.choose(now, PAIRS)
        self.out.rule("[bold]How fast, beside the nodes", align="left", style="dim")
        # No spinner here: its thread would take its share of what is measured.
        self.out.print(f"[dim]measuring, {bench.duration(pairs, ROUNDS, SECONDS)} …[/]")
        rows = bench.bench(now, pairs, rounds=ROUNDS, seconds=SECONDS)
        self.out.print(tables.bench_table(rows, rounds=ROUNDS))
        self.out.print()

    def _show(self, title: str, what: RenderableType) -> None:
        self.out.rule(f"[bold]{title}", align="left", style="dim")
        self.out.print(what)
        self.out.print()


def _next(now: State, *, keep: bool) -> str:
    lab, first = now.lab, now.pods[0].name if now.pods else ""
    node = now.topology.of_role("node")[0].name
    if keep:
        return (
            f"muslin lab exec {first} -- ip route             what a pod sees\n"
            f"muslin lab exec {node} -- ip route              one route per peer's block\n"
            f"muslin lab exec {node} -- tcpdump -ni {UPLINK}      packets on the wire\n"
            f"muslin lab exec {node} -- nft list table inet muslin\n"
            f"muslin lab down {lab}                        when you are done"
        )
    return (
        "muslin lab demo --keep             the same, to look around in\n"
        "muslin lab up three-nodes          plain routes only, full MTU\n"
        "muslin lab up mixed                a VM and a machine beside pods, no NAT between\n"
        "docs/lab.md                        how to draw your own"
    )
