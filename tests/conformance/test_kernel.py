"""What `Kernel` promises, of the real one and the fake.  One law a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from errno import EEXIST, ENODEV, EPERM
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from grounds import Ground, RealGround, fake_ground, lo, own_link, real_ground, to
from muslin.backend import load
from muslin.errors import KernelError
from muslin.kernel import codec, netns, settle
from muslin.kernel.linux import LinuxKernel
from muslin.kernel.netlink import Socket
from muslin.model import Host, Network, Nic, Node, Peer, Pool, Site
from muslin.plan import node, pod
from muslin.plan.diff import Change, diff
from muslin.plan.objects import (
    Addr,
    Element,
    Fdb,
    Link,
    Neigh,
    Object,
    Plan,
    Present,
    Route,
    Rule,
    Ruleset,
    Sysctl,
    Veth,
    Vxlan,
)
from muslin.plan.render import render_changes
from namespaces import run


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.root)])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with fake_ground() if request.param == "fake" else real_ground() as made:
        yield made


@pytest.fixture
def real() -> Iterator[RealGround]:
    with real_ground() as made:
        assert isinstance(made, RealGround)
        yield made


def whole(ground: Ground, *, moved: bool = False) -> Plan:
    """Everything a node with one pod and three peers holds, of every kind of object."""
    host = Host(uplink="eth0")
    second = ("198.51.100.2/24", "2001:db8:b::2/64") if moved else ("192.0.2.2/24",)
    site = Site(
        me=_node("n1", "192.0.2.1/24", "2001:db8:a::1/64"),
        host=host,
        network=Network(name="pods", backend="vxlan", pools=("p4", "p6")),
        pools=(
            Pool(name="p4", cidr=ip_network("10.244.0.0/16")),
            Pool(name="p6", cidr=ip_network("fd00:244::/112")),
        ),
        blocks=(ip_network("10.244.0.0/26"), ip_network("fd00:244::/122")),
        peers=(
            Peer(node=_node("n2", *second), blocks=(ip_network("10.244.0.64/26"),)),
            Peer(node=_node("n3", "198.51.100.3/24"), blocks=(ip_network("fd00:244::80/122"),)),
            Peer(node=_node("vm1", "198.51.100.9/24", pods=False)),
        ),
    )
    backend = load(site.network)
    plan = node.base([site]) | backend.node(site)
    for peer in site.peers:
        plan |= backend.peer(site, peer)
    nic = Nic(
        container="c1",
        ifname="eth0",
        netns=ground.pod,
        addresses=(ip_address("10.244.0.5"), ip_address("fd00:244::5")),
        mtu=1450,
        host=host,
    )
    return plan | pod.routed(nic)


def _node(name: str, *addresses: str, pods: bool = True) -> Node:
    mac = f"0e:00:00:00:00:{len(name)}{name[-1]}"
    known = tuple(ip_interface(a) for a in addresses)
    return Node(name=name, addresses=known, mtu=1500, pods=pods, data={"pods": {"mac": mac}})


def left(ground: Ground, plan: Plan) -> str:
    """What would still have to change."""
    return render_changes(diff(plan, ground.kernel.observe(plan)))


def make(ground: Ground, *objects: Object) -> None:
    ground.kernel.apply([Change("add", o) for o in objects])


def seen(ground: Ground, *about: Object) -> Plan:
    return ground.kernel.observe(frozenset(about))


# ── settling ────────────────────────────────────────────────────────────────────────────────────


def test_the_whole_plan_has_every_kind_of_object(ground: Ground) -> None:
    kinds = {Link, Sysctl, Addr, Neigh, Fdb, Route, Rule, Ruleset, Element}
    assert {type(o) for o in whole(ground)} == kinds


def test_settling_twice_changes_nothing_the_second_time(ground: Ground) -> None:
    assert settle(ground.kernel, whole(ground))
    assert render_changes(settle(ground.kernel, whole(ground))) == ""


def test_settling_back_and_forth_holds_either_plan(ground: Ground) -> None:
    for moved in (False, True, False):
        settle(ground.kernel, whole(ground, moved=moved))
        assert left(ground, whole(ground, moved=moved)) == ""


def test_an_empty_plan_leaves_nothing_of_ours(ground: Ground) -> None:
    settle(ground.kernel, whole(ground))
    settle(ground.kernel, frozenset())
    assert ground.kernel.observe() == frozenset()


@pytest.mark.parametrize("field", [{"mtu": 1300}, {"mac": "02:00:00:00:00:0b"}], ids=str)
def test_a_changed_mtu_or_mac_is_set_in_place_and_keeps_the_neighbours(
    ground: Ground, field: dict[str, object]
) -> None:
    """A new MAC makes the kernel drop them, permanent ones too: they are put back."""
    neighbour = Neigh(dev="mu.a", address=ip_address("10.0.0.9"), mac="02:00:00:00:00:09")
    make(ground, own_link(), neighbour)
    wanted: Plan = frozenset({own_link(**field), neighbour})
    changes = settle(ground.kernel, wanted)
    assert changes[0].verb == "replace"
    assert left(ground, wanted) == ""


def test_a_link_that_somebody_took_down_is_brought_up_in_place(ground: Ground) -> None:
    plan: Plan = frozenset({own_link(), Route(dst=ip_network("10.9.0.0/24"), dev="mu.a")})
    settle(ground.kernel, plan)
    ground.stranger_takes_down("mu.a")
    changes = settle(ground.kernel, plan)
    assert [(c.verb, type(c.obj)) for c in changes] == [("replace", Link), ("add", Route)]
    assert left(ground, plan) == ""


def test_a_link_that_loses_its_last_ipv4_address_keeps_its_routes(ground: Ground) -> None:
    """The kernel drops them with the address, silently: they are put after that."""
    hop = ip_address("10.0.0.9")
    stays: Plan = frozenset(
        {
            own_link(),
            Addr(dev="mu.a", address=ip_interface("fd00::1/128")),
            Neigh(dev="mu.a", address=hop, mac="02:00:00:00:00:09"),
            Route(dst=ip_network("10.9.0.0/24"), via=hop, dev="mu.a", onlink=True),
            Route(dst=ip_network("fd00:9::/64"), dev="mu.a"),
        }
    )
    settle(ground.kernel, stays | {Addr(dev="mu.a", address=ip_interface("10.0.0.1/32"))})
    settle(ground.kernel, stays)
    assert left(ground, stays) == ""


def test_what_hung_on_a_rebuilt_link_comes_back(ground: Ground) -> None:
    def tunnel(vni: int) -> Plan:
        kind = Vxlan(vni=vni, port=8472, local=ip_address("192.0.2.1"))
        hop = ip_address("10.244.9.0")
        return frozenset(
            {
                Link(name="mu.vx", kind=kind, mtu=1400, mac="02:00:00:00:00:0a"),
                Addr(dev="mu.vx", address=ip_interface("10.244.0.0/32")),
                Neigh(dev="mu.vx", address=hop, mac="02:00:00:00:00:0c"),
                Fdb(dev="mu.vx", mac="02:00:00:00:00:0c", dst=ip_address("192.0.2.9")),
                Route(dst=ip_network("10.244.9.0/26"), via=hop, dev="mu.vx", onlink=True),
            }
        )

    settle(ground.kernel, tunnel(1))
    settle(ground.kernel, tunnel(2))
    assert left(ground, tunnel(2)) == ""


def test_elements_that_overlap_replace_each_other_in_one_go(ground: Ground) -> None:
    def estate(prefix: str) -> Plan:
        table = Ruleset(body="\tset e { type ipv4_addr; flags interval; }\n")
        return frozenset({table, Element(set="e", item=prefix)})

    for prefix in ("10.0.0.0/16", "10.0.0.0/8", "10.0.0.1"):
        settle(ground.kernel, estate(prefix))
        assert left(ground, estate(prefix)) == ""


def test_a_maps_entry_takes_new_data(ground: Ground) -> None:
    body = "\tmap m { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }\n"
    for target in ("10.0.0.2 . 8080", "10.0.0.3 . 80"):
        entry = Element(set="m", item="10.0.0.1 . tcp . 80", data=target)
        plan: Plan = frozenset({Ruleset(body=body), entry})
        settle(ground.kernel, plan)
        assert left(ground, plan) == ""


def test_another_text_rebuilds_the_table_with_its_elements(ground: Ground) -> None:
    for comment in ("one", "two"):
        body = f"\tset e {{ type ipv4_addr; }}\n\t# {comment}\n"
        plan: Plan = frozenset({Ruleset(body=body), Element(set="e", item="10.0.0.1")})
        settle(ground.kernel, plan)
        assert left(ground, plan) == ""


# ── strangers ───────────────────────────────────────────────────────────────────────────────────

STRANGERS: tuple[Route | Addr | Link, ...] = (
    to("10.77.0.0/24", "192.0.2.7"),
    to("fd00:77::/64", "2001:db8:a::7"),
    Addr(dev="eth0", address=ip_interface("192.0.2.77/24")),
    Link(name="theirs", kind=Veth()),
)


def test_what_others_put_is_neither_seen_nor_pruned(ground: Ground) -> None:
    for obj in STRANGERS:
        ground.stranger_adds(obj)
    assert ground.kernel.observe() == frozenset()
    settle(ground.kernel, whole(ground))
    settle(ground.kernel, frozenset())
    assert [o for o in STRANGERS if not ground.stranger_has(o)] == []


@pytest.mark.parametrize("dst", ["10.77.0.0/24", "fd00:77::/64"])
def test_a_strangers_route_is_not_overwritten_and_the_refusal_names_it(
    ground: Ground, dst: str
) -> None:
    theirs = to(dst, "192.0.2.7" if "." in dst else "2001:db8:a::7")
    ground.stranger_adds(theirs)
    with pytest.raises(KernelError, match=rf"add ip .*route unreachable {dst} .*EEXIST") as caught:
        settle(ground.kernel, frozenset({Route(dst=ip_network(dst))}))
    assert caught.value.errno == EEXIST
    assert ground.stranger_has(theirs)


def test_a_strangers_link_is_not_taken_over(ground: Ground) -> None:
    ground.stranger_adds(STRANGERS[-1])
    with pytest.raises(KernelError, match=r"link theirs .*EEXIST"):
        settle(ground.kernel, frozenset({own_link("theirs")}))
    assert ground.stranger_has(STRANGERS[-1])


def test_a_strangers_link_is_not_removed(ground: Ground) -> None:
    ground.stranger_adds(STRANGERS[-1])
    with pytest.raises(KernelError) as caught:
        ground.kernel.apply([Change("remove", own_link("theirs"))])
    assert caught.value.errno == EPERM
    assert ground.stranger_has(STRANGERS[-1])


def test_removing_a_route_does_not_hit_a_strangers_of_the_same_prefix(ground: Ground) -> None:
    theirs = to("10.77.0.0/24", "192.0.2.7")
    ground.stranger_adds(theirs)
    ground.kernel.apply([Change("remove", to("10.77.0.0/24", "192.0.2.7"))])
    assert ground.stranger_has(theirs)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "obj",
    [
        Addr(dev="gone", address=ip_interface("10.0.0.1/32")),
        Route(dst=ip_network("10.0.0.0/24"), dev="gone"),
        Neigh(dev="gone", address=ip_address("10.0.0.1"), mac="02:00:00:00:00:01"),
        Link(name="gone", kind=Present(), mtu=1400),
    ],
    ids=lambda o: type(o).__name__,
)
def test_nothing_stands_on_a_device_that_is_not_there(ground: Ground, obj: Object) -> None:
    with pytest.raises(KernelError, match="gone") as caught:
        make(ground, obj)
    assert caught.value.errno == ENODEV


def test_a_next_hop_has_to_be_on_the_link(ground: Ground) -> None:
    with pytest.raises(KernelError, match=r"route 10\.9\.0\.0/24 via 203\.0\.113\.9"):
        make(ground, to("10.9.0.0/24", "203.0.113.9"))
    make(ground, replace(to("10.9.0.0/24", "203.0.113.9"), onlink=True))


def test_a_taken_slot_is_refused_also_to_ourselves(ground: Ground) -> None:
    make(ground, own_link())
    for obj in (
        own_link(),
        to("10.9.0.0/24", "192.0.2.9"),
        Addr(dev="mu.a", address=ip_interface("10.0.0.1/32")),
        Neigh(dev="mu.a", address=ip_address("10.0.0.1"), mac="02:00:00:00:00:01"),
        Rule(src=ip_network("10.0.0.0/16"), table=109, priority=1090),
    ):
        if not isinstance(obj, Link):
            make(ground, obj)
        with pytest.raises(KernelError) as caught:
            make(ground, obj)
        assert caught.value.errno == EEXIST


def test_a_rule_takes_the_place_of_one_with_another_condition(ground: Ground) -> None:
    """As when an older version's is replaced; and it is not the new one that goes."""
    src = ip_network("10.0.0.0/16")
    rules = [Rule(src=src, table=109, priority=1090, unless=bits) for bits in (0, 1 << 24, 1 << 25)]
    make(ground, rules[0])
    for before, after in ((0, 1), (1, 2), (2, 0)):
        ground.kernel.apply(diff(frozenset({rules[after]}), seen(ground)))
        assert seen(ground) == {rules[after]}, before


