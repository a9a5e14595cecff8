"""The order of changes, in the words a network engineer reads."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

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
    Ruleset,
    Sysctl,
    Veth,
    Vxlan,
    holds,
)
from muslin.plan.render import describe, render, render_changes, words

PEER = ip_network("10.244.1.0/26")


def via(hop: str) -> Plan:
    return frozenset({Route(dst=PEER, via=ip_address(hop), dev="eth0")})


def tunnel(vni: int, mac: str = "02:00:00:00:00:01") -> Plan:
    local, hop = ip_address("192.0.2.1"), ip_address("10.244.1.0")
    return frozenset(
        {
            Link(name="mu.vx1", kind=Vxlan(vni=vni, port=8472, local=local), mac=mac),
            Addr(dev="mu.vx1", address=ip_interface("10.244.0.0/32")),
            Neigh(dev="mu.vx1", address=hop, mac="02:00:00:00:00:02"),
            Fdb(dev="mu.vx1", mac="02:00:00:00:00:02", dst=ip_address("192.0.2.2")),
            Route(dst=PEER, via=hop, dev="mu.vx1", onlink=True),
        }
    )


def steps(desired: Plan, observed: Plan) -> list[tuple[str, str]]:
    return [(c.verb, type(c.obj).__name__) for c in diff(desired, observed)]


def test_a_moved_peer_is_never_without_a_route() -> None:
    """n2 comes back on another address: its route is replaced in place, not removed first."""
    assert steps(via("192.0.2.9"), via("192.0.2.2")) == [("replace", "Route")]


def test_equal_plans_need_nothing() -> None:
    assert steps(tunnel(1), tunnel(1)) == []


def test_links_come_first_and_routes_last() -> None:
    kinds = [kind for _, kind in steps(tunnel(1), frozenset())]
    assert kinds == ["Link", "Addr", "Neigh", "Fdb", "Route"]


def test_what_vanishes_with_its_link_is_not_removed_by_itself() -> None:
    assert steps(frozenset(), tunnel(1)) == [("remove", "Link")]


def test_a_link_of_another_kind_is_made_anew_with_all_that_hung_on_it() -> None:
    assert steps(tunnel(2), tunnel(1)) == [
        ("remove", "Link"),
        ("add", "Link"),
        ("add", "Addr"),
        ("add", "Neigh"),
        ("add", "Fdb"),
        ("add", "Route"),
    ]


def test_a_new_mac_costs_a_link_its_neighbours() -> None:
    changed = steps(tunnel(1, mac="02:00:00:00:00:0f"), tunnel(1))
    assert changed == [("replace", "Link"), ("add", "Neigh")]


def test_what_stays_on_a_link_without_ipv4_address_is_put_after_the_address_went() -> None:
    bare = frozenset(o for o in tunnel(1) if not isinstance(o, Addr))
    assert steps(bare, tunnel(1)) == [("remove", "Addr"), ("add", "Neigh"), ("add", "Route")]


def test_a_link_of_others_and_a_sysctl_are_never_removed() -> None:
    kept: Plan = frozenset(
        {Link(name="lo", kind=Present()), Sysctl(name="net/ipv4/ip_forward", value="1")}
    )
    assert steps(frozenset(), kept) == []


def test_what_stands_on_a_link_of_others_is_removed() -> None:
    address = Addr(ns="/run/netns/p", dev="eth0", address=ip_interface("10.0.0.5/32"))
    end = Link(ns="/run/netns/p", name="eth0", kind=Present())
    assert steps(frozenset(), frozenset({end, address})) == [("remove", "Addr")]


def test_the_pods_end_follows_the_pair_that_makes_it() -> None:
    ns = "/run/netns/p"
    pair = Link(name="mu01234567", kind=Veth(peer="eth0", peer_ns=ns))
    end = Link(ns=ns, name="eth0", kind=Present())
    assert [c.obj for c in diff(frozenset({end, pair}), frozenset())] == [pair, end]


def test_a_route_follows_the_route_its_next_hop_is_on() -> None:
    hop = ip_address("fd00::40")
    on_link = Route(dst=ip_network("fd00::40/128"), dev="mu.vx1")
    behind = Route(dst=ip_network("fd00::/64"), via=hop, dev="mu.vx1", onlink=True)
    assert [c.obj for c in diff(frozenset({on_link, behind}), frozenset())] == [on_link, behind]


def test_overlapping_elements_leave_before_others_enter() -> None:
    table = Ruleset(body="")

    def having(item: str) -> Plan:
        return frozenset({table, Element(set="e", item=item)})

    changes = list(diff(having("10.0.0.0/8"), having("10.0.0.0/16")))
    assert [c.verb for c in changes] == ["remove", "add"]


def test_another_ruleset_takes_all_elements_with_it() -> None:
    element = Element(set="e", item="10.0.0.0/8")
    before: Plan = frozenset({Ruleset(body="a"), element})
    after: Plan = frozenset({Ruleset(body="b"), element})
    assert steps(after, before) == [("remove", "Ruleset"), ("add", "Ruleset"), ("add", "Element")]


def test_only_a_link_leaves_fields_to_the_kernel() -> None:
    some = Link(name="a", kind=Present())
    assert holds(some, Link(name="a", kind=Present(), mtu=1500, mac="02:00:00:00:00:01"))
    assert not holds(some, Link(name="a", kind=Present(), up=False))
    unreachable, elsewhere = Route(dst=PEER), next(iter(via("192.0.2.2")))
    assert not holds(unreachable, elsewhere)


def test_the_purpose_of_a_link_is_for_people_only() -> None:
    one, other = (Link(name="a", kind=Veth(), purpose=p) for p in ("x", "y"))
    assert holds(one, other)


# ── the same as text ────────────────────────────────────────────────────────────────────────────


def text(obj: Object) -> str:
    return render(frozenset({obj}))


def test_an_alias_is_quoted_for_the_shell() -> None:
    link = Link(name="mu.a", kind=Veth(peer="b"), purpose="it's; rm -rf /")
    assert """alias 'muslin it'"'"'s; rm -rf /' """ in text(link)


def test_a_namespace_is_entered_by_nsenter() -> None:
    address = Addr(ns="/run/netns/a b", dev="eth0", address=ip_interface("fd00::1/128"))
    entered = "nsenter --net='/run/netns/a b' ip addr add fd00::1/128 dev eth0 nodad\n"
    assert text(address) == entered


def test_a_maps_entry_is_replaced_in_one_transaction() -> None:
    entry = Element(set="m", item="10.0.0.1 . tcp . 80", data="10.0.0.2 . 8080")
    (line,) = describe(Change("replace", entry, entry))
    key = "element inet muslin m { 10.0.0.1 . tcp . 80"
    assert line == f"nft -- 'delete {key} }}; add {key} : 10.0.0.2 . 8080 }}'"


def test_words_name_an_object_without_a_verb() -> None:
    assert words(next(iter(via("192.0.2.2")))) == (
        "ip route 10.244.1.0/26 via 192.0.2.2 dev eth0 proto 109"
    )


def test_removals_are_short() -> None:
    gone = render_changes(Change("remove", o) for o in sorted(tunnel(1), key=repr))
    assert gone.splitlines() == [
        "ip addr del 10.244.0.0/32 dev mu.vx1",
        "bridge fdb del 02:00:00:00:00:02 dev mu.vx1 dst 192.0.2.2",
        "ip link del dev mu.vx1",
        "ip neigh del 10.244.1.0 dev mu.vx1",
        "ip route del 10.244.1.0/26 via 10.244.1.0 dev mu.vx1 onlink proto 109",
    ]
