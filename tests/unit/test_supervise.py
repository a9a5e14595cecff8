"""The supervisor: both parts run, either comes back alone, both end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muslin.agent import supervise

# Stands for `muslin.agent.main`: writes down who it is and waits, or ends as it is told.
PART = """\
import os, signal, sys, time
name, where = sys.argv[1], sys.argv[2]
with open(f"{where}/{name}", "a") as f: f.write(f"{os.getpid()}\\n")
status = f"{where}/{name}.status"
if os.path.exists(status): sys.exit(int(open(status).read()))
if os.path.exists(f"{where}/{name}.deaf"): signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(1000)
"""


class Supervisor:
    """One run of `supervise.main` in a process, with parts of ours."""

    def __init__(self, where: Path) -> None:
        self.where = where
        script = where / "part.py"
        script.write_text(PART)
        code = (
            "import sys\n"
            "from muslin.agent import supervise as s\n"
            "s.PATIENCE = 1.0\n"
            "real = s.Part.__init__\n"
            "def init(self, name, arguments):\n"
            "    real(self, name, arguments)\n"
            f"    self._argv = [sys.executable, {str(script)!r}, name, {str(where)!r}]\n"
            "s.Part.__init__ = init\n"
            "sys.exit(s.main([]))\n"
        )
        self.process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)

    def pids(self, part: str) -> list[int]:
        file = self.where / part
        return [int(x) for x in file.read_text().split()] if file.exists() else []

    def until(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not what():
            assert time.monotonic() < deadline, "never came true"
            time.sleep(0.01)

    def running(self) -> None:
        self.until(lambda: self.pids("cni") and self.pids("sync"))

    def ended(self) -> int:
        return self.process.wait(10)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path)
    yield made
    made.process.kill()
    for part in supervise.PARTS:
        for pid in made.pids(part):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
    made.process.communicate()  # only now: the parts hold the other end of the pipe


def alive(pid: int) -> bool:
    try:
        return "\0part.py" in Path(f"/proc/{pid}/cmdline").read_text().replace(
            "/part.py", "\0part.py"
        )
    except OSError:
        return False


def test_both_parts_run_and_end_with_it(supervisor: Supervisor) -> None:
    supervisor.running()
    supervisor.process.terminate()
    assert supervisor.ended() == 0
    assert not any(alive(p) for part in supervise.PARTS for p in supervisor.pids(part))


@pytest.mark.parametrize("part", supervise.PARTS)
def test_a_part_that_dies_comes_back_and_the_other_does_not_notice(
    supervisor: Supervisor, part: str
) -> None:
    supervisor.running()
    other = next(p for p in supervise.PARTS if p != part)
    os.kill(supervisor.pids(part)[0], signal.SIGKILL)
    supervisor.until(lambda: len(supervisor.pids(part)) == 2)
    assert len(supervisor.pids(other)) == 1
    assert alive(supervisor.pids(other)[0])


def test_a_part_that_keeps_dying_is_started_ever_later(tmp_path: Path) -> None:
    (tmp_path / "sync.status").write_text("1")
    made = Supervisor(tmp_path)
    try:
        began = time.monotonic()
        made.until(lambda: len(made.pids("sync")) >= 4)
        assert time.monotonic() - began > 0.1 + 0.2 + 0.4
        assert len(made.pids("cni")) == 1
    finally:
        made.process.terminate()
        assert made.ended() == 0
        assert b"part sync ended with status 1; again in 0.1 s" in made.process.communicate()[1]


def test_a_fault_of_the_settings_ends_it_all(tmp_path: Path) -> None:
    (tmp_path / "cni.status").write_text(str(supervise.EX_CONFIG))
    made = Supervisor(tmp_path)
    assert made.ended() == 1
    made.process.communicate()
    assert not any(alive(p) for p in made.pids("sync"))


def test_a_part_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sync.deaf").touch()
    made = Supervisor(tmp_path)
    made.running()
    made.process.terminate()
    assert made.ended() == 0
    assert b"part sync does not end: killing it" in made.process.communicate()[1]
    assert not any(alive(p) for p in made.pids("sync"))


def test_the_supervisor_loads_next_to_nothing() -> None:
    code = (
        "import sys, muslin.agent.supervise; print('json' in sys.modules, 'socket' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
