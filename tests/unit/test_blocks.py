"""A node's blocks: claimed ahead, kept over restarts, freed by expiry and by nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from muslin.agent import ground
from muslin.agent.blocks import Blocks
from muslin.model import Block, Pool, Prefix
from muslin.store.ledger import Ledger
from muslin.store.memory import MemoryStore
from muslin.store.objects import Objects

POOL = Pool(name="four", cidr=ip_network("10.0.0.0/24"), block=28)  # 16 blocks, 14 addresses each
TTL = 100.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Estate:
    """A store, and nodes that come and go around it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.clock = directory, Clock()
        self.store = MemoryStore(clock=self.clock)
        self.objects = Objects(self.store)
        self.ledgers: dict[str, Ledger] = {}

    def node(self, name: str, *, spare: int = 4) -> Blocks:
        """A (re)started agent's blocks: the ledger is the one it had."""
        if name not in self.ledgers:
            self.ledgers[name] = Ledger(self.directory / name / "node.db", self.clock)
        return Blocks(self.objects, self.ledgers[name], name, ttl=TTL, spare=spare)

    async def known(self) -> list[Block]:
        return [f.value for f in (await self.objects.list(Block)).found]

    async def tend(self, blocks: Blocks, pool: Pool = POOL) -> list[str]:
        return await blocks.tend([pool], await self.known())

    def held(self, name: str) -> list[Prefix]:
        return [cidr for _, cidr in self.ledgers[name].blocks()]

    def fill(self, name: str, count: int, tag: str = "c") -> None:
        for i in range(count):
            self.ledgers[name].claim(
                f"{tag}{i}", "eth0", netns="/n", conf="m", network="net", mtu=1500, pools=[POOL]
            )


@pytest.fixture
def estate(tmp_path: Path) -> Iterator[Estate]:
    made = Estate(tmp_path)
    yield made
    for ledger in made.ledgers.values():
        ledger.close()


async def test_a_new_node_claims_one_block_and_then_no_more(estate: Estate) -> None:
    n1 = estate.node("n1")
    assert await estate.tend(n1) == []
    assert await estate.tend(n1) == []
    assert len(estate.held("n1")) == 1
    assert [(b.node, b.cidr) for b in await estate.known()] == [("n1", estate.held("n1")[0])]


async def test_another_block_is_claimed_before_the_first_is_full(estate: Estate) -> None:
    n1 = estate.node("n1", spare=4)
    await estate.tend(n1)
    estate.fill("n1", 10)
    await estate.tend(n1)
    assert len(estate.held("n1")) == 1  # 4 are left
    estate.fill("n1", 1, "d")
    await estate.tend(n1)
    assert len(estate.held("n1")) == 2


async def test_nodes_that_join_at_once_never_share_a_block(estate: Estate) -> None:
    nodes = [estate.node(f"n{i}") for i in range(16)]
    await asyncio.gather(*(n.tend([POOL], ()) for n in nodes))  # none knows of the others
    held = [b for i in range(16) for b in estate.held(f"n{i}")]
    assert len(held) == len(set(held)) == 16


async def test_an_exhausted_pool_is_a_fault_with_its_name_and_size(estate: Estate) -> None:
    for i in range(16):
        await estate.tend(estate.node(f"n{i}"))
    late = estate.node("late")
    why = "pool four (10.0.0.0/24): all 16 blocks of /28 are held"
    assert await estate.tend(late) == [why]
    assert ground.full(estate.ledgers["late"], (POOL,)) == why
    await estate.store.delete(f"blocks/four/{estate.held('n3')[0].network_address}-28")
    assert await estate.tend(late) == []
    assert ground.full(estate.ledgers["late"], (POOL,)) is None


async def test_a_restarted_node_has_the_blocks_it_had(estate: Estate) -> None:
    n1 = estate.node("n1")
    await estate.tend(n1)
    await n1.keep()
    before = estate.held("n1")
    estate.clock.now += TTL * 0.9
    again = estate.node("n1")
    await estate.tend(again)  # under a lease of its own from here on
    estate.clock.now += TTL * 0.9
    assert [b.cidr for b in await estate.known()] == before == estate.held("n1")


