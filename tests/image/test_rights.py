"""The agent in its image with the rights of deploy/base/agent.yaml, in a container as CRI makes it.

runc, on a node that is a network namespace: the manifest's capabilities, command and mounts, the
runtime's read-only paths.  Each right is needed: without it something fails, named below.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from grounds import UPLINK
from muslin.cni.install import install
from muslin.controller import manifests
from muslin.kernel import netns
from namespaces import Spaces, run

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = yaml.safe_load((ROOT / "deploy" / "base" / "agent.yaml").read_text())
[AGENT] = MANIFEST["spec"]["template"]["spec"]["containers"]
RIGHTS: list[str] = AGENT["securityContext"]["capabilities"]["add"]
# As containerd has them for a container that is not privileged (pkg/oci: defaults).
MASKED = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi"]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


@dataclass
class Node:
    """A machine in a namespace, and the agent's container on it."""

    ns: str
    home: Path
    image: Path

    def bundle(self, capabilities: Sequence[str], command: Sequence[str]) -> Path:
        """What CRI would hand to runc."""
        place = self.home / "bundle"
        place.mkdir(exist_ok=True)
        home = str(self.home)
        mine = [
            _bind(f"{home}/etc", "/etc/muslin", "ro"),
            _bind(f"{home}/run", "/run/muslin"),
            _bind(f"{home}/state", "/var/lib/muslin"),
            _bind(f"{home}/bin", "/opt/cni/bin"),
            _bind(f"{home}/conf", "/etc/cni/net.d"),
            _bind("/run/netns", "/run/netns", "rslave"),
            _bind("/proc/sys/net", "/host/proc/sys/net"),
        ]
        named = {m["mountPath"] for m in AGENT["volumeMounts"]} - {"/tmp"}
        assert named == {m["destination"] for m in mine}
        caps = [f"CAP_{one}" for one in capabilities]
        spec = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": AGENT["securityContext"]["runAsUser"], "gid": 0},
                "args": list(command),
                "env": ["PATH=/opt/muslin/bin:/usr/sbin:/usr/bin:/sbin:/bin", "MUSLIN_NODE=n1"],
                "cwd": "/",
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), caps),
                "noNewPrivileges": True,
            },
            "root": {"path": str(self.image), "readonly": True},
            "mounts": [
                _mount("proc", "/proc", "nosuid", "noexec", "nodev"),
                _mount("tmpfs", "/dev", "nosuid", "mode=755"),
                _mount("sysfs", "/sys", "nosuid", "noexec", "nodev", "ro"),
                _mount("tmpfs", "/run", "nosuid", "mode=755"),
                _mount("tmpfs", "/tmp", "nosuid"),
                *mine,
            ],
            "linux": {
                "namespaces": [
                    {"type": "mount"},
                    {"type": "ipc"},
                    {"type": "uts"},
                    {"type": "network", "path": self.ns},
                ],
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
                "rootfsPropagation": "slave",
            },
        }
        (place / "config.json").write_text(json.dumps(spec))
        return place

    @contextlib.contextmanager
    def running(
        self, capabilities: Sequence[str], command: Sequence[str] = AGENT["command"]
    ) -> Iterator[None]:
        name = f"muslin-test-{os.getpid()}"
        argv = ["runc", "--root", str(self.home / "runc"), "run", "-b"]
        bundle = self.bundle(capabilities, command)
        with (self.home / "log").open("wb") as log:
            process = subprocess.Popen([*argv, str(bundle), name], stderr=log, stdout=log)
        try:
            yield
        finally:
            runc = ["runc", "--root", str(self.home / "runc")]
            subprocess.run([*runc, "kill", name, "TERM"], check=False, capture_output=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(25)
            subprocess.run([*runc, "delete", "-f", name], check=False, capture_output=True)
            process.wait(10)

    def cni(self, verb: str, ns: str = "", container: str = "c1", **more: Any) -> str:
        """One call; "" for success, else what it says."""
        config = {"cniVersion": "1.1.0", "name": "muslin", "type": "muslin-cni", **more}
        done = subprocess.run(
            [self.home / "bin" / "muslin-cni"],
            env={
                "CNI_COMMAND": verb,
                "CNI_CONTAINERID": container,
                "CNI_NETNS": ns,
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/opt/cni/bin",
            },
            input=json.dumps(config).encode(),
            capture_output=True,
            check=False,
        )
        return "" if done.returncode == 0 else done.stdout.decode()

    def ready(self, seconds: float = 15.0) -> str:
        end = time.monotonic() + seconds
        while (said := self.cni("STATUS")) and time.monotonic() < end:
            time.sleep(0.1)
        return said

    def devices(self) -> int:
        """How many pods have one."""
        asked = ["nsenter", f"--net={self.ns}", "ip", "-br", "link"]
        shown = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        return sum(ln.startswith("mu") and not ln.startswith("mu.") for ln in shown.splitlines())

    def look(self) -> str:
        """Devices, routes, rules and tables."""
        ask = "ip -br link; ip route show table all proto 109; ip rule; ip route; nft list ruleset"
        shell = ["nsenter", f"--net={self.ns}", "sh", "-c", ask]
        return subprocess.run(shell, capture_output=True, text=True, check=True).stdout

    def log(self) -> str:
        return (self.home / "log").read_text()


def _bind(source: str, target: str, *options: str) -> dict[str, Any]:
    return {
        "type": "bind",
        "source": source,
        "destination": target,
        "options": ["rbind", *(options or ("rw",))],
    }


def _mount(kind: str, target: str, *options: str) -> dict[str, Any]:
    return {"type": kind, "source": kind, "destination": target, "options": list(options)}


@pytest.fixture
def node(image: Path, spaces: Spaces, tmp_path: Path) -> Node:
    if not shutil.which("runc"):
        pytest.skip("not installed: runc")
    made = Node(spaces.new("node"), tmp_path, image)
    run(made.ns, UPLINK + "ip route add default via 192.0.2.254\n")
    for name in ("etc", "run", "state", "bin", "conf"):
        (tmp_path / name).mkdir()
    # The plugin outside finds the socket where the container's mount has it.
    install(
        bin_dir=tmp_path / "bin",
        conf_dir=tmp_path / "conf",
        socket=tmp_path / "run" / "cni.sock",
        journal=tmp_path / "state" / "journal",
        twin="c",
        deadline=10.0,
    )
    (tmp_path / "etc" / "agent.toml").write_text('store = "sqlite:/var/lib/muslin/store.db"\n')
    (tmp_path / "network.toml").write_text(
        '[network]\nname = "default"\nbackend = "vxlan"\npools = ["p4", "p6"]\n'
        '[[pools]]\nname = "p4"\ncidr = "10.244.0.0/16"\n'
        '[[pools]]\nname = "p6"\ncidr = "fd00:10:244::/56"\n'
    )
    store = f"sqlite:{tmp_path}/state/store.db"
    muslin = [sys.executable, "-m", "muslin"]
    argv = [*muslin, "networks", "apply", str(tmp_path / "network.toml"), "--store", store]
    subprocess.run(argv, check=True, capture_output=True)
    return made


@contextlib.contextmanager
def somebodys_pod() -> Iterator[str]:
    """The namespace of a process of another user, as a runtime may name it."""
    argv = ["unshare", "-n", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    with subprocess.Popen([*argv, "sleep", "600"]) as pod:
        path = f"/proc/{pod.pid}/ns/net"
        own = netns.identity()
        end = time.monotonic() + 10
        while netns.identity(path) == own and time.monotonic() < end:
            time.sleep(0.01)
        try:
            yield path
        finally:
            pod.kill()


def test_with_the_manifests_rights_everything_works(node: Node, spaces: Spaces) -> None:
    named = spaces.new("pod")
    with node.running(RIGHTS), somebodys_pod() as other:
        assert node.ready() == "", node.log()
        assert node.cni("ADD", named) == ""
        ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]}
        rates = {"bandwidth": {"ingressRate": 8000000, "ingressBurst": 800000}}
        assert node.cni("ADD", other, "c2", runtimeConfig=ports | rates) == ""
        time.sleep(1.1)  # GC spares what is younger than the call's second
        assert node.cni("GC", **{"cni.dev/valid-attachments": []}) == ""
        assert node.devices() == 1, "who lives keeps its device, whatever the list says"
        assert node.cni("DEL", other, "c2") == ""
        assert node.cni("DEL", named) == ""
    assert "error" not in [ln.split()[1] for ln in node.log().splitlines() if ln[:2] == "20"]


