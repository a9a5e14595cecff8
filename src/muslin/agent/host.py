"""This machine as the estate sees it: its uplink, the addresses on it, what the kernel offers."""

from __future__ import annotations

from dataclasses import dataclass

from muslin.config import Config
from muslin.kernel import facts, sysctl
from muslin.model import Host, Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class Underlay:
    """The uplink as it is now.

    `faults` says what keeps it from being used at all, `notes` what will not
    work on it.
    """

    host: Host
    addresses: tuple[Interface, ...]
    mtu: int
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def look(config: Config) -> Underlay:
    """What the settings name, and for the rest what the kernel says.  Reads only."""
    uplink = config.uplink or facts.uplink() or ""
    force = facts.has_force_forwarding()
    host = Host(uplink=uplink, force_forwarding=force, global_forwarding=config.global_forwarding)
    mtu = facts.mtu_of(uplink) if uplink else None
    if mtu is None:
        why = (
            f"uplink {uplink} does not exist"
            if uplink
            else "no default route, so no uplink; set `uplink` in the agent's settings"
        )
        return Underlay(host=host, addresses=config.addresses, mtu=0, faults=(why,))
    addresses = config.addresses or facts.addresses_of(uplink)
    faults = () if addresses else (f"uplink {uplink} has no global address",)
    return Underlay(
        host=host, addresses=tuple(addresses), mtu=mtu, faults=faults, notes=_notes(host)
    )


def _notes(host: Host) -> tuple[str, ...]:
    if host.force_forwarding or host.global_forwarding:
        return ()
    if sysctl.read("net/ipv6/conf/all/forwarding") != "0":
        return ()  # somebody switched it on, or there is no IPv6
    return ("IPv6 pods will reach nobody: this kernel does not forward IPv6; see `muslin doctor`",)
