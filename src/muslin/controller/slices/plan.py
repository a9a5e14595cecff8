"""Who is behind a service of ours: each address with its port, as Kubernetes would say it.  Pure.

A pod counts as in Kubernetes (k8s.io/endpointslice, utils.go): `serving` is its
Ready condition, `terminating` its deletion, `ready` the first without the
second, or always with `publishNotReadyAddresses`; it has no endpoint before it
has an address, and none once it has ended.  Named ports are looked up in its
containers; a port it does not have is left out for that pod.  A Workload's
`ready` stands for the condition; it has no containers, so no named ports.

Two things are otherwise.  An endpoint has one address: "no semantics are
defined for additional addresses" (discovery/v1), so a machine with two is two
endpoints.  And an address is one endpoint of a service, of whoever is most
ready: a pod that has ended may still be listed with the address that the next
one has.

The API server refuses a slice as a whole, a hundred endpoints for the one that
is wrong.  So whatever comes from people is checked here: addresses, a
machine's name where a host's is wanted, the node it names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from muslin.controller.slices import selectors
from muslin.controller.slices.model import Endpoint, Group, Member, Port, Service, Target, Wanted
from muslin.controller.slices.selectors import Term
from muslin.model import Address

NETWORK, SELECTOR, WORKLOADS = "muslin.io/network", "muslin.io/selector", "muslin.io/workloads"
ASKS = (NETWORK, SELECTOR, WORKLOADS)  # a Service with one of these is ours

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123


class Wish(NamedTuple):
    """What a service asks for; `fault` says why that cannot be had, and the mend."""

    terms: tuple[Term, ...] = ()
    network: str = ""  # of pods; "": none of ours
    workloads: bool = False
    fault: str = ""


def wish(service: Service) -> Wish:
    """Read a service's annotations."""
    try:
        return _wish(service)
    except ValueError as e:
        return Wish(fault=str(e))


def _wish(service: Service) -> Wish:
    asks, own = service.asks, service.selector
    network, text, workloads = asks.get(NETWORK), asks.get(SELECTOR), asks.get(WORKLOADS)
    if workloads not in (None, "true", "false"):
        raise ValueError(f'annotation {WORKLOADS}: write "true" or "false"')
    if network is not None and not _LABEL.fullmatch(network):
        raise ValueError(f"annotation {NETWORK}: {network[:80]!r} is no network's name")
    if network is None and workloads is None:
        raise ValueError(
            f"annotation {SELECTOR} alone asks for nothing: add {NETWORK} or {WORKLOADS}"
        )
    if network is None and workloads == "false":
        return Wish()
    if service.external:
        raise ValueError(f"type ExternalName has no endpoints: remove {', '.join(sorted(asks))}")
    if own and (network is not None or text is not None):
        same = ",".join(f"{k}={v}" for k, v in sorted(own.items()))
        if network is None:
            raise ValueError(f"spec.selector and annotation {SELECTOR} both select: remove one")
        raise ValueError(
            f"with spec.selector Kubernetes adds the pods' primary addresses to those on network "
            f"{network}: delete this Service and make it anew, without spec.selector and with "
            f'annotation {SELECTOR}: "{text or same}"'
        )
    if not own and text is None:
        raise ValueError(f'selects nothing: add annotation {SELECTOR}, such as "app=db"')
    try:
        terms = selectors.equal(own) if text is None else selectors.parse(text)
    except ValueError as e:
        raise ValueError(f"annotation {SELECTOR}: {e}") from e
    return Wish(terms, network or "", workloads != "false")


class Index:
    """The members of one namespace, found by what they must have."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._all = tuple(members)
        self._by: dict[tuple[str, str], list[Member]] = {}
        for member in self._all:
            for label in member.labels.items():
                self._by.setdefault(label, []).append(member)

    def chosen(self, terms: Sequence[Term]) -> Iterable[Member]:
        """Those of which every term is true."""
        found: Sequence[Member] = self._all
        for key, values, wanted in terms:
            if wanted and values is not None and len(values) == 1:
                few = self._by.get((key, next(iter(values))), ())
                found = few if len(few) < len(found) else found
        return (m for m in found if all(t.matches(m.labels) for t in terms))


def endpoints(
    service: Service, asked: Wish, members: Index, zones: Mapping[str, str]
) -> tuple[Wanted, str]:
    """What a service should have, and what of it cannot be had, in words.

    `zones` has every node of the cluster, with its zone or "".
    """
    if asked.fault or not (asked.network or asked.workloads):
        return {}, asked.fault
    best: dict[Address, tuple[tuple[object, ...], Group, Endpoint]] = {}
    notes: set[str] = set()
    for member in members.chosen(asked.terms):
        if member.kind == "Workload" and not asked.workloads:
            continue
        network = asked.network if member.kind == "Pod" else ""  # and no pod's is ""
        given = [address for on, address in member.addresses if on == network]
        if not given:
            continue
        ports = tuple(sorted(_ports(service, member, notes)))
        for address in given:
            if not _usable(address):
                notes.add(f"{member.kind} {member.name}: {address} is no address for a service")
            elif address.version in service.families:
                made = _endpoint(service, member, address, zones)
                state = (made.ready, made.serving, not made.terminating)
                rank = (*state, member.kind == "Pod", *made.target)
                if address not in best or rank > best[address][0]:
                    best[address] = (rank, Group(address.version, ports), made)
    found: dict[Group, dict[Address, Endpoint]] = {}
    for address, (_, group, endpoint) in best.items():
        found.setdefault(group, {})[address] = endpoint
    return found, "; ".join(sorted(notes))


def _endpoint(
    service: Service, member: Member, address: Address, zones: Mapping[str, str]
) -> Endpoint:
    node, hostname = member.node, ""
    if member.kind == "Workload":
        hostname = member.name if _LABEL.fullmatch(member.name) else ""
        node = node if node in zones else ""  # kube-proxy knows no others; it may be no name at all
    elif member.subdomain == service.name:
        hostname = member.hostname
    return Endpoint(
        address=address,
        ready=service.publish or (member.serving and not member.terminating),
        serving=member.serving,
        terminating=member.terminating,
        hostname=hostname,
        node=node,
        zone=zones.get(node, ""),
        target=Target(member.kind, member.namespace, member.name, member.uid),
    )


def _ports(service: Service, member: Member, notes: set[str]) -> Iterable[Port]:
    named = {(name, protocol): number for name, protocol, number in reversed(member.ports)}
    for name, protocol, target, app in service.ports:
        number = target if isinstance(target, int) else named.get((target, protocol), 0)
        if number:
            yield Port(name, protocol, number, app)
        elif member.kind == "Workload":
            notes.add(
                f"port {name or target}: targetPort {target} is a name, and a Workload has no "
                "named ports: write a number"
            )


def _usable(address: Address) -> bool:
    """Whether the API server takes it (ValidateEndpointIP), and it is a host's."""
    if address.version == 6 and (address.ipv4_mapped or address.scope_id):
        return False
    return not (
        address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
    )
