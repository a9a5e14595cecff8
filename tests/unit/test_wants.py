"""Ports, limits and addresses that a pod was asked for: given, remembered, refused, taken back."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
from test_attach import FOUR, NETWORK, Node, node

from muslin.agent import mapped
from muslin.agent.attach import Attachments
from muslin.errors import KernelError, NotReady, RequestError, Taken, Unavailable
from muslin.model import PortMapping, Rate, Wants, device_name
from muslin.plan.diff import Change
from muslin.plan.node import RULES
from muslin.plan.objects import Element, InTable, Link, Police, Ruleset, Shaper, Sysctl
from muslin.store.ledger import Ledger

__all__ = ["node"]  # the fixture
assert NETWORK.backend == "hostgw"

WEB = Wants(
    ports=(
        PortMapping(host=8080, pod=80),
        PortMapping(host=53, pod=53, protocol="udp", ip=ip_address("192.0.2.1")),
    ),
    ingress=Rate(rate=2_500_000, burst=250_000),
    egress=Rate(rate=2_500_000, burst=250_000),
    pod="shop/web",
)
HTTP = Wants(ports=(PortMapping(host=8080, pod=80),))


@pytest.fixture(autouse=True)
def table(node: Node) -> None:
    """What the sync loop puts first."""
    node.kernel.apply([Change("add", Ruleset(body=RULES))])


def in_table(node: Node) -> set[str]:
    return {
        o.name if isinstance(o, Police) else f"{o.set} {o.item}"
        for o in node.kernel.observe()
        if isinstance(o, InTable)
    }


def test_an_add_with_ports_and_limits_and_its_delete(node: Node) -> None:
    dev = device_name("c1", "eth0")
    node.attachments.add(node.request(wants=WEB))
    assert in_table(node) == {
        dev,
        "ports4 tcp . 8080",
        "ports6 tcp . 8080",
        "ipports4 192.0.2.1 . udp . 53",
        "hairpins4 10.0.0.9 . 10.0.0.9",
        "hairpins6 fd00::21 . fd00::21",
    }
    held = {o.key: o for o in node.kernel.observe(frozenset({localnet(dev)}))}
    assert isinstance(held["shaper", None, dev], Shaper)
    assert held[localnet(dev).key] == localnet(dev)
    node.attachments.check(node.request("CHECK"))
    node.attachments.delete(node.request("DEL", sync_delete=True))
    assert in_table(node) == set()
    assert node.ledger.wanting() == []


def localnet(dev: str) -> Sysctl:
    return Sysctl(name=f"net/ipv4/conf/{dev}/route_localnet", value="1")


def test_without_the_nodes_table_an_add_that_needs_it_is_told_to_come_again(node: Node) -> None:
    """After a boot, until the sync loop's first pass; and the runtime hears it from STATUS."""
    node.attachments.status(node.request("STATUS"))
    node.kernel.apply([Change("remove", Ruleset(body=RULES))])
    with pytest.raises(Unavailable, match="nft table is not there yet"):
        node.attachments.status(node.request("STATUS"))
    for wants in (HTTP, Wants(egress=Rate(rate=2_500_000, burst=250_000))):
        with pytest.raises(NotReady, match="nft table is not there yet") as caught:
            node.attachments.add(node.request(wants=wants))
        assert (caught.value.cni_code, caught.value.retry) == (11, True)
        assert node.ledger.attachments() == []
        assert node.kernel.observe() == frozenset()
    node.attachments.add(node.request(container="plain"))
    node.kernel.apply([Change("add", Ruleset(body=RULES))])
    node.attachments.status(node.request("STATUS"))
    node.attachments.add(node.request(wants=HTTP))


def test_check_names_a_mapping_that_is_missing(node: Node) -> None:
    node.attachments.add(node.request(wants=WEB))
    gone = next(o for o in node.kernel.observe() if isinstance(o, Element) and o.set == "ports4")
    node.kernel.apply([Change("remove", gone)])
    with pytest.raises(Exception, match=r"ports4 \{ tcp \. 8080"):
        node.attachments.check(node.request("CHECK"))


