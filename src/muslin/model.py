"""The nouns: what is remembered in the store and what a node is told about.

Stored values are msgspec structs: frozen, keyword-only, and refusing unknown
fields, so that a typing error in a file is an error and not a default.  The
same definitions serve every store (DESIGN 3).  Values that live only inside
one process are plain frozen dataclasses.  IP values are `ipaddress` types;
they become text only in `encode`.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec

from muslin.errors import ConfigError

if TYPE_CHECKING:
    Address = IPv4Address | IPv6Address
    Prefix = IPv4Network | IPv6Network
    Interface = IPv4Interface | IPv6Interface  # an address and the prefix that is on its link
else:
    # msgspec decodes a union of two custom types into neither; one virtual
    # base class per pair is what it accepts, and isinstance() still works.
    class Address(ABC):  # noqa: B024, D101
        __slots__ = ()

    class Prefix(ABC):  # noqa: B024, D101
        __slots__ = ()

    class Interface(ABC):  # noqa: B024, D101
        __slots__ = ()

    for _base, _versions in (
        (Address, (IPv4Address, IPv6Address)),
        (Prefix, (IPv4Network, IPv6Network)),
        (Interface, (IPv4Interface, IPv6Interface)),
    ):
        for _version in _versions:
            _base.register(_version)


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A range of pod addresses, cut into blocks that nodes claim whole."""

    name: str
    cidr: Prefix  # the addresses; overlaps no other pool and contains no node
    block: int = 0  # prefix length of one block; 0: 26 for IPv4, 122 for IPv6 (64 addresses)
    exclude: tuple[Prefix, ...] = ()  # never given to a pod
    cooldown: float = 30.0  # seconds a freed address rests; peers' ARP caches and firewalls forget

    @property
    def block_length(self) -> int:
        """The prefix length of this pool's blocks, defaults applied."""
        return self.block or (26 if self.cidr.version == 4 else 122)


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pod network: how it travels, where its addresses come from, where NAT begins."""

    name: str
    backend: str  # how pods reach other nodes: hostgw, vxlan, ... (docs/backends.md)
    pools: tuple[str, ...]  # their names; a pool belongs to one network
    options: dict[str, Any] = {}  # the backend's own section; only the backend reads it
    estate: tuple[Prefix, ...] = ()  # prefixes that know the way to pods: never masqueraded
    masquerade: bool = True  # for what leaves the estate


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine of the estate: one that runs pods, or a member that only reaches them."""

    name: str
    addresses: tuple[Interface, ...]  # underlay, at most one of each family is used
    mtu: int  # of the uplink, bytes
    uplink: str = ""  # its name there, for people and for plans made elsewhere
    pods: bool = True  # False: a member that claims no block
    data: dict[str, dict[str, str]] = {}  # network name → the backend's opaque facts (VTEP MAC)

    def address(self, version: int) -> Interface | None:
        """The underlay address of that IP version, if the node has one."""
        return next((a for a in self.addresses if a.version == version), None)


class Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A slice of a pool that one node holds while its store lease lives."""

    pool: str  # its name
    cidr: Prefix  # one of the pieces that the pool is cut into
    node: str  # whose pods get addresses out of it


class Owner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom an address belongs to: an object of Kubernetes, or of the estate."""

    kind: str  # Pod, StatefulSet, Workload, ...
    namespace: str = ""  # "" for what has none
    name: str  # of the object


class Reservation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One address that is spoken for by itself, not through a node's block.

    In Kubernetes its kind is Address.  For fixed addresses; no code makes one yet.
    """

    pool: str  # its name
    address: Address  # one of the pool's
    owner: Owner
    state: Literal["held", "sticky", "quarantined"] = "held"  # sticky: kept while its pod is away
    since: Annotated[datetime, msgspec.Meta(tz=True)]  # when it came into this state
    node: str = ""  # where it is in use; "" while nowhere
    nic: str = ""  # the interface inside the pod
    mac: str = ""  # that goes with the address


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A virtual or physical machine outside Kubernetes, selected by its labels like a pod.

    Services that ask for machines have them among their endpoints (controller/slices).
    """

    name: str
    namespace: str = "default"
    labels: dict[str, str] = {}
    addresses: tuple[Address, ...] = ()  # at which pods reach it
    node: str = ""  # whose agent serves it; "" for a machine that reaches pods by itself
    ready: bool = True  # False: services leave it out


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What this machine's kernel is and allows: facts found once, at start."""

    uplink: str  # the interface with the underlay addresses
    # IPv6 has no forwarding switch per interface before Linux 6.17
    # (net/ipv6/ip6_output.c: force_forwarding); without it the global one must be on.
    force_forwarding: bool = True
    global_forwarding: bool = False  # a person allowed us to set net.ipv6.conf.all.forwarding


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another node as a backend sees it."""

    node: Node
    blocks: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a node stands: everything a backend may look at when it plans."""

    me: Node
    host: Host
    network: Network
    pools: tuple[Pool, ...]
    blocks: tuple[Prefix, ...] = ()  # this node's own
    peers: tuple[Peer, ...] = ()