async def test_a_dead_nodes_block_is_free_after_expiry_and_never_before(estate: Estate) -> None:
    small = Pool(name="four", cidr=ip_network("10.0.0.0/28"), block=28)
    await estate.tend(estate.node("dead"), small)
    other = estate.node("other")
    estate.clock.now += TTL - 0.1
    assert await estate.tend(other, small) != []
    estate.clock.now += 0.2
    assert await estate.tend(other, small) == []
    assert [b.node for b in await estate.known()] == ["other"]


async def test_a_node_that_comes_back_too_late_gives_nothing_out_of_a_block_it_lost(
    estate: Estate,
) -> None:
    small = Pool(name="four", cidr=ip_network("10.0.0.0/27"), block=28)  # two blocks
    late = estate.node("late")
    await estate.tend(late, small)
    lost = estate.held("late")[0]
    estate.fill("late", 2)
    estate.clock.now += TTL + 1
    for name in ("a", "b"):
        await estate.tend(estate.node(name), small)
    faults = await estate.tend(estate.node("late"), small)
    assert (
        f"block {lost} of pool four was lost to another node; 2 pods still use addresses of it"
        in [f.replace("still use it", "still use addresses of it") for f in faults]
    )
    assert estate.held("late") == []


async def test_a_lost_lease_is_replaced_and_the_block_claimed_again(estate: Estate) -> None:
    n1 = estate.node("n1")
    await estate.tend(n1)
    before = estate.held("n1")
    estate.clock.now += TTL + 1  # the store was away for longer than the lease
    assert await estate.known() == []
    await n1.keep()
    await estate.tend(n1)
    assert [b.cidr for b in await estate.known()] == before


async def test_a_block_removed_from_the_store_by_hand_is_claimed_again(estate: Estate) -> None:
    n1 = estate.node("n1")
    await estate.tend(n1)
    before = estate.held("n1")[0]
    await estate.store.delete(f"blocks/four/{before.network_address}-28")
    await estate.tend(n1)
    assert [b.cidr for b in await estate.known()] == [before]


async def test_a_node_prefers_the_block_it_once_had(estate: Estate) -> None:
    n1 = estate.node("n1")
    await estate.tend(n1)
    first = estate.held("n1")[0]
    estate.ledgers["n1"].let_go(first)
    await estate.store.delete(f"blocks/four/{first.network_address}-28")
    await estate.tend(estate.node("n1"))
    assert estate.held("n1") == [first]


async def test_the_block_of_a_removed_pool_goes_with_its_last_pod(estate: Estate) -> None:
    n1 = estate.node("n1")
    await estate.tend(n1)
    estate.fill("n1", 1)
    assert await n1.tend([], await estate.known()) == []
    assert len(await estate.known()) == 1
    estate.ledgers["n1"].release("c0", "eth0")
    estate.clock.now += 31  # its address has rested
    assert await n1.tend([], await estate.known()) == []
    assert await estate.known() == []
    assert estate.held("n1") == []


async def test_blocks_of_a_burst_are_given_back_but_never_the_lowest(estate: Estate) -> None:
    n1 = estate.node("n1", spare=4)
    await estate.tend(n1)
    for i in range(10):
        estate.fill("n1", 4, f"burst{i}-")
        await estate.tend(n1)
    assert len(estate.held("n1")) == 4  # 40 pods in blocks of 14
    for attached in estate.ledgers["n1"].attachments():
        estate.ledgers["n1"].release(attached.container, "eth0")
    await estate.tend(n1)
    assert len(estate.held("n1")) == 4  # its addresses rest
    lowest = min(estate.held("n1"))
    estate.clock.now += 31
    await estate.tend(n1)
    assert estate.held("n1") == [lowest]
    assert [b.cidr for b in await estate.known()] == [lowest]


async def test_a_node_whose_disk_was_replaced_takes_its_own_block_again(estate: Estate) -> None:
    n1 = estate.node("n1")
    await estate.tend(n1)
    before = estate.held("n1")
    estate.ledgers["n1"].close()
    for file in (estate.directory / "n1").glob("node.db*"):
        file.unlink()
    del estate.ledgers["n1"]
    await estate.tend(estate.node("n1"))
    assert estate.held("n1") == before