def test_a_repeated_add_is_the_same_and_another_wish_makes_it_anew(node: Node) -> None:
    first = node.attachments.add(node.request(wants=WEB))
    changes = len(node.kernel.log)
    assert node.attachments.add(node.request(wants=WEB)) == first
    assert len(node.kernel.log) == changes
    node.attachments.add(node.request(wants=HTTP))
    assert [a.wants for a in node.ledger.attachments()] == [HTTP]
    assert "ipports4 192.0.2.1 . udp . 53" not in in_table(node)


def test_a_restart_sees_the_same_plan(node: Node) -> None:
    node.attachments.add(node.request(wants=WEB))
    node.restarted().recover("boot")
    assert node.ledger.attachments()[0].wants == WEB
    node.attachments.check(node.request("CHECK"))


@pytest.mark.parametrize(
    "other",
    [
        PortMapping(host=8080, pod=81),
        PortMapping(host=8080, pod=80, ip=ip_address("192.0.2.7")),
        PortMapping(host=8080, pod=80, ip=ip_address("::")),
        PortMapping(host=53, pod=53, protocol="udp", ip=ip_address("192.0.2.1")),
        PortMapping(host=53, pod=53, protocol="udp"),
    ],
)
def test_two_pods_cannot_have_one_host_port(node: Node, other: PortMapping) -> None:
    """And the refusal names the pod that has it, before anything is done."""
    node.attachments.add(node.request(wants=WEB))
    before, changes = in_table(node), len(node.kernel.log)
    with pytest.raises(Taken, match=r"host port .* leads to pod shop/web \(container c1, eth0\)"):
        node.attachments.add(node.request(container="c2", wants=Wants(ports=(other,))))
    assert (in_table(node), len(node.kernel.log)) == (before, changes)
    assert [a.container for a in node.ledger.attachments()] == ["c1"]


@pytest.mark.parametrize(
    "other",
    [
        PortMapping(host=8080, pod=80, protocol="udp"),
        PortMapping(host=8081, pod=80),
        PortMapping(host=53, pod=53, protocol="udp", ip=ip_address("192.0.2.2")),
        PortMapping(host=53, pod=53, protocol="udp", ip=ip_address("fd00::1")),
    ],
)
def test_what_differs_in_protocol_number_or_address_is_another_port(
    node: Node, other: PortMapping
) -> None:
    node.attachments.add(node.request(wants=WEB))
    node.attachments.add(node.request(container="c2", wants=Wants(ports=(other,))))
    assert len(node.ledger.attachments()) == 2


def test_a_deleted_pods_port_is_free_at_once(node: Node) -> None:
    """Its DEL was answered and the reaper has not come by yet."""
    node.attachments.add(node.request(wants=HTTP))
    node.attachments.delete(node.request("DEL"))
    node.attachments.add(node.request(container="c2", wants=HTTP))
    found = next(o for o in node.kernel.observe() if isinstance(o, Element) and o.set == "ports4")
    assert found.data == "10.0.0.10 . 80"


def test_a_mapping_of_a_version_the_pod_has_not_is_refused(node: Node) -> None:
    with node.ledger._transaction() as db:
        db.execute("DELETE FROM block WHERE version = 6")
    where = node.ground()
    four = Wants(ports=(PortMapping(host=1, pod=1, ip=ip_address("fd00::1")),))
    with pytest.raises(RequestError, match=r"host port tcp 1 on fd00::1: .* no IPv6 address"):
        node.ledger.claim(
            "c9", "eth0", netns="/x", conf="m", network="default", mtu=where.mtu,
            pools=(FOUR,), wants=four,
        )  # fmt: skip


@pytest.mark.parametrize("refused", [Element, Police, Shaper])
def test_a_refused_mapping_or_limit_leaves_nothing_behind(node: Node, refused: type) -> None:
    node.kernel.refuse = refused
    with pytest.raises(KernelError):
        node.attachments.add(node.request(wants=WEB))
    assert in_table(node) == set()
    assert {o for o in node.kernel.observe() if not isinstance(o, Ruleset)} == set()
    assert node.ledger.attachments() == []


# ── addresses and MAC ───────────────────────────────────────────────────────────────────────────


def ips(*texts: str) -> Wants:
    return Wants(ips=tuple(ip_address(t) for t in texts))


