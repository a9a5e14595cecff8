"""What the sync loop tells the CNI server of one network, through the ledger.

The two share node.db and nothing else (DESIGN 2), so an ADD needs neither the
store nor the other loop: what was last known is good enough, also after a
restart with the store away.
"""

from __future__ import annotations

import functools

import msgspec

from muslin.errors import NotReady
from muslin.model import Host, Network, Pool, decode, encode
from muslin.store.ledger import Ledger

_NETWORK = "network:"
_FULL = "full:"
_FAULT = "fault"
DEFAULT = "default"


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an ADD must know of its network."""

    network: Network
    pools: tuple[Pool, ...]
    mtu: int  # of pods
    host: Host


def publish(ledger: Ledger, grounds: list[Ground]) -> None:
    """Make exactly these networks known to the CNI server."""
    for name in ledger.facts(_NETWORK).keys() - {g.network.name for g in grounds}:
        ledger.set_fact(_NETWORK + name, None)
    for ground in grounds:
        ledger.set_fact(_NETWORK + ground.network.name, encode(ground).decode())


def set_fault(ledger: Ledger, why: str | None) -> None:
    """Say what keeps this node from taking new pods (an uplink that is gone), or None."""
    ledger.set_fact(_FAULT, why)


def fault(ledger: Ledger) -> str | None:
    """What keeps this node from taking new pods, if anything does."""
    return ledger.fact(_FAULT)


def find(ledger: Ledger, name: str = "") -> Ground:
    """The network of that name; without one, `default` or the only one there is.

    Raise NotReady, saying which networks this node knows.
    """
    known = ledger.facts(_NETWORK)
    if not name:
        name = DEFAULT if DEFAULT in known or len(known) != 1 else next(iter(known))
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise NotReady(
            f"network {name} is not known on this node yet (known: {names})",
            hint="apply it with `muslin networks apply FILE`, or see `muslin status`",
        )
    return _read(name, known[name])


def known(ledger: Ledger) -> list[str]:
    """The names of all networks this node serves."""
    return sorted(ledger.facts(_NETWORK))


def set_full(ledger: Ledger, pool: str, why: str | None) -> None:
    """Say that `pool` has no block left for this node, or (None) that it has."""
    ledger.set_fact(_FULL + pool, why)


def full(ledger: Ledger, pools: tuple[Pool, ...]) -> str | None:
    """Why one of these pools cannot give this node another block, if that is so."""
    return next((why for p in pools if (why := ledger.fact(_FULL + p.name))), None)


@functools.lru_cache(maxsize=16)  # the text changes with the network, and every ADD asks
def _read(name: str, text: str) -> Ground:
    return decode(Ground, text.encode(), subject=f"network {name} in node.db")
