"""What processes cost: memory and CPU as /proc tells them, what they write; quantiles of times."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst
_MIB = 1 << 20


def memory(pid: int) -> dict[str, float]:
    """MiB of one process: RSS, its highest, and PSS."""
    status = Path(f"/proc/{pid}/status").read_text()
    smaps = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kib = {
        "rss": status.split("VmRSS:")[1].split()[0],
        "peak": status.split("VmHWM:")[1].split()[0],
        "pss": smaps.split("\nPss:")[1].split()[0],
    }
    return {name: int(value) / 1024 for name, value in kib.items()}


def together(pids: Iterable[int]) -> float:
    """MiB of memory that these processes have in pages, each counted once.

    What they would take of a node without any other process to share the
    interpreter's pages with, as PSS would say there.
    """
    pages: set[int] = set()
    for pid in pids:
        pages |= _frames(pid)
    return len(pages) * os.sysconf("SC_PAGE_SIZE") / _MIB


def _frames(pid: int) -> set[int]:
    """The page frames that a process has in memory."""
    found: set[int] = set()
    size = os.sysconf("SC_PAGE_SIZE")
    with Path(f"/proc/{pid}/pagemap").open("rb") as table:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            first, last = (int(x, 16) // size for x in line.split()[0].split("-"))
            if first >= 1 << 47 - 12:  # the kernel's own: vsyscall
                continue
            table.seek(first * 8)
            entries = array("Q", table.read((last - first) * 8))
            found.update(e & _FRAME for e in entries if e & _PRESENT)
    return found - {0}  # what who may not see frames is told


def cpu(pid: int) -> float:
    """Seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def writes(requests: Mapping[str, int]) -> dict[str, int]:
    """Those of the requests that a server counted that change something."""
    verbs = ("create", "patch", "update", "delete")
    return {what: count for what, count in requests.items() if what.split()[0] in verbs}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """How many there are, p50, p99 and the most."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}

    def at(share: float) -> float:
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)]

    return {"count": len(ordered), "p50": at(0.5), "p99": at(0.99), "max": ordered[-1]}