class PortMapping(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One port of the node that leads to one of a pod."""

    host: int
    pod: int
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    ip: Address | None = None  # of the node; None: every one of its addresses, of both versions


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """How much may pass: in the long run, and at once after a pause."""

    rate: int  # bytes per second
    burst: int  # bytes


class Apart(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps one of several NICs of a pod apart from the others (plan/pod.py)."""

    of: str  # the interface whose ADD makes them all; its own for the first
    table: int  # of the pod's routes: the way of what has this NIC's address as its source
    routes: tuple[Prefix, ...]  # the pools of its own network; for the first, of all the others'


class Wants(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for one NIC beyond an address; remembered with its attachment."""

    ports: tuple[PortMapping, ...] = ()
    ingress: Rate | None = None  # to the pod
    egress: Rate | None = None  # from the pod
    ips: tuple[Address, ...] = ()  # at most one of each version
    mac: str = ""  # of the pod's end; "" follows from its address
    pod: str = ""  # its name, for people
    apart: Apart | None = None  # None: the only one that its ADD makes


NOTHING = Wants()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One pod interface: the unit of ADD and DEL."""

    container: str
    ifname: str
    netns: str  # path
    addresses: tuple[Address, ...]
    mtu: int
    host: Host
    wants: Wants = NOTHING

    @property
    def dev(self) -> str:
        """The host end's name: `mu` and 8 hex digits, the same for the same attachment."""
        return device_name(self.container, self.ifname)

    @property
    def is_further(self) -> bool:
        """Whether another interface's ADD made it, which has the pod's default route."""
        return self.wants.apart is not None and self.wants.apart.of != self.ifname

    @property
    def mac(self) -> str:
        """The pod end's MAC: what was asked for, else from its first address."""
        return self.wants.mac or mac_of(self.addresses[0])


def mac_of(first: Address) -> str:
    """The MAC that goes with a pod's first address.

    A reused address keeps its MAC, so no neighbour cache anywhere goes stale.
    0a:58 has the locally administered bit (IEEE 802, as the CNI plugins use
    it).
    """
    tail = first.packed if first.version == 4 else _digest(first.packed, 4)
    return "0a:58:" + ":".join(f"{b:02x}" for b in tail)


@functools.lru_cache(maxsize=64)  # one ADD asks several times
def device_name(container: str, ifname: str) -> str:
    """The host-side device of an attachment, within the kernel's 15 characters."""
    return "mu" + _digest(f"{container}/{ifname}".encode(), 4).hex()


def is_pod_device(name: str) -> bool:
    """Whether `device_name` could have made this name."""
    return len(name) == 10 and name[:2] == "mu" and all(c in "0123456789abcdef" for c in name[2:])


def _digest(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


# ── text: one encoding for the store, the files and --json ──────────────────────────────────────

_PARSERS: Mapping[Any, Callable[[str], object]] = {
    Address: ip_address,
    Prefix: ip_network,
    Interface: ip_interface,
}

T = TypeVar("T")


def _to_text(value: object) -> object:
    if isinstance(value, tuple(_PARSERS)):
        return str(value)
    raise NotImplementedError(type(value).__name__)


def _from_text(kind: Any, value: object) -> object:
    parser = _PARSERS.get(kind)
    if parser is None or not isinstance(value, str):
        raise ValueError(f"expected an address, got {value!r}")
    return parser(value)


def encode(value: object) -> bytes:
    """One line of JSON, keys in declaration order."""
    return msgspec.json.encode(value, enc_hook=_to_text)


def decode(kind: type[T], data: bytes, *, subject: str = "") -> T:
    """The inverse of `encode`; ConfigError names `subject` and the field that is wrong."""
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_from_text)
    except (msgspec.DecodeError, ValueError) as e:
        raise ConfigError(subject or kind.__name__, [str(e)]) from e


def convert(kind: type[T], value: object, *, subject: str = "") -> T:
    """A typed value from plain data (TOML); ConfigError names `subject` and the field."""
    try:
        return msgspec.convert(value, type=kind, dec_hook=_from_text)
    except (msgspec.ValidationError, ValueError) as e:
        raise ConfigError(subject or kind.__name__, [str(e)]) from e


def to_builtins(value: object) -> Any:
    """Plain dicts, lists and text, for `--json` and TOML."""
    return msgspec.to_builtins(value, enc_hook=_to_text)


def of_family(values: Iterable[Prefix], version: int) -> tuple[Prefix, ...]:
    """Those of one IP version, lowest first."""
    chosen = [v for v in values if v.version == version]
    return tuple(sorted(chosen, key=lambda p: (int(p.network_address), p.prefixlen)))
