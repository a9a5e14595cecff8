"""`networks apply`: written whole or not at all, and twice is once."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from muslin.controller import networks
from muslin.errors import ConfigError
from muslin.model import Block, Network, Node, Pool
from muslin.store.memory import MemoryStore
from muslin.store.objects import Objects

POOL = Pool(name="four", cidr=ip_network("10.244.0.0/16"))
NETWORK = Network(name="default", backend="hostgw", pools=("four",))


async def test_applying_again_changes_nothing() -> None:
    store = MemoryStore()
    assert await networks.apply(store, NETWORK, [POOL]) == [
        "pool four 10.244.0.0/16",
        "network default",
    ]
    assert await networks.apply(store, NETWORK, [POOL]) == []


async def test_every_fault_is_listed_and_nothing_is_written() -> None:
    store = MemoryStore()
    bad = Network(name="default", backend="teleport", pools=("four", "none"))
    tiny = Pool(name="four", cidr=ip_network("10.244.0.0/30"))
    with pytest.raises(ConfigError) as caught:
        await networks.apply(store, bad, [tiny])
    assert len(caught.value.faults) == 3
    assert await store.list("") == ()


async def test_a_hostile_name_is_refused() -> None:
    bad = Network(name="../nodes/n1", backend="hostgw", pools=("four",))
    with pytest.raises(ConfigError, match="nodes/n1"):
        await networks.apply(MemoryStore(), bad, [POOL])


async def test_a_pool_cannot_move_under_the_nodes_that_hold_blocks_of_it() -> None:
    store = MemoryStore()
    await networks.apply(store, NETWORK, [POOL])
    held = Block(pool="four", cidr=ip_network("10.244.0.0/26"), node="n1")
    await Objects(store).create(held)
    moved = Pool(name="four", cidr=ip_network("10.245.0.0/16"))
    with pytest.raises(ConfigError, match="cannot change while n1 hold blocks"):
        await networks.apply(store, NETWORK, [moved])
    gentler = Pool(name="four", cidr=POOL.cidr, cooldown=60)
    assert await networks.apply(store, NETWORK, [gentler]) == ["pool four 10.244.0.0/16"]


async def test_a_pool_belongs_to_one_network_and_overlaps_none() -> None:
    store = MemoryStore()
    await networks.apply(store, NETWORK, [POOL])
    second = Network(name="second", backend="hostgw", pools=("four",))
    with pytest.raises(ConfigError, match="already belongs to network default"):
        await networks.apply(store, second, [POOL])
    inside = Pool(name="inside", cidr=ip_network("10.244.8.0/21"))
    third = Network(name="third", backend="hostgw", pools=("inside",))
    with pytest.raises(ConfigError, match=r"overlaps 10\.244\.0\.0/16 of pool four"):
        await networks.apply(store, third, [inside])


async def test_a_pool_must_not_hold_a_nodes_own_address() -> None:
    store = MemoryStore()
    node = Node(name="n1", addresses=(ip_interface("10.244.0.9/24"),), mtu=1500)
    await Objects(store).create(node)
    with pytest.raises(ConfigError, match=r"contains 10\.244\.0\.9, the address of node n1"):
        await networks.apply(store, NETWORK, [POOL])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[network", "not TOML"),
        ("", "missing required field `network`"),
        (
            '[network]\nname="a"\nbackend="hostgw"\npools=[]\nmtu=3\n[[pools]]',
            "unknown field `mtu`",
        ),
        (
            'pools=[{name="a",cidr="10.0.0.1/8"}]\n[network]\nname="a"\nbackend="x"\npools=[]',
            "host bits",
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "net.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"net\.toml") as caught:
        networks.read(file)
    assert fault in str(caught.value)
