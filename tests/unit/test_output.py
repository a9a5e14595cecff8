"""Tables as a person's window and as a pipe get them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import RenderableType
from rich.rule import Rule
from rich.table import Table

from muslin.cli.output import Output
from muslin.lab import paths, report, tables
from muslin.lab.check import Finding, Report

NAMES = [f"long-name-{n:02}" for n in range(12)]
PAIRS = [(source, target) for source in NAMES for target in NAMES if source != target]
REACH = [
    Finding(what="connect", source=s, target=t, version=4, mark="own", expected="", seen="")
    for s, t in PAIRS
]
WAYS = [paths.Path(source=s, target=t, version=4, way="direct") for s, t in PAIRS]
PLAIN = Table(*NAMES)
NETWORK = """\
[network]
name = "default"
backend = "hostgw"
pools = ["POOL"]

[[pools]]
name = "POOL"
cidr = "fd00:10:244::/56"
""".replace("POOL", f"pool-{'x' * 55}")


class Window(io.StringIO):
    """Eighty columns of somebody's terminal."""

    def isatty(self) -> bool:
        return True


def shown(what: RenderableType, file: io.StringIO) -> list[str]:
    console = Output(file=file, width=80, highlight=False, soft_wrap=True, color_system=None)
    console.print(what)
    return file.getvalue().splitlines()


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(
            report.render(Report(lab="x", endpoints=tuple(NAMES), findings=tuple(REACH))),
            id="who reaches whom",
        ),
        pytest.param(tables.path_matrix(WAYS), id="which way"),
        pytest.param(PLAIN, id="any other"),
    ],
)
def test_a_table_is_whole_where_no_window_is_its_edge(what: RenderableType) -> None:
    assert any(all(name in line for name in NAMES) for line in shown(what, io.StringIO()))
    assert max(map(len, shown(what, Window()))) <= 80


def test_a_line_across_is_no_longer_in_a_file() -> None:
    assert [len(line) for line in shown(Rule("title"), io.StringIO())] == [80]


def test_a_command_in_a_pipe_prints_whole_rows(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(NETWORK)
    (tmp_path / "muslin.toml").write_text(f'node = "n1"\nstore = "sqlite:{tmp_path}/store.db"\n')

    def networks(*words: str) -> str:
        argv = [sys.executable, "-m", "muslin", "networks", *words]
        env = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
        return subprocess.run(
            [*argv, "-c", str(tmp_path / "muslin.toml")],
            env=env, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        ).stdout  # fmt: skip

    networks("apply", str(tmp_path / "net.toml"))
    rows = networks("list").splitlines()
    assert len(rows) == 2
    assert rows[1].rstrip().endswith(f"{'x' * 55}: fd00:10:244::/56 in blocks of /122")
