"""What a pair is promised, what an answer means, and what a kernel's route says."""

import dataclasses
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
import pytest

from muslin.lab.check import expect, judge
from muslin.lab.paths import judge as judge_path
from muslin.lab.probe import Endpoint, Kind, Pair, Reply
from muslin.lab.topology import Topology, parse
from muslin.model import Address

MIXED = (Path(__file__).parents[2] / "labs" / "mixed.toml").read_text()


def end(name: str, kind: Kind, *addresses: str, node: str = "") -> Endpoint:
    found: tuple[Address, ...] = tuple(map(ip_address, addresses))
    return Endpoint(name=name, kind=kind, netns=name, addresses=found, node=node)


POD = end("a", "pod", "10.244.0.5", "fd00:10:244::5", node="n1")
OTHER = end("b", "pod", "10.244.1.5", "fd00:10:244::1:5", node="n2")
N1 = end("n1", "node", "192.0.2.11", "2001:db8:a::11")
N2 = end("n2", "node", "192.0.2.12", "2001:db8:a::12")
VM = end("vm1", "member", "192.0.2.14")
PM = end("pm1", "static", "192.0.2.50")
WORLD = end("world", "outside", "203.0.113.11")


def mixed(**network: object) -> Topology:
    topology = parse(MIXED, stem="mixed")
    changed = msgspec.structs.replace(topology.network, **network)
    return dataclasses.replace(topology, network=changed)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (POD, OTHER, "own"),
        (POD, N1, "own"),
        (N2, POD, "own"),
        (POD, VM, "own"),
        (VM, POD, "own"),
        (POD, PM, "own"),
        (PM, POD, "own"),
        (POD, WORLD, "node"),
        (WORLD, POD, "nothing"),
        (POD, POD, None),
        (N1, N2, None),
        (N1, WORLD, None),
    ],
)
def test_what_is_promised_of_a_pair(source: Endpoint, target: Endpoint, expected: str) -> None:
    assert expect(mixed(), Pair(source, target, 4)) == expected


def test_a_machine_that_the_estate_does_not_name_sees_the_node() -> None:
    assert expect(mixed(estate=()), Pair(POD, PM, 4)) == "node"
    assert expect(mixed(estate=(ip_network("192.0.2.50/32"),)), Pair(POD, PM, 4)) == "own"


def test_without_masquerade_nothing_is_promised_of_the_outside() -> None:
    topology = mixed(masquerade=False)
    assert expect(topology, Pair(POD, WORLD, 4)) is None
    assert expect(topology, Pair(POD, PM, 4)) == "own"


NODES = {"n1": N1, "n2": N2}
SEEN = {name: ip_address(name) for name in ("10.244.0.5", "192.0.2.11", "10.244.0.0")}


@pytest.mark.parametrize(
    ("pair", "expected", "reply", "mark"),
    [
        (Pair(POD, OTHER, 4), "own", Reply(SEEN["10.244.0.5"], SEEN["10.244.0.5"]), "own"),
        (Pair(POD, OTHER, 4), "own", Reply(SEEN["192.0.2.11"], SEEN["10.244.0.5"]), "failed"),
        (Pair(POD, OTHER, 4), "own", Reply(error="no answer"), "failed"),
        # A node may choose its tunnel's address, which is its own too.
        (Pair(N1, OTHER, 4), "own", Reply(SEEN["10.244.0.0"], SEEN["10.244.0.0"]), "own"),
        (Pair(N1, OTHER, 4), "own", Reply(SEEN["10.244.0.0"], SEEN["192.0.2.11"]), "failed"),
        (Pair(POD, WORLD, 4), "node", Reply(SEEN["192.0.2.11"], SEEN["10.244.0.5"]), "node"),
        (Pair(POD, WORLD, 4), "node", Reply(SEEN["10.244.0.5"], SEEN["10.244.0.5"]), "failed"),
        (Pair(WORLD, POD, 4), "nothing", Reply(error="no route to host"), "refused"),
        (Pair(WORLD, POD, 4), "nothing", Reply(SEEN["192.0.2.11"]), "failed"),
    ],
)  # fmt: skip
def test_an_answer_is_right_only_with_the_right_source(
    pair: Pair, expected: str, reply: Reply, mark: str
) -> None:
    finding = judge("lab", pair, expected, reply, NODES)  # type: ignore[arg-type]
    assert finding.mark == mark
    assert bool(finding.hint) == (mark == "failed")


@pytest.mark.parametrize(
    ("target", "answer", "way"),
    [
        (OTHER, {"dev": "eth0", "gateway": "192.0.2.12"}, "direct"),
        (OTHER, {"dev": "eth0", "gateway": "192.0.2.1"}, "routed"),
        (OTHER, {"dev": "mu.vx1", "gateway": "10.244.1.0"}, "tunnel"),
        (OTHER, {"dev": "mu0011aaff"}, "local"),
        (N1, {"dev": "lo", "type": "local"}, "local"),
        (N2, {"dev": "eth0"}, "direct"),
        (OTHER, None, "none"),
    ],
)
def test_a_path_is_what_the_kernel_says(
    target: Endpoint, answer: dict[str, str] | None, way: str
) -> None:
    assert judge_path(POD, target, 4, answer, (POD, OTHER, N1, N2)).way == way
