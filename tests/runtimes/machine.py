"""One lab node as a machine of its own: the node's network, and its own mounts and processes.

A container runtime writes to /etc/cni, /opt/cni, /run and /var/lib wherever it
runs, and its shims outlive it.  So it runs in a mount namespace where these are
the machine's own, and in a PID namespace, whose first process takes all others
with it when it ends: what a test forgets, the kernel does not.

    /run          empty at every boot, and with it /run/netns: the lab's own pods are elsewhere
    /var          empty at first, kept over a reboot
    /etc, /opt    what the host has, with the machine's own changes on top, gone after a reboot
    boot_id       another one at every boot

The node's agent is moved in as well: it has to see the namespaces that the
runtime makes, as on a real machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from muslin.agent.api import ask
from muslin.errors import NotReady
from muslin.kernel import boot, netns
from muslin.kernel.linux import LinuxKernel
from muslin.lab import build, process, state
from muslin.lab.boot import environment, socket_of
from muslin.plan.objects import Element, Plan, Police, Shaper, is_pods
from muslin.store.ledger import Ledger

CGROUPS = Path("/sys/fs/cgroup")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What runs the agent must not vanish where a checkout or its venv lies below /var or /run.
KEPT = sorted(
    path
    for path in {str(Path(__file__).parents[2]), sys.prefix, sys.base_prefix}
    if path.startswith(("/var/", "/run/"))
)
# The pid is read before /proc is mounted anew: it is the one that the host knows.
BOOT = """
read -r pid rest </proc/self/stat
home=$1
shift
n=0
for keep; do
    n=$((n + 1))
    mkdir -p "$home/keep$n"
    mount --rbind "$keep" "$home/keep$n"
done
mount -t proc proc /proc
mount --bind "$home/boot_id" /proc/sys/kernel/random/boot_id
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/netns /run/lock /run/changes
for d in etc opt; do
    mkdir /run/changes/$d /run/changes/$d.work
    mount -t overlay -o lowerdir=/$d,upperdir=/run/changes/$d,workdir=/run/changes/$d.work $d /$d
done
mount --bind "$home/var" /var
n=0
for keep; do
    n=$((n + 1))
    mkdir -p "$keep"
    mount --rbind "$home/keep$n" "$keep"
done
echo $pid
sleep infinity &
wait  # which also takes leave of every orphan
"""


def until(what: Callable[[], object], seconds: float = 20.0, why: str = "never came true") -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


def need(*pairs: str) -> None:
    """Skip, naming the program that is missing; `program:package`, or `/path:package`."""
    for pair in pairs:
        program, _, package = pair.partition(":")
        if not shutil.which(program, path=PATH):
            pytest.skip(f"{program} is not installed: make runtimes, or apt-get install {package}")


class Service:
    """A process that runs in a machine until it is stopped or the machine is."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen  # nsenter, which waits for the one child it has
        self.pid = 0
        until(self._found, why=f"{popen.args!r} did not start")

    def _found(self) -> bool:
        assert self._popen.poll() is None, f"{self._popen.args!r} ended with {self._popen.poll()}"
        children = _children(self._popen.pid)
        self.pid = next(iter(children), 0)
        return bool(self.pid)

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def stop(self, number: int = signal.SIGTERM, *, family: bool = False) -> None:
        """Send it a signal and wait for its end; with `family` what it has started as well."""
        pids = _family(self.pid) if family and self.alive else [self.pid]
        with contextlib.suppress(ProcessLookupError):
            if self.alive:
                for pid in pids:
                    os.kill(pid, number)
        self._popen.wait(timeout=20)


