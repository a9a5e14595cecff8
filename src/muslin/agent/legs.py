"""Which NICs one ADD makes: its own, and those that the pod's annotation lists.

    eth0    as the runtime and the pod's other annotations ask
    net1    as the first entry of muslin.io/nics asks
    …

Each becomes an attachment of its own, with the name of the first in its
`Wants.apart`: so node.db knows which of a container's attachments came by
which call, and one that a runtime makes by a call of its own (Multus) is no
part of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import msgspec

from muslin import backend
from muslin.agent import ground
from muslin.agent.ground import Ground
from muslin.agent.wishes import MEND, NICS, Wishes, joined, narrowed
from muslin.cni.protocol import Attached, Request
from muslin.errors import RequestError
from muslin.model import Apart, Nic, Prefix, Wants
from muslin.plan.objects import Plan
from muslin.plan.pod import GATEWAY, HOST_MAC, TABLES
from muslin.store.ledger import Attachment, Ledger


class Leg(NamedTuple):
    """One NIC that an ADD is to make: what is asked for it, and where it is to lead."""

    request: Request
    where: Ground


def legs_of(ledger: Ledger, request: Request, wishes: Wishes) -> dict[str, Leg]:
    """Every NIC of this ADD by its interface, its own first.

    Raise NotReady for a call on a network that this node does not know yet,
    RequestError 7 for a list that cannot be had, with the mend.
    """
    request = joined(request, wishes)
    where = narrowed(ground.find(ledger, request.network), wishes)
    legs = {request.ifname: Leg(request, where)}
    if not wishes.nics:
        return legs
    known, others = ground.known(ledger), list[Prefix]()
    for at, nic in enumerate(wishes.nics, 1):
        if nic.network not in known:
            why = f"network {nic.network} is not known on this node (known: {', '.join(known)})"
            raise _refused(request, why)
        there = ground.find(ledger, nic.network)
        if nic.network == where.network.name:
            why = f"{nic.ifname} and {request.ifname} are both on network {nic.network}"
            raise _refused(request, f"{why}; a pod has one NIC on each")
        pools = tuple(p.cidr for p in there.pools)
        others += pools
        wants = Wants(
            ips=nic.ips,
            mac=nic.mac,
            ingress=nic.ingress,
            egress=nic.egress,
            pod=request.wants.pod,
            apart=Apart(of=request.ifname, table=TABLES + at, routes=pools),
        )
        asked = replace(request, ifname=nic.ifname, network=nic.network, wants=wants)
        legs[nic.ifname] = Leg(asked, narrowed(there, nic))
    apart = Apart(of=request.ifname, table=TABLES, routes=tuple(others))
    wants = msgspec.structs.replace(request.wants, apart=apart)
    legs[request.ifname] = Leg(replace(request, wants=wants), where)
    return legs


def _refused(request: Request, why: str) -> RequestError:
    return RequestError(7, f"pod {request.wants.pod}: annotation {NICS}: {why}", hint=MEND)


def family(found: Mapping[str, Attachment], ifname: str) -> dict[str, Attachment]:
    """Those of a container's attachments that the ADD of `ifname` made, its own first."""
    mine = (a for a in found.values() if a.of == ifname)
    return {a.ifname: a for a in sorted(mine, key=_place)}


def in_order(found: Iterable[Attachment]) -> list[Attachment]:
    """A container's attachments as people would list them: those of no list first."""
    return sorted(found, key=_place)


def _place(found: Attachment) -> tuple[int, str]:
    return (found.wants.apart.table if found.wants.apart else 0, found.ifname)


def nic_of(found: Attachment, where: Ground) -> Nic:
    """The NIC that an attachment is."""
    return Nic(
        container=found.container,
        ifname=found.ifname,
        netns=found.netns,
        addresses=found.addresses,
        mtu=found.mtu,
        host=where.host,
        wants=found.wants,
    )


def plan_of(found: Attachment, where: Ground) -> Plan:
    """What the kernel should hold for it."""
    return backend.load(where.network).nic(nic_of(found, where))


def attached(made: Mapping[str, Attachment], legs: Mapping[str, Leg]) -> Attached:
    """What the runtime is told."""
    first, *further = (_attached(nic_of(made[i], leg.where)) for i, leg in legs.items())
    return replace(first, further=tuple(further)) if further else first


def _attached(nic: Nic) -> Attached:
    versions = sorted({a.version for a in nic.addresses})
    return Attached(nic=nic, gateways=tuple(GATEWAY[v] for v in versions), host_mac=HOST_MAC)
