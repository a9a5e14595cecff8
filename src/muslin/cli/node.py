"""`muslin node`: what is done to this machine as a whole."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from muslin import config as settings
from muslin.cli.networks import ConfigOption
from muslin.cli.output import JsonOption, emit, out, reported
from muslin.config import Config

app = typer.Typer(help="This machine as a whole.", no_args_is_help=True)


@app.command()
def clean(
    config: ConfigOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and leave it.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also while an agent runs or pods use the network.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Remove everything of Muslin from this node: devices, routes, nft table, plugin, files."""
    with reported():
        from muslin.agent import clean as cleaning
        from muslin.kernel.linux import LinuxKernel

        found = settings.load(config)
        done = cleaning.clean(found, LinuxKernel(), dry_run=dry_run, force=force)
        forgotten = asyncio.run(_forget(found, dry_run=dry_run)) if found.flannel else []
    if json:
        emit(
            {
                "kernel": done.kernel.splitlines(),
                "files": [str(f) for f in done.files],
                "left": done.left,
                "annotations": forgotten,
            }
        )
        return
    for line in [*done.kernel.splitlines(), *(f"rm {f}" for f in done.files)]:
        out.print(line, markup=False)
    for name in forgotten:
        out.print(f"kubectl annotate node {found.node} {name}-", markup=False)
    for line in done.left:
        out.print(f"left: {line}", markup=False)
    if not done and not forgotten:
        out.print("nothing of Muslin here")


async def _forget(config: Config, *, dry_run: bool) -> list[str]:
    """flannel's annotations of this node: its nodes would go on sending here."""
    from muslin.agent import flannel
    from muslin.store.kubernetes import KubernetesStore
    from muslin.store.open import open_store

    async with open_store(config.store, config.store_options) as store:
        assert isinstance(store, KubernetesStore)  # config.py: flannel is of Kubernetes
        return await flannel.forget(store.api, config.node, dry_run=dry_run)
