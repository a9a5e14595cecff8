"""When the sync loop looks at the kernel, and when it trusts what it knows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
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
from muslin.plan.objects import Addr, Link, Object, Plan, Present, Route
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
    """A kernel that counts how often it is looked at, and refuses when told.

    What happens while it is looked at, `before` and `after` the picture is
    taken, happens once.
    """

    def __init__(self, present: Plan = frozenset(), *, strangers: Plan = frozenset()) -> None:
        super().__init__(present, strangers=strangers)
        self.looks, self.refuse = 0, False
        self.before: list[Callable[[], object]] = []
        self.after: list[Callable[[], object]] = []

    def observe(self, about: Plan = frozenset()) -> Plan:
        self.looks += 1
        before, after = self.before, self.after
        self.before, self.after = [], []  # none of it happens in looks that it leads to
        for happens in before:
            happens()
        seen = super().observe(about)
        for happens in after:
            happens()
        return seen

    def lose(self, key: tuple[object, ...]) -> None:
        """Somebody removes what is in that slot."""
        if key[0] == "link":
            self._drop_link(key)
        self._ours.pop(key, None)

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


@pytest.mark.parametrize("network", NETWORKS)
def test_a_node_that_joins_with_its_block_is_put_without_looking(
    tmp_path: Path, network: str
) -> None:
    """Its own address, which pods reach as they are, is one element more in our table."""
    uplink = Link(name="eth0", kind=Present(), mtu=1500)
    address = Addr(dev="eth0", address=ip_interface("192.0.2.1/24"))
    kernel = Counting(frozenset({uplink}), strangers=frozenset({address}))
    ledger = Ledger(tmp_path / "node.db", boot.clock)
    settler = Settler(kernel, ledger, Attachments(ledger, kernel))
    peer = PEERS[0]
    alone = World(networks={network: NETWORKS[network]}, pools={"a": POOL})
    block = Block(pool="a", cidr=ip_network("10.0.3.0/26"), node=peer.name)
    joined = replace(alone, nodes={peer.name: peer}, blocks=(block,))
    settler.settle(desired(sites(alone, ME, HOST)).plan)
    looks, after = kernel.looks, desired(sites(joined, ME, HOST)).plan
    for plan in (after, desired(sites(alone, ME, HOST)).plan, after):
        assert settler.settle(plan) == []
    assert kernel.looks == looks
    assert settler.pending(after) == []
    ledger.close()


def test_after_a_doubt_what_others_broke_is_found(settler: Settler, kernel: Counting) -> None:
    plan = frozenset({route(1), route(2)})
    settler.settle(plan)
    kernel.apply([Change("remove", route(1))])
    settler.settle(plan)
    assert route(1) not in FakeKernel.observe(kernel)
    settler.doubt()
    assert settler.doubtful
    assert settler.check()
    assert route(1) in FakeKernel.observe(kernel)
    assert not settler.doubtful


def test_without_a_doubt_nothing_is_looked_at(settler: Settler, kernel: Counting) -> None:
    settler.settle(frozenset({route(1)}))
    looks = kernel.looks
    assert settler.check()
    assert kernel.looks == looks


def test_a_doubt_that_comes_while_it_looks_is_not_lost(settler: Settler, kernel: Counting) -> None:
    kernel.after = [settler.doubt]
    settler.settle(frozenset({route(1)}))
    assert settler.doubtful
    kernel.after = [settler.doubt]
    assert settler.check()
    assert settler.doubtful
    assert settler.check()
    assert not settler.doubtful


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


# ── steps while a check looks ──────────────────────────────────────────────────────────────────


def routes(kernel: Counting) -> set[Object]:
    return {o for o in FakeKernel.observe(kernel) if isinstance(o, Route)}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_step_during_a_check_stands(settler: Settler, kernel: Counting, moment: str) -> None:
    """Neither is what it put taken for a stray, nor what it took away for something missing."""
    settler.settle(frozenset({route(1), route(2)}))
    kernel.lose(route(1).key)
    settler.doubt()
    after = frozenset({route(2), route(3)})
    getattr(kernel, moment).append(lambda: settler.settle(after))
    looks = kernel.looks
    assert settler.check()
    assert routes(kernel) == after
    assert kernel.looks == looks + 1
    settler.settle(after | {route(4)})
    assert routes(kernel) == after | {route(4)}


def test_a_step_does_not_wait_for_a_check(settler: Settler, kernel: Counting) -> None:
    settler.settle(frozenset({route(1)}))
    settler.doubt()
    looking, done = threading.Event(), threading.Event()
    kernel.before = [looking.set, lambda: done.wait(20)]
    other = threading.Thread(target=settler.check)
    other.start()
    try:
        assert looking.wait(20)
        settler.settle(frozenset({route(1), route(2)}))  # would wait for `done`
        assert routes(kernel) == {route(1), route(2)}
    finally:
        done.set()
        other.join()
    assert routes(kernel) == {route(1), route(2)}


def test_what_others_break_during_a_check_is_mended_by_the_next(
    settler: Settler, kernel: Counting
) -> None:
    plan = frozenset({route(1), route(2)})
    settler.settle(plan)
    kernel.lose(route(1).key)
    settler.doubt()
    kernel.after = [lambda: kernel.lose(route(2).key), settler.doubt]
    assert settler.check()
    assert routes(kernel) == {route(1)}
    assert settler.doubtful
    assert settler.check()
    assert routes(kernel) == plan


def test_a_step_that_is_refused_during_a_check_is_looked_at_whole(
    settler: Settler, kernel: Counting
) -> None:
    """Somebody has put something else where the step's route goes, before the picture is taken."""
    settler.settle(frozenset({route(1)}))
    settler.doubt()
    stray = Route(dst=route(2).dst, table=254, onlink=True)
    after = frozenset({route(1), route(2)})
    kernel.before = [lambda: kernel.apply([Change("add", stray)]), lambda: settler.settle(after)]
    looks = kernel.looks
    assert settler.check()
    assert routes(kernel) == after
    assert kernel.looks == looks + 2  # the check's and the whole one, which made the first void


