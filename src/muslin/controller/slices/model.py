"""The nouns of slices: services, who may be behind them, and what Kubernetes is told of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from muslin.model import Address


class ServicePort(NamedTuple):
    """A service's port; `target` is a number or the name that containers give it."""

    name: str
    protocol: str
    target: int | str
    app: str = ""  # appProtocol


class Port(NamedTuple):
    """A port of all endpoints of a slice."""

    name: str
    protocol: str
    number: int
    app: str = ""


class Target(NamedTuple):
    """The object behind an endpoint."""

    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A Service that has one of our annotations."""

    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    asks: Mapping[str, str] = field(default_factory=dict)  # our annotations
    headless: bool = False
    external: bool = False  # of type ExternalName
    families: tuple[int, ...] = (4, 6)
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)  # spec.selector
    publish: bool = False  # publishNotReadyAddresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A pod with an address from us, or a Workload."""

    kind: Literal["Pod", "Workload"] = "Pod"
    namespace: str
    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[tuple[str, Address], ...] = ()  # network, address; a Workload's network is ""
    serving: bool = False
    terminating: bool = False
    node: str = ""
    hostname: str = ""
    subdomain: str = ""
    ports: tuple[tuple[str, str, int], ...] = ()  # name, protocol, number


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address behind a service."""

    address: Address
    ready: bool
    serving: bool
    terminating: bool
    hostname: str = ""
    node: str = ""
    zone: str = ""
    target: Target


class Group(NamedTuple):
    """What all endpoints of a slice share: the IP version, and which ports they have."""

    family: int
    ports: tuple[Port, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One of our EndpointSlices, as it is."""

    namespace: str
    name: str
    version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    owners: frozenset[str] = frozenset()  # uids of Services
    group: Group
    endpoints: tuple[Endpoint | None, ...] = ()  # None: not as we would write it
    going: bool = False  # somebody deletes it


Wanted = Mapping[Group, Mapping[Address, Endpoint]]
"""What the slices of one service should hold."""
