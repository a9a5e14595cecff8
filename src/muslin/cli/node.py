"""`muslin node`: what is done to this machine as a whole."""

from __future__ import annotations

from typing import Annotated

import typer

from muslin import config as settings
from muslin.cli.networks import ConfigOption
from muslin.cli.output import JsonOption, emit, out, reported

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
    if json:
        emit(
            {
                "kernel": done.kernel.splitlines(),
                "files": [str(f) for f in done.files],
                "left": done.left,
            }
        )
        return
    for line in [*done.kernel.splitlines(), *(f"rm {f}" for f in done.files)]:
        out.print(line, markup=False)
    for line in done.left:
        out.print(f"left: {line}", markup=False)
    if not done:
        out.print("nothing of Muslin here")
