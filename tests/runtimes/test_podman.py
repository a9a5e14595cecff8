"""podman 4 with its CNI back end (`network_backend = "cni"`), as Debian 12 has it."""

from __future__ import annotations

import json
from ipaddress import ip_address

import images
import pytest
from machine import Machine, until

from muslin.lab import pods

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.usefixtures("can_run_podman"),
]

CONTAINERS = """
[containers]
apparmor_profile = ""

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"

[network]
network_backend = "cni"
default_network = "muslin"
"""
STORAGE = """
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"""


class Podman:
    """podman on a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.run("mkdir", "-p", "/etc/containers")
        machine.path("/etc/containers/containers.conf").write_text(CONTAINERS)
        machine.path("/etc/containers/storage.conf").write_text(STORAGE)
        found = machine.run("podman", "info", "--format", "{{.Host.NetworkBackend}}", check=False)
        if found.stdout.strip() != "cni":
            pytest.skip(f"this podman has no CNI: {found.stdout.strip()} {found.stderr.strip()}")
        self("load", "--input", str(images.busybox(machine.home / "image.tar")))

    def __call__(self, *words: str) -> str:
        return self.machine.run("podman", *words).stdout.strip()

    def run(self, name: str) -> str:
        """A container that sleeps; its ID."""
        return self(
            "run", "--detach", "--name", name, "--cgroup-parent", self.machine.cgroup,
            "--cap-add", "NET_RAW", images.NAME,
        )  # fmt: skip


@pytest.fixture
def podman(machine: Machine) -> Podman:
    return Podman(machine)


def test_two_containers_live_their_lives(podman: Podman) -> None:
    machine = podman.machine
    far = pods.add(machine.lab, "far", "n2")
    made = {name: podman.run(name) for name in ("web", "db")}
    assert sorted(machine.attachments()) == sorted(made.values())
    addresses = {}
    for name in made:
        networks = json.loads(podman("inspect", name, "--format", "{{json .NetworkSettings}}"))
        of_it = networks["Networks"]["muslin"]
        addresses[name] = [ip_address(of_it[k]) for k in ("IPAddress", "GlobalIPv6Address")]
        shown = podman("exec", name, "ip", "-o", "addr", "show", "dev", "eth0")
        assert all(str(a) in shown for a in addresses[name])
    for address in (*addresses["db"], *far.addresses):
        podman("exec", "web", "ping", "-c", "1", "-W", "2", str(address))
    podman("stop", "--time", "0", "web")
    until(lambda: machine.attachments() == [made["db"]], 5)
    podman("start", "web")  # by another ADD under the same name
    podman("exec", "web", "ping", "-c", "1", "-W", "2", str(far.address(4)))
    podman("rm", "--force", "--time", "0", "web", "db")
    until(lambda: not machine.traces(), 5)
    assert podman("ps", "--all", "--quiet") == ""
