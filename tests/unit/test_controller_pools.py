"""Status of pools and networks: counts that agree with what can be claimed, faults in words."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_interface, ip_network
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from muslin.controller.pools import World, network_statuses, pool_statuses
from muslin.controller.seen import Found
from muslin.ipam import pools as ipam
from muslin.kube.status import MOST, Condition, NetworkStatus, NodeStatus, PoolStatus
from muslin.model import Block, Network, Node, Pool

NOW, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
POOL = Pool(name="a", cidr=ip_network("10.0.0.0/24"), block=28)
NET = Network(name="default", backend="vxlan", pools=("a",))


def found(value: Any, status: Any, generation: int = 1) -> Found[Any, Any]:
    return Found(name=value.name, uid="u", generation=generation, value=value, status=status)


def world(*values: Any, blocks: tuple[Block, ...] = ()) -> World:
    made = World({}, {}, {}, blocks)
    for value in values:
        match value:
            case Pool():
                made.pools[value.name] = found(value, PoolStatus())  # type: ignore[index]
            case Network():
                made.networks[value.name] = found(value, NetworkStatus())  # type: ignore[index]
            case Node():
                made.agents[value.name] = found(value, NodeStatus())  # type: ignore[index]
            case Found():
                made.agents[value.name] = value  # type: ignore[index]
    return made


def ready(status: Any) -> tuple[str, str, str]:
    one = next(c for c in status.conditions if c.type == "Ready")
    return one.status, one.reason, one.message


def full(status: Any) -> tuple[str, str]:
    one = next(c for c in status.conditions if c.type == "Full")
    return one.status, one.message


def held(count: int, node: str = "n1") -> tuple[Block, ...]:
    cut = list(POOL.cidr.subnets(new_prefix=28))
    return tuple(Block(pool="a", cidr=c, node=node) for c in cut[:count])


def test_a_pool_counts_what_is_held_and_what_is_left() -> None:
    status = pool_statuses(world(POOL, NET, blocks=held(5)), NOW)["a"]
    assert (status.block, status.size, status.blocks) == (28, 256, 16)
    assert (status.held, status.free) == (5, 11)
    assert ready(status)[0] == "True"
    assert full(status)[0] == "False"


def test_a_full_pool_says_who_holds_most_of_it() -> None:
    blocks = tuple(
        msgspec.structs.replace(b, node="n3" if i < 9 else "n1") for i, b in enumerate(held(16))
    )
    status = pool_statuses(world(POOL, NET, blocks=blocks), NOW)["a"]
    assert full(status) == ("True", "pool a is full: 16 of 16 blocks held, most by n3 (9)")
    assert ready(status)[0] == "True"


def test_what_is_excluded_is_neither_free_nor_held() -> None:
    barred = (ip_network("10.0.0.0/26"), ip_network("10.0.0.0/28"), ip_network("10.0.0.64/32"))
    pool = msgspec.structs.replace(POOL, exclude=barred)
    status = pool_statuses(world(pool, NET, blocks=held(6)), NOW)["a"]
    assert (status.held, status.free) == (6, 16 - 4 - 2)
    whole = msgspec.structs.replace(POOL, exclude=(ip_network("10.0.0.0/8"),))
    status = pool_statuses(world(whole, NET), NOW)["a"]
    assert full(status) == ("True", "pool a is full: 0 of 16 blocks held, 16 excluded")


@given(
    st.lists(st.tuples(st.integers(24, 32), st.integers(0, 255)), max_size=6),
    st.sets(st.integers(0, 15)),
)
def test_free_is_how_many_blocks_a_node_could_still_claim(
    excludes: list[tuple[int, int]], taken: set[int]
) -> None:
    barred = tuple(ip_network(f"10.0.0.{at}/{n}", strict=False) for n, at in excludes)
    pool = msgspec.structs.replace(POOL, exclude=barred)
    blocks = tuple(held(16)[i] for i in taken)
    status = pool_statuses(world(pool, NET, blocks=blocks), NOW)["a"]
    left = list(ipam.candidates(pool, "n", {b.cidr for b in blocks}))
    assert status.free == len(left)
    assert (full(status)[0] == "True") is (left == [])


def test_blocks_that_are_no_pieces_of_the_pool_do_not_count() -> None:
    odd = (
        Block(pool="a", cidr=ip_network("10.0.0.0/27"), node="n1"),
        Block(pool="a", cidr=ip_network("10.9.0.0/28"), node="n1"),
        Block(pool="a", cidr=ip_network("fd00::/122"), node="n1"),
        Block(pool="b", cidr=ip_network("10.0.0.0/28"), node="n1"),
    )
    assert pool_statuses(world(POOL, NET, blocks=odd), NOW)["a"].held == 0


def test_counts_end_where_json_readers_do() -> None:
    six = Pool(name="six", cidr=ip_network("fd00::/48"))
    status = pool_statuses(world(six), NOW)["six"]
    assert status.size == status.blocks == status.free == MOST


def test_a_pool_without_a_network_says_so() -> None:
    assert ready(pool_statuses(world(POOL), NOW)["a"]) == (
        "False",
        "Unused",
        "pool a: no network has it; name it in one's pools",
    )


def test_every_fault_of_a_network_is_said() -> None:
    tiny = Pool(name="tiny", cidr=ip_network("10.0.0.128/28"), block=31)
    bad = Network(name="bad", backend="teleport", pools=("tiny", "none"))
    node = Node(name="n1", addresses=(ip_interface("10.0.0.129/24"),), mtu=1500)
    other = Network(name="other", backend="vxlan", pools=("tiny", "a"))
    made = world(POOL, tiny, bad, other, node)
    status, reason, words = ready(network_statuses(made, NOW)["bad"])
    assert (status, reason) == ("False", "Invalid")
    for part in (
        "pool tiny: blocks of /31 are too small",
        "no pool is called 'none'",
        "pool tiny: 10.0.0.128/28 overlaps 10.0.0.0/24 of pool a",
        "contains 10.0.0.129, the address of node n1",
        "teleport",
        "pool tiny: already belongs to network other",
    ):
        assert part in words
    assert "more than one network: bad, other" in ready(pool_statuses(made, NOW)["tiny"])[2]


def test_a_long_list_of_faults_is_cut() -> None:
    nodes = [
        Node(name=f"n{i}", addresses=(ip_interface(f"10.0.0.{i}/24"),), mtu=1500)
        for i in range(1, 200)
    ]
    words = ready(network_statuses(world(POOL, NET, *nodes), NOW)["default"])[2]
    assert len(words) == 1000
    assert words.endswith(" ...")


def test_what_cannot_be_read_is_said_where_it_stands() -> None:
    made = world(POOL, NET)
    made.pools["a"] = replace(made.pools["a"], value=None, fault="Pool a: unknown field `x`")  # type: ignore[index]
    made.networks["n"] = Found(name="n", fault="Network n: no", status=NetworkStatus())  # type: ignore[index]
    assert ready(pool_statuses(made, NOW)["a"])[2] == "Pool a: unknown field `x`"
    assert ready(network_statuses(made, NOW)["default"])[2] == "Pool a: unknown field `x`"
    assert ready(network_statuses(made, NOW)["n"])[2] == "Network n: no"


def test_a_network_counts_its_nodes_and_those_that_are_up() -> None:
    def node(name: str, said: str) -> Found[Any, Any]:
        value = Node(name=name, addresses=(), mtu=1500)
        one = Condition(
            type="Ready", status=said, last_transition_time=NOW, reason="X", message=""  # type: ignore[arg-type]
        )  # fmt: skip
        return found(value, NodeStatus(conditions=(one,)))

    made = world(POOL, NET, node("n1", "True"), node("n2", "False"), node("n3", "Unknown"))
    status = network_statuses(made, NOW)["default"]
    assert (status.nodes, status.ready) == (3, 1)
    assert ready(status)[0] == "True"


def test_a_condition_keeps_its_time_until_it_turns_and_others_conditions_stay() -> None:
    theirs = Condition(
        type="Audited", status="True", last_transition_time=NOW, reason="X", message="by hand"
    )
    made = world(POOL, NET)
    first = pool_statuses(made, NOW)["a"]
    before = PoolStatus(
        **{**msgspec.structs.asdict(first), "conditions": (*first.conditions, theirs)}
    )
    made.pools["a"] = found(POOL, before, generation=1)  # type: ignore[index]
    assert pool_statuses(made, LATER)["a"] == before  # a second look changes nothing
    made.pools["a"] = found(POOL, before, generation=2)  # type: ignore[index]
    again = pool_statuses(made, LATER)["a"]
    assert {c.observed_generation for c in again.conditions[:2]} == {2}
    assert {c.last_transition_time for c in again.conditions} == {NOW}
    assert again.conditions[2] == theirs
    turned = pool_statuses(made._replace(blocks=held(16)), LATER)["a"]
    times = {c.type: c.last_transition_time for c in turned.conditions}
    assert times == {"Ready": NOW, "Full": LATER, "Audited": NOW}
