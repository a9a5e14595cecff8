"""Steps, checks and strangers at the same time on a real kernel: nothing is lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from muslin.agent.attach import Attachments
from muslin.agent.settle import Settler
from muslin.agent.world import World, desired, sites
from muslin.kernel import boot, netns
from muslin.kernel.linux import LinuxKernel
from muslin.model import Block, Host, Network, Node, Pool
from muslin.plan.diff import Change
from muslin.plan.objects import Fdb, Neigh, Plan, Route, Vxlan
from muslin.store.ledger import Ledger
from namespaces import Spaces, run

pytestmark = pytest.mark.root

PEERS = 60
ROUNDS = 60  # of each hand
UPLINK = """
ip link set dev lo up
ip link add eth0 type veth peer name wire
ip addr add 192.0.2.1/24 dev eth0
ip link set dev eth0 up
ip link set dev wire up
"""
POOL = Pool(name="a", cidr=ip_network("10.0.0.0/16"))


def node(number: int) -> Node:
    data = {"pods": {"mac": f"0e:00:00:00:00:{number:02x}"}}
    address = ip_interface(f"192.0.2.{number}/24")
    return Node(name=f"n{number}", addresses=(address,), mtu=1500, data=data)


def plan(backend: str, holders: list[int]) -> Plan:
    """A node whose peers hold these blocks, by their places."""
    options = {"direct": "never"} if backend == "vxlan" else {}
    network = Network(name="pods", backend=backend, pools=("a",), options=options)
    peers = {f"n{n}": node(n) for n in range(2, PEERS + 2)}
    blocks = [
        Block(pool="a", cidr=ip_network((int(POOL.cidr[0]) + place * 64, 26)), node=f"n{holder}")
        for place, holder in enumerate(holders)
    ]
    world = World(networks={"pods": network}, pools={"a": POOL}, nodes=peers, blocks=tuple(blocks))
    return desired(sites(world, node(1), Host(uplink="eth0"))).plan


@pytest.fixture
def place(spaces: Spaces) -> str:
    made = spaces.new("node")
    run(made, UPLINK)
    return made


@pytest.fixture
def settler(place: str, tmp_path: Path) -> Iterator[Settler]:
    """In a namespace of its own, with the calling thread in it."""
    ledger, kernel = Ledger(tmp_path / "node.db", boot.clock), LinuxKernel()
    with netns.inside(place):
        yield Settler(kernel, ledger, Attachments(ledger, kernel))
    ledger.close()


@pytest.mark.parametrize("backend", ["vxlan", "hostgw"])
def test_peers_that_move_while_others_break_things_end_up_as_planned(
    settler: Settler, place: str, backend: str
) -> None:
    rng, kernel = random.Random(7), LinuxKernel()
    holders = list(range(2, PEERS + 2))
    assert settler.settle(plan(backend, holders)) == []
    over = threading.Event()

    def step() -> None:
        holders[rng.randrange(1, PEERS)] = rng.randrange(2, PEERS + 2)
        assert settler.settle(plan(backend, holders)) == []

    def break_something() -> None:
        seen = kernel.observe()
        doomed = sorted((o for o in seen if isinstance(o, Route | Neigh | Fdb)), key=repr)
        for obj in random.Random(len(doomed)).sample(doomed, 3):
            kernel.apply([Change("remove", obj)])
        settler.doubt()

    def often(what: Callable[[], object]) -> None:
        with netns.inside(place):
            for _ in range(ROUNDS):
                what()

    def check() -> None:
        with netns.inside(place):
            while not over.is_set():
                settler.check()

    with ThreadPoolExecutor(3) as hands:
        checks = hands.submit(check)
        try:
            for hand in [hands.submit(often, step), hands.submit(often, break_something)]:
                hand.result(60)
        finally:
            over.set()
        checks.result(60)
    settler.settle(plan(backend, holders))
    if settler.doubtful and not settler.check():
        settler.settle(plan(backend, holders))
    assert settler.pending(plan(backend, holders)) == []


def test_a_device_that_somebody_removed_comes_back_with_all_that_stood_on_it(
    settler: Settler,
) -> None:
    wanted = plan("vxlan", list(range(2, PEERS + 2)))
    assert settler.settle(wanted) == []
    kernel = LinuxKernel()
    device = next(o for o in wanted if isinstance(getattr(o, "kind", None), Vxlan))
    kernel.apply([Change("remove", device)])
    settler.doubt()
    assert not settler.check()  # no step leads there
    assert settler.settle(wanted) == []
    assert settler.pending(wanted) == []


def test_a_check_of_a_whole_kernel_needs_nothing_more(settler: Settler) -> None:
    """What a plan leaves to the kernel, of links and switches, is no difference."""
    for backend in ("vxlan", "hostgw"):
        assert settler.settle(plan(backend, list(range(2, PEERS + 2)))) == []
        settler.doubt()
        assert settler.check()
        assert not settler.doubtful
