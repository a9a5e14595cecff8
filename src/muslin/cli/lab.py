"""`muslin lab`: an estate of network namespaces on this machine, with the real agents in it.

With no lab named, a command means the only one that is up.  What does the work
is imported by each command: `muslin agent` comes through this door too, and
should not carry a laboratory with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from muslin.cli.output import JsonOption, emit, err, out, reported, table

if TYPE_CHECKING:
    from muslin.lab.state import State

app = typer.Typer(help="Build estates on this machine and look at them.", no_args_is_help=True)
pod = typer.Typer(help="Pods of a lab.", no_args_is_help=True)
app.add_typer(pod, name="pod")

LabOption = Annotated[str, typer.Option("--lab", "-l", help="Which lab [default: the only one].")]
LabArgument = Annotated[str, typer.Argument(metavar="[LAB]", help="[default: the only one]")]


@app.command()
def up(
    file: Annotated[
        Path, typer.Argument(help="A topology: a file, or three-nodes, two-racks, mixed.")
    ],
    name: Annotated[str, typer.Option(help="The lab's name [default: the file's].")] = "",
    store: Annotated[Literal["sqlite", "etcd"], typer.Option(help="Where it is remembered.")] = (
        "sqlite"
    ),
    json: JsonOption = False,
) -> None:
    """Build a lab and wait until every agent in it is ready."""
    from muslin.lab import cluster, files

    with reported(), progress(quiet=json) as say:
        now = cluster.up(files.read(file), stem=file.stem, name=name, store=store, say=say)
    found = cluster.status(now.lab)
    if json:
        emit(found)
        return
    out.print(f"lab [bold]{now.lab}[/] is up: {now.topology.summary}")
    for agent in found["agents"]:
        for fault in agent.get("faults", ()):
            err.print(f"{agent['node']}: {fault}", style="yellow", markup=False)
    node = now.topology.of_role("node")[0].name
    out.print(f"next: muslin lab pod add web --node {node}")


@app.command()
def down(
    name: LabArgument = "",
    every: Annotated[bool, typer.Option("--all", help="Every lab, and what dead ones left.")] = (
        False
    ),
    json: JsonOption = False,
) -> None:
    """Remove a lab in whatever state it is."""
    from muslin.lab import cluster

    with reported(), progress(quiet=json) as say:
        if every:
            removed = cluster.down_all(say=say)
        else:
            lab = name or cluster.existing("").lab
            removed = [lab] if cluster.down(lab, say=say) else []
    if json:
        emit({"removed": removed})
    else:
        out.print(f"removed: {', '.join(removed)}" if removed else "there was nothing to remove")


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """The labs on this machine."""
    from muslin.lab import state

    with reported():
        found = [s for s in map(state.load, state.labs()) if s]
        if json:
            emit([{"lab": s.lab, "phase": s.phase, "store": s.store, "pods": len(s.pods)}
                  for s in found])  # fmt: skip
            return
        rows = [(s.lab, s.phase, s.store, len(s.pods), s.topology.summary) for s in found]
    table(("LAB", "PHASE", "STORE", "PODS", "WHAT"), rows, empty="no lab is up")


@app.command()
def status(name: LabArgument = "", json: JsonOption = False) -> None:
    """What every agent and process of a lab says of itself."""
    from muslin.lab import cluster

    with reported():
        found = cluster.status(cluster.existing(name).lab)
    if json:
        emit(found)
        return
    out.print(f"lab [bold]{found['lab']}[/], {found['phase']}, store {found['store']}")
    dead = [p["name"] for p in found["processes"] if not p["alive"]]
    if dead:
        out.print(f"[bold red]not running:[/] {', '.join(dead)}")
    rows = [
        (a["node"], "yes" if a.get("ready") else "no", a.get("mtu", ""), len(a.get("peers", ())),
         " ".join(a.get("blocks", ())), "; ".join(a.get("faults", ())))
        for a in found["agents"]
    ]  # fmt: skip
    table(("AGENT", "READY", "MTU", "PEERS", "BLOCKS", "FAULTS"), rows, empty="no agents")
    out.print()
    pods = [(p["name"], p["node"], "  ".join(p["addresses"])) for p in found["pods"]]
    table(("POD", "NODE", "ADDRESSES"), pods, empty="no pods")


@pod.command("add")
def pod_add(
    name: Annotated[str, typer.Argument(help="The new pod's name.")],
    node: Annotated[str, typer.Option(help="The node to put it on.")],
    lab: LabOption = "",
    json: JsonOption = False,
) -> None:
    """Make a pod and attach it through the CNI plugin."""
    from muslin.lab import cluster, pods

    with reported():
        made = pods.add(cluster.existing(lab).lab, name, node)
    addresses = [str(a) for a in made.addresses]
    if json:
        emit({"name": made.name, "node": made.node, "addresses": addresses})
    else:
        out.print(f"pod {made.name} on {made.node}: {'  '.join(addresses)}")


@pod.command("del")
def pod_del(name: str, lab: LabOption = "", json: JsonOption = False) -> None:
    """Detach a pod and remove it."""
    from muslin.lab import cluster, pods

    with reported():
        pods.delete(cluster.existing(lab).lab, name)
    if json:
        emit({"removed": [name]})
    else:
        out.print(f"removed pod {name}")


@pod.command("list")
def pod_list(lab: LabOption = "", json: JsonOption = False) -> None:
    """The pods of a lab."""
    from muslin.lab import cluster

    with reported():
        found = cluster.existing(lab).pods
    rows = [(p.name, p.node, [str(a) for a in p.addresses]) for p in found]
    if json:
        emit([{"name": n, "node": at, "addresses": addresses} for n, at, addresses in rows])
        return
    lines = [(n, at, "  ".join(addresses)) for n, at, addresses in rows]
    table(("POD", "NODE", "ADDRESSES"), lines, empty="no pods; muslin lab pod add NAME --node n1")


@app.command("exec")
def exec_(
    where: Annotated[str, typer.Argument(help="A node, pod, machine, router or switch.")],
    command: Annotated[list[str], typer.Argument(help="-- COMMAND ARGUMENTS…")],
    lab: LabOption = "",
) -> None:
    """Run a command inside a node or pod; its exit status is ours."""
    from muslin.lab import cluster

    with reported():
        cluster.require_root()
        path = cluster.place(cluster.existing(lab), where)
        argv = ["nsenter", f"--net={path}", "--", *command]
        os.execvp(argv[0], argv)  # noqa: S606 (the person's own command, no shell between)


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line that says what is going on; on stderr, so that output can be piped."""
    if quiet:
        yield lambda _: None
    elif err.is_terminal:
        with err.status("") as spinner:
            yield spinner.update
    else:
        yield lambda text: err.print(text, markup=False)


