"""CNI 1.1.0 as values: what a runtime asked, and the text it is told.  Pure.

    verb      exists from   must have in the environment
    ADD       0.3.0         CNI_CONTAINERID CNI_NETNS CNI_IFNAME
    DEL       0.3.0         CNI_CONTAINERID CNI_IFNAME
    CHECK     0.4.0         as ADD, and a prevResult in the configuration
    GC        1.1.0         nothing (the list of what is still valid is in the configuration)
    STATUS    1.1.0         nothing
    VERSION   always        nothing; the configuration is not judged

The specification also asks for CNI_PATH with GC.  Nothing here needs it, so
nobody is refused for lacking it.

What makes a runtime's life hard is refused early and by name, with the
specification's code.  DEL and GC are the exception: a key or an argument that
we do not know never stands in the way of giving back what is held.

0.1.0 and 0.2.0 are not served: their result has one address of each family
and no interfaces.  A configuration without `cniVersion` is 0.1.0 by the spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any

import msgspec

from muslin.cni import capabilities, environment
from muslin.cni.capabilities import NO_DNS, Dns
from muslin.cni.environment import plain, shown
from muslin.errors import MuslinError, RequestError
from muslin.model import NOTHING, Address, Nic, Wants

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")  # oldest first
NEWEST = VERSIONS[-1]
# The version of the specification in which each verb appeared.
SINCE = {
    "ADD": "0.3.0",
    "DEL": "0.3.0",
    "CHECK": "0.4.0",
    "GC": "1.1.0",
    "STATUS": "1.1.0",
}
INTERNAL = 999  # what the reference plugins answer for a fault of their own
MAX_CONFIG = 1 << 20  # bytes; an attachment in GC's list takes 210, so 4900 of them fit
MAX_DEPTH = 32  # a result needs 4
MAX_TEXT = 500  # characters of one error message; runtimes put it into one event

_KEYS = frozenset(
    {
        "cniVersion",
        "cniVersions",
        "name",
        "type",
        "network",
        "syncDelete",
        "dns",
        "prevResult",
        "capabilities",
        "runtimeConfig",
        "args",
    }
)
_INSTEAD = {
    "ipam": "addresses come from the pools of the Muslin network",
    "ipMasq": "set masquerade on the Muslin network",
    "mtu": "the MTU follows from the backend and the uplink",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of a runtime, every part of it judged."""

    verb: str
    version: str = NEWEST
    container: str = ""
    netns: str = ""  # a path; "" where the verb has none, or a DEL after the namespace's end
    ifname: str = ""
    args: Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    name: str = ""  # of the runtime's network
    network: str = ""  # of the Muslin network; "" for the node's default
    sync_delete: bool = False  # DEL returns when the device is gone, not before
    dns: Dns = NO_DNS
    prev_result: Mapping[str, object] | None = None  # what ADD answered, for CHECK and DEL
    # (container, ifname).  None: the runtime did not say, so GC may not conclude anything.
    valid_attachments: tuple[tuple[str, str], ...] | None = None
    wants: Wants = NOTHING  # ADD only: later verbs go by what ADD was asked for


class _End(msgspec.Struct):
    name: str = ""
    sandbox: str = ""


class _Ip(msgspec.Struct):
    address: str
    interface: int | None = None


