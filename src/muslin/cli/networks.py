"""`muslin networks` and `muslin cni`: what a cluster is told once, and a node once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Literal

import typer

from muslin import config as settings
from muslin.cli.output import JsonOption, emit, out, reported, table
from muslin.controller import networks
from muslin.model import Network, Pool, to_builtins
from muslin.store.objects import Objects
from muslin.store.open import open_store

app = typer.Typer(help="Pod networks and their pools.", no_args_is_help=True)
cni = typer.Typer(help="The CNI plugin on this node.", no_args_is_help=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Settings file [default: /etc/muslin/muslin.toml]."),
]
StoreOption = Annotated[
    str, typer.Option("--store", help="Store URL instead of the one in the settings.")
]


def store_of(config: settings.Config, url: str = "") -> tuple[str, dict[str, str]]:
    """The store a command is about: the named one, or that of the settings."""
    return (url, {}) if url else (config.store, config.store_options)


@app.command()
def apply(
    file: Path, config: ConfigOption = None, store: StoreOption = "", json: JsonOption = False
) -> None:
    """Write the network and pools of FILE to the store.  Applying it again changes nothing."""
    with reported():
        wanted = networks.read(file)
        url, options = store_of(settings.load(config), store)

        async def write() -> list[str]:
            async with open_store(url, options) as opened:
                return await networks.apply(opened, wanted.network, wanted.pools)

        changed = asyncio.run(write())
    if json:
        emit({"changed": changed})
        return
    for line in changed or ["nothing to change"]:
        out.print(line)


@app.command("list")
def list_(config: ConfigOption = None, store: StoreOption = "", json: JsonOption = False) -> None:
    """Show the networks and pools in the store."""
    with reported():
        url, options = store_of(settings.load(config), store)

        async def read() -> tuple[list[Network], list[Pool], list[str]]:
            async with open_store(url, options) as opened:
                objects = Objects(opened)
                found, pools = await objects.list(Network), await objects.list(Pool)
                faults = [str(f) for f in (*found.faults, *pools.faults)]
                return [n.value for n in found.found], [p.value for p in pools.found], faults

        known, pools, faults = asyncio.run(read())
    if json:
        emit({"networks": to_builtins(known), "pools": to_builtins(pools), "faults": faults})
        return
    ranges = {p.name: f"{p.cidr} in blocks of /{p.block_length}" for p in pools}
    rows = [
        (n.name, n.backend, "\n".join(f"{p}: {ranges.get(p, 'missing')}" for p in n.pools))
        for n in known
    ]
    table(("NETWORK", "BACKEND", "POOLS"), rows, empty="no networks; see `muslin networks apply`")
    for fault in faults:
        out.print(f"unreadable: {fault}", markup=False)


@cni.command()
def install(
    config: ConfigOption = None,
    bin_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where runtimes look for plugins [default: as containerd, or /opt/cni/bin]."
        ),
    ] = None,
    conf_dir: Annotated[Path, typer.Option(help="Where runtimes look for configurations.")] = Path(
        "/etc/cni/net.d"
    ),
    twin: Annotated[
        Literal["auto", "c", "python"],
        typer.Option(help="Which of the two plugins: the compiled one, if it runs here."),
    ] = "auto",
    json: JsonOption = False,
) -> None:
    """Install the plugin and its configuration for the container runtimes of this node."""
    with reported():
        from muslin.cni import install as plugin
        from muslin.cni import runtimes

        found = settings.load(config)
        done = plugin.install(
            bin_dir=bin_dir or runtimes.bin_dir(),
            conf_dir=conf_dir,
            socket=found.cni_socket,
            journal=found.journal_dir,
            twin=twin,
        )
    if json:
        files = {"plugin": str(done.plugin), "conflist": str(done.conflist)}
        chosen = {"twin": done.twin, "why": done.why}
        emit(files | chosen | {"written": [str(w) for w in done.written]})
        return
    out.print(f"the plugin in {'C' if done.twin == 'c' else 'Python'}: {done.why}", markup=False)
    for file in (done.plugin, done.conflist):
        out.print(f"{'wrote' if file in done.written else 'already right:'} {file}")