def test_what_went_before_a_refusal_stays_and_removals_after_it_do_not_happen(
    ground: Ground,
) -> None:
    old, good = to("10.8.0.0/24", "192.0.2.8"), to("10.9.0.0/24", "192.0.2.9")
    bad = to("10.10.0.0/24", "203.0.113.9")
    make(ground, old)
    with pytest.raises(KernelError, match=r"10\.10\.0\.0/24"):
        ground.kernel.apply([Change("add", good), Change("add", bad), Change("remove", old)])
    assert seen(ground) == {old, good}


# ── absence ─────────────────────────────────────────────────────────────────────────────────────


def absent(ns: str | None) -> tuple[Object, ...]:
    return (
        replace(own_link("mu.gone"), ns=ns),
        Addr(ns=ns, dev="lo", address=ip_interface("10.0.0.1/32")),
        Addr(ns=ns, dev="gone", address=ip_interface("10.0.0.1/32")),
        Neigh(ns=ns, dev="lo", address=ip_address("10.0.0.1"), mac="02:00:00:00:00:01"),
        Route(ns=ns, dst=ip_network("10.0.0.0/24")),
        Route(ns=ns, dst=ip_network("fd00::/64"), dev="lo"),
        Route(ns=ns, dst=ip_network("10.0.0.0/24"), dev="gone"),
        Rule(ns=ns, src=ip_network("10.0.0.0/16"), table=109, priority=1090),
        Element(ns=ns, set="e", item="10.0.0.1"),
        Ruleset(ns=ns, body=""),
    )


