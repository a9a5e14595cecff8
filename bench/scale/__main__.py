"""Run it all, print the figures, and write them where told."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.cni import Busy
from bench.scale import holding, leader, node, page, storm
from bench.scale.estate import FULL, QUICK, Length
from bench.scale.machine import Machine

PARTS = ("agent", "controller", "storm", "holding")


def main() -> int:
    """Run it all; the exit status."""
    options = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    options.add_argument("--quick", action="store_true", help="100 nodes, less than a minute")
    options.add_argument("--only", default=",".join(PARTS), help="some of %(default)s")
    options.add_argument("--write", type=Path, help="write the figures into scale.md, .json there")
    options.add_argument("--json", action="store_true", help="print all figures as JSON")
    chosen = options.parse_args()
    parts = chosen.only.split(",")
    if unknown := set(parts) - set(PARTS):
        options.error(f"no part of it: {', '.join(sorted(unknown))}")
    if chosen.write and (chosen.quick or set(parts) != set(PARTS)):
        options.error("only the figures of a whole run are written")
    if os.geteuid() != 0:
        print("run as root: network namespaces are made", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is removed
    figures = measure(QUICK if chosen.quick else FULL, parts)
    print(json.dumps(figures, indent=1) if chosen.json else page.markdown(figures))
    if chosen.write:
        page.write(figures, chosen.write)
    return 0


def measure(length: Length, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Every figure of one run."""
    began, busy = time.monotonic(), Busy()
    size = asdict(length.size)
    found: dict[str, Any] = {
        "size": size,
        "wishing": length.size.wishing,
        "kernel": os.uname().release,
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
    }
    with Machine() as machine:
        server = machine.serve()
        found |= server.ask("populate", size=size, backend=length.backends[0])
        if "agent" in parts:
            found["agent"] = {b: node.run(machine, server, b, length) for b in length.backends}
        if "controller" in parts:
            found["controller"] = leader.run(machine, server, length)
        if "storm" in parts:
            found["storm"] = storm.run(machine, server, length)
    if "holding" in parts:
        found["holding"] = holding.run(length.holding)
    return found | {"noise": busy.said(), "seconds": time.monotonic() - began}


if __name__ == "__main__":
    sys.exit(main())
