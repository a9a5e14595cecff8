"""When the sync loop looks at the kernel, and when it trusts what it knows."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.agent.attach import Attachments
from muslin.agent.settle import Settler
from muslin.agent.world import Planner, World, desired, sites
from muslin.errors import KernelError
from muslin.kernel import boot
from muslin.kernel.events import News
from muslin.kernel.fake import FakeKernel
from muslin.model import Block, Host, Network, Node, Pool
from muslin.plan.diff import Change
from muslin.plan.objects import Plan, Route
from muslin.store.ledger import Ledger

HOST = Host(uplink="eth0")
POOL = Pool(name="a", cidr=ip_network("10.0.0.0/16"))
NETWORKS = {
    "flat": Network(name="flat", backend="hostgw", pools=("a",)),
    "tunnel": Network(name="tunnel", backend="vxlan", pools=("a",)),
}


def node(name: str, address: str, **more: Any) -> Node:
    return Node(name=name, addresses=(ip_interface(address),), mtu=1500, **more)


ME = node("n0", "192.0.2.1/24", data={"tunnel": {"mac": "0e:00:00:00:00:01"}})
PEERS = [
    node(f"n{n}", address, data={"tunnel": {"mac": f"0e:00:00:00:00:0{n}"}})
    for n, address in ((2, "192.0.2.2/24"), (3, "198.51.100.3/24"), (4, "198.51.100.4/24"))
]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Some of the peers with some blocks, in one network or the other, or in both."""
    there = draw(st.lists(st.sampled_from(PEERS), unique_by=lambda n: n.name))
    holders = [ME, *there]
    blocks = tuple(
        Block(pool="a", cidr=ip_network(f"10.0.{n}.0/26"), node=draw(st.sampled_from(holders)).name)
        for n in draw(st.sets(st.integers(0, 5)))
    )
    kept = draw(st.sets(st.sampled_from(sorted(NETWORKS)), min_size=1))
    return World(
        networks={n: NETWORKS[n] for n in kept},
        pools={"a": POOL},
        nodes={n.name: n for n in there},
        blocks=blocks,
    )


@given(st.lists(worlds(), min_size=1, max_size=5), st.booleans())
def test_what_a_planner_remembers_changes_nothing_of_what_it_says(
    sequence: list[World], moved: bool
) -> None:
    planner = Planner()
    for turn, world in enumerate(sequence):
        me = node("n0", "198.51.100.1/24", data=ME.data) if moved and turn % 2 else ME
        view = sites(world, me, HOST)
        assert planner.desired(view) == desired(view)


class Counting(FakeKernel):
    """A kernel that counts how often it is looked at, and refuses when told."""

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.refuse = 0, False

    def observe(self, about: Plan = frozenset()) -> Plan:
        self.looks += 1
        return super().observe(about)

    def apply(self, changes: Iterable[Change]) -> None:
        if self.refuse:
            raise KernelError("add", "route", 1)
        super().apply(changes)


@pytest.fixture
def kernel() -> Counting:
    return Counting()


@pytest.fixture
def settler(kernel: Counting, tmp_path: Path) -> Settler:
    ledger = Ledger(tmp_path / "node.db", boot.clock)
    return Settler(kernel, ledger, Attachments(ledger, kernel))


def route(number: int) -> Route:
    return Route(dst=ip_network(f"10.0.{number}.0/24"))


def said(route: Route, there: bool) -> News:
    return News(routes={route.key: (route, there)})


def test_a_peers_block_is_put_without_looking(settler: Settler, kernel: Counting) -> None:
    settler.settle(frozenset({route(1)}))
    looks = kernel.looks
    for plan in ({route(1), route(2)}, {route(2)}, {route(2)}):
        assert settler.settle(frozenset(plan)) == []
        assert {o for o in FakeKernel.observe(kernel) if isinstance(o, Route)} == plan
    assert kernel.looks == looks


def test_after_a_doubt_what_others_broke_is_found(settler: Settler, kernel: Counting) -> None:
    plan = frozenset({route(1), route(2)})
    settler.settle(plan)
    kernel.apply([Change("remove", route(1))])
    settler.settle(plan)
    assert route(1) not in FakeKernel.observe(kernel)
    settler.doubt()
    settler.settle(plan)
    assert route(1) in FakeKernel.observe(kernel)


def test_a_doubt_that_comes_while_it_settles_is_not_lost(
    settler: Settler, kernel: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = frozenset({route(1)})
    settler.settle(plan)
    settler.doubt()
    look = kernel.observe

    def disturbed(about: Plan = frozenset()) -> Plan:
        seen = look(about)
        settler.doubt()
        return seen

    monkeypatch.setattr(kernel, "observe", disturbed)
    settler.settle(plan)
    looks = kernel.looks
    settler.settle(plan)
    assert kernel.looks > looks


def test_the_kernels_word_is_no_news_where_it_repeats_ours(
    settler: Settler, kernel: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not settler.expects(said(route(1), True))  # nothing is known yet
    settler.settle(frozenset({route(1)}))
    assert settler.expects(said(route(1), True))
    assert settler.expects(said(route(2), False))
    assert not settler.expects(said(route(1), False))
    assert not settler.expects(said(route(2), True))
    moved = Route(dst=route(1).dst, dev="eth9")
    assert not settler.expects(said(moved, True))
    assert not settler.expects(News(other=True))
    apply, heard = kernel.apply, []

    def told(changes: Iterable[Change]) -> None:
        apply(changes)
        heard.append(settler.expects(said(route(2), True)))  # before `settle` has returned

    monkeypatch.setattr(kernel, "apply", told)
    settler.settle(frozenset({route(1), route(2)}))
    assert heard == [True]


def test_what_was_refused_is_looked_at_again(settler: Settler, kernel: Counting) -> None:
    settler.settle(frozenset({route(1)}))
    kernel.refuse = True
    assert settler.settle(frozenset({route(1), route(2)}))
    kernel.refuse = False
    assert settler.settle(frozenset({route(1), route(2)})) == []
    assert {route(1), route(2)} <= FakeKernel.observe(kernel)
