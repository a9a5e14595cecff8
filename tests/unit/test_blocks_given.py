"""Blocks that others chose (podCIDRs), and blocks whose lease went with what it hung on."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from muslin.agent import ground
from muslin.agent.blocks import Blocks
from muslin.errors import Conflict, Exhausted
from muslin.model import Block, Pool, Prefix
from muslin.store.ledger import Ledger
from muslin.store.memory import MemoryStore
from muslin.store.objects import Objects

POOL = Pool(name="four", cidr=ip_network("10.0.0.0/16"), block=28, cooldown=10.0)
FIRST, SECOND = ip_network("10.0.3.0/28"), ip_network("10.0.9.0/28")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Estate:
    def __init__(self, directory: Path) -> None:
        self.clock, self.directory = Clock(), directory
        self.objects = Objects(MemoryStore(clock=self.clock))
        self.ledgers: dict[str, Ledger] = {}

    def node(self, name: str) -> Blocks:
        if name not in self.ledgers:
            self.ledgers[name] = Ledger(self.directory / name / "node.db", self.clock)
        return Blocks(self.objects, self.ledgers[name], name, ttl=100.0, spare=4)

    async def known(self) -> dict[Prefix, str]:
        return {f.value.cidr: f.value.node for f in (await self.objects.list(Block)).found}

    async def take(self, blocks: Blocks, *given: Prefix) -> list[str]:
        """One pass."""
        taken = [f.value for f in (await self.objects.list(Block)).found]
        return await blocks.take_given(dict.fromkeys(given, POOL), [POOL], taken)

    def claim(self, node: str, container: str) -> Prefix:
        made = self.ledgers[node].claim(
            container, "eth0", netns="/n", conf="m", network="net", mtu=1500, pools=[POOL]
        )
        return ip_network(f"{made.addresses[0]}/28", strict=False)


@pytest.fixture
def estate(tmp_path: Path) -> Iterator[Estate]:
    made = Estate(tmp_path)
    yield made
    for ledger in made.ledgers.values():
        ledger.close()


async def test_what_is_given_is_claimed_for_peers_to_see_and_nothing_else(estate: Estate) -> None:
    n1 = estate.node("n1")
    for _ in range(2):
        assert await estate.take(n1, FIRST) == []
    assert await estate.known() == {FIRST: "n1"}
    for i in range(14 - 1):
        assert estate.claim("n1", f"c{i}") == FIRST
    assert await estate.take(n1, FIRST) == []
    assert await estate.known() == {FIRST: "n1"}  # no spare one
    assert ground.full(estate.ledgers["n1"], (POOL,)) == "its podCIDR is all that this node has"


async def test_a_podcidr_that_changes_leaves_with_its_last_pod(estate: Estate) -> None:
    n1 = estate.node("n1")
    await estate.take(n1, FIRST)
    assert estate.claim("n1", "old") == FIRST
    assert await estate.take(n1, SECOND) == []
    assert estate.claim("n1", "new") == SECOND  # not one more address of the old one
    assert await estate.known() == {FIRST: "n1", SECOND: "n1"}
    assert [b.cidr for b in n1.leaving] == [FIRST]  # peers need the way to the pod
    estate.ledgers["n1"].release("old", "eth0")
    await estate.take(n1, SECOND)
    assert [b.cidr for b in n1.leaving] == [FIRST]  # its address rests
    estate.clock.now += 11
    assert await estate.take(n1, SECOND) == []
    assert n1.leaving == []
    assert await estate.known() == {SECOND: "n1"}


async def test_one_that_comes_back_while_it_leaves_is_held_again(estate: Estate) -> None:
    n1 = estate.node("n1")
    await estate.take(n1, FIRST)
    estate.claim("n1", "old")
    await estate.take(n1, SECOND)
    assert await estate.take(n1, FIRST) == []
    assert estate.claim("n1", "new") == FIRST
    assert await estate.known() == {FIRST: "n1"}


async def test_one_that_another_node_still_has_pods_in_is_waited_for(estate: Estate) -> None:
    """The controller manager gives a range again as soon as its Node object is deleted."""
    n1, n2 = estate.node("n1"), estate.node("n2")
    await estate.take(n1, FIRST)
    estate.claim("n1", "c")
    await estate.take(n1, SECOND)
    assert await estate.take(n2, FIRST) == [
        "block 10.0.3.0/28 of pool four: node n1 holds it, with pods in it"
    ]
    with pytest.raises(Exhausted):
        estate.claim("n2", "d")
    estate.ledgers["n1"].release("c", "eth0")
    estate.clock.now += 11
    await estate.take(n1, SECOND)
    assert await estate.take(n2, FIRST) == []
    assert estate.claim("n2", "d") == FIRST


async def test_a_restarted_agent_knows_what_was_leaving(estate: Estate) -> None:
    n1 = estate.node("n1")
    await estate.take(n1, FIRST)
    estate.claim("n1", "old")
    await estate.take(n1, SECOND)
    again = estate.node("n1")
    await estate.take(again, SECOND)
    assert [b.cidr for b in again.leaving] == [FIRST]


async def test_from_claiming_to_podcidrs_the_claimed_ones_leave(estate: Estate) -> None:
    n1 = estate.node("n1")
    await n1.tend([POOL], [])
    (claimed,) = await estate.known()
    estate.claim("n1", "old")
    await estate.take(n1, FIRST)
    assert set(await estate.known()) == {claimed, FIRST}
    assert [b.cidr for b in n1.leaving] == [claimed]


# ── leases ──────────────────────────────────────────────────────────────────────────────────────


async def test_under_another_lease_everything_is_written_anew(estate: Estate) -> None:
    n1 = estate.node("n1")
    await n1.tend([POOL], [])
    (block,) = await estate.known()
    former = await n1.lease()
    n1.renew()
    taken = [f.value for f in (await estate.objects.list(Block)).found]
    assert await n1.tend([POOL], taken) == []
    await former.revoke()
    assert await estate.known() == {block: "n1"}


async def test_a_lease_that_is_gone_loses_no_block_and_is_noticed_by_the_next_claim(
    estate: Estate,
) -> None:
    """A Lease object may be deleted, by the garbage collector or by hand."""
    n1 = estate.node("n1")
    await n1.tend([POOL], [])
    (block,) = await estate.known()
    await (await n1.lease()).revoke()
    assert await estate.known() == {}
    with pytest.raises(Conflict):  # the pass is repeated at once
        await n1.tend([POOL], [])
    assert [c for _, c in estate.ledgers["n1"].blocks()] == [block]
    assert await n1.tend([POOL], []) == []
    assert await estate.known() == {block: "n1"}
