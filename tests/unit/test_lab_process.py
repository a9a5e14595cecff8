"""Processes that are never lost and never mistaken: the gate, the start time, the session."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from muslin.lab.process import Process, last_lines, spawn, stop

SLEEP = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('here', flush=True);"
    " time.sleep(60)",
]


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def start(argv: list[str], tmp_path: Path) -> Process:
    log = tmp_path / "log"
    process = spawn("x", argv, log=log, env=dict(os.environ), record=lambda _: None)
    wait(lambda: last_lines(log) == ["here"])
    return process


def test_a_process_is_written_down_before_it_begins(tmp_path: Path) -> None:
    seen = []

    def record(process: Process) -> None:
        seen.append(process)
        assert not (tmp_path / "log").exists()

    process = spawn("x", SLEEP, log=tmp_path / "log", env=dict(os.environ), record=record)
    try:
        assert seen == [process]
        assert process.alive
    finally:
        stop([process])


def test_a_process_that_was_not_written_down_never_begins(tmp_path: Path) -> None:
    pids = []

    def record(process: Process) -> None:
        pids.append(process.pid)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        spawn("x", SLEEP, log=tmp_path / "log", env=dict(os.environ), record=record)
    _, status = os.waitpid(pids[0], 0)
    assert os.waitstatus_to_exitcode(status) == 126
    assert not (tmp_path / "log").exists()


def test_a_command_that_does_not_exist_ends_with_its_reason_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = spawn("x", ["/no/such"], log=log, env={}, record=lambda _: None)
    wait(lambda: not process.alive)
    stop([process])
    assert last_lines(log) == ["/no/such: No such file or directory"]


def test_stop_asks_first(tmp_path: Path) -> None:
    process = start(SLEEP, tmp_path)
    began = time.monotonic()
    stop([process], grace=10)
    assert not process.alive
    assert time.monotonic() - began < 5


def test_stop_insists_with_one_that_does_not_listen(tmp_path: Path) -> None:
    process = start(DEAF, tmp_path)
    stop([process], grace=0.2)
    assert not process.alive


def test_a_number_that_now_means_another_process_is_left_alone(tmp_path: Path) -> None:
    process = start(SLEEP, tmp_path)
    stop([msgspec.structs.replace(process, start=process.start - 1)], grace=0.2)
    assert process.alive
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)


def test_what_a_dead_process_had_started_is_ended_too(tmp_path: Path) -> None:
    child = f"import subprocess, sys; subprocess.run({DEAF!r})"
    process = start([sys.executable, "-c", child], tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    wait(lambda: not process.alive)
    here = Path("/proc/self/ns/net").stat()
    session = [
        p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if sid(p) == process.pid
    ]
    assert set(session) - {process.pid}
    stop([process], grace=0.2, within=[(here.st_dev, here.st_ino)])
    wait(lambda: all(gone(p) for p in session))


def sid(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def gone(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text.rpartition(")")[2].split()[0] in "ZX"
