"""What a plan is made of: the kernel's own objects, as frozen values.

A plan is a set of objects.  Each has a `key`, the slot it takes in the kernel
(two objects with one key cannot exist together), and fields that say what
stands in the slot.  A link's `mtu` or `mac` that is None may be whatever it is.

How an object of ours is told from a stranger's (the mark):

    link           IFLA_IFALIAS starts with `muslin`, or the group is 109 (kernel/links.py)
    address        stands on a link of ours
    neighbour, FDB stands on a link of ours
    route          rtm_protocol is 109 ('m'), from the range iproute2 leaves free
    rule           FRA_PROTOCOL is 109
    qdisc          its handle is 6d: (109 in hex)
    nft            the table is called `muslin`
    sysctl         has no mark: only what a plan names is looked at, and nothing is undone

`ns` is None for the namespace the agent runs in, else the path of another.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from hashlib import blake2b
from typing import ClassVar

from muslin.model import Address, Interface, Prefix, is_pod_device

PROTOCOL = 109  # 'm'; rtnetlink(7): RTPROT_STATIC is 4, everything from 5 up is the user's
ALIAS = "muslin"  # every link of ours carries it, followed by what the link is for
NFT_TABLE = "muslin"  # of family inet
TABLE_MAIN = 254  # RT_TABLE_MAIN
SENDERS = "senders"  # the map of our table from devices to the limits of what they send
# Sets of our table whose elements belong to pods; the others' belong to the node.
# None holds intervals, so kernel/nfelem.py can pack any element of theirs by its text alone.
PODS_SETS = frozenset(
    f"{name}{version}" for name in ("ports", "ipports", "hairpins") for version in (4, 6)
)


@dataclass(frozen=True, slots=True)
class Veth:
    """One end of a pair; the other end is made together with it, in another namespace.

    The peer is a matter of creation only: later it is an object of its own.
    """

    peer: str | None = field(default=None, compare=False)
    peer_ns: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VTEP without learning: every neighbour and FDB entry is written by hand."""

    vni: int
    port: int
    local: Address


@dataclass(frozen=True, slots=True)
class Present:
    """A link made by somebody else (lo, the pod's end of a pair): configured, never removed."""


