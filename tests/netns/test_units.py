"""The systemd units' rights: with them everything works on a host, and each is needed.

systemd itself is not started: the units' own words are read, and their commands run as it would run
them, as root with that bounding set and no new privileges, on a node that is a namespace.  The same
for the image's container: tests/image/test_rights.py.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grounds import UPLINK
from muslin.cni.install import install
from muslin.kernel import netns
from namespaces import Spaces, run

pytestmark = [pytest.mark.root]

BITS = {"net_admin": 12, "sys_admin": 21, "sys_ptrace": 19}  # linux/capability.h
RIGHTS = set(BITS)
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
WAYS = (("muslin-agent",), ("muslin-cni", "muslin-sync"))  # one service, or each part its own


def unit(name: str) -> configparser.SectionProxy:
    read = configparser.ConfigParser(interpolation=None)
    read.optionxform = str  # type: ignore[assignment, method-assign]
    read.read(DEPLOY / f"{name}.service")
    return read["Service"]


class Host:
    """A machine in a namespace, and what its units start."""

    def __init__(self, ns: str, home: Path) -> None:
        self.ns, self.home = ns, home
        self._started: list[subprocess.Popen[bytes]] = []
        run(ns, UPLINK + "ip route add default via 192.0.2.254\n")
        for name in ("run", "state"):
            (home / name).mkdir(mode=0o700)
        install(
            bin_dir=home / "bin",
            conf_dir=home / "conf",
            socket=home / "run" / "cni.sock",
            journal=home / "state" / "journal",
            deadline=10.0,
        )
        (home / "muslin.toml").write_text(
            f'node = "n1"\nstore = "sqlite:{home}/state/store.db"\nrun_dir = "{home}/run"\n'
            f'state_dir = "{home}/state"\n'
        )
        (home / "network.toml").write_text(
            '[network]\nname = "default"\nbackend = "vxlan"\npools = ["p4"]\n'
            '[[pools]]\nname = "p4"\ncidr = "10.244.0.0/16"\n'
        )
        argv = [sys.executable, "-m", "muslin", "networks", "apply", str(home / "network.toml")]
        store = ["--store", f"sqlite:{home}/state/store.db"]
        subprocess.run([*argv, *store], check=True, capture_output=True)

    def _command(self, name: str, without: str) -> list[str]:
        told = unit(name)
        words = shlex.split(told["ExecStart"])
        words = [str(self.home / "muslin.toml") if w.startswith("/etc/") else w for w in words]
        python = [sys.executable, *(["-m", "muslin"] if words[0].endswith("/muslin") else [])]
        if "--config" not in words:
            words += ["--config", str(self.home / "muslin.toml")]
        assert told["NoNewPrivileges"] == "yes"
        rights = [c.removeprefix("CAP_").lower() for c in told["CapabilityBoundingSet"].split()]
        bounds = ",".join(["-all", *(f"+{r}" for r in rights if r != without)])
        limits = ["setpriv", f"--bounding-set={bounds}", "--inh-caps=-all", "--no-new-privs"]
        return ["nsenter", f"--net={self.ns}", *limits, *python, *words[1:]]

    @contextlib.contextmanager
    def running(self, *units: str, without: str = "") -> Iterator[None]:
        started = self._started
        with (self.home / "log").open("ab") as log:
            try:
                for name in units:
                    argv = self._command(name, without)
                    started.append(subprocess.Popen(argv, stdout=log, stderr=log))
                yield
            finally:
                for process in started:
                    process.terminate()
                for process in started:
                    process.wait(25)
                started.clear()

    def rights(self) -> set[str]:
        """What the kernel says that all of them may."""
        said = [Path(f"/proc/{p.pid}/status").read_text() for p in self._started]
        [bits] = {int(text.partition("CapEff:")[2].split()[0], 16) for text in said}
        return {name for name, bit in BITS.items() if bits >> bit & 1} | (
            {"more"} if bits & ~sum(1 << bit for bit in BITS.values()) else set()
        )

    def cni(self, verb: str, ns: str = "", container: str = "c1", **more: Any) -> str:
        """One call, as a runtime makes it; "" for success, else what it says."""
        names = {"CONTAINERID": container, "NETNS": ns, "IFNAME": "eth0", "PATH": "/opt/cni/bin"}
        done = subprocess.run(
            [self.home / "bin" / "muslin-cni"],
            env={"CNI_COMMAND": verb, **{f"CNI_{name}": value for name, value in names.items()}},
            input=json.dumps({"cniVersion": "1.1.0", "name": "m", "type": "muslin-cni", **more}),
            capture_output=True,
            text=True,
            check=False,
        )
        return "" if done.returncode == 0 else done.stdout

    def ready(self, seconds: float = 20.0) -> str:
        end = time.monotonic() + seconds
        while (said := self.cni("STATUS")) and time.monotonic() < end:
            time.sleep(0.1)
        return said

    def log(self) -> str:
        return (self.home / "log").read_text()


@pytest.fixture
def host(spaces: Spaces, tmp_path: Path) -> Host:
    return Host(spaces.new("host"), tmp_path)


@contextlib.contextmanager
def pod_of(*unshare: str) -> Iterator[str]:
    """The namespace of a process that is not root's, as a runtime may name it."""
    with subprocess.Popen([*unshare, "sleep", "600"]) as pod:
        path = f"/proc/{pod.pid}/ns/net"
        own, end = netns.identity(), time.monotonic() + 10
        while netns.identity(path) == own and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)  # the user changes after the namespace
        try:
            yield path
        finally:
            pod.kill()


