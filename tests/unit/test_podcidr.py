"""Blocks that Kubernetes chose: which of a node's podCIDRs are blocks, and the words for others."""

from __future__ import annotations

from ipaddress import ip_network

from muslin.agent.podcidr import given
from muslin.model import Pool

FOUR = Pool(name="four", cidr=ip_network("10.244.0.0/16"), block=24)
SIX = Pool(name="six", cidr=ip_network("fd00:244::/48"), block=64)


def test_every_podcidr_is_a_block_of_the_pool_it_lies_in() -> None:
    found = given("n1", ["10.244.3.0/24", "fd00:244:0:3::/64"], [FOUR, SIX])
    assert found.faults == ()
    assert found.blocks == {ip_network("10.244.3.0/24"): FOUR, ip_network("fd00:244:0:3::/64"): SIX}


def test_a_node_without_one_keeps_what_it_has_and_says_who_gives_them() -> None:
    found = given("n1", [], [FOUR])
    assert found.blocks is None
    assert found.faults[0].startswith(
        "node n1 has no podCIDR: it is given by --allocate-node-cidrs"
    )


def test_one_outside_every_pool_is_named_and_the_other_serves() -> None:
    found = given("n1", ["10.9.0.0/24", "fd00:244:0:3::/64"], [FOUR, SIX])
    assert found.blocks == {ip_network("fd00:244:0:3::/64"): SIX}
    assert found.faults == (
        "podCIDR 10.9.0.0/24 of node n1 lies in no pool of a network (there are:"
        " four 10.244.0.0/16, six fd00:244::/48); make a pool of the cluster's range",
    )


def test_one_that_is_no_block_of_its_pool_is_named_with_the_length_to_set() -> None:
    """Blocks of one length cannot overlap: the key is what makes a block one node's."""
    default = Pool(name="four", cidr=FOUR.cidr)
    assert given("n1", ["10.244.3.0/24"], [default]).faults == (
        "podCIDR 10.244.3.0/24 of node n1 is no block of pool four, whose blocks are /26;"
        " give the pool `block` 24",
    )


def test_what_is_no_range_is_a_fault_and_nothing_worse() -> None:
    found = given("n1", ["nonsense", "10.244.3.0/24"], [FOUR])
    assert list(found.blocks or ()) == [ip_network("10.244.3.0/24")]
    assert "nonsense" in found.faults[0]


def test_a_network_without_pools_says_so() -> None:
    assert "there are: none" in given("n1", ["10.244.3.0/24"], []).faults[0]
