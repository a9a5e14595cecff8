"""Custom resources of the fake API server: schemas, defaults, rules in CEL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from apiserver import ApiError, ApiServer, cel
from apiserver.encode import Json

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
POOLS = "/apis/muslin.io/v1/namespaces/default/pools"


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    async with ApiServer() as api:
        yield api


async def define(api: ApiServer, spec: Json, *, status: Json | None = None) -> None:
    """A namespaced kind Pool with this schema of its spec."""
    root = {"type": "object", "properties": {"spec": {"type": "object", **spec}}}
    version: Json = {"name": "v1", "served": True, "storage": True}
    if status is not None:
        root["properties"]["status"] = {"type": "object", **status}  # type: ignore[index]
        version["subresources"] = {"status": {}}
    version["schema"] = {"openAPIV3Schema": root}
    names = {"plural": "pools", "kind": "Pool"}
    definition = {"group": "muslin.io", "scope": "Namespaced", "names": names}
    definition["versions"] = [version]  # type: ignore[assignment]
    await api.send("POST", CRDS, {"metadata": {"name": "pools.muslin.io"}, "spec": definition})


async def post(api: ApiServer, spec: Any, name: str = "a") -> Json:
    body = {"apiVersion": "muslin.io/v1", "kind": "Pool", "metadata": {"name": name}, "spec": spec}
    made: Json = (await api.send("POST", POOLS, body)).json
    return made


async def causes(api: ApiServer, spec: Any) -> list[tuple[str, str, str]]:
    """Why a spec is refused: reason, field, message."""
    with pytest.raises(ApiError) as refused:
        await post(api, spec)
    assert refused.value.code == 422
    found = refused.value.body["details"]["causes"]
    return [(one["reason"], one["field"], one["message"]) for one in found]


INT = {"type": "integer", "minimum": 1, "maximum": 32}
MODES = {"type": "string", "enum": ["a", "b"]}
WORDS = {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2, "minItems": 1}
NAMED = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["name"],
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "n": {"type": "integer", "default": 1}},
    },
}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (
            {"n": "x"},
            (
                "FieldValueTypeInvalid",
                "spec.n",
                'Invalid value: "string": spec.n in body must be of type integer: "string"',
            ),
        ),
        (
            {"n": 0},
            (
                "FieldValueInvalid",
                "spec.n",
                "Invalid value: 0: spec.n in body should be greater than or equal to 1",
            ),
        ),
        (
            {"n": 33},
            (
                "FieldValueInvalid",
                "spec.n",
                "Invalid value: 33: spec.n in body should be less than or equal to 32",
            ),
        ),
        (
            {"mode": "c"},
            (
                "FieldValueNotSupported",
                "spec.mode",
                'Unsupported value: "c": supported values: "a", "b"',
            ),
        ),
        (
            {"words": []},
            (
                "FieldValueInvalid",
                "spec.words",
                "Invalid value: 0: spec.words in body should have at least 1 items",
            ),
        ),
        (
            {"words": ["a", "b", "c"]},
            ("FieldValueTooMany", "spec.words", "Too many: 3: must have at most 2 items"),
        ),
        (
            {"words": ["long"]},
            ("FieldValueTooLong", "spec.words[0]", "Too long: may not be more than 3 bytes"),
        ),
        (
            {"cidr": "10.0.0.0"},
            (
                "FieldValueInvalid",
                "spec.cidr",
                'Invalid value: "10.0.0.0": spec.cidr in body must be of type cidr: "10.0.0.0"',
            ),
        ),
        (
            {"low": "Up"},
            (
                "FieldValueInvalid",
                "spec.low",
                "Invalid value: \"Up\": spec.low in body should match '^[a-z]+$'",
            ),
        ),
        ({"named": [{}]}, ("FieldValueRequired", "spec.named[0].name", "Required value")),
        (
            {"named": [{"name": "a"}, {"name": "a"}]},
            ("FieldValueDuplicate", "spec.named[1]", 'Duplicate value: {"name":"a"}'),
        ),
        (
            {"port": True},
            (
                "FieldValueTypeInvalid",
                "spec.port",
                'Invalid value: "boolean": '
                'spec.port in body must be of type integer,string: "boolean"',
            ),
        ),
    ],
)
async def test_a_wrong_value_is_named(
    api: ApiServer, value: Json, wanted: tuple[str, str, str]
) -> None:
    properties = {
        "n": INT,
        "mode": MODES,
        "words": WORDS,
        "cidr": {"type": "string", "format": "cidr"},
        "low": {"type": "string", "pattern": "^[a-z]+$"},
        "named": NAMED,
        "port": {"x-kubernetes-int-or-string": True},
    }
    await define(api, {"properties": properties})
    assert await causes(api, value) == [wanted]


async def test_defaults_are_filled_and_unknown_fields_are_dropped(api: ApiServer) -> None:
    properties = {
        "mode": {"type": "string", "default": "auto"},
        "named": NAMED,
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    }
    await define(api, {"properties": properties})
    made = await post(api, {"named": [{"name": "x"}], "free": {"y": {"z": 1}}, "odd": 1})
    assert made["spec"] == {
        "mode": "auto",
        "named": [{"name": "x", "n": 1}],
        "free": {"y": {"z": 1}},
    }


async def test_rules_of_transition_ask_updates_only(api: ApiServer) -> None:
    rule = {"rule": "self == oldSelf", "message": "is immutable"}
    cidr = {"type": "string", "x-kubernetes-validations": [rule]}
    await define(api, {"properties": {"cidr": cidr, "n": {"type": "integer"}}})
    await post(api, {"cidr": "10.0.0.0/8"})
    merge = {"content_type": "application/merge-patch+json"}
    await api.send("PATCH", f"{POOLS}/a", {"spec": {"n": 1}}, **merge)
    with pytest.raises(ApiError, match=r"spec.cidr: Invalid value: is immutable"):
        await api.send("PATCH", f"{POOLS}/a", {"spec": {"cidr": "10.0.0.0/9"}}, **merge)


async def test_rules_know_addresses(api: ApiServer) -> None:
    rules = [
        {"rule": "isCIDR(self.cidr)", "message": "cidr is no prefix"},
        {
            "rule": "!isCIDR(self.cidr) || cidr(self.cidr) == cidr(self.cidr).masked()",
            "messageExpression": "self.cidr + ' has host bits'",
        },
        {
            "rule": "!has(self.gateway) || cidr(self.cidr).containsIP(ip(self.gateway))",
            "reason": "FieldValueForbidden",
            "fieldPath": ".gateway",
            "message": "gateway lies outside",
        },
    ]
    texts = {"cidr": {"type": "string"}, "gateway": {"type": "string"}}
    await define(api, {"properties": texts, "x-kubernetes-validations": rules})
    await post(api, {"cidr": "2001:db8::/64", "gateway": "2001:db8::1"})
    assert await causes(api, {"cidr": "nope"}) == [
        ("FieldValueInvalid", "spec", "Invalid value: cidr is no prefix")
    ]
    assert await causes(api, {"cidr": "10.0.0.1/8"}) == [
        ("FieldValueInvalid", "spec", "Invalid value: 10.0.0.1/8 has host bits")
    ]
    assert await causes(api, {"cidr": "10.0.0.0/8", "gateway": "192.0.2.1"}) == [
        ("FieldValueForbidden", "spec.gateway", "Forbidden: gateway lies outside")
    ]


async def test_a_rule_that_cannot_be_evaluated_refuses(api: ApiServer) -> None:
    rule = {"rule": "self.missing == 1"}
    await define(api, {"properties": {}, "x-kubernetes-validations": [rule]})
    [(_, field, message)] = await causes(api, {})
    assert field == "spec"
    assert "rule evaluation error" in message


async def test_a_rule_that_does_not_compile_refuses_the_definition(api: ApiServer) -> None:
    with pytest.raises(ApiError, match="compilation failed") as refused:
        await define(api, {"x-kubernetes-validations": [{"rule": "self.foo("}]})
    assert refused.value.code == 422
    with pytest.raises(ApiError, match="undeclared reference to 'quantity'"):
        await define(api, {"x-kubernetes-validations": [{"rule": "quantity('1k').isInteger()"}]})


async def test_rules_wait_until_the_shape_is_right(api: ApiServer) -> None:
    rule = {"rule": "self.n > 1"}
    need = {"required": ["n"], "properties": {"n": {"type": "integer"}}}
    await define(api, {**need, "x-kubernetes-validations": [rule]})
    found = await causes(api, {})
    assert [one[:2] for one in found] == [
        ("FieldValueRequired", "spec.n"),
        ("FieldValueInvalid", "<nil>"),
    ]


async def test_status_and_generation(api: ApiServer) -> None:
    free = {"x-kubernetes-preserve-unknown-fields": True}
    await define(api, {"properties": {"n": {"type": "integer"}}}, status=free)
    made = await post(api, {"n": 1})
    assert made["metadata"]["generation"] == 1
    merge = {"content_type": "application/merge-patch+json"}
    both = {"spec": {"n": 2}, "status": {"free": 3}, "metadata": {"labels": {"x": "y"}}}
    told = (await api.send("PATCH", f"{POOLS}/a/status", both, **merge)).json
    assert (told["spec"], told["status"]) == ({"n": 1}, {"free": 3})
    assert (told["metadata"]["generation"], told["metadata"].get("labels")) == (1, None)
    told = (await api.send("PATCH", f"{POOLS}/a", both, **merge)).json
    assert (told["spec"], told["status"]) == ({"n": 2}, {"free": 3})
    assert told["metadata"]["generation"] == 2


async def test_strict_validation_names_unknown_fields(api: ApiServer) -> None:
    await define(api, {"properties": {}})
    body = {"apiVersion": "muslin.io/v1", "kind": "Pool", "metadata": {"name": "a"}}
    with pytest.raises(ApiError, match=r'unknown field "spec\.odd"'):
        await api.send("POST", f"{POOLS}?fieldValidation=Strict", {**body, "spec": {"odd": 1}})


async def test_an_update_of_a_custom_resource_needs_a_version(api: ApiServer) -> None:
    await define(api, {"properties": {}})
    made = await post(api, {})
    del made["metadata"]["resourceVersion"]
    with pytest.raises(ApiError, match=r"metadata.resourceVersion: .*must be specified"):
        await api.send("PUT", f"{POOLS}/a", made)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')", True),
        ("cidr('10.0.0.0/8').containsCIDR('::/0')", False),
        ("cidr('10.1.2.3/8').masked().prefixLength()", 8),
        ("cidr('10.1.2.3/8').ip() == ip('10.1.2.3')", True),
        ("ip('::ffff:0:0').family()", 6),
        ("isIP('10.0.0.01')", False),
        ("ip.isCanonical('2001:DB8::1')", False),
        ("ip('10.0.0.1').isGlobalUnicast()", True),
        ("[1, 2].sum() + [3, 1].min()", 4),
        ("sets.contains(['a', 'b'], ['a'])", True),
        ("'a1b22'.findAll('[0-9]+')", ["1", "22"]),
        ("{'a': 1}.exists(k, k == 'a')", True),
    ],
)
def test_kubernetes_own_functions(expression: str, value: Any) -> None:
    assert cel.evaluate(expression, {}) == value


@pytest.mark.parametrize("expression", ["'10.0.0.0/8'.containsIP('10.0.0.1')", "ip('x')", "1 / 0"])
def test_an_error_is_an_error(expression: str) -> None:
    with pytest.raises(cel.CelError):
        cel.evaluate(expression, {})