def is_known(user: int) -> bool:
    """Whether a process may become that user here: not in most user namespaces."""
    ranges = [map(int, ln.split()) for ln in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= user < first + count for first, _, count in ranges)


others_live = pytest.mark.skipif(not is_known(1000), reason="no other user in this namespace")
NOBODYS = ("unshare", "-n", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")


@others_live
@pytest.mark.parametrize("units", WAYS, ids="+".join)
def test_with_the_units_rights_everything_works(
    host: Host, spaces: Spaces, units: tuple[str, ...]
) -> None:
    """Pods named below /run, by another user's process, and with a user namespace of their own."""
    named = spaces.new("pod")
    apart = pod_of("unshare", "-Urn")
    with host.running(*units), pod_of(*NOBODYS) as others, apart as mapped:
        assert host.ready() == "", host.log()
        assert host.rights() == RIGHTS
        ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]}
        rates = {"bandwidth": {"ingressRate": 8000000, "ingressBurst": 800000}}
        pods = {"c1": named, "c2": others, "c3": mapped}
        for container, ns in pods.items():
            more = {"runtimeConfig": ports | rates} if container == "c2" else {}
            assert host.cni("ADD", ns, container, **more) == "", container
        time.sleep(1.1)  # GC spares what is younger than the call's second
        assert host.cni("GC", **{"cni.dev/valid-attachments": []}) == ""
        for container, ns in pods.items():
            assert host.cni("DEL", ns, container) == "", container
    assert "error" not in [ln.split()[1] for ln in host.log().splitlines() if ln[:2] == "20"]


@others_live
@pytest.mark.parametrize("without", sorted(RIGHTS))
def test_each_right_is_needed(host: Host, without: str) -> None:
    with host.running("muslin-agent", without=without), pod_of(*NOBODYS) as others:
        assert host.ready(4.0 if without != "sys_ptrace" else 20.0) + host.cni("ADD", others) != ""


def test_the_units_ask_for_the_same() -> None:
    said = {unit(name)["CapabilityBoundingSet"] for way in WAYS for name in way}
    assert [set(words.split()) for words in said] == [{f"CAP_{r.upper()}" for r in RIGHTS}]
