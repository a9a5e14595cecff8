"""This machine's boots: how long the present one has lasted, and which one it is.

What one process writes down for another to compare is timed by this clock.
The wall clock will not do: it is set, by people and by NTP, and a DEL may then
look younger than the ADD that followed it.  This one only goes on, also while
the machine sleeps, and is the same in all processes; CLOCK_MONOTONIC stands
still meanwhile.  It begins anew with every boot, so times of two boots say
nothing of each other: what outlives a boot has its identity beside the time.

(A time namespace may have its own offset, time_namespaces(7).  A plugin and an
agent in two of them would disagree; no runtime puts either into one.)
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

IDENTITY = Path("/proc/sys/kernel/random/boot_id")


def clock() -> float:
    """Seconds since the machine started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@functools.cache
def identity() -> str:
    """Which boot this is: 36 characters that no other has."""
    return IDENTITY.read_text().strip()