LinkKind = Veth | Vxlan | Present


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network device, up."""

    ns: str | None = None
    name: str
    kind: LinkKind
    mtu: int | None = None
    mac: str | None = None
    up: bool = True  # no plan wants less; False is an observation, to be mended in place
    purpose: str = field(default="", compare=False)  # for people reading `ip link`; in the alias

    @property
    def key(self) -> tuple[object, ...]:
        return ("link", self.ns, self.name)

    @property
    def dev(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """One value below /proc/sys, named with slashes: `net/ipv4/conf/eth0/forwarding`."""

    ns: str | None = None
    name: str
    value: str

    @property
    def key(self) -> tuple[object, ...]:
        return ("sysctl", self.ns, self.name)

    @property
    def dev(self) -> str | None:
        """The interface it belongs to, for `net/ipv?/conf/<dev>/…`."""
        parts = self.name.split("/")
        return parts[3] if len(parts) == 5 and parts[2] == "conf" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Addr:
    """An address on a link.  IPv6 ones skip duplicate detection: their owner is in the store."""

    ns: str | None = None
    dev: str
    address: Interface

    @property
    def key(self) -> tuple[object, ...]:
        return ("addr", self.ns, self.dev, self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neigh:
    """A permanent neighbour: nothing is asked and nothing expires."""

    ns: str | None = None
    dev: str
    address: Address
    mac: str

    @property
    def key(self) -> tuple[object, ...]:
        return ("neigh", self.ns, self.dev, self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fdb:
    """Where a VTEP finds a MAC address: the outer destination."""

    ns: str | None = None
    dev: str
    mac: str
    dst: Address

    @property
    def key(self) -> tuple[object, ...]:
        return ("fdb", self.ns, self.dev, self.mac)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of ours.  Without `dev` it is `unreachable`: an answer instead of a loop."""

    ns: str | None = None
    dst: Prefix
    via: Address | None = None
    dev: str | None = None
    onlink: bool = False  # the next hop is on `dev` although no prefix says so
    src: Address | None = None
    table: int = TABLE_MAIN

    @property
    def key(self) -> tuple[object, ...]:
        return ("route", self.ns, self.table, self.dst)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A routing rule: packets from `src` look into `table` first.

    Not those with one of the bits `unless` in their mark.
    """

    ns: str | None = None
    src: Prefix
    table: int
    priority: int
    unless: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        return ("rule", self.ns, self.src, self.table, self.priority, self.unless)

    dev: ClassVar[None] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaper:
    """What leaves by a device waits for its turn: a token bucket (sch_tbf) at its root."""

    ns: str | None = None
    dev: str
    rate: int  # bytes per second
    burst: int  # bytes, in whole KiB: the kernel keeps a time, which reads back a little less

    @property
    def key(self) -> tuple[object, ...]:
        return ("shaper", self.ns, self.dev)

    @property
    def queue(self) -> int:
        """What may wait, in bytes: a burst and 25 ms."""
        return self.burst + self.rate // 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """Our one nft table: its sets and chains, as the text inside `table inet muslin { … }`.

    Each rule is a line of its own: by their number damage is noticed (kernel/nft.py).

    Whoever changes the text changes the whole table, in one transaction and
    together with its elements, so no packet meets half a ruleset.
    """

    ns: str | None = None
    body: str

    @property
    def key(self) -> tuple[object, ...]:
        return ("ruleset", self.ns)

    @property
    def mark(self) -> str:
        """The table's comment: whose it is, and which text it was made from."""
        return f"{NFT_TABLE} {blake2b(self.body.encode(), digest_size=8).hexdigest()}"

    dev: ClassVar[None] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Police:
    """What one device sends beyond a rate is dropped: a limit in our table and where it applies.

    Two things for nft, an object and the element of the map `senders` that
    points to it, but neither is of any use alone.
    """

    ns: str | None = None
    name: str  # the device's; it need not be there
    rate: int  # bytes per second
    burst: int  # bytes

    @property
    def key(self) -> tuple[object, ...]:
        return ("police", self.ns, self.name)

    dev: ClassVar[None] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element of a set in our table; with `data`, of a map."""

    ns: str | None = None
    set: str
    item: str  # as nft prints it: `10.0.0.0/16`, `10.0.0.1 . tcp . 80`
    data: str | None = None

    @property
    def key(self) -> tuple[object, ...]:
        return ("element", self.ns, self.set, self.item)

    dev: ClassVar[None] = None


Object = Link | Sysctl | Shaper | Addr | Neigh | Fdb | Route | Rule | Ruleset | Police | Element
InTable = Police | Element  # what our table takes along
Plan = frozenset[Object]

# What must stand before what: links carry the rest, a route needs its next
# hop's neighbour to be useful at once, a set stands before its elements.
ORDER: tuple[type[Object], ...] = (
    Link, Sysctl, Shaper, Addr, Neigh, Fdb, Route, Rule, Ruleset, Police, Element,
)  # fmt: skip


def holds(desired: Object, observed: Object) -> bool:
    """Whether what was observed is what is desired.

    Only of a link may a field be left to the kernel; a route without `via`
    wants no next hop.
    """
    if not isinstance(desired, Link) or not isinstance(observed, Link):
        return desired == observed
    compared = (f.name for f in fields(desired) if f.compare)
    return all(getattr(desired, n) in {None, getattr(observed, n)} for n in compared)


def is_pods(obj: Object) -> bool:
    """Whether this belongs to one pod rather than to the node."""
    if isinstance(obj, Police) or (isinstance(obj, Element) and obj.set in PODS_SETS):
        return True
    return obj.ns is not None or (obj.dev is not None and is_pod_device(obj.dev))
