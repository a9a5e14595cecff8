"""The sync loop on a store in a dictionary and a kernel in a dictionary."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from pathlib import Path

import msgspec
import pytest

from muslin.agent import ground
from muslin.agent.attach import Attachments
from muslin.agent.host import Underlay
from muslin.agent.sync import Sync
from muslin.config import Config
from muslin.controller import networks
from muslin.errors import KernelError
from muslin.kernel.fake import FakeKernel
from muslin.model import Block, Host, Network, Node, Pool
from muslin.plan.objects import Addr, Link, Plan, Present, Route
from muslin.store.ledger import Ledger
from muslin.store.memory import MemoryStore
from muslin.store.objects import Objects

POOL = Pool(name="four", cidr=ip_network("10.244.0.0/16"))
HOSTGW = Network(name="default", backend="hostgw", pools=("four",))


class Agent:
    """One node's loop, running, with its surroundings at hand."""

    def __init__(self, directory: Path, store: MemoryStore, name: str = "n1") -> None:
        self.store, self.objects = store, Objects(store)
        eth0 = Link(name="eth0", kind=Present(), mtu=1500)
        onlink = Addr(dev="eth0", address=ip_interface("192.0.2.1/24"))
        self.kernel = FakeKernel(frozenset({eth0}), strangers=frozenset({onlink}))
        self.ledger = Ledger(directory / name / "node.db", lambda: 1_000_000.0)
        self.config = Config(node=name, state_dir=str(directory / name))
        self.here = Underlay(
            host=Host(uplink="eth0"), addresses=(ip_interface("192.0.2.1/24"),), mtu=1500
        )
        self.sync = Sync(
            self.config,
            store,
            self.ledger,
            self.kernel,
            Attachments(self.ledger, self.kernel),
            look=lambda _: self.here,
        )

    async def until(self, what: Callable[[], bool]) -> None:
        for _ in range(400):
            if what():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"never came true; {self.sync.state}")

    async def settled(self) -> None:
        await self.until(lambda: self.sync.state.ready)

    def routes(self) -> set[str]:
        return {
            f"{o.dst} via {o.via}" for o in self.kernel.observe() if isinstance(o, Route) and o.via
        }

    async def peer(self, name: str, address: str, block: str) -> None:
        await self.objects.create(Node(name=name, addresses=(ip_interface(address),), mtu=1500))
        await self.objects.create(Block(pool="four", cidr=ip_network(block), node=name))


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[Agent]:
    task = asyncio.create_task(agent.sync.run())
    try:
        yield agent
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        agent.ledger.close()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    store = MemoryStore()
    await networks.apply(store, HOSTGW, [POOL])
    async with running(Agent(tmp_path, store)) as made:
        await made.settled()
        yield made


async def test_a_node_joins_with_its_record_and_a_block(agent: Agent) -> None:
    found = await agent.objects.get(Node, "n1")
    assert found is not None
    assert (found.value.uplink, found.value.mtu) == ("eth0", 1500)
    assert [b.value.node for b in (await agent.objects.list(Block)).found] == ["n1"]
    assert ground.find(agent.ledger).mtu == 1500


async def test_a_peer_is_followed_as_it_comes_moves_and_goes(agent: Agent) -> None:
    await agent.peer("n2", "192.0.2.2/24", "10.244.9.0/26")
    await agent.until(lambda: agent.routes() == {"10.244.9.0/26 via 192.0.2.2"})
    found = await agent.objects.get(Node, "n2")
    assert found is not None
    moved = msgspec.structs.replace(found.value, addresses=(ip_interface("192.0.2.9/24"),))
    await agent.objects.put(moved, if_revision=found.revision)
    await agent.until(lambda: agent.routes() == {"10.244.9.0/26 via 192.0.2.9"})
    routes = [c.verb for c in agent.kernel.log if isinstance(c.obj, Route) and c.obj.via]
    assert routes == ["add", "replace"]  # never without one
    await agent.objects.delete(Node, "n2")
    await agent.until(lambda: agent.routes() == set())


