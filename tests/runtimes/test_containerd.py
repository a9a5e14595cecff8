"""containerd, through CRI as a kubelet uses it and through ctr, with Muslin as its network."""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import images
import pytest
from containerd import Containerd, Sandbox
from machine import Machine, until

from muslin.kernel import netns
from muslin.lab import build, pods
from muslin.lab.state import Pod
from muslin.model import PortMapping
from muslin.plan import ports
from namespaces import run

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.usefixtures("can_run_containerd"),
]

MANY = 20
CROWD = int(os.environ.get("PODS", "200"))  # each takes 5 MB of the machine's memory


@pytest.fixture
def far(machine: Machine) -> Pod:
    """A pod on another node, attached by the lab itself."""
    return pods.add(machine.lab, "far", "n2")


def ping(machine: Machine, pod: Sandbox) -> None:
    """From the pod on the other node to this one, both families."""
    there = netns.path_of(build.pod_namespace(machine.lab, "far"))
    for address in pod.addresses:
        run(there, f"ping -c 1 -W 2 {address}")


def test_a_pod_lives_its_life_through_cri(containerd: Containerd, far: Pod) -> None:
    """Its addresses of both families, a pod on another node within its reach, no trace after."""
    machine = containerd.machine
    pod = containerd.run_pod("web")
    assert pod.ready
    assert [a.version for a in pod.addresses] == [4, 6]
    assert machine.attachments() == [pod.id]
    container = containerd.container(pod)
    shown = containerd.exec(container, "ip", "-o", "addr", "show", "dev", "eth0")
    assert all(str(a) in shown for a in pod.addresses)
    for address in (*far.addresses, "127.0.0.1"):
        containerd.exec(container, "ping", "-c", "1", "-W", "2", str(address))
    ping(machine, pod)
    containerd.stop_pod(pod.id)
    until(lambda: not machine.traces(), 5)
    containerd.stop_pod(pod.id)  # a kubelet repeats it
    containerd.remove_pod(pod.id)
    until(lambda: not machine.processes("containerd-shim-runc-v2"), 5)


def test_what_a_kubelet_asks_for_a_pod_arrives(containerd: Containerd) -> None:
    """hostPort, and a limit by annotation, in containerd's own spelling of them."""
    machine = containerd.machine
    pod = containerd.run_pod(
        "web",
        port_mappings=[{"protocol": 1, "container_port": 53, "host_port": 5353}],
        annotations=[{"key": "kubernetes.io/egress-bandwidth", "value": "8M"}],
    )
    asked = PortMapping(host=5353, pod=53, protocol="udp")
    assert machine.ports() == ports.elements([asked], pod.addresses)
    assert machine.rates() == [1_000_000]
    containerd.stop_pod(pod.id)
    machine.expect_no_traces()
    assert (machine.ports(), machine.rates()) == (frozenset(), [])


def test_many_pods_start_and_go_side_by_side(containerd: Containerd, far: Pod) -> None:
    machine = containerd.machine
    with ThreadPoolExecutor(MANY) as many:
        made = list(many.map(lambda i: containerd.run_pod(f"p{i}"), range(MANY)))
        assert len({a for pod in made for a in pod.addresses}) == 2 * MANY
        assert sorted(machine.attachments()) == sorted(pod.id for pod in made)
        for pod in made:
            ping(machine, pod)
        list(many.map(lambda pod: containerd.remove_all([pod.id]), made))
    until(lambda: not machine.traces(), 5)
    assert containerd.pods() == []
    until(lambda: not machine.processes("containerd-shim-runc-v2"), 5)


