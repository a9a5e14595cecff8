"""What this machine has and lacks, each lack with the command that mends it.

Kernel features are tried, not guessed from a version: in a namespace that
lives for the moment, so the machine itself is only read.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from muslin.agent.host import look
from muslin.cni import runtimes
from muslin.cni.install import BIN_DIR, PLUGIN
from muslin.config import Config
from muslin.errors import ConfigError, MuslinError
from muslin.kernel import conntrack, netns
from muslin.kernel.linux import LinuxKernel
from muslin.plan.diff import Change
from muslin.plan.node import RULES
from muslin.plan.objects import Link, Object, Police, Ruleset, Shaper, Veth, Vxlan

Verdict = Literal["good", "note", "bad"]

PACKAGED = Path("/usr/lib/cni")  # where Debian's containernetworking-plugins has them


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    what: str
    verdict: Verdict
    detail: str
    mend: str = ""


def examine(config: Config) -> list[Finding]:
    """Look at everything; changes nothing.  As another user than root, little can be said."""
    if os.geteuid() != 0:
        return [
            Finding(
                "root", "bad", "kernel features can only be tried as root", "sudo muslin doctor"
            )
        ]
    findings: list[Finding] = []
    for look_at in (_features, _uplink, _forwarding, _filters, _firewall, _conntrack, containerd):
        findings += look_at(config)
    return findings


def _features(_: Config) -> Iterator[Finding]:
    if ctypes.util.find_library("nftables") is None:
        yield Finding("libnftables", "bad", "not found", "apt-get install libnftables1")
        return
    name = f"muslin-doctor-{os.getpid()}"
    path = netns.create(name)
    try:
        local = ip_address("127.0.0.1")
        pair = Link(name="mu00000000", kind=Veth(peer="eth0", peer_ns=str(path)))
        tunnel = Link(name="mu.vx1", kind=Vxlan(vni=1, port=8472, local=local))
        yield _try("veth pairs", pair, path, "modprobe veth")
        yield _try(
            "vxlan (backend vxlan)", tunnel, path, "modprobe vxlan; or use the hostgw backend"
        )
        yield _try(
            "nftables with fib and masquerade",
            Ruleset(body=RULES),
            path,
            "modprobe nft_fib_inet nft_masq nft_nat nft_objref",
        )
        bucket = Shaper(dev=pair.name, rate=1_250_000, burst=65536)
        limit = Police(name=pair.name, rate=1_250_000, burst=65536)
        yield _try("tbf (a pod's ingressRate)", bucket, path, "modprobe sch_tbf")
        yield _try("nft limit (a pod's egressRate)", limit, path, "modprobe nft_limit")
        yield _connections(path)
    finally:
        netns.delete(name)


def _connections(path: str) -> Finding:
    """Whether connections can be listed, and so be forgotten when a UDP host port changes."""
    what = "connection tracking by netlink"
    try:
        with netns.inside(path):
            conntrack.probe()
    except MuslinError as e:
        why = f"{e.message}: UDP clients may follow a changed host port only after 30 s of silence"
        return Finding(what, "note", why, "modprobe nf_conntrack_netlink")
    return Finding(what, "good", "works")


def _try(what: str, obj: Object, path: Path | str, mend: str) -> Finding:
    try:
        with netns.inside(str(path)):
            LinuxKernel().apply([Change("add", obj)])
    except MuslinError as e:
        return Finding(what, "bad", e.message, mend)
    return Finding(what, "good", "works")


def _uplink(config: Config) -> Iterator[Finding]:
    here = look(config)
    for fault in here.faults:
        yield Finding("uplink", "bad", fault, "set `uplink` in the settings, or give it an address")
    if here.faults:
        return
    addresses = ", ".join(str(a) for a in here.addresses)
    yield Finding("uplink", "good", f"{here.host.uplink} with {addresses}")
    small = here.mtu < 1350
    yield Finding(
        "MTU",
        "bad" if small else "good",
        f"{here.mtu}, so pods have {here.mtu - 50} behind vxlan (IPv4) and {here.mtu} with hostgw",
        "IPv6 needs 1280 for pods: raise the uplink's MTU to 1350 or more" if small else "",
    )


def _forwarding(config: Config) -> Iterator[Finding]:
    here = look(config)
    yield Finding("IPv4 forwarding", "good", "set per interface; the global setting stays as it is")
    if here.host.force_forwarding:
        yield Finding("IPv6 forwarding", "good", "set per interface (force_forwarding)")
    elif _read("net/ipv6/conf/all/forwarding") == "1":
        yield Finding("IPv6 forwarding", "good", "on globally")
    elif not Path("/proc/net/if_inet6").exists():
        yield Finding("IPv6", "note", "off on this machine: networks must be IPv4 only")
    else:
        yield Finding(
            "IPv6 forwarding",
            "note",
            "this kernel has no switch per interface (Linux 6.17 has), and the global one is off",
            "for IPv6 pods: sysctl -w net.ipv6.conf.all.forwarding=1 (with accept_ra=2 on the"
            " uplink if it learns its route by RA), or global_forwarding = true in the settings",
        )


def _filters(config: Config) -> Iterator[Finding]:
    uplink = look(config).host.uplink
    strict = [n for n in ("all", uplink) if n and _read(f"net/ipv4/conf/{n}/rp_filter") == "1"]
    detail = (
        f"strict on {', '.join(strict)}: fine while paths are symmetric" if strict else "not strict"
    )
    yield Finding("rp_filter", "note" if strict else "good", detail)
    if _read("net/bridge/bridge-nf-call-iptables") == "1":
        yield Finding("br_netfilter", "note", "on; Muslin has no bridge and is not slowed by it")


def _firewall(_: Config) -> Iterator[Finding]:
    """A forward chain that drops by default stops pods; ours cannot overrule it."""
    nft = shutil.which("nft")
    if nft is None:
        yield Finding(
            "firewall", "note", "the nft command is not here to look", "apt-get install nftables"
        )
        return
    listed = subprocess.run(
        [nft, "list", "chains"], capture_output=True, text=True, timeout=10, check=False
    ).stdout
    dropping = list(_dropping(listed))
    for chain in dropping:
        yield Finding(
            "firewall",
            "bad",
            f"{chain} drops forwarded packets by default",
            "accept the pods' ranges there, for example: iptables -I FORWARD -i 'mu+' -j ACCEPT;"
            " iptables -I FORWARD -o 'mu+' -j ACCEPT",
        )
    if not dropping:
        yield Finding("firewall", "good", "no nft forward chain drops by default")


def _dropping(listed: str) -> Iterator[str]:
    """The chains of `nft list chains` that hook forward with policy drop."""
    table = chain = ""
    for line in (raw.strip() for raw in listed.splitlines()):
        if line.startswith("table "):
            table = line.removesuffix("{").strip()
        elif line.startswith("chain "):
            chain = line.removesuffix("{").strip()
        elif "hook forward" in line and "policy drop" in line:
            yield f"{table} {chain}"


def _conntrack(_: Config) -> Iterator[Finding]:
    count, most = _read("net/netfilter/nf_conntrack_count"), _read("net/netfilter/nf_conntrack_max")
    if count is None or most is None:
        return
    full = int(count) > 0.8 * int(most)
    mend = "sysctl -w net.netfilter.nf_conntrack_max=<more>" if full else ""
    yield Finding("conntrack", "bad" if full else "good", f"{count} of {most} entries used", mend)


def containerd(_: Config) -> Iterator[Finding]:
    """Whether containerd, where there is one, finds the plugins it calls.

    It calls `loopback` for every pod, whatever the network is.  Containerd 2
    can do without, and does when it is told to.
    """
    try:
        said = runtimes.containerd()
    except ConfigError as e:
        yield Finding("containerd", "note", "; ".join(e.faults), e.hint)
        return
    if said is None:
        return
    places = said.bin_dirs
    where, good = ", ".join(map(str, places)), True
    if not said.internal_loopback and not _found("loopback", places):
        good = False
        why = f"it needs the plugin `loopback` for every pod, and has none in {where}"
        yield Finding("containerd", "note", why, _loopback(places))
    if not _found(PLUGIN, places) and BIN_DIR not in places:
        good = False
        why = f"it looks for plugins in {where}, and `{PLUGIN}` is not there"
        yield Finding("containerd", "note", why, "muslin cni install")
    if good:
        yield Finding("containerd", "good", f"it looks for plugins in {where}")


def _loopback(places: Sequence[Path]) -> str:
    """How the plugin gets where containerd looks for it."""
    packaged = PACKAGED / "loopback"
    mends = [] if packaged.exists() else ["apt-get install containernetworking-plugins"]
    if PACKAGED not in places:
        mends.append(f"mkdir -p {places[0]} && ln -s {packaged} {places[0]}/")
    return " && ".join(mends)


def _found(plugin: str, places: Iterable[Path]) -> bool:
    return any(os.access(place / plugin, os.X_OK) for place in places)


def _read(name: str) -> str | None:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return None