@pytest.mark.parametrize("without", ["NET_ADMIN", "SYS_ADMIN"])
def test_without_these_no_agent_starts(node: Node, without: str) -> None:
    with node.running([r for r in RIGHTS if r != without]):
        assert node.ready(4.0) != ""


def test_without_sys_ptrace_others_processes_cannot_be_seen(node: Node) -> None:
    with node.running([r for r in RIGHTS if r != "SYS_PTRACE"]), somebodys_pod() as other:
        assert node.ready() == ""
        assert "Permission denied" in node.cni("ADD", other)


def test_without_the_mount_no_switch_can_be_set(node: Node, spaces: Spaces) -> None:
    bare = ["muslin", "agent", "--config", "/etc/muslin/agent.toml"]
    with node.running(RIGHTS, bare):
        node.ready(4.0)
        assert "EROFS" in node.cni("ADD", spaces.new("pod")) + node.log()


def test_the_cleaner_cleans_with_the_same_rights(node: Node, spaces: Spaces) -> None:
    """What `muslin uninstall` starts on every node (controller/manifests.cleaner)."""
    strangers = "ip route add 198.51.100.0/24 via 192.0.2.7 proto static; nft add table ip other"
    run(node.ns, strangers)
    before = node.look()
    with node.running(RIGHTS):
        assert node.ready() == "", node.log()
        assert node.cni("ADD", spaces.new("pod")) == ""
    assert "table inet muslin" in node.look()
    [cleaner] = manifests.cleaner(MANIFEST).body["spec"]["template"]["spec"]["containers"]
    with node.running(RIGHTS, cleaner["command"]):
        end = time.monotonic() + 15
        while node.look() != before and time.monotonic() < end:
            time.sleep(0.1)
        assert node.look() == before, node.log()
    assert list((node.home / "bin").iterdir()) == list((node.home / "conf").iterdir()) == []
    assert [p.name for p in (node.home / "state").iterdir()] == ["store.db"], "the estate's"
