"""Laws of `diff` on random plans, applied to the fake kernel and to a real one."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grounds import FakeGround, Ground, fake_ground, real_ground
from muslin.kernel import settle
from muslin.plan.diff import diff, step
from muslin.plan.node import RULES
from muslin.plan.objects import (
    Addr,
    Element,
    Fdb,
    Link,
    LinkKind,
    Neigh,
    Object,
    Plan,
    Police,
    Route,
    Rule,
    Ruleset,
    Shaper,
    Sysctl,
    Veth,
    Vxlan,
)
from muslin.plan.render import render_changes

LOCAL = ip_address("192.0.2.1")
KINDS: tuple[LinkKind, ...] = (
    Veth(peer="mu.a-x"),
    Vxlan(vni=1, port=8472, local=LOCAL),
    Vxlan(vni=2, port=8472, local=LOCAL),
)
BODIES = ("\tset e { type ipv4_addr; }\n", "\tset e { type ipv4_addr; }\n\tchain c { }\n")


# What pods put into the node's table, hand-packed where the table stays.
PODS: tuple[Object, ...] = (
    *(Element(set="ports4", item="udp . 53", data=f"10.8.0.{n} . 53") for n in (1, 2)),
    Element(set="ports6", item="tcp . 80", data="fd00:8::1 . 8080"),
    Element(set="ipports4", item="192.0.2.1 . sctp . 9", data="10.8.0.1 . 9"),
    Element(set="ipports6", item="2001:db8:a::1 . tcp . 6", data="fd00:8::1 . 17"),
    Element(set="hairpins4", item="10.8.0.1 . 10.8.0.1"),
    Element(set="hairpins6", item="fd00:8::1 . fd00:8::1"),
    *(Police(name="mu12345678", rate=r, burst=b) for r, b in ((1_000, 1), (1 << 33, 1 << 31))),
    Police(name="mu.a", rate=1 << 20, burst=1 << 20),
)


def some(*objects: Object) -> st.SearchStrategy[frozenset[Object]]:
    """Any of them."""
    return st.frozensets(st.sampled_from(objects))


def one_of_each_slot(objects: frozenset[Object]) -> Plan:
    return frozenset({o.key: o for o in sorted(objects, key=repr)}.values())


@st.composite
def on_link(draw: st.DrawFn, name: str) -> Plan:
    """A link of any kind, with any of what can stand on it."""
    kind = draw(st.sampled_from(KINDS if name == "mu.a" else (Veth(peer=f"{name}-x"),)))
    mtu = draw(st.sampled_from((1300, 1400)))
    number = 1 if name == "mu.a" else 2
    mac = draw(st.sampled_from((f"02:00:00:00:00:0{number}", f"02:00:00:00:01:0{number}")))
    link = Link(name=name, kind=kind, mtu=mtu, mac=mac)
    hop, hop6 = ip_address(f"10.8.{number}.1"), ip_address(f"fd00:8::{number}")
    standing = draw(
        some(
            Addr(dev=name, address=ip_interface(f"10.1.0.{number}/32")),
            Addr(dev=name, address=ip_interface(f"fd00:1::{number}/128")),
            Neigh(dev=name, address=hop, mac="02:00:00:00:00:0a"),
            Neigh(dev=name, address=hop, mac="02:00:00:00:00:0b"),
            Neigh(dev=name, address=hop6, mac="02:00:00:00:00:0a"),
            Sysctl(name=f"net/ipv4/conf/{name}/rp_filter", value="2"),
            Shaper(dev=name, rate=2_500_000, burst=102_400),
            Shaper(dev=name, rate=6_000_000_000, burst=1_048_576),
            *(Route(dst=ip_network(d), dev=name) for d in ("10.8.8.0/24", "fd00:8:8::/64")),
            Route(dst=ip_network("10.8.9.0/24"), via=hop, dev=name, onlink=True),
            Route(dst=ip_network("fd00:8:9::/64"), via=hop6, dev=name, onlink=True),
        )
    )
    if isinstance(kind, Vxlan):
        entries = [
            Fdb(dev=name, mac="02:00:00:00:00:0a", dst=ip_address(d))
            for d in ("192.0.2.8", "192.0.2.9")
        ]
        standing |= draw(some(*entries))
    return frozenset({link}) | standing


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any valid plan of a small universe, in which slots collide often."""
    objects: frozenset[Object] = frozenset()
    for name in draw(st.frozensets(st.sampled_from(("mu.a", "mu.b")))):
        objects |= draw(on_link(name))
    objects |= draw(
        some(
            Route(dst=ip_network("10.8.8.0/24")),
            Route(dst=ip_network("fd00:8:8::/64")),
            Route(dst=ip_network("10.8.8.0/24"), via=ip_address("192.0.2.8"), dev="eth0"),
            Route(dst=ip_network("10.8.9.0/24"), via=ip_address("192.0.2.8"), dev="eth0"),
            Route(dst=ip_network("10.8.9.0/24"), via=ip_address("192.0.2.9"), dev="eth0"),
            Route(dst=ip_network("fd00:8:8::/64"), via=ip_address("2001:db8:a::8"), dev="eth0"),
            Route(dst=ip_network("10.8.8.0/24"), dev="eth0", table=109),
            Rule(src=ip_network("10.8.0.0/16"), table=109, priority=1090),
            Rule(src=ip_network("fd00:8::/32"), table=109, priority=1090, unless=1 << 24),
            Sysctl(name="net/ipv4/conf/eth0/forwarding", value="1"),
        )
    )
    if draw(st.booleans()):
        return one_of_each_slot(objects | {Ruleset(body=RULES)} | draw(some(*PODS)))
    if body := draw(st.sampled_from((None, *BODIES))):
        items = (Element(set="e", item=f"10.0.0.{n}") for n in (1, 2, 3))
        objects |= {Ruleset(body=body)} | draw(some(*items))
    return one_of_each_slot(objects)