def test_removing_what_is_absent_is_success(ground: Ground) -> None:
    for obj in (*absent(None), *absent(ground.pod), *absent(f"{ground.pod}-gone")):
        ground.kernel.apply([Change("remove", obj)])


def test_removing_an_absent_element_does_not_keep_others_from_being_removed(
    ground: Ground,
) -> None:
    body = "\tset e { type ipv4_addr; }\n"
    make(ground, Ruleset(body=body), Element(set="e", item="10.0.0.1"))
    gone = [Element(set="e", item=i) for i in ("10.0.0.9", "10.0.0.1")]
    ground.kernel.apply([Change("remove", e) for e in gone])
    assert {o for o in seen(ground) if isinstance(o, Element)} == set()


def test_what_does_not_exist_is_simply_not_observed(ground: Ground) -> None:
    nowhere = f"{ground.pod}-gone"
    assert seen(
        ground,
        Sysctl(name="net/ipv4/conf/gone/forwarding", value="1"),
        Addr(ns=nowhere, dev="eth0", address=ip_interface("10.0.0.1/32")),
        Link(ns=ground.pod, name="gone", kind=Present()),
        Link(name="gone", kind=Present()),
    ) == frozenset()  # fmt: skip


# ── other namespaces ────────────────────────────────────────────────────────────────────────────


