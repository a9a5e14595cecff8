"""Write a lab's network and pools into its store: `python -m muslin.lab.seed STORE NAME < FILE`.

A process of its own, because the store of some labs is only reached from
within the lab's namespaces, and gRPC (etcd) opens its connections from
threads that a setns(2) of ours would not move.
"""

from __future__ import annotations

import asyncio
import sys

from muslin.controller import networks
from muslin.errors import MuslinError
from muslin.lab.topology import Topology, parse
from muslin.store.open import open_store


async def seed(url: str, topology: Topology) -> None:
    """Validate and write; NotReady if the store does not answer."""
    async with open_store(url) as store:
        await networks.apply(store, topology.network, topology.pools)


def main(argv: list[str]) -> int:
    """Serve the command line of this module."""
    url, name = argv
    try:
        asyncio.run(seed(url, parse(sys.stdin.read(), stem=name)))
    except MuslinError as e:
        sys.stderr.write(f"{e}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
