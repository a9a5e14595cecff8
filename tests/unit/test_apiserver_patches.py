"""Patches and ownership as values: what the fake API server computes before it stores."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver import ApiError
from apiserver.fields import from_v1, shown, to_v1
from apiserver.patches import json_patch, merge, strategic
from apiserver.shapes import BUILTIN

_NAMES = st.sampled_from(["f:a", "f:b", 'k:{"name":"c"}', 'v:"d"'])
_PATHS = st.frozensets(st.lists(_NAMES, min_size=1, max_size=4).map(tuple), max_size=12)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=2), below),
    max_leaves=10,
)


@given(_PATHS)
def test_a_set_of_paths_survives_its_json_form(paths: frozenset[tuple[str, ...]]) -> None:
    assert from_v1(to_v1(paths)) == paths


@given(_JSON, _JSON)
def test_a_merge_patch_twice_is_a_merge_patch_once(target: Any, patch: Any) -> None:
    once = merge(target, patch)
    assert merge(once, patch) == once


@given(_JSON)
def test_a_patch_does_not_change_what_it_is_given(target: Any) -> None:
    before = repr(target)
    merge(target, {"a": {"b": None}, "c": 1})

    assert repr(target) == before


def test_paths_are_shown_as_in_conflicts() -> None:
    path = ("f:spec", "f:ports", 'k:{"port":80,"protocol":"TCP"}', "f:name")
    assert shown(path) == '.spec.ports[port=80,protocol="TCP"].name'
    assert shown(("f:metadata", "f:finalizers", 'v:"x"')) == '.metadata.finalizers[="x"]'


@pytest.mark.parametrize(
    ("operations", "wanted"),
    [
        ([{"op": "add", "path": "/l/-", "value": 3}], {"l": [1, 2, 3], "m": {"a/b": 1}}),
        ([{"op": "add", "path": "/l/0", "value": 3}], {"l": [3, 1, 2], "m": {"a/b": 1}}),
        ([{"op": "remove", "path": "/m/a~1b"}], {"l": [1, 2], "m": {}}),
        ([{"op": "move", "from": "/l/0", "path": "/m/x"}], {"l": [2], "m": {"a/b": 1, "x": 1}}),
        ([{"op": "test", "path": "/l/1", "value": 2}], {"l": [1, 2], "m": {"a/b": 1}}),
    ],
)
def test_json_patches(operations: list[dict[str, Any]], wanted: dict[str, Any]) -> None:
    assert json_patch({"l": [1, 2], "m": {"a/b": 1}}, operations) == wanted


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/nothing"},
        {"op": "replace", "path": "/nothing", "value": 1},
        {"op": "add", "path": "/l/9", "value": 1},
        {"op": "test", "path": "/l/0", "value": 2},
        {"op": "add", "path": "/no/where", "value": 1},
    ],
)
def test_a_json_patch_that_does_not_fit_is_refused(operation: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        json_patch({"l": [1]}, [operation])
    assert refused.value.code == 422


CONDITIONS = [{"type": "A", "status": "0"}, {"type": "B", "status": "0"}]


@pytest.mark.parametrize(
    ("patch", "wanted"),
    [
        ([{"type": "B", "status": "1"}], "A0 B1"),
        ([{"type": "C", "status": "1"}], "C1 A0 B0"),  # new ones come first, as recorded
        ([{"type": "A", "$patch": "delete"}], "B0"),
        ([{"type": "C", "status": "1"}, {"$patch": "replace"}], "C1"),
    ],
)
def test_conditions_are_merged_by_type(patch: list[dict[str, str]], wanted: str) -> None:
    status = {"status": {"conditions": CONDITIONS}}
    found = strategic(status, {"status": {"conditions": patch}}, BUILTIN)
    shown = " ".join(f"{one['type']}{one['status']}" for one in found["status"]["conditions"])
    assert shown == wanted


def test_the_order_of_elements_can_be_set() -> None:
    patch = {"$setElementOrder/conditions": [{"type": "B"}, {"type": "A"}]}
    found = strategic({"conditions": CONDITIONS}, {**patch, "conditions": []}, BUILTIN)
    assert [one["type"] for one in found["conditions"]] == ["B", "A"]


def test_taints_and_tolerations_are_replaced_as_a_whole() -> None:
    """Neither has a merge key in the Kubernetes API."""
    old = {"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}
    found = strategic(old, {"spec": {"taints": [{"key": "b", "effect": "NoSchedule"}]}}, BUILTIN)
    assert [one["key"] for one in found["spec"]["taints"]] == ["b"]
