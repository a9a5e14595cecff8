"""Values as Kubernetes objects, by example: names, keys, labels, what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from muslin.errors import ConfigError
from muslin.kube.values import (
    Ref,
    Value,
    from_object,
    key_of_object,
    name_of,
    object_of_key,
    to_object,
)
from muslin.model import Block, Node, Owner, Pool, Reservation, Workload

WEB = Pool(name="web", cidr=ip_network("10.1.0.0/16"))
VM = Workload(name="billing-1", namespace="shop", labels={"app": "billing"})
DB = Reservation(
    pool="web",
    address=ip_address("2001:db8::5"),
    owner=Owner(kind="Pod", namespace="shop", name="db-0"),
    since=datetime(2026, 1, 31, 12, tzinfo=UTC),
)
BLOCK4 = Block(pool="web", cidr=ip_network("10.1.2.64/26"), node="n1")
BLOCK6 = Block(pool="web", cidr=ip_network("2001:db8::40/122"), node="n1")


def test_an_object_has_its_name_in_metadata_and_the_rest_in_spec() -> None:
    assert to_object(WEB, labels={"muslin.io/zone": "a"}, annotations={"note": "x"}) == {
        "apiVersion": "muslin.io/v1alpha1",
        "kind": "Pool",
        "metadata": {
            "name": "web",
            "labels": {"muslin.io/zone": "a"},
            "annotations": {"note": "x"},
        },
        "spec": {"cidr": "10.1.0.0/16", "block": 0, "exclude": [], "cooldown": 30.0},
    }


def test_every_object_is_json() -> None:
    node = Node(name="n1", addresses=(ip_interface("192.0.2.1/24"),), mtu=1500)
    for value in (WEB, VM, DB, BLOCK4, BLOCK6, node):
        assert json.loads(json.dumps(to_object(value))) == to_object(value)


def test_a_workload_lives_in_its_namespace_and_its_labels_are_the_objects() -> None:
    made = to_object(VM)
    assert made["metadata"] == {
        "name": "billing-1",
        "namespace": "shop",
        "labels": {"app": "billing"},
    }
    assert made["spec"] == {"addresses": [], "node": "", "ready": True}
    assert from_object(Workload, made) == VM


@pytest.mark.parametrize(
    ("value", "name", "key"),
    [
        (WEB, "web", "pools/web"),
        (BLOCK4, "web.10.1.2.64-26", "blocks/web/10.1.2.64-26"),
        (
            BLOCK6,
            "web.2001-0db8-0000-0000-0000-0000-0000-0040-122",
            "blocks/web/2001:db8::40-122",
        ),
        (DB, "web.2001-0db8-0000-0000-0000-0000-0000-0005", "addresses/web/2001:db8::5"),
        (VM, "billing-1", "workloads/shop/billing-1"),
    ],
)
def test_a_name_and_a_key(value: Value, name: str, key: str) -> None:
    assert name_of(value) == name
    namespace = to_object(value)["metadata"].get("namespace", "")
    assert key_of_object(type(value), name, namespace) == key
    assert object_of_key(key) == Ref(type(value), name, namespace)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("web", "'' does not appear to be an IPv4 or IPv6 address"),
        ("web.10.1.2.65-26", "10.1.2.65/26 has host bits set"),
        ("web.10.1.2.64-026", "is written web.10.1.2.64-26"),
        ("web.2001-db8--40-122", "is written web.2001-0db8-0000-0000-0000-0000-0000-0040-122"),
        ("../web.10.1.2.64-26", "not a name in Kubernetes"),
    ],
)
def test_a_block_is_read_in_one_spelling_only(name: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        key_of_object(Block, name)
    assert refused.value.faults == (fault,)


@pytest.mark.parametrize(
    "key", ["", "web", "pools", "pools/", "pools/a/b", "blocks/web", "blocks/web/x", "x/y"]
)
def test_a_key_of_nothing_is_refused(key: str) -> None:
    with pytest.raises(ConfigError):
        object_of_key(key)


def test_a_block_under_another_name_is_a_fault() -> None:
    made = to_object(BLOCK4) | {"metadata": {"name": "web.10.1.2.128-26"}}
    with pytest.raises(ConfigError) as refused:
        from_object(Block, made)
    assert str(refused.value) == "Block web.10.1.2.128-26: holds what belongs in web.10.1.2.64-26"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "Pool: Input data was truncated"),
        (b"[" * 100_000, "Pool: "),
        (b"\xff", "Pool: "),
        (b"{}", "Pool: Object missing required field `metadata`"),
        ({"metadata": {"name": "a"}, "kind": "Network"}, "Pool a: is a Network"),
        ({"metadata": {"name": "a"}}, "Pool a: Object missing required field `cidr`"),
        (
            {"metadata": {"name": "a"}, "spec": {"cidr": "10.0.0.0/8", "new": 1}},
            "Pool a: Object contains unknown field `new`",
        ),
        (
            {"metadata": {"name": "a"}, "spec": {"cidr": "10.0.0.1/8"}},
            "Pool a: 10.0.0.1/8 has host bits set - at `$.cidr`",
        ),
        ({"metadata": {"name": "a"}, "spec": {"name": "b", "cidr": "10.0.0.0/8"}}, "Pool a: "),
    ],
)
def test_what_is_no_pool_is_refused_and_named(data: Any, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_object(Pool, data)
    assert str(refused.value).startswith(words)