def require_root() -> None:
    """Refuse without root, in words."""
    from muslin.lab import cluster

    cluster.require_root()


def only(lab: str) -> State:
    """The lab meant by a command that needs one that stands."""
    from muslin.lab import cluster

    return cluster.standing(lab)


def dump(value: Any) -> None:
    """Print a frozen value of ours as JSON."""
    from muslin.model import to_builtins

    emit(to_builtins(value))


@app.command()
def check(name: LabArgument = "", json: JsonOption = False) -> None:
    """Try every pair: who reaches whom, who must not, and with which address."""
    from muslin.lab import check as checking
    from muslin.lab import report

    with reported():
        now = only(name)
        require_root()
        with progress(quiet=json) as say:
            say(f"trying every pair in {now.lab}")
            found = checking.check(now)
    if json:
        dump({"ok": found.ok, "lab": found.lab, "findings": found.findings})
    else:
        out.print(report.render(found))
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def paths(name: LabArgument = "", json: JsonOption = False) -> None:
    """Show the way of every pod's packets, as its node's kernel routes them now."""
    from muslin.lab import paths as looking
    from muslin.lab import tables

    with reported():
        now = only(name)
        require_root()
        found = looking.paths(now)
    if json:
        dump({"lab": now.lab, "paths": found})
    elif found:
        out.print(tables.path_matrix(found))
    else:
        out.print("no pods; muslin lab pod add NAME --node n1")


@app.command()
def bench(
    name: LabArgument = "",
    pairs: Annotated[
        list[str] | None, typer.Option("--pair", help="POD:POD, repeatable [default: chosen].")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.05, help="Per measurement.")] = 0.3,
    json: JsonOption = False,
) -> None:
    """Measure latency and throughput between pods beside their nodes."""
    from muslin.lab import bench as measuring
    from muslin.lab import tables

    with reported():
        now = only(name)
        require_root()
        wanted = measuring.named(now, pairs) if pairs else measuring.choose(now, 3)
        if not json:
            # One line and no spinner: its thread would take its share of what is measured.
            err.print(
                f"measuring {len(wanted)} pairs, {measuring.duration(wanted, rounds, seconds)}"
            )
        rows = measuring.bench(now, wanted, rounds=rounds, seconds=seconds)
    if json:
        dump({"lab": now.lab, "rounds": rounds, "rows": rows})
    else:
        out.print(tables.bench_table(rows, rounds=rounds))


@app.command()
def picture(name: LabArgument = "", json: JsonOption = False) -> None:
    """Draw the lab: switches, routers, nodes and their pods."""
    from muslin.lab import picture as drawing

    with reported():
        now = only(name)
    text = drawing.draw(now.topology, now.pods, width=max(out.width, 60))
    if json:
        emit({"lab": now.lab, "picture": text.splitlines()})
    else:
        out.print(text, markup=False, end="")


@app.command()
def demo(
    file: Annotated[Path, typer.Argument(help="A topology with at least two nodes.")] = Path(
        "two-racks"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up.")] = False,
) -> None:
    """Build two racks and six pods, show everything there is to see, remove it all."""
    from functools import partial

    from muslin.lab import files
    from muslin.lab.demo import Demo

    with reported():
        tour = Demo(out, partial(progress, quiet=False))
        good = tour.run(files.read(file), stem=file.stem, keep=keep)
    raise typer.Exit(0 if good else 1)