class Machine:
    """`boot`, `run` and `start` what you like, `halt`."""

    def __init__(self, lab: str, node: str) -> None:
        self.lab, self.node = lab, node
        self.home = state.directory(lab) / f"{node}.machine"
        self.cgroup = f"/muslin-{lab}"
        self._init: subprocess.Popen[bytes] | None = None
        self._services: list[Service] = []
        self._agent: Service | None = None
        self.pid = 0  # of its first process, as the host sees it
        for part in ("lib", "log", "tmp"):
            (self.home / "var" / part).mkdir(parents=True)
        (self.home / "var/run").symlink_to("/run")

    # ── the machine ─────────────────────────────────────────────────────────────────────────

    def boot(self) -> None:
        (self.home / "boot_id").write_text(f"{uuid.uuid4()}\n")
        space = netns.path_of(build.namespace(self.lab, self.node))
        with self.log("boot").open("ab") as log:
            self._init = subprocess.Popen(
                ["nsenter", f"--net={space}", "--", "unshare", "--mount", "--propagation", "slave",
                 "--pid", "--fork", "--kill-child", "--",
                 "sh", "-ec", BOOT, "boot", str(self.home), *KEPT],
                stdout=subprocess.PIPE, stderr=log, env={"PATH": PATH},
            )  # fmt: skip
        assert self._init.stdout is not None
        line = self._init.stdout.readline()
        assert line.strip().isdigit(), f"{self.node} does not boot: {self.log('boot').read_text()}"
        self.pid = int(line)

    def halt(self) -> None:
        """End every process of it, as a power cut would; return when none is left."""
        if self._init is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        # The first process of a PID namespace is gone only after all others are.
        self._init.wait(timeout=20)
        assert self._init.stdout is not None
        self._init.stdout.close()
        self._init = None
        for service in self._services:
            service.stop()
        self._services.clear()

    def reboot(self) -> None:
        self.halt()
        self.boot()

    def remove_cgroups(self) -> None:
        """Remove the groups the runtimes made, all below one of our name."""
        for top in [CGROUPS, *(p for p in CGROUPS.iterdir() if p.is_dir() and not p.is_symlink())]:
            ours = top / self.cgroup.lstrip("/")
            if ours.is_dir():
                until(lambda d=ours: _remove_groups(d), why=f"{ours} is still in use")

    def run(
        self, *argv: str, check: bool = True, timeout: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            self._within(argv), env=self._environment(), timeout=timeout,
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{argv}: {done.stderr or done.stdout}"
        return done

    def start(self, name: str, *argv: str) -> Service:
        """Start what runs on; its output goes into `<name>.log`."""
        with self.log(name).open("ab") as log:
            popen = subprocess.Popen(
                self._within(argv), env=self._environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._services.append(Service(popen))
        return self._services[-1]

    def log(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def path(self, path: str) -> Path:
        """A file of the machine, as the host finds it."""
        return Path(f"/proc/{self.pid}/root{path}")

    def processes(self, name: str) -> list[int]:
        """Processes of that program in the machine, by the host's pids."""
        ours, found = os.stat(f"/proc/{self.pid}/ns/pid"), []
        for pid in _pids():
            with contextlib.suppress(OSError):
                same = os.path.samestat(os.stat(f"/proc/{pid}/ns/pid"), ours)
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if same and argv[0].decode().rpartition("/")[2] == name:
                    found.append(pid)
        return found

    def _within(self, argv: tuple[str, ...]) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--", *argv]

    def _environment(self) -> dict[str, str]:
        return environment() | {"PATH": PATH}

    # ── its agent ───────────────────────────────────────────────────────────────────────────

    def take_over_agent(self) -> None:
        """End the lab's own agent of this node; from now on `start_agent` has the say."""
        found = state.load(self.lab)
        assert found is not None
        process.stop([p for p in found.processes if p.name == self.node])

    def start_agent(self, *, wait: bool = True) -> None:
        self._agent = self.start(
            "agent", sys.executable, "-m", "muslin", "agent", "--config", str(self.config)
        )
        if not wait:
            return
        try:
            until(self.ready)
        except AssertionError:
            said = self.log("agent").read_text()[-2000:]
            raise AssertionError(
                f"the agent of {self.node} is not ready; its log:\n{said}"
            ) from None

    def stop_agent(self, number: int = signal.SIGKILL) -> None:
        assert self._agent is not None
        self._agent.stop(number, family=True)

    def install_plugin(self) -> None:
        """`muslin cni install`, to where this machine's runtimes look.

        They have settings of their own; the host's containerd may say another place.
        """
        words = ["-c", str(self.config), "--bin-dir", "/opt/cni/bin"]
        self.run(sys.executable, "-m", "muslin", "cni", "install", *words)

    @property
    def config(self) -> Path:
        return state.directory(self.lab) / self.node / "agent.toml"

    def ready(self) -> bool:
        """Both parts of the agent: each comes up by itself."""
        try:
            with socket.socket(socket.AF_UNIX) as cni:
                cni.connect(str(socket_of(self.lab, self.node, "cni")))
            return bool(self.status()["ready"])
        except (NotReady, OSError):
            return False

    def status(self) -> dict[str, Any]:
        return ask(socket_of(self.lab, self.node, "api"), "status")

    def attachments(self) -> list[str]:
        """The containers that have an address, as node.db has it; DEL is done a little after it.

        So wait for those to go that should.
        """
        return [a["container"] for a in self.status()["attachments"]]

    def traces(self) -> list[str]:
        """Everything that pods have left on the node."""
        memory = self.config.parent / "state"
        ledger = Ledger(memory / "node.db", boot.clock)
        try:
            holders = ledger.devices()
        finally:
            ledger.close()
        found = [str(o) for o in self._observed() if is_pods(o)]
        found += [f"node.db: {c}" for c in self.attachments()]
        found += [f"node.db: an address of {dev}" for dev in holders]
        found += [str(p) for p in _listed(memory / "journal")]
        found += [str(p) for p in _listed(self.path("/run/netns")) if p.name.startswith("cni-")]
        return found + [str(p) for p in _listed(self.path("/var/lib/cni/results"))]

    def expect_no_traces(self, seconds: float = 5.0) -> None:
        """Wait for the last DELs to be done; what is left then is said."""
        deadline = time.monotonic() + seconds
        while (left := self.traces()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == []

    def ports(self) -> Plan:
        """The elements of the node's table that lead to pods."""
        return frozenset(o for o in self._observed() if isinstance(o, Element) and is_pods(o))

    def rates(self) -> list[int]:
        """The limits of pods in bytes per second, of either way."""
        return [o.rate for o in self._observed() if isinstance(o, Police | Shaper)]

    def _observed(self) -> Plan:
        with netns.inside(netns.path_of(build.namespace(self.lab, self.node))):
            return LinuxKernel().observe()

    def adds(self) -> list[float]:
        """Milliseconds of every ADD that succeeded, by the agent's own log."""
        lines = self.log("agent").read_text().splitlines()
        return [
            float(line.rpartition("ms=")[2].split()[0])
            for line in lines
            if "cni.add" in line and "outcome=ok" in line
        ]


def _listed(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from directory.iterdir()


def _pids() -> list[int]:
    return [int(e) for e in os.listdir("/proc") if e.isdigit()]


def _children(parent: int) -> list[int]:
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(text[1]) == parent:
                found.append(pid)
    return found


def _family(pid: int) -> list[int]:
    """A process and all it has started, itself first, so that it does not start them again."""
    return [pid, *(p for child in _children(pid) for p in _family(child))]


def _remove_groups(top: Path) -> bool:
    """Remove a group and those below it, if nothing lives in them any more."""
    try:
        for directory, _, _ in os.walk(top, topdown=False):
            os.rmdir(directory)
    except FileNotFoundError:
        return not top.exists()
    except OSError:  # EBUSY: its last process is on its way out
        return False
    return True
