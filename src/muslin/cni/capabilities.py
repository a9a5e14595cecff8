"""What a runtime wants for one pod: `runtimeConfig`, `args.cni` and CNI_ARGS as one value.  Pure.

    portMappings   runtimeConfig                                          ports of the node
    bandwidth      runtimeConfig                                          limits, both ways
    ips            runtimeConfig, else args.cni, else IP= in CNI_ARGS     these addresses
    mac            runtimeConfig, else args.cni, else MAC= in CNI_ARGS    this MAC
    dns            runtimeConfig, else the configuration's `dns`          told back in the result
    aliases, labels, cgroupPath, pod annotations                          accepted, of no effect
    anything else                                                         refused by name

The conventions are containernetworking/cni's CONVENTIONS.md, the limits those
of the reference plugins portmap, bandwidth, static and tuning.  A runtime
sends what the configuration declares under `capabilities` (cni/install.py).

Aliases are names for a DNS server on the pod's network, and Muslin has none.
`ipRanges` would take the place of the pools, which the estate has agreed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_interface
from typing import Any

import msgspec

from muslin.cni.environment import shown
from muslin.errors import RequestError
from muslin.model import Address, PortMapping, Rate, Wants

DECLARED = ("portMappings", "bandwidth", "ips", "mac", "dns", "aliases")
_IGNORED = frozenset({"aliases", "cgroupPath", "io.kubernetes.cri.pod-annotations"})
_PROTOCOLS = ("tcp", "udp", "sctp")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# containerd and CRI-O say MaxUint32 and MaxInt32 for a burst that nobody has named: half a
# gigabyte at full speed, whatever the limit.  Then it is a tenth of a second, like tc's examples.
NO_BURST = (1 << 31) - 1
_MIN_BURST = 1 << 16  # bytes: one segment that the pod's kernel has not cut yet (GSO)
_MIN_RATE = 8000  # bits per second: below it one full packet takes longer than anybody waits
_MAX_BYTES = (1 << 32) - 1  # the kernel's bursts, and nft's, are 32 bits wide


class Dns(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The well-known `dns` of a configuration; handed through to the result."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


NO_DNS = Dns()


class _Port(msgspec.Struct):
    host_port: int = msgspec.field(default=0, name="hostPort")
    container_port: int = msgspec.field(default=0, name="containerPort")
    protocol: str = "tcp"
    host_ip: str = msgspec.field(default="", name="hostIP")


class _Bandwidth(msgspec.Struct, rename="camel"):
    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


class _RuntimeDns(msgspec.Struct):
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class _Runtime(msgspec.Struct, rename="camel"):
    port_mappings: tuple[_Port, ...] | None = None
    bandwidth: _Bandwidth | None = None
    ips: tuple[str, ...] | None = None
    mac: str | None = None
    dns: _RuntimeDns | None = None


_KNOWN = {f.encode_name for f in msgspec.structs.fields(_Runtime)} | _IGNORED
_NAMES = {
    field.encode_name.lower(): field.encode_name
    for struct in (_Port, _Bandwidth, _RuntimeDns)
    for field in msgspec.structs.fields(struct)
}


class _Args(msgspec.Struct):
    ips: tuple[str, ...] | None = None
    mac: str | None = None


def wants(raw: Mapping[str, Any], env: Mapping[str, str]) -> Wants:
    """What is asked for one pod; RequestError names what cannot be done.

    `raw` is the configuration, `env` CNI_ARGS.
    """
    runtime = _runtime(raw)
    args = _args(raw)
    ips = runtime.ips or args.ips or tuple(filter(None, env.get("IP", "").split(",")))
    bandwidth = runtime.bandwidth or _Bandwidth()
    return Wants(
        ports=_ports(runtime.port_mappings or ()),
        ingress=rate_of("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst),
        egress=rate_of("egress", bandwidth.egress_rate, bandwidth.egress_burst),
        ips=addresses_of(ips),
        mac=mac_of(runtime.mac or args.mac or env.get("MAC", "")),
        pod=pod_name(env.get("K8S_POD_NAMESPACE", ""), env.get("K8S_POD_NAME", "")),
    )


def dns(raw: Mapping[str, Any]) -> Dns | None:
    """The pod's own `dns`, if the runtime sent one."""
    found = _runtime(raw).dns
    if found is None or found == _RuntimeDns():
        return None
    return Dns(nameservers=found.servers, search=found.searches, options=found.options)


def _runtime(raw: Mapping[str, Any]) -> _Runtime:
    given = raw.get("runtimeConfig") or {}
    try:
        found = msgspec.convert({k: _as_go_reads(v) for k, v in given.items()}, _Runtime)
    except msgspec.ValidationError as e:
        raise RequestError(7, f"runtimeConfig: {e}") from e
    for key, value in given.items():
        if key == "ipRanges" and value:
            hint = "remove ipRanges from `capabilities`; one address can be asked for with ips"
            message = "runtimeConfig ipRanges: addresses come from the pools of the Muslin network"
            raise RequestError(2, message, hint=hint)
        if key not in _KNOWN and key != "ipRanges" and value:
            hint = "remove it from the configuration's `capabilities`"
            raise RequestError(2, f"runtimeConfig {shown(key)}: not supported", hint=hint)
    return found