class _Result(msgspec.Struct):
    interfaces: tuple[_End, ...] = ()
    ips: tuple[_Ip, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What a successful ADD made, as far as a runtime is told."""

    nic: Nic
    gateways: tuple[Address, ...]  # the next hops of its routes, one of a family at most
    host_mac: str = ""  # of the host end; "" where the node has no device for this pod
    further: tuple[Attached, ...] = ()  # what the same ADD made beside it


# ── what was asked ──────────────────────────────────────────────────────────────────────────────


def parse(env: Mapping[str, str], stdin: bytes) -> Request:
    """Read one call; RequestError says what is wrong with it, under the spec's code.

    Codes in the order in which they are looked for: 4 environment, 6 not a
    JSON object, 7 name and type, 1 version, 2 unknown key, 7 the rest.
    """
    verb = environment.verb(env)
    if verb == "VERSION":
        return Request(verb=verb, version=spoken(stdin))
    raw = _decode(stdin)
    _check_names(raw)
    version = _check_version(raw, verb)
    lenient = verb in environment.LENIENT
    if not lenient:
        _check_keys(raw)
    _object(raw, "runtimeConfig")
    args = environment.arguments(env.get("CNI_ARGS", ""), lenient=lenient)
    return Request(
        verb=verb,
        version=version,
        container=env.get("CNI_CONTAINERID", ""),
        netns=env.get("CNI_NETNS", ""),
        ifname=env.get("CNI_IFNAME", ""),
        args=args,
        path=env.get("CNI_PATH", ""),
        name=raw["name"],
        network=raw.get("network", ""),
        sync_delete=raw.get("syncDelete") is True,
        dns=_dns(raw, verb),
        prev_result=_prev_result(raw, verb),
        valid_attachments=_attachments(raw) if verb == "GC" else None,
        wants=capabilities.wants(raw, args) if verb == "ADD" else NOTHING,
    )


def spoken(stdin: bytes) -> str:
    """The served version that a configuration names, else the newest: for answers to bad calls."""
    try:
        version = _decode(stdin).get("cniVersion")
    except RequestError:
        return NEWEST
    return version if isinstance(version, str) and version in VERSIONS else NEWEST


def promised(request: Request) -> tuple[Address, ...]:
    """The addresses that `prev_result` puts on this attachment's interface.

    A later plugin of the chain may have added addresses to other interfaces:
    those are not ours to check.
    """
    try:
        result = msgspec.convert(request.prev_result or {}, _Result)
        ours = {
            index
            for index, end in enumerate(result.interfaces)
            if end.name == request.ifname and end.sandbox
        }
        return tuple(
            ip_interface(ip.address).ip
            for ip in result.ips
            if ip.interface is None or ip.interface in ours
        )
    except ValueError as e:  # msgspec's own errors are ValueErrors
        raise RequestError(7, f"prevResult is not a CNI result: {e}") from e


def _decode(stdin: bytes) -> dict[str, Any]:
    if len(stdin) > MAX_CONFIG:
        raise RequestError(6, f"the configuration has more than {MAX_CONFIG} bytes")
    try:
        raw = msgspec.json.decode(stdin)
    except (ValueError, RecursionError) as e:  # msgspec's own errors are ValueErrors
        raise RequestError(6, f"the configuration is not JSON: {e}") from e
    if not isinstance(raw, dict):
        raise RequestError(6, f"the configuration is a JSON {type(raw).__name__}, not an object")
    level: list[object] = [raw]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and "\0" in value:
                raise RequestError(6, f"the configuration contains a NUL, in {shown(value)}")
        if not below:
            return raw
        level = below
    raise RequestError(6, f"the configuration is nested deeper than {MAX_DEPTH} levels")


def _check_names(raw: Mapping[str, Any]) -> None:
    for key in ("name", "network"):
        value = raw.get(key, "")
        if not isinstance(value, str):
            raise RequestError(7, f"{key} {shown(value)}: not a string")
        optional = key == "network" and not value
        if not optional and (fault := environment.name_fault(value)):
            raise RequestError(7, f"{key} {shown(value)}: {fault}")
    kind = raw.get("type")
    if not isinstance(kind, str) or not kind or "/" in kind or "\\" in kind:
        what = "missing" if kind is None else shown(kind)
        raise RequestError(7, f"type {what}: the file name of a plugin, without a path")


def _check_version(raw: Mapping[str, Any], verb: str) -> str:
    version = raw.get("cniVersion") or "0.1.0"  # spec section 1: absent or empty means 0.1.0
    if not isinstance(version, str):
        raise RequestError(6, f"cniVersion {shown(version)}: not a string")
    served = f"supported: {', '.join(VERSIONS)}"
    if version not in VERSIONS:
        raise RequestError(1, f"cniVersion {shown(version)} is not supported; {served}")
    if VERSIONS.index(version) < VERSIONS.index(SINCE[verb]):
        message = f"{verb} does not exist in CNI {version}, only from {SINCE[verb]}; {served}"
        raise RequestError(1, message)
    return version


def _check_keys(raw: Mapping[str, Any]) -> None:
    # The spec reserves all of cni.dev/ for what a runtime inserts.
    for key, value in raw.items():
        if key not in _KEYS and not key.startswith("cni.dev/"):
            hint = _INSTEAD.get(key, "remove it from the network configuration")
            raise RequestError(2, f"unsupported key {shown(key)}: {shown(value)}", hint=hint)


def _object(raw: Mapping[str, Any], key: str) -> dict[str, object] | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, dict):
        raise RequestError(7, f"{key} {shown(value)}: not an object")
    return value


def _dns(raw: Mapping[str, Any], verb: str) -> Dns:
    if verb == "ADD" and (own := capabilities.dns(raw)):
        return own
    try:
        return msgspec.convert(_object(raw, "dns") or {}, Dns)
    except msgspec.ValidationError as e:
        raise RequestError(7, f"dns: {e}") from e


def _prev_result(raw: Mapping[str, Any], verb: str) -> dict[str, object] | None:
    """The earlier result, judged by the verb.

    On ADD it comes from a plugin earlier in the chain.  The reference
    plugins that make an interface drop it unread, though the spec wants it
    passed on; we make the pod's first interface, so a chain that has one
    already is a mistake to report.
    """
    result = _object(raw, "prevResult")
    if verb == "ADD" and result is not None:
        hint = "put muslin-cni first in the list of plugins"
        raise RequestError(7, "prevResult: this plugin starts a chain", hint=hint)
    if verb == "CHECK" and result is None:
        raise RequestError(7, "prevResult: CHECK needs the result of ADD")
    return result


def _attachments(raw: Mapping[str, Any]) -> tuple[tuple[str, str], ...] | None:
    """GC's list.  One bad entry refuses it whole: what is not listed loses its address.

    libcni sends it under two names, since an early spec text had the second.
    """
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        entries = raw.get(key)
        if entries is None:
            continue
        if not isinstance(entries, list):
            raise RequestError(7, f"{key} {shown(entries)}: not a list")
        found = []
        for entry in entries:
            names = entry if isinstance(entry, dict) else {}
            container, ifname = names.get("containerID"), names.get("ifname")
            if not isinstance(container, str) or not isinstance(ifname, str):
                raise RequestError(7, f"{key}: {shown(entry)} has no containerID and ifname")
            found.append((container, ifname))
        return tuple(found)
    return None


# ── what is answered ────────────────────────────────────────────────────────────────────────────


def result(version: str, attached: Attached, dns: Dns = NO_DNS) -> bytes:
    """The answer to ADD, in the shape of the version that was asked for.

    The pod's first NIC comes first in all three lists: what reads no more of
    them than one address of each version (plugins of a chain, some runtimes)
    takes that one's for the pod's.
    """
    ends: list[dict[str, object]] = []
    ips: list[dict[str, object]] = []
    routes: list[dict[str, str]] = []
    for one in (attached, *attached.further):
        nic, mtu = one.nic, {"mtu": one.nic.mtu} if version >= "1.1" else {}
        gateways: dict[int, str] = {g.version: str(g) for g in one.gateways}
        if one.host_mac:
            ends.append({"name": nic.dev, "mac": one.host_mac, **mtu})
        ends.append({"name": nic.ifname, "mac": nic.mac, "sandbox": nic.netns, **mtu})
        ips += [_ip(version, address, gateways, len(ends) - 1) for address in nic.addresses]
        routes += _routes(nic, gateways)
    answer: dict[str, object] = {
        "cniVersion": version,
        "interfaces": ends,
        "ips": ips,
        "routes": routes,
    }
    if dns != NO_DNS:
        answer["dns"] = dns
    return msgspec.json.encode(answer)


def _ip(
    version: str, address: Address, gateways: Mapping[int, str], interface: int
) -> dict[str, object]:
    ip: dict[str, object] = {"version": str(address.version)} if version < "1" else {}
    ip["address"] = f"{address}/{address.max_prefixlen}"
    if address.version in gateways:
        ip["gateway"] = gateways[address.version]
    return ip | {"interface": interface}


def _routes(nic: Nic, gateways: Mapping[int, str]) -> list[dict[str, str]]:
    if nic.wants.apart is None or not nic.is_further:
        anywhere = {4: "0.0.0.0/0", 6: "::/0"}
        return [{"dst": anywhere[v], "gw": gateway} for v, gateway in gateways.items()]
    versions = {a.version for a in nic.addresses} & gateways.keys()
    near = (p for p in nic.wants.apart.routes if p.version in versions)
    return [{"dst": str(p), "gw": gateways[p.version]} for p in near]


def version_reply(version: str) -> bytes:
    """The answer to VERSION."""
    return msgspec.json.encode({"cniVersion": version, "supportedVersions": VERSIONS})


def error_reply(exc: BaseException, version: str) -> bytes:
    """The error object; the hint in `details`, and never a traceback.

    A group of our own errors (teardown goes on past a failure) has the code
    of its first.
    """
    code, message, hint = INTERNAL, f"internal error: {type(exc).__name__}: {exc}", ""
    ours = _ours(exc)
    if ours:
        code, hint = ours[0].cni_code, ours[0].hint
        message = "; ".join(e.message for e in ours)
    body = {"cniVersion": version, "code": code, "msg": plain(message[:MAX_TEXT])}
    if hint:
        body["details"] = plain(hint[:MAX_TEXT])
    return msgspec.json.encode(body)


def _ours(exc: BaseException) -> list[MuslinError]:
    """The MuslinErrors that `exc` is made of; empty when anything else is among them."""
    if isinstance(exc, BaseExceptionGroup):
        parts = [_ours(e) for e in exc.exceptions]
        return [e for part in parts for e in part] if all(parts) else []
    return [exc] if isinstance(exc, MuslinError) else []
