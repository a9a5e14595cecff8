"""How every command speaks: data as tables or JSON, errors as one line and a mend."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from muslin.errors import ConfigError, MuslinError

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

WIDE = 1 << 16  # columns


class Output(Console):
    """Where data goes.  A file or a pipe has no edge, so a table there is as wide as it is."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As the console does, also for a table that is a part of something."""
        if isinstance(renderable, Table) and not self.file.isatty():
            options = (options or self.options).update(width=WIDE)
        return super().render(renderable, options)


out = Output(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def emit(data: Any) -> None:
    """Print one JSON document; Ctrl-C and a closed pipe are the caller's business."""
    json.dump(data, sys.stdout, indent=2)
    sys.stdout.write("\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print rows under headings, or the sentence for none."""
    if not rows:
        out.print(empty)
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    out.print(grid)


def complain(error: MuslinError) -> None:
    """Say what failed and what to do, on stderr, without a traceback."""
    if isinstance(error, ConfigError):
        err.print(f"[bold red]error:[/] {_plain(error.subject)}", markup=True)
        for fault in error.faults:
            err.print(f"  - {fault}", markup=False)
    else:
        err.print(f"[bold red]error:[/] {_plain(error.message)}", markup=True)
    if error.hint:
        err.print(f"[bold]hint:[/] {_plain(error.hint)}", markup=True)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn our own errors into a message and exit code 1."""
    try:
        yield
    except MuslinError as e:
        complain(e)
        raise typer.Exit(1) from e


def _plain(text: str) -> str:
    """Text that came from elsewhere, with rich's markup disarmed."""
    return text.replace("[", "\\[")
