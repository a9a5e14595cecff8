"""Values as Kubernetes objects: exact both ways, whatever an API server adds, drops or fills in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from apiserver.schema import Schema, defaulted, pruned
from muslin.errors import ConfigError
from muslin.kube import crd, rules
from muslin.kube.values import (
    KINDS,
    Ref,
    Value,
    from_object,
    key_of_object,
    name_of,
    object_of_key,
    to_object,
)
from muslin.model import Block, Network, Node, Owner, Pool, Prefix, Reservation, Workload, encode
from muslin.store import objects

SCHEMAS = {
    one.of: Schema(made["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    for one, made in zip(crd.DEFINITIONS, crd.definitions(), strict=True)
}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
subdomains = st.lists(labels, min_size=1, max_size=3).map(".".join)
addresses = st.ip_addresses()


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    address = draw(addresses)
    return ip_network((address, draw(st.integers(0, address.max_prefixlen))), strict=False)


interfaces = st.builds(
    lambda address, length: ip_interface((address, min(length, address.max_prefixlen))),
    addresses,
    st.integers(0, 128),
)
# A number like 2.0 is the one thing that comes back as another: as 2.
floats = st.floats(allow_nan=False, allow_infinity=False).filter(lambda f: not f.is_integer())
plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | floats | text
anything = st.recursive(
    plain, lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(text, deeper, max_size=3)
)
some = st.lists(prefixes(), max_size=3).map(tuple)

VALUES: dict[type[Value], st.SearchStrategy[Any]] = {
    Network: st.builds(
        Network,
        name=labels,
        backend=text,
        pools=st.lists(labels, max_size=3).map(tuple),
        options=st.dictionaries(text, anything, max_size=3),
        estate=some,
        masquerade=st.booleans(),
    ),
    Pool: st.builds(
        Pool,
        name=labels,
        cidr=prefixes(),
        block=st.integers(0, 128),
        exclude=some,
        cooldown=st.floats(0, 1e9),
    ),
    Node: st.builds(
        Node,
        name=subdomains,
        addresses=st.lists(interfaces, max_size=3).map(tuple),
        mtu=st.integers(68, 65536),
        uplink=text,
        pods=st.booleans(),
        data=st.dictionaries(text, st.dictionaries(text, text, max_size=2), max_size=2),
    ),
    Block: st.builds(Block, pool=labels, cidr=prefixes(), node=subdomains),
    Reservation: st.builds(
        Reservation,
        pool=labels,
        address=addresses,
        owner=st.builds(Owner, kind=text, namespace=text, name=text),
        state=st.sampled_from(["held", "sticky", "quarantined"]),
        since=st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)),
        node=text,
        nic=text,
        mac=text,
    ),
    Workload: st.builds(
        Workload,
        name=subdomains,
        namespace=labels,
        labels=st.dictionaries(text, text, max_size=3),
        addresses=st.lists(addresses, max_size=3).map(tuple),
        node=text,
        ready=st.booleans(),
    ),
}
values = st.one_of(*VALUES.values())


def served(
    value: Value, change: Callable[[dict[str, Any]], None] = lambda made: None
) -> dict[str, Any]:
    """The object as a server gives it back: changed, pruned, defaulted, sorted, with its own."""
    made = to_object(value)
    change(made)
    schema = SCHEMAS[type(value)]
    kept = defaulted(pruned(made, schema, top=True), schema)
    kept["metadata"] |= {"uid": "u", "resourceVersion": "7", "generation": 1, "managedFields": [{}]}
    kept["status"] = {"conditions": []}
    found: dict[str, Any] = json.loads(json.dumps(kept, sort_keys=True))  # as Go writes maps
    return found


def same(value: Value, made: dict[str, Any]) -> None:
    kind = type(value)
    for data in (made, json.dumps(made).encode()):
        read = from_object(kind, data)
        assert read == value
        assert json.loads(encode(read)) == json.loads(encode(value))  # 1 is not 1.0 here


@given(values)
def test_a_value_comes_back_as_it_went(value: Value) -> None:
    assert encode(from_object(type(value), to_object(value))) == encode(value)
    same(value, served(value))


@given(values)
def test_what_is_the_default_need_not_be_said(value: Value) -> None:
    def shorten(made: dict[str, Any]) -> None:
        for name, node in SCHEMAS[type(value)].properties["spec"].properties.items():
            if "default" in node.raw and made["spec"][name] == node.raw["default"]:
                del made["spec"][name]

    made = to_object(value)
    shorten(made)
    same(value, made)
    same(value, served(value, shorten))


@given(values, st.dictionaries(labels, anything, min_size=1, max_size=2))
def test_a_server_prunes_what_it_does_not_know(value: Value, extra: dict[str, Any]) -> None:
    assume(not extra.keys() & SCHEMAS[type(value)].properties["spec"].properties.keys())
    same(value, served(value, lambda made: made["spec"].update(extra)))
    with pytest.raises(ConfigError):  # unpruned it belongs to a newer version: not ours to guess
        from_object(type(value), {**to_object(value), "spec": to_object(value)["spec"] | extra})


@given(values)
def test_a_name_is_one_that_kubernetes_takes_and_leads_back(value: Value) -> None:
    name, kind = name_of(value), type(value)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", name)
    assert len(name) <= rules.NAMES.get(kind, 253)
    namespace = to_object(value)["metadata"].get("namespace", "")
    assert object_of_key(key_of_object(kind, name, namespace)) == Ref(kind, name, namespace)


@given(st.one_of(*(VALUES[kind] for kind in (Network, Pool, Node, Block))))
def test_a_key_is_the_one_of_the_store(value: Any) -> None:
    kind = type(value)
    assert key_of_object(kind, name_of(value)) == objects.key_of(kind, objects.name_of(value))


@given(VALUES[Block], VALUES[Block])
def test_two_blocks_have_two_names(one: Block, other: Block) -> None:
    same_block = (one.pool, one.cidr) == (other.pool, other.cidr)
    assert (name_of(one) == name_of(other)) is same_block


@given(st.sampled_from([Block, Reservation]), st.text(max_size=60) | st.just("p.0.0.0.0-0"))
def test_a_name_is_read_in_one_spelling_or_refused(kind: type[Value], name: str) -> None:
    try:
        key = key_of_object(kind, name)
    except ConfigError:
        return
    assert object_of_key(key) == Ref(kind, name)


def test_every_kind_has_values_here() -> None:
    assert VALUES.keys() == KINDS.keys()