@pytest.fixture(scope="module")
def real() -> Iterator[Ground]:
    with real_ground() as made:
        yield made


def check(ground: Ground, plan: Plan) -> None:
    settle(ground.kernel, plan)
    assert render_changes(diff(plan, ground.kernel.observe(plan))) == ""
    marked = {o for o in plan if not isinstance(o, Sysctl)}
    assert {o.key for o in ground.kernel.observe()} == {o.key for o in marked}


@given(before=plans(), after=plans())
def test_what_was_settled_needs_no_change(before: Plan, after: Plan) -> None:
    with fake_ground() as ground:
        check(ground, before)
        check(ground, after)


@given(before=plans(), after=plans())
def test_nothing_of_others_is_touched(before: Plan, after: Plan) -> None:
    with fake_ground() as ground:
        assert isinstance(ground, FakeGround)
        ground.kernel.strangers |= {
            o.key: o for o in (Route(dst=ip_network("10.77.0.0/24")), Link(name="x", kind=Veth()))
        }
        theirs = dict(ground.kernel.strangers)
        check(ground, before)
        check(ground, after)
        others = {k: o for k, o in ground.kernel.strangers.items() if str(k[2])[-2:] != "-x"}
        assert others == theirs


@given(before=plans(), after=plans())
def test_routes_are_put_before_routes_are_taken_away(before: Plan, after: Plan) -> None:
    """Except on a link that loses its last IPv4 address, and its routes with it."""
    changes = [c for c in diff(after, before) if isinstance(c.obj, Route)]
    verbs = [c.verb == "remove" for c in changes if c.obj.dev == "eth0" or c.verb == "remove"]
    assert all(earlier <= later for earlier, later in pairwise(verbs))


@given(before=plans(), after=plans())
def test_a_slot_that_stays_is_never_emptied_unless_its_link_is_made_anew(
    before: Plan, after: Plan
) -> None:
    stays = {o.key for o in before} & {o.key for o in after}
    removed = {c.obj.key for c in diff(after, before) if c.verb == "remove"}
    assert all(key[0] in {"link", "ruleset"} for key in stays & removed)


@given(before=plans(), after=plans())
def test_equal_plans_give_equal_changes_in_equal_order(before: Plan, after: Plan) -> None:
    again = [frozenset(sorted(p, key=repr, reverse=True)) for p in (after, before)]
    assert render_changes(diff(after, before)) == render_changes(diff(*again))


@pytest.mark.root
@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(plan=plans())
def test_a_real_kernel_goes_from_any_plan_to_any_other(real: Ground, plan: Plan) -> None:
    """Each example starts from where the last one ended."""
    check(real, plan)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(plans(), min_size=2, max_size=6))
def test_a_step_leads_to_what_looking_would_have_led_to(sequence: list[Plan]) -> None:
    """Where it is offered at all; `None` says that only looking tells."""
    with fake_ground() as ground:
        settle(ground.kernel, sequence[0])
        for before, after in pairwise(sequence):
            changes = step(before, after)
            if changes is None:
                settle(ground.kernel, after)
            else:
                ground.kernel.apply(changes)
                assert render_changes(diff(after, ground.kernel.observe(after))) == ""


def test_a_step_is_offered_for_peers_that_come_go_and_move() -> None:
    link = Link(name="mu.a", kind=KINDS[1], mtu=1400)
    block, hop = ip_network("10.8.9.0/24"), ip_address("10.8.1.1")
    tunnel = {
        Route(dst=block, via=hop, dev="mu.a", onlink=True),
        Neigh(dev="mu.a", address=hop, mac="02:00:00:00:00:0a"),
        Fdb(dev="mu.a", mac="02:00:00:00:00:0a", dst=ip_address("192.0.2.8")),
    }
    plain = {Route(dst=block, via=ip_address("192.0.2.8"), dev="eth0")}
    alone = frozenset({link})
    with fake_ground() as ground:
        settle(ground.kernel, alone)
        for before, after in pairwise([alone, alone | tunnel, alone | plain, alone]):
            changes = step(before, after)
            assert changes
            ground.kernel.apply(changes)
            assert render_changes(diff(after, ground.kernel.observe(after))) == ""
    assert step(alone, alone) == []
    assert step(alone, frozenset()) is None
