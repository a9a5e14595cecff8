"""A lab's topology: one TOML file to one frozen value, or a list of everything that is wrong.

Kinds of things, each a table of its own in the file:

    switches   one L2 segment, with the prefixes that live on it
    routers    a leg on each of several switches; they forward, and know no pod prefix
    nodes      run pods, with a real agent each
    machines   run none: a `member` has an agent without pods, a `static` one is unmodified
               and knows the way to pods by plain routes through one node
    outside    hosts that nobody told anything: beyond the estate

`[network]` and `[[pools]]` are exactly `model.Network` and `model.Pool`.

Addresses are given out in the order of the file, so that a picture can be
read without a table: on every prefix routers are .1, .2, … and everything else
.11, .12, …  (IPv6 shows the same digits: ::1, ::11).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Literal

from muslin.lab.reading import Reader
from muslin.model import Address, Interface, Network, Pool, Prefix

Role = Literal["node", "member", "static", "outside"]

LAB_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
# A switch's port is named after what is plugged in, and Linux allows 15 characters (IFNAMSIZ).
NAME = re.compile(r"[a-z][a-z0-9-]{0,14}")
POD_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
UPLINK = "eth0"  # of every host; a router's legs are named after their switches
FIRST_HOST = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One L2 segment."""

    name: str
    prefixes: tuple[Prefix, ...]
    mtu: int = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One interface: the switch it is plugged into, and its addresses there."""

    switch: str
    addresses: tuple[Interface, ...]

    def address(self, version: int) -> Address | None:
        """The address of that IP version, if the leg has one."""
        return next((a.ip for a in self.addresses if a.version == version), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Anything with one leg: a node, a machine, somebody outside."""

    name: str
    role: Role
    leg: Leg
    via: str = ""  # static only: the node that knows the way to pods

    @property
    def has_agent(self) -> bool:
        """Whether an agent runs here."""
        return self.role in ("node", "member")


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """A machine that forwards between its legs and was told nothing about pods."""

    name: str
    legs: tuple[Leg, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A whole lab, as its file says."""

    name: str
    summary: str
    switches: tuple[Switch, ...]
    routers: tuple[Router, ...]
    hosts: tuple[Host, ...]  # in the file's order: nodes, machines, outside
    network: Network
    pools: tuple[Pool, ...]

    def of_role(self, *roles: Role) -> tuple[Host, ...]:
        """The hosts of these roles, in the file's order."""
        return tuple(h for h in self.hosts if h.role in roles)

    @property
    def agents(self) -> tuple[Host, ...]:
        """The hosts with an agent."""
        return tuple(h for h in self.hosts if h.has_agent)

    @property
    def things(self) -> tuple[str, ...]:
        """The name of everything that gets a namespace."""
        return _names(self.switches, self.routers, self.hosts)

    def host(self, name: str) -> Host | None:
        """The host of that name."""
        return next((h for h in self.hosts if h.name == name), None)

    def switch(self, name: str) -> Switch:
        """The switch of that name; it exists, or the file was refused."""
        return next(s for s in self.switches if s.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One static route."""

    dst: Prefix
    via: Address


def host_ways(topology: Topology, host: Host) -> tuple[Way, ...]:
    """A default through the first router on the switch, and a static machine's pod routes."""
    ways = []
    router = next(iter(_routers_on(topology, host.leg.switch)), None)
    for address in host.leg.addresses:
        gateway = _leg(router, host.leg.switch).address(address.version) if router else None
        if gateway:
            anywhere = ip_interface("0.0.0.0/0" if address.version == 4 else "::/0").network
            ways.append(Way(dst=anywhere, via=gateway))
    node = topology.host(host.via) if host.via else None
    for pool in topology.pools if node else ():
        hop = node.leg.address(pool.cidr.version) if node else None
        if hop:
            ways.append(Way(dst=pool.cidr, via=hop))
    return tuple(ways)


def router_ways(topology: Topology, router: Router) -> tuple[Way, ...]:
    """The prefixes of switches beyond other routers, by the fewest hops."""
    known: dict[str, Leg | None] = {leg.switch: None for leg in router.legs}  # switch → next hop
    frontier = list(known)
    while frontier:
        switch = frontier.pop(0)
        for other in _routers_on(topology, switch):
            first = known[switch] or _leg(other, switch)
            beyond = [leg.switch for leg in other.legs if leg.switch not in known]
            known |= dict.fromkeys(beyond, first)
            frontier += beyond
    return tuple(
        Way(dst=prefix, via=hop)
        for switch in topology.switches
        for prefix in switch.prefixes
        if (leg := known.get(switch.name)) and (hop := leg.address(prefix.version))
    )


def _names(
    switches: Iterable[Switch], routers: Iterable[Router], hosts: Iterable[Host]
) -> tuple[str, ...]:
    kinds = ([s.name for s in switches], [r.name for r in routers], [h.name for h in hosts])
    return tuple(name for kind in kinds for name in kind)


def _routers_on(topology: Topology, switch: str) -> tuple[Router, ...]:
    return tuple(r for r in topology.routers if any(leg.switch == switch for leg in r.legs))


def _leg(router: Router, switch: str) -> Leg:
    return next(leg for leg in router.legs if leg.switch == switch)


# ── from the file ───────────────────────────────────────────────────────────────────────────────


def parse(text: str, *, stem: str) -> Topology:
    """The topology a file's text describes; ConfigError lists every fault.

    `stem` names the lab unless the file does.
    """
    reader = Reader(text, subject=f"lab {stem}")
    raw = reader.root
    reader.known(raw, "", "lab", "switches", "routers", "nodes", "machines", "outside",
                 "network", "pools")  # fmt: skip
    lab = reader.table(raw, "", "lab")
    reader.known(lab, "lab", "name", "summary")
    name = reader.text(lab, "lab", "name", stem)
    check_lab_name(name, reader.faults)
    switches = _switches(reader)
    by_name = {s.name: s for s in switches}
    plugs = _Plugs(by_name, reader)
    # The order matters: routers take .1, and given addresses must be known before any is chosen.
    hosts_raw = [*_hosts_of(reader, "nodes"), *_hosts_of(reader, "machines"),
                 *_hosts_of(reader, "outside")]  # fmt: skip
    for kind, host, table in hosts_raw:
        plugs.reserve(f"{kind}.{host}", table)
    routers = _routers(reader, plugs)
    hosts = tuple(_host(reader, plugs, kind, host, table) for kind, host, table in hosts_raw)
    network, pools = reader.network(), reader.pools()
    _check_names(reader, _names(switches, routers, hosts))
    _check_ways(reader, hosts)
    _check_prefixes(reader, switches, network, pools)
    reader.done()
    assert network is not None  # or `done` would have raised
    return Topology(
        name=name,
        summary=reader.text(lab, "lab", "summary", ""),
        switches=switches,
        routers=routers,
        hosts=hosts,
        network=network,
        pools=pools,
    )


def check_lab_name(name: str, faults: list[str]) -> None:
    """Add a fault unless `name` can name a lab."""
    if not LAB_NAME.fullmatch(name):
        rule = "a lower-case letter, then at most 19 letters, digits or '-'"
        faults.append(f"lab name {name!r}: {rule}")


def _switches(reader: Reader) -> tuple[Switch, ...]:
    switches = []
    for name, table in reader.tables(reader.root, "switches"):
        where = f"switches.{name}"
        reader.known(table, where, "prefixes", "mtu")
        prefixes = reader.prefixes(table, where, "prefixes")
        versions = [p.version for p in prefixes]
        if len(versions) != len(set(versions)):
            reader.faults.append(f"{where}.prefixes: at most one IPv4 and one IPv6 prefix")
        mtu = reader.number(table, where, "mtu", 1500, low=1280, high=65535)
        switches.append(Switch(name=name, prefixes=prefixes, mtu=mtu))
    return tuple(switches)


def _hosts_of(reader: Reader, kind: str) -> list[tuple[str, str, Mapping[str, object]]]:
    return [(kind, name, table) for name, table in reader.tables(reader.root, kind)]


class _Plugs:
    """Who has which address on which switch, while the file is read."""

    def __init__(self, switches: Mapping[str, Switch], reader: Reader) -> None:
        self.switches = switches
        self.reader = reader
        self.taken: dict[Address, str] = {}
        self.given: dict[str, tuple[Interface, ...]] = {}

    def reserve(self, where: str, table: Mapping[str, object]) -> None:
        """Note the addresses a file gives, so that none of them is chosen for somebody else."""
        switch = self.switches.get(str(table.get("switch")))
        found = []
        for address in self.reader.addresses(table, where, "addresses"):
            prefix = next((p for p in switch.prefixes if address in p), None) if switch else None
            if switch and prefix is None:
                self.reader.faults.append(f"{where}: {address} is in no prefix of {switch.name}")
            elif prefix and self._take(address, where):
                found.append(ip_interface(f"{address}/{prefix.prefixlen}"))
        self.given[where] = tuple(found)

    def leg(self, where: str, switch: str, first: int) -> Leg:
        """A leg on `switch` with its given addresses, or the next free ones from `first` on."""
        known = self.switches.get(switch)
        if known is None:
            names = ", ".join(self.switches) or "none"
            self.reader.faults.append(f"{where}: no switch {switch!r} (there are: {names})")
            return Leg(switch=switch, addresses=())
        given = self.given.get(where, ())
        return Leg(switch=switch, addresses=given or tuple(self._choose(where, known, first)))

    def _choose(self, where: str, switch: Switch, first: int) -> Iterable[Interface]:
        for prefix in switch.prefixes:
            for number in range(first, 1000):
                # ::11 and not ::b: the same digits in both families.
                offset = number if prefix.version == 4 else int(str(number), 16)
                if offset >= prefix.num_addresses - 1:
                    self.reader.faults.append(f"{where}: {prefix} has no address left for it")
                    break
                address = prefix.network_address + offset
                if address not in self.taken:
                    self._take(address, where)
                    yield ip_interface(f"{address}/{prefix.prefixlen}")
                    break

    def _take(self, address: Address, where: str) -> bool:
        if address in self.taken:
            self.reader.faults.append(f"{where}: {address} belongs to {self.taken[address]}")
            return False
        self.taken[address] = where
        return True


def _routers(reader: Reader, plugs: _Plugs) -> tuple[Router, ...]:
    routers = []
    for name, table in reader.tables(reader.root, "routers"):
        where = f"routers.{name}"
        reader.known(table, where, "legs")
        legs = reader.texts(table, where, "legs")
        if len(legs) < 2 or len(set(legs)) != len(legs):
            reader.faults.append(f"{where}.legs: two or more different switches")
        routers.append(Router(name=name, legs=tuple(plugs.leg(where, s, 1) for s in legs)))
    return tuple(routers)


def _host(reader: Reader, plugs: _Plugs, kind: str, name: str, table: Mapping[str, object]) -> Host:
    where = f"{kind}.{name}"
    own = ("member", "static", "via") if kind == "machines" else ()
    reader.known(table, where, "switch", "addresses", *own)
    role: Role = "node" if kind == "nodes" else "outside"
    via = ""
    if kind == "machines":
        member, static = (reader.flag(table, where, word) for word in ("member", "static"))
        if member == static:
            reader.faults.append(f"{where}: say either member = true or static = true")
        role = "member" if member else "static"
        via = reader.text(table, where, "via", "")
        if static and not via:
            reader.faults.append(f'{where}: a static machine needs via = "<node>"')
        if member and via:
            reader.faults.append(f"{where}: via is for static machines; an agent finds its own way")
    switch = reader.text(table, where, "switch", None)
    return Host(name=name, role=role, leg=plugs.leg(where, switch, FIRST_HOST), via=via)


def _check_names(reader: Reader, names: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for name in names:
        if not NAME.fullmatch(name):
            rule = "a lower-case letter, then at most 14 letters, digits or '-'"
            reader.faults.append(f"name {name!r}: {rule}")
        if name == "mgmt" or name.startswith("pod-"):
            reader.faults.append(f"name {name!r}: `mgmt` and `pod-…` are the lab's own")
        if name in seen:
            reader.faults.append(f"name {name!r} is used twice")
        seen.add(name)


def _check_ways(reader: Reader, hosts: tuple[Host, ...]) -> None:
    nodes = {h.name: h for h in hosts if h.role == "node"}
    if not nodes:
        reader.faults.append("nodes: a lab needs at least one")
    for host in hosts:
        if host.role != "static" or not host.via:
            continue
        if host.via not in nodes:
            reader.faults.append(f"machines.{host.name}: via {host.via!r} is not a node")
        elif nodes[host.via].leg.switch != host.leg.switch:
            reader.faults.append(f"machines.{host.name}: {host.via} is not on {host.leg.switch}")


def _check_prefixes(
    reader: Reader, switches: tuple[Switch, ...], network: Network | None, pools: tuple[Pool, ...]
) -> None:
    named = [(f"switches.{s.name}", p) for s in switches for p in s.prefixes]
    named += [(f"pool {p.name}", p.cidr) for p in pools]
    for index, (where, prefix) in enumerate(named):
        for other, second in named[index + 1 :]:
            if prefix.version == second.version and prefix.overlaps(second):
                reader.faults.append(f"{where} {prefix} overlaps {other} {second}")
    for name in network.pools if network else ():
        if name not in {p.name for p in pools}:
            reader.faults.append(f"network.pools: no pool {name!r}")
