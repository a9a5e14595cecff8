"""podman 4 with its CNI back end (`network_backend = "cni"`), as Debian 12 has it."""

from __future__ import annotations

import contextlib
import json
import socket
from ipaddress import ip_address, ip_interface

import images
import pytest
from machine import Machine, until

from muslin.kernel import netns
from muslin.lab import build, pods
from muslin.model import Address, PortMapping
from muslin.plan import ports

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

    def run(self, name: str, *options: str) -> str:
        """A container that sleeps; its ID."""
        return self(
            "run", "--detach", "--name", name, "--cgroup-parent", self.machine.cgroup,
            "--cap-add", "NET_RAW", *options, images.NAME,
        )  # fmt: skip

    def space(self, container: str) -> str:
        """Its network namespace, as the host finds it."""
        attached = self.machine.status()["attachments"]
        path = next(a["netns"] for a in attached if a["container"] == container)
        return str(self.machine.path(path))


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


def answered(server: str, client: str, to: Address, port: int, protocol: str) -> Address:
    """Speak from `client` to a port, hear the answer from `server`: the source that it saw."""
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with contextlib.ExitStack() as stack:
        with netns.inside(server):
            listener = stack.enter_context(socket.socket(family, kind))
        with netns.inside(client):
            talker = stack.enter_context(socket.socket(family, kind))
        listener.settimeout(3)
        talker.settimeout(3)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", 80))
        if protocol == "tcp":
            listener.listen()
            talker.connect((str(to), port))
            accepted, source = listener.accept()
            with accepted:
                accepted.send(b"answer")
        else:
            talker.connect((str(to), port))
            talker.send(b"question")
            _, source = listener.recvfrom(16)
            listener.sendto(b"answer", source)
        assert talker.recv(16) == b"answer"
        return ip_address(source[0])


def test_published_ports_lead_to_the_container_until_it_is_gone(podman: Podman) -> None:
    """`podman run -p` comes as the capability portMappings; no other plugin has a hand in it."""
    machine = podman.machine
    own = [ip_interface(a).ip for a in machine.status()["addresses"]]
    publish = [f"--publish={p}" for p in ("8080:80", "8080:80/udp", f"{own[0]}:8081:80")]
    made = podman.run("web", *publish)
    given = machine.status()["attachments"][0]["addresses"]
    asked = [PortMapping(host=8080, pod=80, protocol=p) for p in ("tcp", "udp")]
    asked.append(PortMapping(host=8081, pod=80, ip=own[0]))
    assert machine.ports() == ports.elements(asked, [ip_address(a) for a in given])

    node, other = (netns.path_of(build.namespace(machine.lab, n)) for n in ("n1", "n2"))
    theirs = {ip_address("192.0.2.12"), ip_address("2001:db8:a::12")}
    server = podman.space(made)
    for address in own:
        for protocol in ("tcp", "udp"):
            assert answered(server, other, address, 8080, protocol) in theirs
            answered(server, node, address, 8080, protocol)
    assert answered(server, other, own[0], 8081, "tcp") in theirs
    answered(server, node, ip_address("127.0.0.1"), 8080, "tcp")

    podman("rm", "--force", "--time", "0", "web")
    machine.expect_no_traces()
    assert machine.ports() == frozenset()
    for address in own:
        with netns.inside(other), pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(address), 8080), timeout=3)
    podman.run("next", *publish)  # the ports are free again
    podman("stop", "--time", "0", "next")
    machine.expect_no_traces()
