"""AdmissionReviews: what is answered to good ones, to any bytes, and when nothing is known."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.controller import webhook
from muslin.controller.webhook import Known
from muslin.kube.values import KINDS, to_object
from muslin.model import Block, Network, Owner, Pool, Reservation

A = Pool(name="a", cidr=ip_network("10.0.0.0/24"), block=28)
B = Pool(name="b", cidr=ip_network("10.0.0.0/16"))
HELD = Block(pool="a", cidr=ip_network("10.0.0.0/28"), node="n1")


def known(*, synced: bool = True) -> Known:
    found = Known()
    found.world.pools["a"] = A  # type: ignore[index]
    found.world.blocks["a.10.0.0.0-28"] = HELD  # type: ignore[index]
    if synced:
        found._missing.clear()
    return found


def request(what: str, old: Any = None, new: Any = None, **more: Any) -> dict[str, Any]:
    there = new or old
    kind = KINDS.get(type(there))
    asked = {
        "uid": "705ab4f5",
        "operation": what,
        "kind": {"group": "muslin.io", "version": "v1alpha1", "kind": kind.kind if kind else ""},
        "name": "x",
        "object": to_object(new) if new else None,
        "oldObject": to_object(old) if old else None,
        "userInfo": {"username": "alice"},
        **more,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}


def ask(body: Any, *, synced: bool = True) -> dict[str, Any]:
    code, answer = known(synced=synced).answer(json.dumps(body).encode())
    assert code == 200
    said = json.loads(answer)
    assert (said["apiVersion"], said["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert said["response"]["uid"] == "705ab4f5"
    return dict(said["response"])


def test_a_fault_refuses_with_all_the_words() -> None:
    said = ask(request("CREATE", None, B))
    words = "pool b: 10.0.0.0/16 overlaps 10.0.0.0/24 of pool a; choose another cidr"
    assert said == {
        "uid": "705ab4f5",
        "allowed": False,
        "status": {
            "code": 422,
            "reason": "Invalid",
            "message": words,
            "details": {"causes": [{"message": words}]},
        },
    }


def test_a_warning_lets_pass() -> None:
    network = Network(name="n", backend="vxlan", pools=("later",))
    said = ask(request("CREATE", None, network))
    assert said["allowed"] is True
    assert said["warnings"] == ["network n: no pool is called 'later'"]


def test_what_is_fine_is_answered_with_nothing_more() -> None:
    assert ask(request("UPDATE", A, A)) == {"uid": "705ab4f5", "allowed": True}


def test_the_annotation_that_forces_is_read_where_the_object_stands() -> None:
    plain = request("DELETE", A)
    assert ask(plain)["allowed"] is False
    forced = request("DELETE", A)
    forced["request"]["oldObject"]["metadata"]["annotations"] = {"muslin.io/force": "true"}
    assert ask(forced)["allowed"] is True
    barred = Pool(name="a", cidr=A.cidr, block=28, exclude=(HELD.cidr,))
    change = request("UPDATE", A, barred)
    assert ask(change)["allowed"] is False
    change["request"]["object"]["metadata"]["annotations"] = {"muslin.io/force": "true"}
    assert ask(change)["allowed"] is True


def test_without_knowledge_everything_passes_and_is_told_so() -> None:
    said = ask(request("CREATE", None, B), synced=False)
    assert said["allowed"] is True
    assert "let pass unchecked: other objects are not known" in said["warnings"][0]


def test_one_watch_that_is_lost_is_enough_not_to_know() -> None:
    found = known()
    found._missing["blocks"] = "no connection"
    assert found.fault == "blocks: no connection"


def test_a_fault_of_ours_lets_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(webhook, "judge", broken)
    said = ask(request("CREATE", None, B))
    assert said["allowed"] is True
    assert said["warnings"] == ["muslin: let pass unchecked: the webhook failed; its log says why"]


def test_an_object_of_a_newer_version_passes() -> None:
    body = request("CREATE", None, B)
    body["request"]["object"]["spec"]["speed"] = "fast"
    said = ask(body)
    assert said["allowed"] is True
    assert "unknown field `speed`" in said["warnings"][0]


def test_what_was_unreadable_is_replaced_as_if_new() -> None:
    body = request("UPDATE", A, B)
    body["request"]["oldObject"]["spec"] = {"cidr": 7}
    assert ask(body)["allowed"] is False
    body["request"] |= {"operation": "DELETE", "object": None}
    assert ask(body)["allowed"] is True


@pytest.mark.parametrize(
    "more",
    [
        {"kind": {"group": "", "version": "v1", "kind": "Pod"}},
        {"kind": {"group": "muslin.io", "kind": "Block"}},
        {"kind": {"group": "other.io", "kind": "Pool"}},
        {"subResource": "status"},
        {"operation": "CONNECT"},
    ],
)
def test_it_has_no_opinion_on_others(more: dict[str, Any]) -> None:
    assert ask(request("CREATE", None, B, **more)) == {"uid": "705ab4f5", "allowed": True}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"a","operation":"CREATE"}}',
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}',
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"a"}}',
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"operation":"CREATE"}}',
    ],
)
def test_what_is_no_review_is_a_bad_request(body: bytes) -> None:
    code, words = known().answer(body)
    assert code == 400
    assert words.startswith(b"not an AdmissionReview")


@given(st.binary(max_size=200))
def test_any_bytes_are_answered(body: bytes) -> None:
    assert known().answer(body)[0] == 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIXED = Reservation(
    pool="a",
    address=ip_address("10.0.0.5"),
    owner=Owner(kind="Pod", name="db-0"),
    since=datetime(2026, 1, 1, tzinfo=UTC),
)
written = st.sampled_from([A, B, FIXED, Network(name="n", backend="vxlan", pools=("a",))])


@given(st.data(), st.sampled_from(["CREATE", "UPDATE", "DELETE"]), written)
def test_a_review_with_anything_in_one_place_is_answered(
    data: st.DataObject, operation: str, value: Any
) -> None:
    """One of its values is replaced by any JSON: a refusal, an approval or 400, and never a 500."""
    body = request(operation, value, value)
    places = list(_places(body))
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(json_values)
    try:
        text = json.dumps(body, allow_nan=False)
    except ValueError:
        return
    code, answer = known().answer(text.encode("utf-8", "surrogatepass"))
    assert code in (200, 400)
    if code == 200:
        assert set(json.loads(answer)["response"]) <= {"uid", "allowed", "status", "warnings"}


def _places(found: Any) -> Any:
    keys = found if isinstance(found, dict) else range(len(found))
    for key in keys:
        yield found, key
        if isinstance(found[key], dict | list):
            yield from _places(found[key])