async def test_a_peer_off_the_link_is_reported_by_name_and_the_others_are_served(
    agent: Agent,
) -> None:
    await agent.peer("far", "198.51.100.7/24", "10.244.8.0/26")
    await agent.peer("near", "192.0.2.2/24", "10.244.9.0/26")
    await agent.until(lambda: agent.routes() == {"10.244.9.0/26 via 192.0.2.2"})
    assert any("peer far: 198.51.100.7 is not on the link" in f for f in agent.sync.state.faults)
    assert agent.sync.state.ready


async def test_a_node_that_changes_its_address_says_so(agent: Agent) -> None:
    agent.here = replace(agent.here, addresses=(ip_interface("192.0.2.77/24"),))
    agent.sync.look_again()

    async def published() -> str:
        found = await agent.objects.get(Node, "n1")
        return str(found.value.addresses[0]) if found else ""

    for _ in range(200):
        if await published() == "192.0.2.77/24":
            return
        await asyncio.sleep(0.01)
    raise AssertionError(await published())


async def test_a_route_that_somebody_removed_comes_back(agent: Agent) -> None:
    await agent.peer("n2", "192.0.2.2/24", "10.244.9.0/26")
    await agent.until(lambda: len(agent.routes()) == 1)
    agent.kernel._ours = {k: o for k, o in agent.kernel._ours.items() if "10.244.9" not in repr(k)}
    agent.sync.look_again()  # in life, a netlink event
    await agent.until(lambda: agent.routes() == {"10.244.9.0/26 via 192.0.2.2"})


