"""Typed objects over a store: keys, hostile names, records that do not decode."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.errors import ConfigError, Conflict
from muslin.model import Block, Network, Node, Pool
from muslin.store.memory import MemoryStore
from muslin.store.objects import Found, Objects, block_name, key_of, name_of, prefix_of

BLUE = Network(name="blue", backend="hostgw", pools=("web",))
WEB = Pool(name="web", cidr=ip_network("10.1.0.0/16"))
N1 = Node(name="n1.rack-2.lan", addresses=(ip_interface("192.0.2.1/24"),), mtu=1500)
BLOCK4 = Block(pool="web", cidr=ip_network("10.1.2.64/26"), node="n1.rack-2.lan")
BLOCK6 = Block(pool="web6", cidr=ip_network("2001:db8::40/122"), node="n1.rack-2.lan")


@pytest.fixture
def objects() -> Objects:
    return Objects(MemoryStore())


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (BLUE, "networks/blue"),
        (WEB, "pools/web"),
        (N1, "nodes/n1.rack-2.lan"),
        (BLOCK4, "blocks/web/10.1.2.64-26"),
        (BLOCK6, "blocks/web6/2001:db8::40-122"),
    ],
)
async def test_a_value_is_kept_under_its_key(
    objects: Objects, value: Network | Pool | Node | Block, key: str
) -> None:
    made = await objects.create(value)
    assert [r.key for r in await objects.store.list("")] == [key]
    assert await objects.get(type(value), name_of(value)) == made == Found(value, made.revision)
    assert await objects.delete(type(value), name_of(value)) is True
    assert await objects.get(type(value), name_of(value)) is None


HOSTILE = [
    *("", ".", "..", "../nodes/n1", "a/b", "a b", "a\0", "\0", "a\n", "-a", "a-", "A", "é", "a_b"),
    *("x" * 64, "x" * 300, "a..b", ".a", "a.", "%2e%2e", "\ud800", "blue\u200b"),
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", [Network, Pool, Node, Block])
async def test_a_hostile_name_is_refused_and_named(
    objects: Objects, kind: type[Network], name: str
) -> None:
    with pytest.raises(ConfigError) as fault:
        await objects.get(kind, name)
    named = name.partition("/")[0] if kind is Block else name
    assert repr(named[:40])[:-1] in fault.value.subject
    with pytest.raises(ConfigError):
        await objects.delete(kind, name)


@pytest.mark.parametrize("name", [n for n in HOSTILE if n])
async def test_a_hostile_value_is_not_written(objects: Objects, name: str) -> None:
    with pytest.raises(ConfigError):
        await objects.create(Block(pool=name, cidr=BLOCK4.cidr, node="n1"))
    with pytest.raises(ConfigError):
        await objects.put(Network(name=name, backend="hostgw", pools=()), if_revision=1)
    assert await objects.store.list("") == ()


@given(st.text())
def test_no_name_reaches_out_of_its_prefix(name: str) -> None:
    for kind in (Network, Pool, Node, Block):
        try:
            key = key_of(kind, name)
        except ConfigError:
            continue
        assert key.startswith(prefix_of(kind))
        assert key.count("/") == 1 + (kind is Block)


def test_node_names_may_have_dots_and_be_long_as_in_kubernetes() -> None:
    name = ".".join(["a" * 63] * 3)
    assert key_of(Node, name) == f"nodes/{name}"
    with pytest.raises(ConfigError):
        key_of(Network, "a.b")


@pytest.mark.parametrize("block", ["10.1.0.1-26", "10.1.0.0", "10.1.0.0/26", "2001:DB8::-64"])
def test_a_block_has_one_spelling(block: str) -> None:
    """The key is what keeps two nodes from holding one block."""
    with pytest.raises(ConfigError):
        key_of(Block, f"web/{block}")


async def test_two_nodes_cannot_create_one_block(objects: Objects) -> None:
    await objects.create(BLOCK4)
    with pytest.raises(Conflict):
        await objects.create(Block(pool="web", cidr=BLOCK4.cidr, node="n2"))


async def test_put_needs_the_revision_that_was_read(objects: Objects) -> None:
    made = await objects.create(BLUE)
    faster = Network(name="blue", backend="direct", pools=("web",))
    changed = await objects.put(faster, if_revision=made.revision)
    with pytest.raises(Conflict):
        await objects.put(BLUE, if_revision=made.revision)
    assert await objects.get(Network, "blue") == changed


async def test_blocks_are_listed_by_pool(objects: Objects) -> None:
    for pool in ("web", "web-2"):
        await objects.create(Block(pool=pool, cidr=BLOCK4.cidr, node="n1"))
    listing = await objects.list(Block, within="web")
    assert [f.value.pool for f in listing.found] == ["web"]
    assert len((await objects.list(Block)).found) == 2
    with pytest.raises(ConfigError):
        await objects.list(Network, within="web")
    with pytest.raises(ConfigError):
        await objects.list(Block, within="../nodes")


async def test_a_block_goes_with_its_lease(objects: Objects) -> None:
    lease = await objects.store.lease(60)
    await objects.create(BLOCK4, lease=lease)
    await lease.revoke()
    assert (await objects.list(Block)).found == ()


BROKEN = {
    "pools/empty": b"",
    "pools/not-json": b"\xff\xfe",
    "pools/unknown-field": b'{"name":"unknown-field","cidr":"10.0.0.0/8","colour":"red"}',
    "pools/bad-cidr": b'{"name":"bad-cidr","cidr":"10.0.0.1/8"}',
    "pools/deep": b'{"name":"deep","cidr":' + b"[" * 100_000,
    "pools/misplaced": b'{"name":"other","cidr":"10.0.0.0/8"}',
}


async def test_a_record_that_does_not_decode_hides_nothing_else(objects: Objects) -> None:
    for key, value in BROKEN.items():
        await objects.store.create(key, value)
    made = await objects.create(WEB)
    listing = await objects.list(Pool)
    assert listing.found == (made,)
    assert sorted(f.subject for f in listing.faults) == sorted(BROKEN)
    for key in BROKEN:
        name = key.removeprefix("pools/")
        with pytest.raises(ConfigError):
            await objects.get(Pool, name)
        assert await objects.delete(Pool, name) is True


async def test_a_watch_is_typed_and_reports_what_it_cannot_read(objects: Objects) -> None:
    made = await objects.create(WEB)
    await objects.store.create("pools/empty", b"")
    updates = objects.watch(Pool)
    first = await anext(updates)
    assert first.changed == {"web": made}
    assert [f.subject for f in first.faults] == ["pools/empty"]
    await objects.delete(Pool, "web")
    assert (await anext(updates)).changed == {"web": None}
    await objects.create(BLOCK4)
    blocks = objects.watch(Block, within="web")
    assert set((await anext(blocks)).changed) == {block_name("web", BLOCK4.cidr)}