def test_a_whole_look_makes_void_what_a_check_has_seen(settler: Settler, kernel: Counting) -> None:
    settler.settle(frozenset({route(1), route(2)}))
    kernel.lose(route(1).key)
    settler.doubt()
    address = Addr(dev="lo", address=ip_interface("10.9.9.9/32"))  # no step leads there
    after = frozenset({route(2), address})
    kernel.after = [lambda: settler.settle(after)]
    assert settler.check()
    assert routes(kernel) == {route(2)}
    assert not settler.doubtful
    assert settler.pending(after) == []


def test_what_a_check_cannot_mend_is_left_to_a_whole_look(
    settler: Settler, kernel: Counting
) -> None:
    settler.settle(frozenset({route(1)}))
    kernel.lose(route(1).key)
    settler.doubt()
    kernel.refuse = True
    assert not settler.check()
    kernel.refuse = False
    assert settler.settle(frozenset({route(1)})) == []
    assert routes(kernel) == {route(1)}


MOMENTS = st.sampled_from(["nothing", "lost", "step"])


@settings(deadline=None)  # each has a node.db on the disk
@given(
    first=worlds(), steps=st.lists(worlds(), min_size=6, max_size=6), data=st.data(),
    rounds=st.lists(st.tuples(MOMENTS, MOMENTS, MOMENTS), min_size=1, max_size=3),
)  # fmt: skip
def test_whatever_happens_around_a_check_the_kernel_ends_as_planned(
    first: World, steps: list[World], rounds: list[tuple[str, ...]], data: st.DataObject
) -> None:
    """Anything is lost or changes before a check, during it on either side of its picture."""
    uplink = Link(name="eth0", kind=Present(), mtu=1500)
    address = Addr(dev="eth0", address=ip_interface("192.0.2.1/24"))
    kernel = Counting(frozenset({uplink}), strangers=frozenset({address}))
    with TemporaryDirectory() as home:
        ledger = Ledger(Path(home) / "node.db", boot.clock)
        settler = Settler(kernel, ledger, Attachments(ledger, kernel))
        plans = iter([desired(sites(w, ME, HOST)).plan for w in steps * 2])
        current = [desired(sites(first, ME, HOST)).plan]

        def happen(what: str) -> None:
            if what == "step":
                current.append(next(plans))
                settler.settle(current[-1])
            elif what == "lost" and kernel._ours:
                kernel.lose(data.draw(st.sampled_from(sorted(kernel._ours, key=repr))))
                settler.doubt()

        assert settler.settle(current[-1]) == []
        for at_first, before, after in rounds:
            happen(at_first)
            kernel.before = [lambda what=before: happen(what)]  # type: ignore[misc]
            kernel.after = [lambda what=after: happen(what)]  # type: ignore[misc]
            settler.check()
            kernel.before, kernel.after = [], []  # where nothing was to be checked
        for _ in range(2):  # the passes that follow: one may find that the next has to look whole
            assert settler.settle(current[-1]) == []
            settler.check()
        assert settler.settle(current[-1]) == []
        assert settler.pending(current[-1]) == []
        ledger.close()