def pair_into(ns: str) -> tuple[Object, ...]:
    host = Link(name="mu.p", kind=Veth(peer="eth0", peer_ns=ns), mtu=1400, mac="02:00:00:00:00:0a")
    return (
        host,
        lo(ns),
        Link(ns=ns, name="eth0", kind=Present(), mtu=1400, mac="02:00:00:00:00:0b"),
        Addr(ns=ns, dev="eth0", address=ip_interface("10.0.0.5/32")),
        Addr(ns=ns, dev="eth0", address=ip_interface("fd00::5/128")),
    )


def test_another_namespace_is_looked_at_only_when_named(ground: Ground) -> None:
    objects = pair_into(ground.pod)
    make(ground, *objects)
    assert {o.ns for o in seen(ground)} == {None}
    assert left(ground, frozenset(objects)) == ""


def test_both_ends_of_a_pair_go_together(ground: Ground) -> None:
    host, *rest = pair_into(ground.pod)
    make(ground, host, *rest)
    ground.kernel.apply([Change("remove", host)])
    assert {o for o in seen(ground, host, *rest) if o.dev != "lo"} == set()


# ── the real kernel only ────────────────────────────────────────────────────────────────────────


@pytest.mark.root
def test_a_moved_peer_is_never_without_a_route(real: RealGround) -> None:
    """On the wire between kernel and agent: no route is deleted while n2 moves, either way."""
    groups = (7, 11)  # RTNLGRP_IPV4_ROUTE, _IPV6_ROUTE
    for before, after in ((False, True), (True, False)):
        settle(real.kernel, whole(real, moved=before))
        plan = whole(real, moved=after)
        with Socket(groups) as sniffer:
            settle(real.kernel, plan)
            events, lost = sniffer.drain()
        assert not lost
        blocks = {o.dst for o in plan if isinstance(o, Route) and o.via}
        deleted = [codec.read_route(None, b, {}) for kind, b in events if kind == codec.DELROUTE]
        assert [r for r in deleted if r and r.dst in blocks] == []
        assert left(real, plan) == ""


