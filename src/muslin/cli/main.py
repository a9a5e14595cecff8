"""The `muslin` command: what there is to ask of a node, the store and the lab."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from muslin import __version__
from muslin.cli import install, lab, networks, node, show
from muslin.cli.output import reported
from muslin.extras import require

app = typer.Typer(
    help="A flat container network for pods, virtual machines and physical machines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Settings file [default: /etc/muslin/muslin.toml]."),
]


@app.command()
def agent(config: ConfigOption = None) -> None:
    """Run this node's agent, both its parts, until it is told to stop."""
    with reported():
        from muslin import config as settings

        settings.load(config)  # a fault is said here, before anything is started
    # Become the supervisor: it waits for months and needs nothing of what is loaded here.
    arguments = ["--config", str(config.resolve())] if config else []
    argv = [sys.executable, "-m", "muslin.agent.supervise", *arguments]
    os.execv(argv[0], argv)  # noqa: S606 - no shell is the point


@app.command()
def controller(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Settings [default: /etc/muslin/controller.toml]."),
    ] = None,
) -> None:
    """Run the controller of a Kubernetes cluster until it is told to stop."""
    with reported():
        from muslin import config as settings

        require("kubernetes", "muslin controller")
        settings.controller(config)  # a fault is said here
    # Another program in this process's place, as above.
    arguments = ["--config", str(config.resolve())] if config else []
    argv = [sys.executable, "-m", "muslin.controller.main", *arguments]
    os.execv(argv[0], argv)  # noqa: S606 - no shell is the point


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"muslin {__version__}")


for command in (show.status, show.nodes, show.pods, show.plan, show.doctor):
    app.command()(command)
app.command()(install.install)
app.command()(install.upgrade)
app.command()(install.uninstall)
app.add_typer(networks.app, name="networks")
app.add_typer(networks.cni, name="cni")
app.add_typer(node.app, name="node")
app.add_typer(lab.app, name="lab")


def main() -> None:
    """Run the command line."""
    app()
