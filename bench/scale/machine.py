"""One machine of the cluster: a namespace with an uplink, the API server on its loopback, us in it.

Everything runs in this namespace, and no byte leaves it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.scale import estate
from bench.scale.estate import Json
from muslin.kernel import netns

ROOT = Path(__file__).resolve().parents[2]
PORT = 6443


class Machine:
    """The namespace and every process in it; all of it is gone at the end."""

    def __enter__(self) -> Machine:
        with contextlib.ExitStack() as stack:
            self.home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale")))
            self.prefix = f"mus-{os.getpid()}-"
            stack.callback(self._clear)
            self.path = netns.create(self.prefix + "node")
            for words in (
                "link add eth0 type veth peer name eth1",
                f"addr add {estate.underlay(estate.OURS)} dev eth0",
                "link set dev eth0 up", "link set dev eth1 up", "link set dev lo up",
                f"route add default via {estate.GATEWAY}",
            ):  # fmt: skip
                with netns.inside(self.path):
                    subprocess.run(["ip", *words.split()], check=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for log in self.home.glob("*.log"):
                end_of_it = log.read_text()[-2000:]
                print(f"── the end of {log.name}", end_of_it, sep="\n", file=sys.stderr)
        self._stack.close()

    def _clear(self) -> None:
        for name in netns.names():
            if name.startswith(self.prefix):
                netns.delete(name)

    def start(
        self, argv: list[str], *, log: str, environ: Mapping[str, str] | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """A Python process in the namespace; killed at the end if it lives then."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MUSLIN_")}
        with (self.home / f"{log}.log").open("ab") as out:
            process = subprocess.Popen(
                ["nsenter", f"--net={self.path}", "--", sys.executable, *argv],
                stderr=out, cwd=ROOT, env={**clean, **(environ or {})}, **more,
            )  # fmt: skip
        self._stack.callback(end, process)
        return process

    def serve(self, *, tls: bool = True, keep: bool = False) -> Server:
        """An API server over what the one before has left."""
        return Server(self, tls=tls, keep=keep)


class Server:
    """The process of server.py."""

    def __init__(self, machine: Machine, *, tls: bool, keep: bool) -> None:
        argv = ["-m", "bench.scale.server", "--journal", str(machine.home / "etcd")]
        self.kubeconfig = machine.home / "kubeconfig"
        argv += ["--port", str(PORT), "--kubeconfig", str(self.kubeconfig)]
        if tls:
            (machine.home / "certs").mkdir(exist_ok=True)
            argv += ["--certs", str(machine.home / "certs")]
        argv += ["--keep"] if keep else []
        pipe = subprocess.PIPE
        self.process = machine.start(argv, log="server", stdin=pipe, stdout=pipe)
        self.began = float(self._answer()["at"])

    def ask(self, do: str, **arguments: Any) -> Json:
        """One command; its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Json:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the API server has ended: see server.log")
        found: Json = json.loads(line)
        return found

    def kill(self) -> None:
        """As a power cut."""
        self.process.kill()
        self.process.wait()


def end(process: subprocess.Popen[bytes]) -> None:
    """Have it end, with all that it started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def until(what: Callable[[], object], why: str, *, seconds: float = 60.0) -> float:
    """Wait for it; how long that took."""
    began = time.monotonic()
    while not what():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"not within {seconds:.0f} s: {why}")
        time.sleep(0.02)
    return time.monotonic() - began


def more_files() -> None:
    """As many open files as this process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
