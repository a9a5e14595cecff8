"""Verdicts: what is refused and in which words, what is only told, and what is never refused."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from muslin.controller.verdicts import FINE, Value, Verdict, World, judge
from muslin.kube.values import name_of
from muslin.model import Block, Network, Node, Owner, Pool, Reservation

A = Pool(name="a", cidr=ip_network("10.0.0.0/24"), block=28)
B = Pool(name="b", cidr=ip_network("10.1.0.0/24"), block=28)
NET = Network(name="default", backend="vxlan", pools=("a",))
NODE = Node(name="n1", addresses=(ip_interface("192.0.2.1/24"),), mtu=1500)
HELD = Block(pool="a", cidr=ip_network("10.0.0.16/28"), node="n1")
FIXED = Reservation(
    pool="a",
    address=ip_address("10.0.0.5"),
    owner=Owner(kind="Pod", namespace="shop", name="db-0"),
    since=datetime(2026, 1, 1, tzinfo=UTC),
)


def world(*values: Any) -> World:
    kinds: dict[type, dict[str, Any]] = {k: {} for k in (Network, Pool, Node, Block, Reservation)}
    for value in values:
        kinds[type(value)][name_of(value)] = value
    return World(
        networks=kinds[Network],
        pools=kinds[Pool],
        nodes=kinds[Node],
        blocks=kinds[Block],
        addresses=kinds[Reservation],
    )


def changed(value: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


def create(value: Value, *there: Any) -> Verdict:
    return judge("CREATE", None, value, world(*there))


def update(old: Value, new: Value, *there: Any, forced: bool = False) -> Verdict:
    return judge("UPDATE", old, new, world(old, *there), forced=forced)


def delete(old: Value, *there: Any, forced: bool = False) -> Verdict:
    return judge("DELETE", old, None, world(old, *there), forced=forced)


# ── pools ───────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_may_not_overlap_another() -> None:
    wide = changed(B, cidr=ip_network("10.0.0.0/16"))
    assert create(wide, A).faults == (
        "pool b: 10.0.0.0/16 overlaps 10.0.0.0/24 of pool a; choose another cidr",
    )
    assert create(B, A) == FINE


def test_a_pool_may_not_contain_a_nodes_own_address() -> None:
    pool = changed(A, cidr=ip_network("192.0.2.0/24"))
    assert create(pool, NODE).faults == (
        "pool a: 192.0.2.0/24 contains 192.0.2.1, the address of node n1; choose another cidr",
    )


def test_the_world_may_hold_the_object_already() -> None:
    """A watch can be quicker than the answer to the write."""
    assert create(A, A, NET) == FINE
    assert create(NET, A, NET) == FINE


def test_what_was_wrong_before_is_told_and_not_refused() -> None:
    wide = changed(B, cidr=ip_network("10.0.0.0/16"))
    verdict = update(wide, changed(wide, cooldown=5.0), A)
    assert verdict.faults == ()
    assert verdict.warnings == (
        "pool b: 10.0.0.0/16 overlaps 10.0.0.0/24 of pool a; choose another cidr",
    )


def test_two_networks_that_have_a_pool_are_told_of_the_pool() -> None:
    verdict = create(A, NET, changed(NET, name="other"))
    assert verdict.faults == ()
    assert verdict.warnings == ("pool a: belongs to more than one network: default, other",)


def test_an_exclude_under_blocks_that_are_held_is_refused() -> None:
    barred = changed(A, exclude=(ip_network("10.0.0.16/30"),))
    assert update(A, barred, NET, HELD).faults == (
        "pool a: exclude 10.0.0.16/30 lies in 1 block held by node n1, which go on giving out"
        " addresses of them until their agents start again; if no pod needs that any more:"
        " kubectl annotate mpool a muslin.io/force=true",
    )
    elsewhere = changed(A, exclude=(ip_network("10.0.0.64/28"),))
    assert update(A, elsewhere, NET, HELD) == FINE
    forced = update(A, barred, NET, HELD, forced=True)
    assert forced.faults == ()
    assert "(forced)" in forced.warnings[0]


def test_excludes_that_say_the_same_otherwise_are_not_new() -> None:
    halves = changed(A, exclude=(ip_network("10.0.0.16/29"), ip_network("10.0.0.24/29")))
    whole = changed(A, exclude=(ip_network("10.0.0.16/28"),))
    assert update(halves, whole, HELD) == FINE
    assert update(whole, halves, HELD) == FINE
    assert update(whole, A, HELD) == FINE


def test_a_pool_with_blocks_is_not_deleted() -> None:
    held = [
        changed(HELD, cidr=c, node=f"n{i}") for i, c in enumerate(A.cidr.subnets(new_prefix=28))
    ]
    [fault] = delete(A, *held, FIXED).faults[:1]
    assert fault == (
        "pool a: 16 blocks held by node n0, node n1, node n10, node n11, node n12 and 11 more,"
        " and their pods would be cut off; if no pod needs that any more:"
        " kubectl annotate mpool a muslin.io/force=true"
    )
    assert delete(A, FIXED).faults[0].startswith("pool a: 1 fixed address of Pod shop/db-0; if no")
    assert delete(A, NET, B, changed(HELD, pool="b")) == FINE
    assert delete(A, *held, FIXED, forced=True).faults == ()


# ── networks ────────────────────────────────────────────────────────────────────────────────────


def test_a_network_may_come_before_its_pools() -> None:
    verdict = create(changed(NET, pools=("a", "b")), B)
    assert verdict.faults == ()
    assert verdict.warnings == ("network default: no pool is called 'a'",)


def test_a_pool_belongs_to_one_network() -> None:
    assert create(changed(NET, name="other"), NET, A).faults == (
        "pool a: already belongs to network default; make a pool of its own for this one",
    )
    both = changed(NET, name="other", pools=("b", "a"))
    assert len(update(changed(both, pools=("b",)), both, NET, A, B).faults) == 1


def test_a_backend_and_its_options_are_judged() -> None:
    [fault] = create(changed(NET, backend="carrier"), A).faults
    assert fault.startswith("backend 'carrier' is not one of: ")
    [fault] = create(changed(NET, options={"vnid": 3}), A).faults
    assert fault.startswith("unknown option 'vnid' (this backend has: ")
    [fault] = create(changed(NET, options={"vni": 0}), A).faults
    assert "$.vni" in fault


def test_faults_of_its_pools_are_no_faults_of_a_network() -> None:
    """They were made while nobody judged; the network is what mends nothing of it."""
    wide = changed(B, cidr=ip_network("10.0.0.0/16"))
    verdict = create(NET, A, wide)
    assert verdict.faults == ()
    assert verdict.warnings == ("pool a: 10.0.0.0/24 overlaps 10.0.0.0/16 of pool b",)


def test_a_network_that_nodes_take_part_in_is_not_deleted() -> None:
    [fault] = delete(NET, A, HELD).faults
    assert fault.startswith("network default: 1 block held by node n1, and their pods")
    assert fault.endswith("kubectl annotate mnet default muslin.io/force=true")
    assert delete(NET, A, B, changed(HELD, pool="b")) == FINE


def test_a_pool_with_blocks_does_not_leave_its_network() -> None:
    both = changed(NET, pools=("a", "b"))
    [fault] = update(both, changed(NET, pools=("b",)), A, B, HELD).faults
    assert fault.startswith("network default without pool a: 1 block held by node n1")
    assert update(both, NET, A, B, HELD) == FINE


# ── addresses ───────────────────────────────────────────────────────────────────────────────────


def test_an_address_is_fixed_once() -> None:
    again = changed(FIXED, pool="b")
    [same, outside] = create(again, A, B, FIXED).faults
    assert same == (
        "address 10.0.0.5: Pod shop/db-0 has it already (Address a.10.0.0.5);"
        " choose another, or delete that Address first"
    )
    assert outside == "address 10.0.0.5: is not in 10.1.0.0/24 of pool b; choose one of it"
    assert create(FIXED, A, FIXED) == FINE


def test_an_address_of_a_pool_that_comes_later() -> None:
    assert create(FIXED).warnings == ("address 10.0.0.5: no pool is called 'a'",)
    assert create(FIXED).faults == ()


def test_a_nodes_own_address_is_no_pods() -> None:
    node = changed(NODE, addresses=(ip_interface("10.0.0.5/24"),))
    assert create(FIXED, A, node).faults == ("address 10.0.0.5: is node n1's own; choose another",)


def test_an_address_is_always_given_up() -> None:
    assert delete(FIXED, A, HELD) == FINE


# ── laws ────────────────────────────────────────────────────────────────────────────────────────

prefixes = st.builds(
    lambda a, n: ip_network((a << 4 & 0xFFFFFFFF, n), strict=False),
    st.integers(0, 63).map(lambda i: (10 << 20) + i),
    st.integers(24, 28),
)
names = st.sampled_from(["a", "b", "c"])
pools = st.builds(
    lambda name, cidr, exclude: Pool(name=name, cidr=cidr, block=28, exclude=tuple(exclude)),
    names,
    prefixes,
    st.lists(prefixes, max_size=3),
)
networks = st.builds(
    lambda name, backend, of: Network(name=name, backend=backend, pools=tuple(of)),
    names,
    st.sampled_from(["vxlan", "hostgw", "none"]),
    st.lists(names, max_size=3),
)
addresses = st.builds(
    lambda pool, at: changed(FIXED, pool=pool, address=at), names, prefixes.map(lambda p: p[0])
)
blocks = st.builds(lambda pool, cidr: changed(HELD, pool=pool, cidr=cidr), names, prefixes)
judged = st.one_of(pools, networks, addresses)
worlds = st.lists(st.one_of(judged, blocks), max_size=12).map(lambda vs: world(*vs))


@given(judged, worlds)
def test_what_changes_nothing_is_never_refused(value: Value, there: World) -> None:
    again = msgspec.structs.replace(value)
    assert judge("UPDATE", value, again, there) == FINE


@given(judged, judged, worlds)
def test_a_write_and_its_undoing_are_never_both_new(one: Any, other: Any, there: World) -> None:
    """A fault belongs to one of two values: going the other way cannot bring the same one."""
    if type(one) is type(other):
        forth = judge("UPDATE", one, other, there, forced=True).faults
        back = judge("UPDATE", other, one, there, forced=True).faults
        assert not set(forth) & set(back)


@given(judged, judged, worlds)
def test_force_takes_no_fault_away_but_what_is_in_use(one: Any, other: Any, there: World) -> None:
    if type(one) is type(other):
        forced = judge("UPDATE", one, other, there, forced=True)
        plain = judge("UPDATE", one, other, there)
        assert set(forced.faults) <= set(plain.faults)
        assert all("muslin.io/force" in f for f in set(plain.faults) - set(forced.faults))
    assert judge("DELETE", one, None, there, forced=True).faults == ()


@given(pools, worlds)
def test_no_two_pools_that_were_both_let_pass_overlap(pool: Pool, there: World) -> None:
    if not judge("CREATE", None, pool, there).faults:
        others = [p for p in there.pools.values() if p.name != pool.name]
        assert not any(pool.cidr.overlaps(p.cidr) for p in others)