@pytest.mark.root
@pytest.mark.parametrize("version", [4, 6])
def test_a_route_becomes_any_other_kind_of_route_in_place(real: RealGround, version: int) -> None:
    dst = ip_network("10.9.0.0/24" if version == 4 else "fd00:9::/64")
    hop = ip_address("192.0.2.9" if version == 4 else "2001:db8:a::9")
    kinds = [
        Route(dst=dst),
        Route(dst=dst, dev="eth0"),
        Route(dst=dst, via=hop, dev="eth0"),
        Route(dst=dst, via=hop, dev="eth0", onlink=True),
    ]
    for before in kinds:
        for after in kinds:
            settle(real.kernel, frozenset({before}))
            settle(real.kernel, frozenset({after}))
            assert real.kernel.observe() == {after}
    settle(real.kernel, frozenset())
    assert real.kernel.observe() == frozenset()


@pytest.mark.root
@pytest.mark.parametrize(
    "damage",
    [
        "nft flush chain inet muslin guard",
        "nft add rule inet muslin guard accept",
        "nft delete table inet muslin",
        "nft delete element inet muslin estate4 '{ 192.0.2.1 }'",
        "nft add element inet muslin estate4 '{ 203.0.113.0/24 }'",
        "nft delete table inet muslin; nft add table inet muslin",
    ],
)
def test_a_damaged_table_is_mended(real: RealGround, damage: str) -> None:
    settle(real.kernel, whole(real))
    run(real.node, damage)
    assert left(real, whole(real)) != ""
    settle(real.kernel, whole(real))
    assert left(real, whole(real)) == ""


@pytest.mark.root
def test_a_strangers_table_survives(real: RealGround) -> None:
    run(real.node, "nft 'table ip theirs { chain c { accept; }; }'")
    settle(real.kernel, whole(real))
    settle(real.kernel, frozenset())
    run(real.node, "nft list table ip theirs | grep -q accept")


