"""How fast a pod may receive and send, enforced where the pod has no hand in it.

    to the pod      sch_tbf on the host end's way out: packets wait for their turn
    from the pod    a limit in the node's nft table, by the host end's name, in the
                    first hook of what comes in: what is too much is dropped

Waiting is kinder to TCP than dropping, but what comes in can only be made to
wait behind a second device for each pod (ifb), 1 ms of every ADD, one more
thing to leak, and a module that small kernels leave out.  Policing costs one
look into a hash for packets of pods, and TCP in the pod finds the rate: with
20 Mbit/s allowed it moved 15 to 20 (6.18).  Both count IP bytes; tbf counts
the 14 of Ethernet as well.
"""

from __future__ import annotations

from muslin.model import Rate, Wants
from muslin.plan.objects import Plan, Police, Shaper

_LONGEST = 200  # seconds for a burst at the rate: the kernel counts them in 32 bits of 64 ns
_PACKET = 1 << 16  # bytes: what a pod hands over at once to be cut later (GSO) passes whole or not
_MOST = (1 << 32) - 1024


def limits(wants: Wants, dev: str) -> Plan:
    """What holds a pod with this host end to its rates."""
    found = police(wants, dev)
    if wants.ingress is not None:
        rate, burst = wants.ingress.rate, max(_sane(wants.ingress), _PACKET)
        found |= {Shaper(dev=dev, rate=rate, burst=burst + -burst % 1024)}
    return found


def police(wants: Wants, dev: str) -> Plan:
    """The part that stands in the node's table."""
    if wants.egress is None:
        return frozenset()
    # With less, TCP loses so much at once now and then that it stands still for a second.
    burst = max(_sane(wants.egress), 4 * _PACKET)
    return frozenset({Police(name=dev, rate=wants.egress.rate, burst=burst)})


def _sane(rate: Rate) -> int:
    return min(rate.burst, rate.rate * _LONGEST, _MOST)
