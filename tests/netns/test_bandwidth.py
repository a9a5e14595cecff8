"""A pod's rates hold in both directions, whatever the pod does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from estate import Estate, Pod, build
from talk import FAMILY, PATIENCE

from muslin.kernel import netns
from muslin.kernel.linux import LinuxKernel
from muslin.model import Address, Rate, Wants
from muslin.plan.diff import diff
from muslin.plan.render import render_changes
from namespaces import Spaces

pytestmark = pytest.mark.root

RATE = Rate(rate=2_500_000, burst=131_072)  # 20 Mbit/s
LEAST, MOST = 10.0, 26.0  # Mbit/s
BURST, MEASURE = 0.6, 1.0  # seconds until the burst is used up, and of looking


@pytest.fixture(scope="module")
def estate() -> Iterator[Estate]:
    """p1 is held to RATE both ways."""
    spaces = Spaces()
    try:
        made = build(spaces, "hostgw", racks=1)
        pod = made.pods["p1"]
        nic = replace(pod.nic, wants=Wants(ingress=RATE, egress=RATE))
        made.pods["p1"] = Pod(nic=nic, on=pod.on)
        made.settle()
        yield made
    finally:
        spaces.close()


def speed(sender: str, receiver: str, at: Address) -> float:
    """Mbit/s of one TCP connection in the long run."""
    with contextlib.ExitStack() as stack:
        with netns.inside(receiver):
            listener = stack.enter_context(socket.socket(FAMILY[at.version]))
            listener.bind((str(at), 0))
            listener.listen()
        with netns.inside(sender):
            out = stack.enter_context(socket.socket(FAMILY[at.version]))
        out.settimeout(PATIENCE)
        out.connect(listener.getsockname())
        into = stack.enter_context(listener.accept()[0])
        into.settimeout(PATIENCE)
        pump = threading.Thread(target=_pump, args=(out,))
        pump.start()
        _received(into, BURST)
        began = time.monotonic()
        count = _received(into, MEASURE)
        took = time.monotonic() - began
        into.shutdown(socket.SHUT_RDWR)
        into.close()
        pump.join()
    return count * 8 / took / 1e6


def _pump(out: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other end has seen enough
        while True:
            out.send(bytes(65536))


def _received(into: socket.socket, seconds: float) -> int:
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        count += len(into.recv(1 << 16))
    return count


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
def test_the_rates_hold_both_ways_and_other_pods_have_none(estate: Estate, version: int) -> None:
    limited, free = estate.pods["p1"], estate.pods["p2"]
    ends = [(p.nic.netns, p.address(version)) for p in (limited, free)]
    node = estate.machines["n1"].node.address(version)
    assert node is not None
    for way in ((ends[0][0], estate.machines["n1"].ns, node.ip), (free.nic.netns, *ends[0])):
        # What drops instead of making wait can stop TCP for most of a second: bad luck once.
        tries = [speed(*way)]
        while tries[-1] <= LEAST and len(tries) < 3:
            tries.append(speed(*way))
        assert max(tries) < MOST
        assert tries[-1] > LEAST
    assert speed(estate.machines["n2"].ns, *ends[1]) > 4 * MOST


def test_a_changed_rate_is_set_in_place(estate: Estate) -> None:
    before = estate.plan("n1")
    pod = estate.pods["p1"]
    half = Rate(rate=RATE.rate // 2, burst=RATE.burst)
    estate.pods["p1"] = Pod(nic=replace(pod.nic, wants=Wants(ingress=half, egress=half)), on=pod.on)
    changes = list(diff(estate.plan("n1"), before))
    assert {(c.verb, type(c.obj).__name__) for c in changes} == {
        ("replace", "Shaper"),
        ("replace", "Police"),
    }
    estate.settle()
    with netns.inside(estate.machines["n1"].ns):
        observed = LinuxKernel().observe(estate.plan("n1"))
    assert render_changes(diff(estate.plan("n1"), observed)) == ""
    estate.pods["p1"] = pod
    estate.settle()
