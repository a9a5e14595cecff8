"""Pools: what is refused, how they are cut, which block a node tries next."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from itertools import islice

import pytest

from muslin.ipam import pools as ipam
from muslin.model import Network, Node, Pool


def pool(cidr: str, name: str = "a", **more: object) -> Pool:
    return Pool(name=name, cidr=ip_network(cidr), **more)  # type: ignore[arg-type]


def network(*pools: str) -> Network:
    return Network(name="net", backend="hostgw", pools=pools)


def test_a_fit_network_has_no_faults() -> None:
    pools = [pool("10.0.0.0/16"), pool("fd00::/56", "b")]
    assert ipam.faults(network("a", "b"), pools) == []


@pytest.mark.parametrize(
    ("fault", "bad"),
    [
        ("pool a: a block of /26 does not fit in 10.0.0.0/28 (16 addresses)", pool("10.0.0.0/28")),
        ("pool a: blocks of /31 are too small; at most /30", pool("10.0.0.0/24", block=31)),
        ("pool a: a block of /16 does not fit in 10.0.0.0/24", pool("10.0.0.0/24", block=16)),
        ("pool a: IPv6 blocks are /64 or longer, not /60", pool("fd00::/48", block=60)),
        ("pool a: 224.0.0.0/8 is not a range for hosts", pool("224.0.0.0/8")),
        ("pool a: cooldown -1 is negative", pool("10.0.0.0/16", cooldown=-1)),
        (
            "pool a: exclude 10.9.0.0/24 is outside 10.0.0.0/16",
            pool("10.0.0.0/16", exclude=(ip_network("10.9.0.0/24"),)),
        ),
    ],
)
def test_an_unfit_pool_is_named_with_what_is_wrong(fault: str, bad: Pool) -> None:
    assert [f for f in ipam.faults(network("a"), [bad]) if fault in f]


def test_pools_that_overlap_are_both_named_also_across_networks() -> None:
    mine, beside = pool("10.0.0.0/16"), pool("10.0.128.0/17", "b")
    other = pool("10.0.1.0/24", "c")
    assert ipam.faults(network("a", "b"), [mine, beside], [other]) == [
        "pool a: 10.0.0.0/16 overlaps 10.0.128.0/17 of pool b",
        "pool a: 10.0.0.0/16 overlaps 10.0.1.0/24 of pool c",
    ]


def test_a_pool_that_contains_a_nodes_own_address_is_refused() -> None:
    node = Node(name="n1", addresses=(ip_interface("10.0.3.4/24"),), mtu=1500)
    assert ipam.faults(network("a"), [pool("10.0.0.0/16")], nodes=[node]) == [
        "pool a: 10.0.0.0/16 contains 10.0.3.4, the address of node n1"
    ]


def test_a_network_that_names_no_pool_or_an_unknown_one_is_refused() -> None:
    assert ipam.faults(network(), []) == ["network net: names no pool"]
    assert ipam.faults(network("z"), []) == ["network net: no pool is called 'z'"]


def test_candidates_are_every_free_block_once() -> None:
    small = pool("10.0.0.0/24", block=28)
    taken = {ip_network("10.0.0.16/28")}
    found = list(ipam.candidates(small, "n1", taken))
    assert len(found) == len(set(found)) == 15
    assert set(found) | taken == set(small.cidr.subnets(new_prefix=28))


def test_an_excluded_block_is_no_candidate() -> None:
    small = pool("10.0.0.0/24", block=26, exclude=(ip_network("10.0.0.0/25"),))
    assert set(ipam.candidates(small, "n1", ())) == set(ip_network("10.0.0.128/25").subnets())


def test_a_node_asks_for_the_same_block_again_and_others_for_others() -> None:
    big = pool("10.0.0.0/8")
    first = [next(ipam.candidates(big, f"n{i}", ())) for i in range(50)]
    assert first == [next(ipam.candidates(big, f"n{i}", ())) for i in range(50)]
    assert len(set(first)) > 40  # a few collide, and then try the next


def test_a_pool_of_two_to_the_64_blocks_is_not_counted_through() -> None:
    wide = pool("fd00::/48", block=112)
    assert len(list(islice(ipam.candidates(wide, "n1", ()), 1000))) == 1000