@pytest.mark.root
def test_nft_changes_are_all_or_nothing_and_the_refusal_names_one(real: RealGround) -> None:
    good = Ruleset(body="\tset e { type ipv4_addr; }\n")
    bad = Element(set="e", item="nonsense!")
    with pytest.raises(KernelError, match=r"add element inet muslin e .*nonsense!"):
        make(real, good, Element(set="e", item="10.0.0.1"), bad)
    assert real.kernel.observe() == frozenset()


@pytest.mark.root
def test_a_neighbour_the_kernel_learnt_gives_way(real: RealGround) -> None:
    make(real, own_link())
    run(real.node, "ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 nud stale dev mu.a")
    ours = Neigh(dev="mu.a", address=ip_address("10.0.0.9"), mac="02:00:00:00:00:01")
    make(real, ours)
    assert ours in real.kernel.observe()


@pytest.mark.root
def test_a_new_link_is_marked_before_it_has_its_alias(real: RealGround) -> None:
    """A crash right after creation leaves a device that the next observation prunes."""
    run(real.node, "ip link add mu.half group 109 type veth peer name mu.half-x")
    assert {o.name for o in real.kernel.observe() if isinstance(o, Link)} == {"mu.half"}
    settle(real.kernel, frozenset())
    assert real.kernel.observe() == frozenset()


@pytest.mark.root
def test_the_kernels_own_words_are_in_the_error(real: RealGround) -> None:
    with pytest.raises(KernelError, match="Nexthop has invalid gateway"):
        make(real, to("10.9.0.0/24", "203.0.113.9"))


@pytest.mark.root
def test_a_path_that_is_no_namespace_is_named(real: RealGround, tmp_path: object) -> None:
    plain = f"{tmp_path}/file"
    open(plain, "w").close()
    for path, why in ((plain, "not a network namespace"), (f"{plain}-gone", "no such namespace")):
        with pytest.raises(KernelError, match=rf"{path}: .*{why}"):
            make(real, Addr(ns=path, dev="lo", address=ip_interface("10.0.0.1/32")))


@pytest.mark.root
def test_many_threads_may_attach_at_once(real: RealGround) -> None:
    """Each with a namespace of its own; nobody ends up in another's."""
    failures: list[BaseException] = []

    def attach(number: int) -> None:
        try:
            with netns.inside(real.node):
                for turn in range(5):
                    link = own_link(f"mu{number:04x}{turn:04x}")
                    link = replace(link, kind=Veth(peer=f"e{number}-{turn}", peer_ns=real.pod))
                    end = Link(ns=real.pod, name=f"e{number}-{turn}", kind=Present(), mtu=1400)
                    LinuxKernel().apply([Change("add", link), Change("add", end)])
                    assert link.key in {o.key for o in LinuxKernel().observe()}
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=attach, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(real.kernel.observe()) == 40


@pytest.mark.root
@pytest.mark.parametrize("name", ["forwarding", "rp_filter", "route_localnet"])
def test_a_new_links_switches_are_the_files_below_proc(real: RealGround, name: str) -> None:
    """They are set by number, in a message; the file says whether it was the right number."""
    link = Link(name="mu.a", kind=Veth(peer="mu.b"))
    switches = [
        Sysctl(name=f"net/ipv4/conf/mu.a/{n}", value="1" if n == name else "0")
        for n in ("forwarding", "rp_filter", "route_localnet")
    ]
    real.kernel.apply([Change("add", o) for o in (link, *switches)])
    seen = real.kernel.observe(frozenset(switches))
    assert {o for o in seen if isinstance(o, Sysctl)} == set(switches)


@pytest.mark.root
def test_a_pair_has_one_queue_of_each_kind_however_many_cpus(real: RealGround) -> None:
    real.kernel.apply([Change("add", Link(name="mu.a", kind=Veth(peer="mu.b")))])
    for end in ("mu.a", "mu.b"):
        one_each = "grep -q 'numtxqueues 1 numrxqueues 1 '"
        run(real.node, f"ip -d link show dev {end} | {one_each}")
