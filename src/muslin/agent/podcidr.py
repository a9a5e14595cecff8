"""Blocks from Kubernetes: the node's `spec.podCIDRs`, where the cluster hands them out.  Pure.

kube-controller-manager with --allocate-node-cidrs (kubeadm's
--pod-network-cidr) gives every node a range of its own.  With the setting
`blocks = "podcidr"` these are the node's blocks: it claims their keys in the
store like any others, so peers need to know nothing of this, and claims no
more.

It is a setting of the agents and not of a pool: it says how the *cluster*
hands out ranges, which it does for all nodes or for none.

A range must be a block of its pool, that is, have the length that the pool is
cut by: then the key keeps two nodes from holding overlapping ranges, as it
does everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from muslin.model import Pool, Prefix

NONE_YET = "--allocate-node-cidrs of kube-controller-manager (kubeadm: --pod-network-cidr)"


@dataclass(frozen=True, slots=True)
class Given:
    """Which blocks of which pools a node is to hold, and what is wrong with the others."""

    blocks: Mapping[Prefix, Pool] | None  # None: not decided yet, and what is held stays
    faults: tuple[str, ...] = ()


def given(node: str, podcidrs: Sequence[str], pools: Iterable[Pool]) -> Given:
    """The node's blocks by its podCIDRs; the faults name the range and the mend."""
    known = list(pools)
    if not podcidrs:
        return Given(None, (f"node {node} has no podCIDR: it is given by {NONE_YET}",))
    blocks: dict[Prefix, Pool] = {}
    faults = []
    for text in podcidrs:
        try:
            cidr = ip_network(text)
        except ValueError as e:
            faults.append(f"podCIDR {text!r} of node {node}: {e}")
            continue
        pool = next((p for p in known if _holds(p, cidr)), None)
        if pool is None:
            there = ", ".join(f"{p.name} {p.cidr}" for p in known) or "none"
            faults.append(
                f"podCIDR {cidr} of node {node} lies in no pool of a network (there are: {there});"
                " make a pool of the cluster's range"
            )
        elif pool.block_length != cidr.prefixlen:
            faults.append(
                f"podCIDR {cidr} of node {node} is no block of pool {pool.name}, whose blocks are"
                f" /{pool.block_length}; give the pool `block` {cidr.prefixlen}"
            )
        else:
            blocks[cidr] = pool
    return Given(blocks, tuple(faults))


def _holds(pool: Pool, cidr: Prefix) -> bool:
    return (
        pool.cidr.version == cidr.version
        and pool.cidr.prefixlen <= cidr.prefixlen
        and cidr.network_address in pool.cidr
    )