def _as_go_reads(value: Any) -> Any:
    """With the names of fields as the conventions spell them.

    containerd sends `HostPort` and `IngressRate` (go-cni/types.go has no JSON tags), and nobody
    noticed: Go's decoder ignores case (encoding/json, Unmarshal).
    """
    if isinstance(value, dict):
        return {_NAMES.get(k.lower(), k): _as_go_reads(v) for k, v in value.items()}
    return [_as_go_reads(v) for v in value] if isinstance(value, list) else value


def _args(raw: Mapping[str, Any]) -> _Args:
    try:
        return msgspec.convert((raw.get("args") or {}).get("cni") or {}, _Args)
    except (msgspec.ValidationError, AttributeError) as e:
        raise RequestError(7, f"args.cni: {e}") from e


def _ports(given: Iterable[_Port]) -> tuple[PortMapping, ...]:
    found: dict[object, PortMapping] = {}
    for port in given:
        if port.host_port == 0:
            continue  # a container's port that nobody wants on the node, as runtimes send it
        mapping = _mapping(port)
        key = (mapping.protocol, mapping.host, mapping.ip)
        if found.setdefault(key, mapping) != mapping:
            raise RequestError(7, f"portMappings: {_words(port)} leads to two ports of the pod")
    return tuple(found.values())


def _mapping(port: _Port) -> PortMapping:
    for number in (port.host_port, port.container_port):
        if not 0 < number < 1 << 16:
            raise RequestError(7, f"portMappings: {_words(port)}: a port is 1 to 65535")
    protocol = port.protocol.lower() or "tcp"
    if protocol not in _PROTOCOLS:
        why = f"not one of {', '.join(_PROTOCOLS)}"
        raise RequestError(7, f"portMappings: {_words(port)}: {shown(port.protocol)} is {why}")
    try:
        ip = ip_address(port.host_ip) if port.host_ip else None
    except ValueError as e:
        raise RequestError(7, f"portMappings: {_words(port)}: hostIP: {e}") from e
    if ip is not None and (ip.is_multicast or (ip.version == 6 and ip.is_loopback)):
        # The kernel has no way from ::1 to another device: there is no route_localnet of IPv6.
        raise RequestError(7, f"portMappings: {_words(port)}: no port of {ip} can be mapped")
    return msgspec.convert(
        {"host": port.host_port, "pod": port.container_port, "protocol": protocol, "ip": ip},
        PortMapping,
        dec_hook=lambda _, value: value,
    )


def _words(port: _Port) -> str:
    at = f"{port.host_ip} " if port.host_ip else ""
    return f"{at}{port.protocol or 'tcp'} {port.host_port} → {port.container_port}"


def rate_of(way: str, rate: int, burst: int) -> Rate | None:
    """A limit in bytes, from the bits of the convention; RequestError for what is none."""
    if rate < 0 or burst < 0 or (not rate and burst) or (rate and not burst):
        why = "a rate and a burst, both above 0, or neither"
        raise RequestError(7, f"bandwidth: {way}Rate {rate}, {way}Burst {burst}: {why}")
    if not rate:
        return None
    if not rate >= _MIN_RATE:
        raise RequestError(7, f"bandwidth: {way}Rate {rate}: at least {_MIN_RATE} bits per second")
    if burst >= NO_BURST:
        burst = min(max(rate // 10, _MIN_BURST * 8), _MAX_BYTES * 8)
    return Rate(rate=rate // 8, burst=max(burst // 8, 1))


def addresses_of(given: Iterable[str]) -> tuple[Address, ...]:
    """IPv4 before IPv6, at most one of each; RequestError for two of one, or for what is none."""
    found: dict[int, Address] = {}
    for text in given:
        try:
            # A prefix length is the reference plugins' way; ours is always the whole address.
            address = ip_interface(text.strip()).ip
        except ValueError as e:
            raise RequestError(7, f"ips: {e}") from e
        if found.setdefault(address.version, address) != address:
            other = found[address.version]
            raise RequestError(7, f"ips: {other} and {address}: a pod has one IPv{address.version}")
    return tuple(found[v] for v in sorted(found))


def mac_of(text: str) -> str:
    """Six bytes with colons between; "" for ""; RequestError for what no NIC can have."""
    mac = text.lower().replace("-", ":")
    if not mac:
        return ""
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or not int(mac.replace(":", ""), 16):
        raise RequestError(7, f"mac {shown(text)}: not the address of one NIC (six bytes, unicast)")
    return mac


def pod_name(namespace: str, name: str) -> str:
    """The pod's name for people, of plain characters."""
    name = "/".join(p for p in (namespace, name) if p)
    return name[:128] if name.isascii() and name.isprintable() and " " not in name else ""
