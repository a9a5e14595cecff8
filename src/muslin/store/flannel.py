"""flannel's layouts, read and written as flanneld does.  Pure.

Beside the store, not one: whoever holds the text (a ConfigMap, a Node's
annotations, a key of etcd) gives it to these functions.  Facts are those of
flannel 0.28 (pkg/subnet/config.go, pkg/subnet/kube/, pkg/backend/):

*  net-conf.json is read by Go's encoding/json: names of members in any case,
   unknown ones ignored, null as if it were not there.
*  A node is flannel's when `kube-subnet-manager` is "true"; its subnets are
   its podCIDRs, not in the annotations.
*  A restarted flanneld takes its MAC back out of `backend-data` by cutting the
   text at `:"`, which must be there once: the JSON is written without spaces
   and holds one string (kube.go: GetStoredMacAddresses).
*  host-gw has no data and says `null`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec

from muslin.errors import ConfigError
from muslin.model import Address, Network, Pool, Prefix

PREFIX = "flannel.alpha.coreos.com/"  # flanneld's --kube-annotation-prefix, unless changed
MANAGED = f"{PREFIX}kube-subnet-manager"
TYPE = f"{PREFIX}backend-type"
DATA = {4: f"{PREFIX}backend-data", 6: f"{PREFIX}backend-v6-data"}
PUBLIC = {4: f"{PREFIX}public-ip", 6: f"{PREFIX}public-ipv6"}
OVERWRITE = {v: f"{name}-overwrite" for v, name in PUBLIC.items()}  # a person's, never written
WRITTEN = (MANAGED, TYPE, *DATA.values(), *PUBLIC.values())
MAC = {4: "mac", 6: "mac6"}  # in a Node's data, as backend/flannel.py has them

POOLS = {4: "flannel4", 6: "flannel6"}
VXLAN, HOST_GW = "vxlan", "host-gw"
_BACKENDS = {VXLAN: "flannel", HOST_GW: "hostgw"}
_PORT = 8472  # Linux's own, which flannel's 0 means
_LENGTH = {4: 24, 6: 64}  # of a node's range unless its podCIDR says
# net.ParseMAC takes other separators and lengths too; flanneld writes this one.
_MAC_TEXT = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetConf:
    """flannel's network, as far as it is ours to follow."""

    cidrs: tuple[Prefix, ...]  # at most one of each version
    type: str  # vxlan or host-gw
    vni: int = 1
    port: int = _PORT
    mtu: int | None = None  # of the underlay; None: the uplink's
    direct: bool = False

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(c.version for c in self.cidrs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What flannel says of one node."""

    addresses: tuple[Address, ...]  # where its packets are to be sent
    subnets: tuple[Prefix, ...]
    macs: Mapping[int, str]  # IP version → MAC of the VTEP; empty for host-gw


# ── net-conf.json ───────────────────────────────────────────────────────────────────────────────


def parse(text: str) -> NetConf:
    """Read net-conf.json; ConfigError lists every fault, each with its mend."""
    found = _object(text, "net-conf.json")
    faults: list[str] = []
    cidrs = tuple(
        cidr
        for version, enable, name, default in (
            (4, "EnableIPv4", "Network", True),
            (6, "EnableIPv6", "IPv6Network", False),
        )
        if _flag(found, enable, default, faults)
        and (cidr := _cidr(found, name, version, faults)) is not None
    )
    backend = found.get("backend")
    if not isinstance(backend, dict):
        faults.append("Backend is missing, and flannel takes udp then: Muslin has vxlan, host-gw")
        raise ConfigError("net-conf.json", faults)
    options = _folded(backend)
    kind = options.get("type")
    if kind not in _BACKENDS:
        faults.append(
            f"Backend.Type {kind!r}: Muslin has vxlan, host-gw; move flannel to one of these first"
        )
    numbers = {
        name: _number(options, name, most, faults)
        for name, most in (("vni", 1 << 24), ("port", 1 << 16), ("mtu", 1 << 16))
    }
    direct = _flag(options, "DirectRouting", False, faults)
    if _flag(options, "GBP", False, faults):
        faults.append("Backend.GBP: Muslin sends no group policy; set it to false on all nodes")
    vni = numbers["vni"] if "vni" in options else 1
    if kind == VXLAN and vni == 0:
        faults.append("Backend.VNI 0: a tunnel has a number from 1")
    if kind == VXLAN and vni > 9999 and any(c.version == 6 for c in cidrs):
        faults.append(f"Backend.VNI {vni}: flannel-v6.{vni} is longer than a device's name may be")
    if not cidrs and not faults:
        faults.append("EnableIPv4 and EnableIPv6 are both false")
    if faults:
        raise ConfigError("net-conf.json", faults)
    return NetConf(
        cidrs=cidrs,
        type=str(kind),
        vni=vni,
        port=numbers["port"] or _PORT,
        mtu=numbers["mtu"] or None,
        direct=direct,
    )


def network(conf: NetConf, name: str, podcidrs: Iterable[str] = ()) -> tuple[Network, list[Pool]]:
    """The same as a network of ours and its pools, cut as the cluster cuts them.

    `podcidrs` are one node's, which tell the length.  The first address of a
    node's range but one is its bridge's (cni0), on nodes that have been
    flannel's: no pod gets it.
    """
    lengths = dict(_LENGTH)
    exclude: dict[int, tuple[Prefix, ...]] = {}
    for cidr in prefixes(podcidrs):
        lengths[cidr.version] = cidr.prefixlen
        exclude[cidr.version] = (ip_network(cidr.network_address + 1),)
    pools = [
        Pool(
            name=POOLS[c.version],
            cidr=c,
            block=max(lengths[c.version], c.prefixlen),
            exclude=exclude.get(c.version, ()),
        )
        for c in conf.cidrs
    ]
    options: dict[str, Any] = {}
    if conf.type == VXLAN:
        options = {"vni": conf.vni, "port": conf.port, "direct": conf.direct}
        options |= {"mtu": conf.mtu} if conf.mtu else {}
    made = Network(
        name=name,
        backend=_BACKENDS[conf.type],
        pools=tuple(p.name for p in pools),
        options=options,
    )
    return made, pools


def prefixes(texts: Iterable[str]) -> tuple[Prefix, ...]:
    """Those that are ranges; what is none is left out (agent/podcidr.py says so of our own)."""
    found: list[Prefix] = []
    for text in texts:
        try:
            found.append(ip_network(text))
        except ValueError:
            continue
    return tuple(found)


# ── a node's annotations ────────────────────────────────────────────────────────────────────────


def read(
    annotations: Mapping[str, str], podcidrs: Sequence[str], conf: NetConf
) -> Lease | str | None:
    """What flannel's annotations say of a node; None if it is not flannel's.

    A text says why it cannot be a peer.  As flanneld reads it: the first
    podCIDR of each enabled version, and a node without one of them is no peer.
    """
    if annotations.get(MANAGED) != "true":
        return None
    kind = annotations.get(TYPE, "")
    if kind != conf.type:
        return f"flannel there is {kind or 'of no type'}, here {conf.type}"
    addresses: list[Address] = []
    subnets: list[Prefix] = []
    macs: dict[int, str] = {}
    for version in conf.versions:
        text = annotations.get(PUBLIC[version], "")
        try:
            address = ip_address(text)
        except ValueError:
            return f"{PUBLIC[version]} is no address: {text[:60]!r}"
        if address.version != version:
            return f"{PUBLIC[version]} is no IPv{version} address: {text[:60]!r}"
        subnet = next((c for c in prefixes(podcidrs) if c.version == version), None)
        if subnet is None:
            return f"it has no IPv{version} podCIDR"
        addresses.append(address)
        subnets.append(subnet)
        if conf.type == VXLAN:
            data = read_data(annotations.get(DATA[version], ""))
            if isinstance(data, str):
                return f"{DATA[version]}: {data}"
            vni, macs[version] = data
            if vni != conf.vni:
                return f"its VNI is {vni}, here {conf.vni}"
    return Lease(addresses=tuple(addresses), subnets=tuple(subnets), macs=macs)


def written(
    lease: Lease, conf: NetConf, before: Mapping[str, str], *, overwrite: bool = True
) -> dict[str, str]:
    """What flanneld would write of this node; `before` has what a person overwrote."""
    found = {MANAGED: "true", TYPE: conf.type}
    for address in lease.addresses:
        version = address.version
        forced = before.get(OVERWRITE[version], "") if overwrite else ""
        found[PUBLIC[version]] = forced or str(address)
        mac = lease.macs.get(version)
        found[DATA[version]] = write_data(conf.vni, mac) if mac else "null"
    if conf.type == HOST_GW and 4 not in conf.versions:
        found[DATA[4]] = "null"
    return found


def read_data(text: str) -> tuple[int, str] | str:
    """The VNI and VTEP MAC in `backend-data`, or what is wrong with it."""
    try:
        found = _object(text, "backend-data")
    except ConfigError as e:
        return e.faults[0]
    vni, mac = found.get("vni", 0), found.get("vtepmac")
    if type(vni) is not int or not 0 <= vni < 1 << 24:
        return f"VNI {vni!r}"
    if not isinstance(mac, str) or not _MAC_TEXT.fullmatch(mac.lower()):
        return f"VtepMAC {mac!r}"
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        return f"VtepMAC {mac}: not of one device"
    return vni, mac.lower()


def write_data(vni: int, mac: str) -> str:
    """`backend-data`, in the spelling that a restarted flanneld reads its MAC from."""
    return f'{{"VNI":{vni},"VtepMAC":"{mac}"}}'


# ── JSON as Go reads it ─────────────────────────────────────────────────────────────────────────


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as e:
        raise ConfigError(what, [f"not JSON: {e}"]) from e
    if not isinstance(found, dict):
        raise ConfigError(what, [f"not a JSON object: {text[:60]!r}"])
    return _folded(found)


def _folded(found: Mapping[str, Any]) -> dict[str, Any]:
    """Names in lower case, of two the last; without what is null."""
    return {name.lower(): value for name, value in found.items() if value is not None}


def _flag(found: Mapping[str, Any], name: str, default: bool, faults: list[str]) -> bool:
    value = found.get(name.lower(), default)
    if not isinstance(value, bool):
        faults.append(f"{name} {value!r}: true or false")
        return default
    return value


def _number(found: Mapping[str, Any], name: str, most: int, faults: list[str]) -> int:
    value = found.get(name, 0)
    if type(value) is not int or not 0 <= value < most:
        faults.append(f"Backend.{name.upper()} {value!r}: a number below {most}")
        return 0
    return value


def _cidr(found: Mapping[str, Any], name: str, version: int, faults: list[str]) -> Prefix | None:
    value = found.get(name.lower())
    try:
        cidr = ip_network(value, strict=False) if isinstance(value, str) else None
    except ValueError:
        cidr = None
    if cidr is None or cidr.version != version:
        faults.append(f"{name} {value!r}: the IPv{version} range of the cluster's pods")
        return None
    return cidr
