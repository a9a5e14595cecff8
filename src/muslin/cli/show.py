"""`muslin status`, `nodes`, `pods`, `plan` and `doctor`: looking, without touching."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from muslin import config as settings
from muslin.agent import api
from muslin.agent import doctor as examine
from muslin.agent.journal import waiting
from muslin.agent.world import World, desired, sites
from muslin.cli.networks import ConfigOption, StoreOption, store_of
from muslin.cli.output import JsonOption, emit, out, reported, table
from muslin.errors import ConfigError, NotReady
from muslin.model import Block, Host, Network, Node, Pool
from muslin.plan.render import render
from muslin.store.objects import Objects
from muslin.store.open import open_store

SocketOption = Annotated[
    Path | None, typer.Option("--socket", help="The agent's api.sock, if not the settings' one.")
]
NodeOption = Annotated[str, typer.Option("--node", help="Another node, planned from the store.")]


def status(
    config: ConfigOption = None, socket: SocketOption = None, json: JsonOption = False
) -> None:
    """Show whether this node's agent is ready, and what keeps it from being so."""
    with reported():
        try:
            said = _ask(config, socket, "status")
        except NotReady as e:
            raise NotReady(e.message + _undone(config, socket), hint=e.hint) from e
    if json:
        emit(said)
    else:
        _print_status(said)
    if not said["ready"]:
        raise typer.Exit(1)


def _undone(config: Path | None, socket: Path | None) -> str:
    """What the plugin has left for the agent that does not answer."""
    if socket is not None:
        return ""  # another agent's, for all the settings know
    found = waiting(settings.load(config).journal_dir)
    return f"; meanwhile {_dels(found.count, found.oldest)}" if found.count else ""


def _dels(count: int, oldest: float) -> str:
    if count == 1:
        return f"1 DEL waits in the journal, for {oldest:.0f} s"
    return f"{count} DELs wait in the journal, the oldest for {oldest:.0f} s"


def _print_status(said: dict[str, Any]) -> None:
    out.print(
        f"[bold]{said['node'] or '?'}[/]  {'ready' if said['ready'] else '[red]not ready[/]'}"
    )
    going = sum(a["state"] == "deleting" for a in said["attachments"])
    rows = [
        ("uplink", f"{said['uplink']}  {' '.join(said['addresses'])}"),
        ("networks", ", ".join(f"{n['name']} ({n['backend']})" for n in said["networks"])),
        ("pod MTU", said["mtu"]),
        ("blocks", ", ".join(said["blocks"])),
        ("free", ", ".join(f"{pool}: {count}" for pool, count in said["free"].items())),
        ("pods", len(said["attachments"])),
        ("peers", len(said["peers"])),
    ]
    if going:
        rows.append(("deleting", f"{going} of these pods"))
    if said["journal"]["waiting"]:
        rows.append(("journal", _dels(said["journal"]["waiting"], said["journal"]["oldest"])))
    for name, value in rows:
        out.print(f"  {name:<9} {value}", markup=False)
    for fault in said["faults"]:
        out.print("  fault     ", end="", style="red")
        out.print(fault, markup=False)


def pods(
    config: ConfigOption = None, socket: SocketOption = None, json: JsonOption = False
) -> None:
    """List the pods attached on this node."""
    with reported():
        found = _ask(config, socket, "status")["attachments"]
    if json:
        emit(found)
        return
    rows = [
        (a["container"], a["ifname"], ", ".join(a["addresses"]), a["dev"], a["network"], a["state"])
        for a in found
    ]
    table(("CONTAINER", "NIC", "ADDRESSES", "DEVICE", "NETWORK", "STATE"), rows, empty="no pods")


def nodes(config: ConfigOption = None, store: StoreOption = "", json: JsonOption = False) -> None:
    """List the nodes and members of the estate, from the store."""
    with reported():
        world, faults = _world(config, store)
    held = {name: [str(b.cidr) for b in world.blocks if b.node == name] for name in world.nodes}
    if json:
        listing = [
            {
                "name": n.name,
                "addresses": [str(a) for a in n.addresses],
                "mtu": n.mtu,
                "pods": n.pods,
                "blocks": held[n.name],
            }
            for n in world.nodes.values()
        ]
        emit({"nodes": listing, "faults": faults})
        return
    rows = [
        (
            n.name,
            "node" if n.pods else "member",
            ", ".join(str(a) for a in n.addresses),
            n.mtu,
            ", ".join(held[n.name]),
        )
        for _, n in sorted(world.nodes.items())
    ]
    table(("NAME", "KIND", "ADDRESSES", "MTU", "BLOCKS"), rows, empty="no node has joined yet")
    for fault in faults:
        out.print(f"unreadable: {fault}", markup=False)


def plan(
    config: ConfigOption = None,
    socket: SocketOption = None,
    store: StoreOption = "",
    node: NodeOption = "",
    json: JsonOption = False,
) -> None:
    """Print what a node's kernel should hold, as commands one could run, and what would change."""
    with reported():
        said = _planned_from_store(config, store, node) if node else _ask(config, socket, "plan")
    if json:
        emit(said)
        return
    out.print(said["plan"], end="", markup=False)
    if said["pending"]:
        out.print("\n# would change now:", markup=False)
        out.print(said["pending"], end="", markup=False)
    elif said["pending"] is not None:
        out.print("\n# the kernel holds all of it", markup=False)


def _planned_from_store(config: Path | None, store: str, name: str) -> dict[str, Any]:
    world, faults = _world(config, store)
    me = world.nodes.get(name)
    if me is None:
        known = ", ".join(sorted(world.nodes)) or "none"
        raise ConfigError(f"node {name}", [f"is not in the store (known: {known})"])
    made = desired(sites(world, me, Host(uplink=me.uplink or "eth0")))
    return {"plan": render(made.plan), "pending": None, "faults": [*faults, *made.faults]}


def doctor(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Examine this machine: what Muslin needs, what is missing, and what mends it."""
    with reported():
        findings = examine.examine(settings.load(config))
    failed = any(f.verdict == "bad" for f in findings)
    if json:
        emit(
            [
                {"what": f.what, "verdict": f.verdict, "detail": f.detail, "mend": f.mend}
                for f in findings
            ]
        )
    else:
        signs = {"good": "[green]✓[/]", "note": "[yellow]![/]", "bad": "[red]✗[/]"}
        for f in findings:
            out.print(f"{signs[f.verdict]} {f.what}: ", end="")
            out.print(f.detail, markup=False)
            if f.mend:
                out.print(f"    mend: {f.mend}", markup=False)
    if failed:
        raise typer.Exit(1)


def _ask(config: Path | None, socket: Path | None, what: str) -> dict[str, Any]:
    return api.ask(socket or settings.load(config).api_socket, what)


def _world(config: Path | None, store: str) -> tuple[World, list[str]]:
    url, options = store_of(settings.load(config), store)

    async def read() -> tuple[World, list[str]]:
        async with open_store(url, options) as opened:
            objects = Objects(opened)
            networks, pools = await objects.list(Network), await objects.list(Pool)
            known, blocks = await objects.list(Node), await objects.list(Block)
            faults = (*networks.faults, *pools.faults, *known.faults, *blocks.faults)
            world = World(
                networks={f.value.name: f.value for f in networks.found},
                pools={f.value.name: f.value for f in pools.found},
                nodes={f.value.name: f.value for f in known.found},
                blocks=tuple(f.value for f in blocks.found),
            )
            return world, [str(f) for f in faults]

    return asyncio.run(read())
