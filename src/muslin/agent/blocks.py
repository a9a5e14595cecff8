"""This node's blocks: claimed ahead of need, kept by a lease, never taken for granted.

A block is held while its key in the store names this node and lives under
this node's lease.  The ledger follows: no address is given out of a block
before the store has said yes, and none after it has said no.  A restarted
agent asks for the same blocks again, so pods keep addresses and peers keep
routes.

Which blocks is this node's own choice (`tend`), or somebody else's
(`take_given`: podCIDRs).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from itertools import chain

from muslin.agent import ground
from muslin.errors import Conflict
from muslin.ipam import pools as ipam
from muslin.log import log
from muslin.model import Block, Pool, Prefix
from muslin.store import Lease
from muslin.store.ledger import Ledger
from muslin.store.objects import Objects, block_name


class Blocks:
    """Keep enough addresses at hand for one node.

    `tend` is idempotent and is called after every change anywhere; `lease` is
    what everything this node writes lives under.
    """

    def __init__(self, objects: Objects, ledger: Ledger, node: str, *, ttl: float, spare: int):
        self._objects, self._ledger, self._node = objects, ledger, node
        self._ttl, self._spare = ttl, spare
        self._lease: Lease | None = None
        self._under_lease: set[Prefix] = set()
        self._leaving: list[Block] = []

    async def lease(self) -> Lease:
        """The lease in force, made if there is none."""
        if self._lease is None:
            self._lease = await self._objects.store.lease(self._ttl)
        return self._lease

    async def keep(self) -> None:
        """Renew the lease; when it is gone, everything is written anew under another one."""
        try:
            await (await self.lease()).keep()
        except Conflict:
            log.warning("lease.lost", node=self._node)
            self.renew()

    def renew(self) -> None:
        """Write everything anew under another lease: what the present one hangs on is gone."""
        self._lease = None
        self._under_lease.clear()

    @property
    def leaving(self) -> list[Block]:
        """Blocks with pods whose place is elsewhere now: peers still need the way to them."""
        held = {cidr for _, cidr in self._ledger.blocks()}
        return [b for b in self._leaving if b.cidr not in held]

    async def tend(self, pools: Iterable[Pool], taken: Iterable[Block]) -> list[str]:
        """Confirm what is held and claim what is missing; the faults name pool and size.

        `taken` is every block the store is known to hold: a stale view costs
        a refused claim, no more.
        """
        faults: list[str] = []
        wanted = {p.name: p for p in pools}
        owners = {b.cidr: b.node for b in taken}
        for name, cidr in self._ledger.blocks():
            if name in wanted:
                faults += await self._confirm(wanted[name], cidr, owners.get(cidr))
            else:
                await self._give_back(name, cidr)  # the pool is gone; the block goes with its pods
        for pool in wanted.values():
            faults += await self._refill(pool, owners)
            await self._give_back_surplus(pool)
        return faults

    async def take_given(
        self, given: Mapping[Prefix, Pool], pools: Iterable[Pool], taken: Iterable[Block]
    ) -> list[str]:
        """As `tend`, where others choose: hold these blocks and no others.

        What is held beyond them gives no more addresses, and is given back
        when its last pod is gone.
        """
        faults: list[str] = []
        owners = {b.cidr: b.node for b in taken}
        held = {cidr: name for name, cidr in self._ledger.blocks()}
        for cidr, pool in given.items():
            if cidr in held:
                faults += await self._confirm(pool, cidr, owners.get(cidr))
            elif await self._take(pool, cidr):
                log.info("block.given", block=str(cidr), pool=pool.name, node=self._node)
            else:
                by = f"node {owners[cidr]}" if cidr in owners else "another node"
                faults.append(f"block {cidr} of pool {pool.name}: {by} holds it, with pods in it")
        for cidr in held.keys() - given.keys():
            log.info("block.leaving", block=str(cidr), pool=held[cidr], node=self._node)
            self._ledger.let_go(cidr)
        await self._leave(given, owners)
        for pool in pools:
            ground.set_full(self._ledger, pool.name, "its podCIDR is all that this node has")
        return faults

    async def _leave(self, given: Mapping[Prefix, Pool], owners: dict[Prefix, str]) -> None:
        """Give back what is ours no longer, or keep the key while there are pods."""
        self._leaving = []
        for name, cidr in self._ledger.blocks(held=False):
            if cidr in given or owners.get(cidr) != self._node:
                continue
            await self._give_back(name, cidr)
            if not self._ledger.is_empty(cidr):
                block = Block(pool=name, cidr=cidr, node=self._node)
                if cidr in self._under_lease or await self._claim(block):
                    self._leaving.append(block)

    async def _confirm(self, pool: Pool, cidr: Prefix, owner: str | None) -> list[str]:
        """Hold on to a block of ours, or learn that somebody else has it."""
        if cidr in self._under_lease and owner in (self._node, None):
            if owner is None:
                # Either the store's echo of our claim is on its way, or the key was removed.
                found = await self._objects.get(Block, block_name(pool.name, cidr))
                if found is not None:
                    return []
                self._under_lease.discard(cidr)
            else:
                return []
        if await self._take(pool, cidr):
            return []
        self._ledger.let_go(cidr)
        self._under_lease.discard(cidr)
        live = sum(any(a in cidr for a in x.addresses) for x in self._ledger.attachments())
        log.error("block.lost", block=str(cidr), pool=pool.name, pods=live)
        if not live:
            return []
        return [
            f"block {cidr} of pool {pool.name} was lost to another node; {live} pods still use it"
        ]

    async def _take(self, pool: Pool, cidr: Prefix) -> bool:
        """Claim one block, or renew the claim; False when it is another node's."""
        if not await self._claim(Block(pool=pool.name, cidr=cidr, node=self._node)):
            return False
        self._ledger.hold(cidr, pool)  # only now: the store has said yes
        return True

    async def _claim(self, block: Block) -> bool:
        """The same in the store alone."""
        name, lease = block_name(block.pool, block.cidr), await self.lease()
        try:
            await self._objects.create(block, lease=lease)
        except Conflict:
            found = await self._objects.get(Block, name)
            if found is None:  # given back this moment, or the lease it was to live under is gone
                await self.keep()
                raise
            if found.value.node != self._node:
                return False
            try:
                await self._objects.put(block, if_revision=found.revision, lease=lease)
            except Conflict:
                await self.keep()
                raise
        if lease is self._lease:  # else renewed meanwhile: the next look writes it again
            self._under_lease.add(block.cidr)
        return True

    async def _refill(self, pool: Pool, owners: dict[Prefix, str]) -> list[str]:
        """Claim blocks until `spare` addresses are free; the fault says why that failed."""
        while self._free(pool.name) < max(self._spare, 1):
            block = await self._claim_next(pool, owners)
            if block is None:
                why = (
                    f"pool {pool.name} ({pool.cidr}): all {ipam.count(pool)} blocks of"
                    f" /{pool.block_length} are held"
                )
                ground.set_full(self._ledger, pool.name, why)
                return [why]
            owners[block] = self._node
            log.info("block.claimed", block=str(block), pool=pool.name, node=self._node)
        ground.set_full(self._ledger, pool.name, None)
        return []

    async def _claim_next(self, pool: Pool, owners: dict[Prefix, str]) -> Prefix | None:
        # What this node has or had comes first: its peers' kernels know the way already.
        held = {cidr for _, cidr in self._ledger.blocks()}
        mine = [c for c, n in owners.items() if n == self._node and _is_block_of(pool, c)]
        former = [c for p, c in self._ledger.blocks(held=False) if p == pool.name]
        first = [
            c for c in (*mine, *former) if c not in held and owners.get(c) in (self._node, None)
        ]
        for block in chain(first, ipam.candidates(pool, self._node, set(owners))):
            if await self._take(pool, block):
                return block
            await asyncio.sleep(0)  # many nodes at once: let the others' answers in
        return None

    async def _give_back_surplus(self, pool: Pool) -> None:
        """After a burst of pods: empty blocks beyond twice the spare, never the lowest.

        The lowest one's first address is the tunnel's, which peers know.
        """
        held = sorted(c for p, c in self._ledger.blocks() if p == pool.name)
        for cidr in reversed(held[1:]):
            if self._free(pool.name) - cidr.num_addresses >= 2 * self._spare:
                await self._give_back(pool.name, cidr)

    async def _give_back(self, pool: str, cidr: Prefix) -> None:
        """Free a block for other nodes unless an address of it is in use or resting."""
        if not self._ledger.let_go_if_empty(cidr):
            return
        self._under_lease.discard(cidr)
        found = await self._objects.get(Block, block_name(pool, cidr))
        if found is not None and found.value.node == self._node:
            await self._objects.delete(Block, block_name(pool, cidr), if_revision=found.revision)
        log.info("block.given_back", block=str(cidr), pool=pool, node=self._node)

    def _free(self, pool: str) -> int:
        """Addresses that could be given out now."""
        return sum(u.size - u.used - u.resting for u in self._ledger.usage() if u.pool == pool)


def _is_block_of(pool: Pool, cidr: Prefix) -> bool:
    return (
        cidr.version == pool.cidr.version
        and cidr.prefixlen == pool.block_length
        and cidr.network_address in pool.cidr
    )
