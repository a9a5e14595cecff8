"""containerd on a machine of the lab: its own configuration, its image, pods by way of CRI."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import grpc
import images
from cri import READY, Cri
from machine import Machine, Service, until

from muslin.model import Address

SOCKET = "/run/containerd/containerd.sock"
CONFIG = "/etc/containerd/config.toml"
LOOPBACK = "/usr/lib/cni/loopback"  # where Debian has it
# The CNI directories are the defaults, spelled out: they are what the documentation is about.
# `native` copies the image's two megabytes, and so needs nothing of the file system below.
CONFIGURATION = f"""
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{images.NAME}"
disable_apparmor = true
restrict_oom_score_adj = true  # lowering it needs CAP_SYS_RESOURCE, which not every root has

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A pod as the runtime tells of it."""

    id: str
    config: dict[str, Any]
    ready: bool
    addresses: tuple[Address, ...]

    def address(self, version: int) -> Address:
        return next(a for a in self.addresses if a.version == version)


class Containerd:
    """A running containerd, and what a kubelet asks of it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._service: Service | None = None
        self._cri: Cri | None = None

    # ── the daemon ──────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Start it and wait until it serves; the image is imported where it is missing."""
        # containerd before 2.0 brings the loopback device of a pod up by this plugin, whatever
        # the network consists of otherwise.
        self.machine.run("ln", "-sf", LOOPBACK, "/opt/cni/bin/loopback")
        config = self.machine.path(CONFIG)
        config.parent.mkdir(exist_ok=True)
        config.write_text(CONFIGURATION)
        self._service = self.machine.start("containerd", "containerd", "--config", CONFIG)
        until(self._serves, why="containerd does not serve")
        if not self._has_image():
            archive = images.busybox(self.machine.home / "image.tar")
            self.machine.run("ctr", "-n", "k8s.io", "images", "import", str(archive))
            until(self._has_image, why="the image was imported and CRI does not see it")
        until(self.network_ready, why="containerd finds no CNI configuration")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the daemon; its shims, and the pods, go on."""
        assert self._service is not None
        self._service.stop(number)
        self.close()

    def close(self) -> None:
        if self._cri is not None:
            self._cri.close()
        self._cri = None

    def _serves(self) -> bool:
        assert self._service is not None
        assert self._service.alive, self.machine.log("containerd").read_text()[-2000:]
        self.close()
        self._cri = Cri(self.machine.path(SOCKET))
        try:
            self._cri.call("Status", timeout=1)
        except grpc.RpcError:
            return False
        return True

    def _has_image(self) -> bool:
        return bool(self.call("ImageStatus", image={"image": images.NAME}).image.id)

    def network_ready(self) -> bool:
        conditions = self.call("Status").status.conditions
        return {c.type: c.status for c in conditions}["NetworkReady"]

    def call(self, method: str, **fields: Any) -> Any:
        assert self._cri is not None
        return self._cri.call(method, **fields)

    # ── pods ────────────────────────────────────────────────────────────────────────────────

    def run_pod(self, name: str, attempt: int = 0, **more: Any) -> Sandbox:
        """RunPodSandbox, and what PodSandboxStatus says of it; `more` are fields of its config.

        A kubelet counts its attempts: one whose DEL failed too is kept under its number.
        """
        metadata = {"name": name, "uid": f"uid-{name}", "namespace": "test", "attempt": attempt}
        config = {
            "metadata": metadata,
            "hostname": name,
            "linux": {"cgroup_parent": self.machine.cgroup},
            **more,
        }
        made = self.call("RunPodSandbox", config=config).pod_sandbox_id
        return self.status(made, config)

    def status(self, sandbox: str, config: dict[str, Any]) -> Sandbox:
        status = self.call("PodSandboxStatus", pod_sandbox_id=sandbox).status
        network = status.network
        listed = [network.ip, *(a.ip for a in network.additional_ips)]
        return Sandbox(
            id=sandbox,
            config=config,
            ready=status.state == READY,
            addresses=tuple(ip_address(a) for a in listed if a),
        )

    def container(self, pod: Sandbox) -> str:
        """CreateContainer and StartContainer of one that sleeps."""
        made = self.call(
            "CreateContainer",
            pod_sandbox_id=pod.id,
            config={"metadata": {"name": "main"}, "image": {"image": images.NAME}},
            sandbox_config=pod.config,
        ).container_id
        self.call("StartContainer", container_id=made)
        return str(made)

    def exec(self, container: str, *command: str) -> str:
        done = self.call("ExecSync", container_id=container, cmd=command, timeout=10)
        assert done.exit_code == 0, f"{command}: {(done.stderr or done.stdout).decode()}"
        return str(done.stdout.decode())

    def pods(self) -> list[str]:
        return [p.id for p in self.call("ListPodSandbox").items]

    def stop_pod(self, sandbox: str) -> None:
        self.call("StopPodSandbox", pod_sandbox_id=sandbox)

    def remove_pod(self, sandbox: str) -> None:
        self.call("RemovePodSandbox", pod_sandbox_id=sandbox)

    def remove_all(self, sandboxes: Iterable[str] | None = None) -> None:
        for sandbox in self.pods() if sandboxes is None else sandboxes:
            self.stop_pod(sandbox)
            self.remove_pod(sandbox)