@pytest.mark.timeout(600)
def test_a_crowd_of_pods_starts_and_goes_without_a_trace(containerd: Containerd, far: Pod) -> None:
    """More than a block holds: the node claims others while pods are being started."""
    machine = containerd.machine
    with ThreadPoolExecutor(MANY) as many:
        made = list(many.map(lambda i: containerd.run_pod(f"p{i}"), range(CROWD)))
        assert len({a for pod in made for a in pod.addresses}) == 2 * CROWD
        assert sorted(machine.attachments()) == sorted(pod.id for pod in made)
        for pod in made[:: max(CROWD // 10, 1)]:
            ping(machine, pod)
        list(many.map(lambda pod: containerd.remove_all([pod.id]), made))
    machine.expect_no_traces()
    assert containerd.pods() == []
    until(lambda: not machine.processes("containerd-shim-runc-v2"), 5)


def test_a_pod_whose_namespace_is_gone_can_be_stopped(containerd: Containerd) -> None:
    """containerd then calls DEL without a namespace, or with a path that leads nowhere."""
    machine = containerd.machine
    pod, other = containerd.run_pod("lost"), containerd.run_pod("kept")
    lost = next(a["netns"] for a in machine.status()["attachments"] if a["container"] == pod.id)
    machine.run("ctr", "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", pod.id)
    until(lambda: not containerd.status(pod.id, pod.config).ready)  # containerd has seen it
    machine.run("umount", "-l", lost)
    machine.run("rm", lost)
    containerd.stop_pod(pod.id)
    containerd.remove_pod(pod.id)
    until(lambda: machine.attachments() == [other.id], 5)
    containerd.remove_all()
    until(lambda: not machine.traces(), 5)


def test_containerd_may_be_killed_and_started_again(containerd: Containerd, far: Pod) -> None:
    machine = containerd.machine
    before = containerd.run_pod("before")
    container = containerd.container(before)
    containerd.kill()
    ping(machine, before)
    containerd.start()
    assert containerd.status(before.id, before.config).ready
    assert containerd.status(before.id, before.config).addresses == before.addresses
    containerd.exec(container, "ping", "-c", "1", "-W", "2", str(far.address(4)))
    after = containerd.run_pod("after")
    assert not set(before.addresses) & set(after.addresses)
    containerd.remove_all()
    until(lambda: not machine.traces(), 5)


def test_a_machine_that_was_rebooted_gives_its_old_pods_addresses_back(
    containerd: Containerd, far: Pod
) -> None:
    """node.db and containerd's own records are there again, the pods are not."""
    machine = containerd.machine
    before = [containerd.run_pod(name) for name in ("a", "b")]
    containerd.close()
    machine.reboot()
    machine.start_agent()
    until(lambda: machine.attachments() == [], 5)
    machine.install_plugin()
    containerd.start()
    assert sorted(containerd.pods()) == sorted(pod.id for pod in before)
    assert not any(containerd.status(pod.id, pod.config).ready for pod in before)
    new = containerd.run_pod("c")  # a kubelet makes new ones and removes the old, in any order
    assert not set(new.addresses) & {a for pod in before for a in pod.addresses}  # they rest
    ping(machine, new)
    containerd.remove_all(pod.id for pod in before)
    until(lambda: machine.attachments() == [new.id], 5)
    ping(machine, new)
    containerd.remove_all()
    until(lambda: not machine.traces(), 5)


def test_pods_that_start_while_the_agent_restarts_are_told_to_try_again(
    containerd: Containerd,
) -> None:
    """What containerd passes on says what is missing; a kubelet's second try succeeds."""
    machine, errors = containerd.machine, []
    deadline, back_off = time.monotonic() + 30, threading.Event()

    def start(i: int) -> Sandbox:
        for attempt in itertools.count():
            try:
                return containerd.run_pod(f"p{i}", attempt)
            except grpc.RpcError as e:
                errors.append(e.details())
                assert time.monotonic() < deadline, e.details()
                back_off.wait(0.2)  # a kubelet waits longer
        raise AssertionError

    with ThreadPoolExecutor(6) as many:
        first = [many.submit(start, i) for i in range(6)]
        first[0].result()
        machine.stop_agent()
        second = [many.submit(start, i) for i in range(6, 12)]
        until(lambda: len(errors) >= 6)
        machine.start_agent()
        made = [f.result() for f in (*first, *second)]
    assert len({a for pod in made for a in pod.addresses}) == 24
    for error in errors:
        assert "muslin-agent at" in error
    assert any("is it running?" in error for error in errors)
    until(lambda: sorted(machine.attachments()) == sorted(pod.id for pod in made), 5)
    # What is left of failed attempts, if their DEL failed as well, waits to be stopped again.
    containerd.remove_all()
    assert containerd.pods() == []
    until(lambda: not machine.traces(), 5)


def test_a_pod_that_is_stopped_without_an_agent_goes_with_the_next(containerd: Containerd) -> None:
    """Either DEL is refused in words that say why, or it is done when the agent is back."""
    machine = containerd.machine
    pod = containerd.run_pod("web")
    machine.stop_agent()
    try:
        containerd.stop_pod(pod.id)
    except grpc.RpcError as e:
        assert "is it running?" in e.details()
    machine.start_agent()
    containerd.remove_all()
    until(lambda: not machine.traces(), 5)


def test_ctr_run_with_cni(containerd: Containerd, far: Pod) -> None:
    machine = containerd.machine
    archive = str(machine.home / "image.tar")
    machine.run("ctr", "images", "import", "--snapshotter", "native", archive)
    script = " && ".join(
        ["ip -o addr show dev eth0", *(f"ping -c 1 -W 2 {a}" for a in far.addresses)]
    )
    done = machine.run(
        "ctr", "run", "--cni", "--rm", "--snapshotter", "native",
        "--cgroup", f"{machine.cgroup}/by-hand", images.NAME, "by-hand", "sh", "-c", script,
    )  # fmt: skip
    assert "/32 scope global eth0" in done.stdout
    assert "/128 scope global" in done.stdout
    assert len(machine.adds()) == 1
    until(lambda: not machine.traces(), 5)
