"""Pods' annotations as wishes: what each means, what is refused and in which words."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from muslin.agent import wishes
from muslin.agent.ground import Ground
from muslin.agent.wishes import NONE, Wishes, joined, missed, narrowed
from muslin.cni import capabilities
from muslin.cni.protocol import Request
from muslin.errors import RequestError
from muslin.model import Host, Network, Pool, Rate, Wants, decode, encode, mac_of
from muslin.store.ledger import Attachment

ASKED = Request(verb="ADD", network="default", wants=Wants(pod="shop/db-1"))


def read(pod: str = "web-5d7-x2k", *, stateful: bool = False, **annotations: str) -> Wishes:
    """`network="a"` is muslin.io/network; other prefixes are written out."""
    prefixed = {k if "/" in k else f"muslin.io/{k}": v for k, v in annotations.items()}
    return wishes.read(prefixed, pod=pod, stateful=stateful)


def test_a_pod_that_asks_for_nothing_of_ours_has_no_wishes() -> None:
    assert read(**{"kubernetes.io/config.seen": "x", "example.com/muslin": "y"}) == NONE
    assert read(status='{"network":"default"}') == NONE  # that is what we write


def test_everything_at_once() -> None:
    found = read(
        network="blue",
        pools=" four , six,four",
        addresses="fd00::10, 10.0.0.10",
        mac="02-00-5E-10-00-07",
        **{"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "1Gi"},
    )
    assert found == Wishes(
        network="blue",
        pools=("four", "six"),
        ips=(ip_address("10.0.0.10"), ip_address("fd00::10")),
        mac="02:00:5e:10:00:07",
        ingress=Rate(rate=2_500_000, burst=250_000),
        egress=Rate(rate=(1 << 30) // 8, burst=(1 << 30) // 80),
    )
    assert decode(Wishes, encode(found)) == found


def test_a_limit_is_what_containerd_would_have_made_of_the_same_annotation() -> None:
    for text, rate in (("20M", 20_000_000), ("1G", 10**9), ("300k", 300_000)):
        told = {"bandwidth": {"ingressRate": rate, "ingressBurst": (1 << 32) - 1}}
        runtime = capabilities.wants({"runtimeConfig": told}, {})
        assert read(**{"kubernetes.io/ingress-bandwidth": text}).ingress == runtime.ingress


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1), ("20M", 20_000_000), ("1.5k", 1500), (".5k", 500), ("1.", 1), ("+8k", 8000),
        ("1Ki", 1024), ("1.5Mi", 3 << 19), ("1e6", 10**6), ("1E3", 1000), ("12e-1", 2),
        ("1P", 10**15), ("1500m", 2), ("1u", 1), ("1n", 1), ("1000000000000u", 10**6),
    ],
)  # fmt: skip
def test_quantities_are_kubernetes_own(text: str, number: int) -> None:
    assert wishes.bits(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "fast", "-1M", "0", "0M", "1m1", "1 M", "1mi", "1KB", "1e", "1ee3", "2P", "1E", "٣M",
     "1e99", "9" * 40, ".", "+", "1Mi5"],
)  # fmt: skip
def test_what_is_no_quantity_is_refused_with_the_mend(text: str) -> None:
    found = read(**{"kubernetes.io/egress-bandwidth": text})
    assert "annotation kubernetes.io/egress-bandwidth" in found.fault
    assert "such as 20M" in found.fault


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"network": "Blue!"}, "annotation muslin.io/network 'Blue!': 'Blue!' is no name; write"),
        ({"network": ""}, "annotation muslin.io/network '': '' is no name"),
        ({"pools": "a,,b"}, "annotation muslin.io/pools 'a,,b': '' is no name"),
        ({"mac": ""}, "annotation muslin.io/mac '': is empty; write six bytes"),
        ({"mac": "01:00:00:00:00:01"}, "not the address of one NIC (six bytes, unicast)"),
        ({"addresses": "10.0.0.0/24"}, "without /length"),
        (
            {"addresses": "10.0.0.1,10.0.0.2"},
            "for the pods of a StatefulSet, by ordinal; write one",
        ),
        ({"nics": ""}, "annotation muslin.io/nics '': NIC 1: '' is no name; write"),
        ({"nics": "a,,b"}, "NIC 2: '' is no name"),
        ({"nics": "a,b,a"}, "network a twice; each NIC has its own network"),
        ({"nics": "a,b,c,d,e,f,g,h,i"}, "9 NICs; 8 are the most"),
        ({"nics": '{"network": "a"}'}, 'or a list such as [{"network": "blue"}]'),
        ({"nics": '[{"network": "a"'}, "Input data was truncated; write networks with commas"),
        ({"nics": '[{"net": "a"}]'}, "unknown field `net`"),
        ({"nics": '[{"name": "net1"}]'}, "missing required field `network`"),
        ({"nics": '[{"network": 7}]'}, "Expected `str`, got `int` - at `$[0].network`"),
        ({"nics": '[{"network": "a", "name": "eth0"}]'}, "name eth0 is another's; leave it out"),
        ({"nics": '[{"network": "a", "name": "all"}]'}, "and it is net1"),
        ({"nics": '[{"network": "a", "name": "net 1"}]'}, "'net 1': 1 to 15 visible characters"),
        ({"nics": '[{"network": "a", "name": "net%d"}]'}, "none of '/', ':' and '%'"),
        ({"nics": '[{"network": "a", "name": "net2"}, {"network": "b"}]'}, "name net2 twice"),
        ({"nics": '[{"network": "a", "mac": "02"}]'}, "NIC 1: mac '02': not the address of one"),
        ({"nics": '[{"network": "a", "ingress": "fast"}]'}, "NIC 1: not a quantity above 0"),
        ({"nics": '[{"network": "a", "addresses": ["10.9.0.0/24"]}]'}, "without /length"),
        ({"nics": '[{"network": "a", "pools": [""]}]'}, "NIC 1: '' is no name"),
        (
            {"adresses": "10.0.0.1"},
            "annotation muslin.io/adresses '10.0.0.1': not known; there are",
        ),
        ({"kubernetes.io/ingress-bandwidth": "5k"}, "at least 8000 bits per second"),
    ],
)
def test_what_is_wrong_is_said_by_annotation_value_and_mend(
    annotations: dict[str, str], words: str
) -> None:
    found = read(**annotations)
    assert words in found.fault
    assert found == Wishes(fault=found.fault)  # nothing of it applies


def test_further_nics_are_named_by_their_place_or_by_themselves() -> None:
    found = read(nics="storage, blue").nics
    assert [(n.ifname, n.network) for n in found] == [("net1", "storage"), ("net2", "blue")]
    assert read(nics="[]") == NONE
    text = """[{"network": "storage"}, {"network": "blue", "name": "net7", "pools": ["b", "a", "b"],
        "addresses": ["10.9.0.7", "fd09::7"], "mac": "02-00-5E-10-00-07",
        "ingress": "20M", "egress": "10M"}]"""
    wishes = read(network="default", nics=text)
    assert wishes.nics == (
        Wishes(ifname="net1", network="storage"),
        Wishes(
            ifname="net7",
            network="blue",
            pools=("b", "a"),
            ips=(ip_address("10.9.0.7"), ip_address("fd09::7")),
            mac="02:00:5e:10:00:07",
            ingress=Rate(rate=2_500_000, burst=250_000),
            egress=Rate(rate=1_250_000, burst=125_000),
        ),
    )
    assert decode(Wishes, encode(wishes)) == wishes


def test_further_nics_of_a_stateful_set_take_addresses_by_ordinal() -> None:
    text = '[{"network": "blue", "addresses": ["10.9.0.7", "10.9.0.8"]}]'
    (second,) = read("db-1", stateful=True, nics=text).nics
    assert second.ips == (ip_address("10.9.0.8"),)
    assert "NIC 1: several addresses" in read("web", nics=text).fault


def test_all_faults_at_once() -> None:
    found = read(mac="x", network="_")
    assert "muslin.io/mac" in found.fault
    assert "muslin.io/network" in found.fault


def test_pods_of_a_stateful_set_take_addresses_by_ordinal() -> None:
    three = "10.0.0.10,fd00::a,10.0.0.11,10.0.0.12,fd00::b,fd00::c"
    given = [read(f"db-{n}", stateful=True, addresses=three).ips for n in range(3)]
    assert [[str(a) for a in ips] for ips in given] == [
        ["10.0.0.10", "fd00::a"], ["10.0.0.11", "fd00::b"], ["10.0.0.12", "fd00::c"],
    ]  # fmt: skip
    assert read("db-12", stateful=True, addresses=three).fault.startswith(
        "annotation muslin.io/addresses '10.0.0.10,fd00::a,"
    )
    assert (
        "3 IPv4 addresses, for the ordinals 0 to 2; db-3 needs one at 3: write more of them"
        in read("db-3", stateful=True, addresses=three).fault
    )
    fewer = f"{three},10.0.0.13"
    assert "3 IPv6 addresses" in read("db-3", stateful=True, addresses=fewer).fault


def test_one_address_is_the_pods_whatever_its_ordinal() -> None:
    assert read("db-7", stateful=True, addresses="10.0.0.10").ips == (ip_address("10.0.0.10"),)


def test_an_ordinal_needs_a_name_that_ends_in_one() -> None:
    for name in ("db", "db-x", "-3", "db-٣"):
        assert "by ordinal" in read(name, stateful=True, addresses="10.0.0.1,10.0.0.2").fault
    assert "twice" in read("db-0", stateful=True, addresses="10.0.0.1,10.0.0.1").fault


# ── together with an ADD ────────────────────────────────────────────────────────────────────────


def test_no_wishes_change_nothing() -> None:
    assert joined(ASKED, NONE) is ASKED


def test_a_fault_is_the_pods_answer_with_code_7() -> None:
    with pytest.raises(RequestError, match=r"pod shop/db-1: annotation muslin\.io/mac") as caught:
        joined(ASKED, read(mac="x"))
    assert caught.value.cni_code == 7
    assert "tried again by itself" in caught.value.hint


def test_the_annotations_network_goes_before_the_configurations() -> None:
    assert joined(ASKED, read(network="blue")).network == "blue"
    assert joined(ASKED, read(mac="02:00:00:00:00:01")).network == "default"


def test_a_runtimes_limit_goes_before_the_annotations_and_its_own_words_must_agree() -> None:
    own = Rate(rate=1000, burst=1000)
    wants = Wants(
        pod="shop/db-1", ingress=own, mac="02:00:00:00:00:01", ips=(ip_address("10.0.0.1"),)
    )
    told = replace(ASKED, wants=wants)
    bandwidth = {"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "20M"}
    made = joined(told, read(mac="02:00:00:00:00:01", addresses="10.0.0.1", **bandwidth)).wants
    assert made.ingress == own
    assert made.egress == Rate(rate=2_500_000, burst=250_000)
    with pytest.raises(RequestError, match=r"asks for 10\.0\.0\.1, annotation muslin.io/addresses"):
        joined(told, read(addresses="10.0.0.2"))
    with pytest.raises(RequestError, match="for 02:00:00:00:00:02") as caught:
        joined(told, read(mac="02:00:00:00:00:02"))
    assert caught.value.cni_code == 7


def test_pools_narrow_the_network_and_must_be_its_own() -> None:
    four = Pool(name="four", cidr=ip_network("10.0.0.0/16"))
    six = Pool(name="six", cidr=ip_network("fd00::/64"))
    network = Network(name="default", backend="hostgw", pools=("four", "six"))
    where = Ground(network=network, pools=(four, six), mtu=1500, host=Host(uplink="eth0"))
    assert narrowed(where, NONE) is where
    assert narrowed(where, read(pools="six")).pools == (six,)
    with pytest.raises(RequestError, match="has no pool web; it has four, six"):
        narrowed(where, read(pools="four,web"))


# ── beside what a pod has ───────────────────────────────────────────────────────────────────────

FIRST, SECOND = ip_address("10.0.0.9"), ip_address("fd00::9")
HAS = Attachment(
    dev="mu1", container="c", ifname="eth0", netns="/n", conf="m", network="default", mtu=1450,
    state="ready", since=0.0, wants=Wants(pod="shop/db-1"), addresses=(FIRST, SECOND),
)  # fmt: skip
POOLS = ("four", "six")


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"network": "default"},
        {"pools": "six,four,other"},
        {"addresses": "fd00::9"},
        {"mac": mac_of(FIRST)},
    ],
)
def test_who_has_what_it_asks_for_misses_nothing(asked: dict[str, str]) -> None:
    assert missed(read(**asked), HAS, POOLS) == ()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"network": "blue"}, "annotation muslin.io/network blue"),
        ({"pools": "four"}, "annotation muslin.io/pools four"),
        ({"addresses": "10.0.0.9,fd00::8"}, "annotation muslin.io/addresses 10.0.0.9,fd00::8"),
        ({"mac": "02:00:00:00:00:01"}, "annotation muslin.io/mac 02:00:00:00:00:01"),
        ({"kubernetes.io/ingress-bandwidth": "20M"}, "annotation kubernetes.io/ingress-bandwidth"),
        ({"kubernetes.io/egress-bandwidth": "20M"}, "annotation kubernetes.io/egress-bandwidth"),
    ],
)
def test_what_is_missing_is_named(asked: dict[str, str], words: str) -> None:
    assert missed(read(**asked), HAS, POOLS) == (words,)


def test_a_wish_that_makes_no_sense_was_not_met_either() -> None:
    (words,) = missed(read(mac="nonsense"), HAS, POOLS)
    assert words.startswith("annotation muslin.io/mac 'nonsense': ")


def test_a_network_that_no_nic_is_on_is_missing() -> None:
    asked = read(nics="storage,blue")
    assert missed(asked, HAS, POOLS, ["default"]) == ("annotation muslin.io/nics storage,blue",)
    assert missed(asked, HAS, POOLS, ["default", "blue"]) == ("annotation muslin.io/nics storage",)
    assert missed(asked, HAS, POOLS, ["default", "blue", "storage"]) == ()


def test_what_the_runtime_brought_by_itself_is_not_missing() -> None:
    own = Rate(rate=1000, burst=1000)
    has = replace(HAS, wants=Wants(ingress=own, egress=own, mac="02:00:00:00:00:01"))
    limits = {"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "1G"}
    assert missed(read(mac="02:00:00:00:00:01", **limits), has, POOLS) == ()