def test_an_address_is_given_by_name_and_the_other_version_freely(node: Node) -> None:
    made = node.attachments.add(node.request(wants=ips("10.0.0.12")))
    assert [str(a) for a in made.nic.addresses] == ["10.0.0.12", "fd00::21"]
    others = [node.add(f"c{n}")[0] for n in range(2, 7)]
    assert sorted(others) == sorted(
        ["10.0.0.9", "10.0.0.10", "10.0.0.11", "10.0.0.13", "10.0.0.14"]
    )


def test_another_pods_address_is_refused_with_its_name(node: Node) -> None:
    node.attachments.add(node.request(wants=Wants(pod="shop/web", ips=ips("10.0.0.12").ips)))
    with pytest.raises(Taken, match=r"address 10\.0\.0\.12 belongs to pod shop/web"):
        node.attachments.add(node.request(container="c2", wants=ips("10.0.0.12")))


def test_a_resting_address_is_refused_until_it_has_rested(node: Node) -> None:
    node.attachments.add(node.request(wants=ips("10.0.0.12")))
    node.attachments.delete(node.request("DEL", sync_delete=True))
    node.clock.now += 10
    with pytest.raises(Taken, match=r"10\.0\.0\.12 rests after use; it is free in 20 s"):
        node.attachments.add(node.request(container="c2", wants=ips("10.0.0.12")))
    node.clock.now += 20
    made = node.attachments.add(node.request(container="c2", wants=ips("10.0.0.12")))
    assert str(made.nic.addresses[0]) == "10.0.0.12"


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("10.0.0.77", r"10\.0\.0\.77 is in no block of this node \(pool four\).*10\.0\.0\.8/29"),
        ("10.0.0.8", "no pod's: the first or last"),
        ("10.0.0.15", "no pod's: the first or last"),
        ("192.0.2.9", "in no block of this node"),
    ],
)
def test_an_address_that_this_node_cannot_give_is_refused(
    node: Node, wanted: str, why: str
) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        node.attachments.add(node.request(wants=ips(wanted)))
    assert caught.value.cni_code == 7
    assert node.ledger.attachments() == []


def test_an_address_of_a_version_that_the_network_has_not_is_refused(node: Node) -> None:
    with pytest.raises(RequestError, match=r"address fd00::21: network default has no IPv6 pool"):
        node.ledger.claim(
            "c9", "eth0", netns="/x", conf="m", network="default", mtu=1500,
            pools=(FOUR,), wants=ips("fd00::21"),
        )  # fmt: skip


def test_a_mac_is_given_to_the_pods_end(node: Node) -> None:
    made = node.attachments.add(node.request(wants=Wants(mac="02:00:00:00:00:07")))
    assert made.nic.mac == "02:00:00:00:00:07"
    ends = {o.mac for o in node.kernel.strangers.values() if isinstance(o, Link)}
    assert "02:00:00:00:00:07" in ends


# ── mending ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_missing_is_put_back_and_a_stray_cleared_up(node: Node) -> None:
    node.attachments.add(node.request(wants=WEB))
    whole = in_table(node)
    removed = next(o for o in node.kernel.observe() if isinstance(o, Element))
    stray = Element(set="ports4", item="tcp . 9999", data="10.0.0.13 . 80")
    lost = Police(name="mu00000000", rate=1, burst=1)
    node.kernel.apply([Change("remove", removed), Change("add", stray), Change("add", lost)])
    done = mapped.mend(node.ledger, node.kernel, node.kernel.observe())
    assert {(c.verb, c.obj) for c in done} == {
        ("add", removed), ("remove", stray), ("remove", lost)
    }  # fmt: skip
    assert in_table(node) == whole
    assert mapped.mend(node.ledger, node.kernel, node.kernel.observe()) == []


def test_a_pod_that_no_record_knows_keeps_its_ports_while_it_lives(
    node: Node, tmp_path: Path
) -> None:
    node.attachments.add(node.request(wants=WEB))
    whole = in_table(node)
    fresh = Ledger(tmp_path / "new.db", node.clock)
    assert mapped.mend(fresh, node.kernel, node.kernel.observe()) == []
    assert in_table(node) == whole
    Attachments(fresh, node.kernel).delete(node.request("DEL"))
    mapped.mend(fresh, node.kernel, node.kernel.observe())
    assert in_table(node) == set()
    fresh.close()