async def test_a_peers_block_does_not_wait_for_a_look(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.peer("n3", "192.0.2.3/24", "10.244.8.0/26")
    await agent.until(lambda: len(agent.routes()) == 1)  # all of its own is in place
    looking, over = threading.Event(), threading.Event()
    observe = agent.kernel.observe

    def slow(about: Plan = frozenset()) -> Plan:
        looking.set()
        over.wait(20)
        return observe(about)

    monkeypatch.setattr(agent.kernel, "observe", slow)
    agent.sync.look_again()
    await agent.until(looking.is_set)
    try:
        await agent.peer("n2", "192.0.2.2/24", "10.244.9.0/26")
        there = ip_network("10.244.9.0/26")
        await agent.until(lambda: any(getattr(c.obj, "dst", 0) == there for c in agent.kernel.log))
    finally:
        over.set()
    await agent.until(lambda: not agent.sync._settler.doubtful)
    assert agent.routes() == {"10.244.8.0/26 via 192.0.2.3", "10.244.9.0/26 via 192.0.2.2"}


async def test_a_check_that_fails_is_followed_by_a_whole_look(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.peer("n2", "192.0.2.2/24", "10.244.9.0/26")
    await agent.until(lambda: len(agent.routes()) == 1)
    observe, failures = agent.kernel.observe, [KernelError("list", "routes", 4)]

    def once(about: Plan = frozenset()) -> Plan:
        if failures:
            raise failures.pop()
        return observe(about)

    agent.kernel._ours = {k: o for k, o in agent.kernel._ours.items() if "10.244.9" not in repr(k)}
    monkeypatch.setattr(agent.kernel, "observe", once)
    agent.sync.look_again()
    await agent.until(lambda: not failures and len(agent.routes()) == 1)
    assert agent.sync.state.ready


async def test_a_record_that_does_not_decode_is_a_fault_and_hides_nothing(agent: Agent) -> None:
    await agent.store.create("nodes/odd", b'{"name": 5}')
    await agent.peer("n2", "192.0.2.2/24", "10.244.9.0/26")
    await agent.until(lambda: agent.routes() == {"10.244.9.0/26 via 192.0.2.2"})
    assert any("odd" in f for f in agent.sync.state.faults)


async def test_one_object_that_the_kernel_refuses_does_not_keep_the_others_out(
    agent: Agent,
) -> None:
    taken = Route(dst=ip_network("10.244.8.0/26"), dev="eth0")
    agent.kernel.strangers[taken.key] = taken  # somebody's static route
    await agent.peer("n2", "192.0.2.2/24", "10.244.8.0/26")
    await agent.peer("n3", "192.0.2.3/24", "10.244.9.0/26")
    await agent.until(lambda: agent.routes() == {"10.244.9.0/26 via 192.0.2.3"})
    await agent.until(lambda: any("10.244.8.0/26" in f for f in agent.sync.state.faults))
    del agent.kernel.strangers[taken.key]
    await agent.until(lambda: len(agent.routes()) == 2)


async def test_an_unknown_backend_is_a_fault_by_name(agent: Agent) -> None:
    bad = Network(name="second", backend="teleport", pools=("four",))
    await agent.objects.create(bad)
    await agent.until(lambda: any("teleport" in f for f in agent.sync.state.faults))


async def test_a_store_that_is_away_at_start_is_said_and_waited_for(tmp_path: Path) -> None:
    store = MemoryStore()
    await networks.apply(store, HOSTGW, [POOL])
    store.away = True
    async with running(Agent(tmp_path, store)) as agent:
        await agent.until(lambda: any("not heard from yet" in f for f in agent.sync.state.faults))
        store.away = False
        await agent.settled()


async def test_what_was_known_serves_adds_while_the_store_is_away(tmp_path: Path) -> None:
    store = MemoryStore()
    await networks.apply(store, HOSTGW, [POOL])
    first = Agent(tmp_path, store)
    async with running(first):
        await first.settled()
    store.away = True
    async with running(Agent(tmp_path, store)) as again:
        assert ground.find(again.ledger).network == HOSTGW
        assert again.ledger.blocks() != []


async def test_an_uplink_that_goes_away_stops_new_pods_and_leaves_what_is_known(
    agent: Agent,
) -> None:
    good = agent.here
    agent.here = replace(good, faults=("uplink eth0 does not exist",))
    agent.sync.look_again()
    await agent.until(lambda: ground.fault(agent.ledger) == "uplink eth0 does not exist")
    assert ground.known(agent.ledger) == ["default"]
    assert not agent.sync.state.ready
    agent.here = good
    agent.sync.look_again()
    await agent.until(lambda: ground.fault(agent.ledger) is None)


async def test_an_add_without_addresses_is_heard(agent: Agent) -> None:
    for i in range(62):
        agent.ledger.claim(
            f"c{i}", "eth0", netns="/n", conf="m", network="default", mtu=1500, pools=[POOL]
        )
    agent.ledger.ring()
    await agent.until(lambda: len(agent.ledger.blocks()) == 2)


async def test_a_store_that_goes_away_later_changes_nothing_in_the_kernel(agent: Agent) -> None:
    await agent.peer("n2", "192.0.2.2/24", "10.244.9.0/26")
    await agent.until(lambda: len(agent.routes()) == 1)
    agent.store.away = True
    agent.sync.look_again()
    await asyncio.sleep(0.1)
    assert agent.routes() == {"10.244.9.0/26 via 192.0.2.2"}


async def test_ipv6_pods_on_a_kernel_that_does_not_forward_are_a_fault(agent: Agent) -> None:
    agent.here = replace(agent.here, notes=("IPv6 pods will reach nobody",))
    agent.sync.look_again()
    await asyncio.sleep(0.1)
    assert agent.sync.state.faults == ()  # the network is IPv4 only
    six = Pool(name="six", cidr=ip_network("fd00::/56"))
    both = Network(name="default", backend="hostgw", pools=("four", "six"))
    await networks.apply(agent.store, both, [POOL, six])
    await agent.until(lambda: "IPv6 pods will reach nobody" in agent.sync.state.faults)


async def test_a_missing_uplink_is_a_fault_until_it_is_there(tmp_path: Path) -> None:
    store = MemoryStore()
    await networks.apply(store, HOSTGW, [POOL])
    made = Agent(tmp_path, store)
    good = made.here
    made.here = Underlay(
        host=Host(uplink="eth9"), addresses=(), mtu=0, faults=("uplink eth9 does not exist",)
    )
    async with running(made):
        await made.until(lambda: "uplink eth9 does not exist" in made.sync.state.faults)
        assert not made.sync.state.ready
        assert ground.known(made.ledger) == []
        made.here = good
        made.sync.look_again()
        await made.settled()
