"""What the store fixtures hand to tests: handles on one kind of store, and real etcd processes."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from muslin.store import Store


@dataclass
class Bench:
    """One kind of store: more handles on the same contents, and a way to let time pass."""

    kind: str
    open: Callable[[], Store]
    elapse: Callable[[float], Awaitable[None]]


class Etcd:
    """One etcd process on a free port of the loopback."""

    def __init__(self, directory: Path, *options: str, scheme: str = "http") -> None:
        self.scheme = scheme
        self.client, peer = _free_ports(2)
        self.address = f"127.0.0.1:{self.client}"
        here, there = f"{scheme}://{self.address}", f"http://127.0.0.1:{peer}"
        self._log = directory / "etcd.log"
        self._command = [
            shutil.which("etcd") or "etcd",
            *("--data-dir", str(directory / "data"), "--name", "one"),
            *("--listen-client-urls", here, "--advertise-client-urls", here),
            *("--listen-peer-urls", there, "--initial-advertise-peer-urls", there),
            *("--initial-cluster", f"one={there}"),
            # A lone member elects itself after this long; leases are at least 1.5 times as long.
            *("--heartbeat-interval", "10", "--election-timeout", "100"),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        for _ in _until(20.0, "etcd does not answer; see " + str(self._log)):
            if self._process.poll() is not None:
                pytest.fail("etcd ended: " + self._log.read_text()[-2000:])
            if self._answers():
                return

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Leave it no time to say goodbye."""
        self.signal(signal.SIGKILL)
        self._wait()

    def stop(self) -> None:
        """Terminate, then kill.  Repeating it is success."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._wait(3.0)
        except subprocess.TimeoutExpired:
            self.kill()

    def ctl(self, *words: str) -> dict[str, object]:
        """What etcdctl answers."""
        command = ["etcdctl", f"--endpoints={self.scheme}://{self.address}", "-w", "json", *words]
        environment = {"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=10)
        answer = done.stdout.decode().splitlines()
        return dict(json.loads(answer[0])) if answer and answer[0].startswith("{") else {}

    def _wait(self, timeout: float | None = None) -> None:
        if self._process is not None:
            self._process.wait(timeout)
            self._process = None

    def _answers(self) -> bool:
        if self.scheme != "http":
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", self.client)) == 0
        try:
            url = f"http://{self.address}/health"
            with urllib.request.urlopen(url, timeout=1) as answer:
                return bool(json.load(answer)["health"] == "true")
        except (OSError, urllib.error.URLError):
            return False


def need_etcd() -> None:
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed (Debian: etcd-server)")


def _free_ports(count: int) -> Sequence[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _until(seconds: float, otherwise: str) -> Iterator[None]:
    """Let the caller look again, every 20 ms."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.02)
    pytest.fail(otherwise)
