"""The CRDs of muslin.io: rules of Kubernetes that they keep, rules of ours that they enforce.

The causes below are also what the validation code of Kubernetes 1.31.14 and of 1.36.2 itself said
of these objects, but for `words`.  Both take the definitions, too: no rule or message is estimated
at more than 15 000 where 10 000 000 are the limit.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from apiserver import cel, crds
from apiserver.schema import Schema, defaulted, pruned, rules, validated
from apiserver.status import ApiError
from muslin.ipam import pools as ipam
from muslin.kube import crd
from muslin.kube import rules as ours
from muslin.kube.schema import LIMITS
from muslin.kube.status import Condition, PoolStatus, Status
from muslin.kube.values import KINDS, from_object, to_object
from muslin.model import Network, Owner, Pool, to_builtins
from servers import Serve, Server

ROOT = Path(__file__).resolve().parents[2]
CRDS = {made["spec"]["names"]["kind"]: made for made in crd.definitions()}
LABEL = "not a valid name; use a-z, 0-9 and -, at most 63 characters (RFC 1123 label)"
SINCE = "2026-01-31T12:00:00Z"
OWNER = {"kind": "Pod", "namespace": "shop", "name": "db-0"}


def schema_of(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = CRDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def thing(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    api = "muslin.io/v1alpha1"
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec}


def network(name: str = "default", **spec: Any) -> dict[str, Any]:
    return thing("Network", name, **{"backend": "vxlan", "pools": ["web"], **spec})


def pool(name: str = "web", **spec: Any) -> dict[str, Any]:
    return thing("Pool", name, **{"cidr": "10.0.0.0/16", **spec})


def block(name: str, cidr: str, **spec: Any) -> dict[str, Any]:
    return thing("Block", name, **{"pool": "web", "cidr": cidr, "node": "n1", **spec})


def address(name: str, text: str, **spec: Any) -> dict[str, Any]:
    spec = {"pool": "web", "address": text, "owner": OWNER, "since": SINCE, **spec}
    return thing("Address", name, **spec)


def node(*addresses: str) -> dict[str, Any]:
    return thing("Node", "n1.lan", addresses=list(addresses), mtu=1500)


def workload(*addresses: str) -> dict[str, Any]:
    return thing("Workload", "vm", addresses=list(addresses))


SIX = "web.fd00-0000-0000-0000-0000-0000-0000-0040"
GOOD = [
    network(),
    network(estate=["10.0.0.0/8", "fd00::/8", "0.0.0.0/0"], pools=["web", "a-1"]),
    network(options={"port": 4789, "deep": {"x": [1.5, None]}}),
    pool(),
    pool(cidr="fd00::/48"),
    pool(cidr="fd00::/48", block=64),
    pool(block=30, cooldown=0, exclude=["10.0.0.0/24", "10.0.0.0/8"]),
    pool(cidr="10.0.0.0/26"),
    pool(cidr="169.254.0.0/15"),  # half of it is for hosts
    pool(cidr="0.0.0.0/0"),
    block("web.10.0.0.64-26", "10.0.0.64/26"),
    block(f"{SIX}-122", "fd00::40/122"),
    block("a-1.10.0.0.64-26", "10.0.0.64/26", pool="a-1"),
    address("web.10.0.0.5", "10.0.0.5", mac="0a:58:0a:00:00:05", state="sticky"),
    address(SIX, "fd00::40"),
    node("192.0.2.1/24", "2001:db8::1/64"),
    node(),
    workload("192.0.2.80", "2001:db8::80"),
]
IN_FULL = ", an IPv6 address in full with - for :"
BLOCK_NAME = f"the name must say what it is: <pool>.<address>-<prefix length>{IN_FULL}"
ADDRESS_NAME = f"the name must say what it is: <pool>.<address>{IN_FULL}"
BESIDE = "make a new pool beside it"
BAD: list[tuple[dict[str, Any], dict[str, Any] | None, list[tuple[str, str]]]] = [
    (network("a.b"), None, [("metadata.name", LABEL)]),
    (network(pools=[]), None, [("spec.pools", "names no pool")]),
    (network(pools=["a_b"]), None, [("spec.pools", LABEL)]),
    (
        network(backend="host-gw"),
        None,
        [("spec.backend", "not a backend's name, which is a-z and 0-9; docs/backends.md has them")],
    ),
    (
        network(estate=["10.0.0.0"]),
        None,
        [("spec.estate[0]", "not a range; write 10.0.0.0/16 or fd00::/48")],
    ),
    (
        network(estate=["10.0.0.0/8", "10.1.2.3/8"]),
        None,
        [("spec.estate[1]", "has host bits set; write the range's first address")],
    ),
    (pool("a.b"), None, [("metadata.name", LABEL)]),
    (
        pool(cidr="10.0.0.0/33"),
        None,
        [("spec.cidr", "not a range; write 10.0.0.0/16 or fd00::/48")],
    ),
    (
        pool(cidr="fd00::1/64"),
        None,
        [("spec.cidr", "has host bits set; write the range's first address")],
    ),
    (pool(block=31), None, [("spec.block", "blocks of /31 are too small; at most /30")]),
    (
        pool(cidr="fd00::/48", block=127),
        None,
        [("spec.block", "blocks of /127 are too small; at most /126")],
    ),
    (
        pool(cidr="10.0.0.0/28"),
        None,
        [
            (
                "spec.block",
                "a block of /26 does not fit in 10.0.0.0/28; widen the cidr or set a longer block",
            )
        ],
    ),
    (
        pool(cidr="fd00::/32", block=56),
        None,
        [("spec.block", "IPv6 blocks are /64 or longer, not /56")],
    ),
    *(
        (
            pool(cidr=cidr, block=126 if ":" in cidr else 0),
            None,
            [("spec.cidr", f"{cidr} is not a range for hosts")],
        )
        for cidr in ("224.0.0.0/8", "ff02::/64", "127.1.0.0/16", "169.254.0.0/16", "fe80::/64")
    ),
    (
        pool(cidr="::1/128", block=128),
        None,
        [
            ("spec.block", "blocks of /128 are too small; at most /126"),
            ("spec.cidr", "::1/128 is not a range for hosts"),
        ],
    ),
    (
        pool(exclude=["10.0.1.0/24", "10.1.0.0/24"]),
        None,
        [("spec.exclude", "exclude 10.1.0.0/24 is outside 10.0.0.0/16")],
    ),
    (
        pool(exclude=["fd00::/64"]),
        None,
        [("spec.exclude", "exclude fd00::/64 is outside 10.0.0.0/16")],
    ),
    (
        pool(exclude=["x"]),
        None,
        [("spec.exclude[0]", "not a range; write 10.0.0.0/16 or fd00::/48")],
    ),
    (
        pool(exclude=["10.0.0.1/24"]),
        None,
        [("spec.exclude[0]", "has host bits set; write the range's first address")],
    ),
    (pool(cooldown=-1), None, [("spec.cooldown", "cooldown is negative")]),
    (
        pool(cidr="10.0.0.0/15"),
        pool(),
        [
            (
                "spec.cidr",
                f"cidr cannot change, nodes may hold blocks of it; {BESIDE}",
            )
        ],
    ),
    (
        pool(block=27),
        pool(),
        [
            (
                "spec.block",
                f"block cannot change, nodes may hold blocks of that size; {BESIDE}",
            )
        ],
    ),
    (block("web.10.0.0.0-26", "10.0.0.64/26"), None, [("metadata.name", BLOCK_NAME)]),
    (block("web.10.0.0.64-27", "10.0.0.64/26"), None, [("metadata.name", BLOCK_NAME)]),
    (block("b1", "10.0.0.64/26"), None, [("metadata.name", BLOCK_NAME)]),
    (block("web.fd00--40-122", "fd00::40/122"), None, [("metadata.name", BLOCK_NAME)]),
    (block("web.fd00-0-0-0-0-0-0-40-122", "fd00::40/122"), None, [("metadata.name", BLOCK_NAME)]),
    (block(SIX, "fd00::40/122"), None, [("metadata.name", BLOCK_NAME)]),
    (
        block("web.0000-0000-0000-0000-0000-0000-10.20.3.4-122", "::a14:300/122"),
        None,
        [("metadata.name", BLOCK_NAME)],
    ),
    (
        block("a.b.10.0.0.64-26", "10.0.0.64/26", pool="a.b"),
        None,
        [("spec.pool", LABEL)],
    ),
    (
        block("web.10.0.0.64-26", "10.0.0.64"),
        None,
        [("spec.cidr", "not a range; write 10.0.0.0/16 or fd00::/48")],
    ),
    (
        block("web.10.0.0.64-26", "10.0.0.65/26"),
        None,
        [
            ("metadata.name", BLOCK_NAME),
            ("spec.cidr", "has host bits set; write the range's first address"),
        ],
    ),
    (
        block("web.10.0.0.64-26", "10.0.0.128/26", pool="db"),
        block("web.10.0.0.64-26", "10.0.0.64/26"),
        [
            ("metadata.name", BLOCK_NAME),
            ("spec.cidr", "the range of a block cannot change; make a new one beside it"),
            ("spec.pool", "the pool of a block cannot change; make a new one beside it"),
        ],
    ),
    (address("web.10.0.0.6", "10.0.0.5"), None, [("metadata.name", ADDRESS_NAME)]),
    (address(f"{SIX}-128", "fd00::40"), None, [("metadata.name", ADDRESS_NAME)]),
    (
        address("web.10.0.0.5", "10.0.0.05"),
        None,
        [("spec.address", "not an address; write 10.0.0.5 or fd00::5")],
    ),
    (
        address("a.b.10.0.0.5", "10.0.0.5", pool="a.b"),
        None,
        [("spec.pool", LABEL)],
    ),
    (
        address("web.10.0.0.5", "10.0.0.6", pool="db"),
        address("web.10.0.0.5", "10.0.0.5"),
        [
            ("metadata.name", ADDRESS_NAME),
            ("spec.address", "an address cannot change; make a new one beside it"),
            ("spec.pool", "the pool of an address cannot change; make a new one beside it"),
        ],
    ),
    (
        node("192.0.2.1/24", "192.0.2.1"),
        None,
        [
            (
                "spec.addresses[1]",
                "not an address with a prefix length; write 192.0.2.1/24",
            )
        ],
    ),
    (
        workload("192.0.2.0/24"),
        None,
        [("spec.addresses[0]", "not an address; write 10.0.0.5 or fd00::5")],
    ),
]


def stored(made: dict[str, Any]) -> dict[str, Any]:
    """What the API server makes of an object before it judges it."""
    schema = Schema(schema_of(made["kind"]))
    found: dict[str, Any] = json.loads(
        json.dumps(defaulted(pruned(made, schema, top=True), schema))
    )
    return found


def causes(made: dict[str, Any], before: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    schema = Schema(schema_of(made["kind"]))
    new, old = stored(made), before and stored(before)
    faults = list(validated(new, schema, top=True))
    applying = rules(new, old, schema, had_old=old is not None)
    faults += [fault for rule in applying if (fault := cel.rule_fault(rule))]
    return sorted((f.field.lstrip("."), words(f.message)) for f in faults)


def words(message: str) -> str:
    """A cause without the value that a real server puts before it where that is a scalar."""
    return re.sub(r'^("[^"]*"|-?\d+): ', "", message.removeprefix("Invalid value: "))


@pytest.mark.parametrize("made", GOOD, ids=lambda o: f"{o['kind']}-{o['metadata']['name']}")
def test_what_is_right_is_taken_and_may_stay(made: dict[str, Any]) -> None:
    assert causes(made) == []
    assert causes(made, made) == []


@pytest.mark.parametrize(("made", "before", "expected"), BAD)
def test_what_is_wrong_is_refused_in_words(
    made: dict[str, Any], before: dict[str, Any] | None, expected: list[tuple[str, str]]
) -> None:
    assert causes(made, before) == expected
    assert before is None or causes(before) == []


def test_every_rule_has_refused_something_and_taken_something() -> None:
    taken, refused = set(), set()
    for made, before in [*((o, o) for o in GOOD), *((o, old) for o, old, _ in BAD)]:
        schema = Schema(schema_of(made["kind"]))
        old = before and stored(before)
        for rule in rules(stored(made), old, schema, had_old=old is not None):
            where = re.sub(r"\[\d+\]", "[]", rule.path)
            (refused if cel.rule_fault(rule) else taken).add(
                (made["kind"], where, rule.raw["rule"])
            )
    every = {
        (kind, path, rule["rule"])
        for kind in CRDS
        for path, here in nodes(schema_of(kind))
        for rule in here.get("x-kubernetes-validations", ())
    }
    assert every == taken == refused


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a schema below the root, and the root."""
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(extra := schema.get("additionalProperties"), dict):
        yield from nodes(extra, f"{path}{{}}")


# ── what Kubernetes demands of a definition ─────────────────────────────────────────────────────

FORBIDDEN = {
    *("$ref", "definitions", "dependencies", "deprecated", "discriminator", "id"),
    *("patternProperties", "readOnly", "writeOnly", "uniqueItems", "xml"),
}  # in a structural schema (kubernetes.io, "Specifying a structural schema")
BELOW_LOGIC = {"allOf", "anyOf", "oneOf", "not"}  # allowed with care; we have none


@pytest.mark.parametrize("kind", CRDS)
def test_the_schema_is_structural_and_bounded(kind: str) -> None:
    for path, node in nodes(schema_of(kind)):
        assert not (FORBIDDEN | BELOW_LOGIC) & node.keys(), path
        assert node["type"] in ("object", "array", "string", "integer", "number", "boolean"), path
        if "default" in node:
            assert path.startswith("spec."), "the API server fills no status in"
        match node["type"]:
            case "object":
                open_ = bool(node.get("x-kubernetes-preserve-unknown-fields"))
                closed = ("properties" in node) + ("additionalProperties" in node)
                assert closed + open_ == 1, path  # never two of them
                assert "properties" in node or node["maxProperties"] > 0, path
                assert set(node.get("required", ())) <= node.get("properties", {}).keys(), path
            case "array":
                assert node["maxItems"] > 0, path
                assert node["x-kubernetes-list-type"] in ("atomic", "map"), path
            case "string" if path not in ("apiVersion", "kind"):
                assert "enum" in node or node["maxLength"] > 0, path


@pytest.mark.parametrize("kind", CRDS)
def test_our_api_server_takes_the_definition(kind: str) -> None:
    assert crds.faults(CRDS[kind]) == []


@pytest.mark.parametrize("kind", CRDS)
def test_every_field_says_what_it_means(kind: str) -> None:
    silent = [
        path for path, node in nodes(schema_of(kind))
        if path.startswith(("spec.", "status.")) and not path.endswith(("[]", "{}"))
        and not node["description"]
    ]  # fmt: skip
    assert silent == []


@pytest.mark.parametrize("kind", CRDS)
def test_metadata_restricts_nothing_but_names(kind: str) -> None:
    """Anything else below `metadata` is refused, and each name must be a string for CEL to see."""
    metadata = schema_of(kind)["properties"]["metadata"]
    assert metadata.keys() == {"type", "properties"}
    assert metadata["properties"].keys() == {"name", "generateName"}


@pytest.mark.parametrize("kind", CRDS)
def test_paths_of_columns_rules_and_selectors_exist(kind: str) -> None:
    version = CRDS[kind]["spec"]["versions"][0]
    known = {f".{path}" for path, _ in nodes(schema_of(kind))}
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"]
        if path.startswith(".status.conditions["):
            assert re.fullmatch(r'\.status\.conditions\[\?\(@\.type=="Ready"\)\]\.\w+', path)
        else:
            assert path in known | {".metadata.creationTimestamp"}
    for field in version.get("selectableFields", ()):
        assert field["jsonPath"] in known
    for path, node in nodes(schema_of(kind)):
        for rule in node.get("x-kubernetes-validations", ()):
            if "fieldPath" in rule:
                assert f".{path}{rule['fieldPath']}".replace("..", ".") in known
            assert 0 < len(rule["message"]) <= 2048
            assert "\n" not in rule["message"]


def test_limits_and_rules_are_for_fields_that_exist() -> None:
    fields = {
        f"{kind.__name__}.{name}"
        for kind in (*KINDS, Owner, Condition, Status)
        for name in kind.__struct_fields__
    }
    assert LIMITS.keys() | ours.FIELDS.keys() <= fields


def test_names_do_not_collide() -> None:
    names = [made["spec"]["names"] for made in CRDS.values()]
    said = [w for n in names for w in (n["plural"], n["singular"], *n["shortNames"])]
    assert len(said) == len(set(said))
    for made in CRDS.values():
        assert made["metadata"]["name"] == f"{made['spec']['names']['plural']}.muslin.io"
        assert made["spec"]["names"]["categories"] == ["muslin"]
    # Those of Kubernetes itself and of what most clusters have beside it.
    taken = {"no", "po", "svc", "ep", "netpol", "ns", "cm", "ip", "sc", "ing", "pc", "wl", "net"}
    assert not taken & {short for n in names for short in n["shortNames"]}


# ── in an API server ────────────────────────────────────────────────────────────────────────────

ROOT_PATH = "/apis/muslin.io/v1alpha1"


@pytest.fixture
async def api(serve: Serve) -> AsyncIterator[Server]:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    async with serve() as server:
        await server.define()
        for made in CRDS.values():
            found = (await server.send("GET", f"{path}/{made['metadata']['name']}")).json
            conditions = {c["type"]: c["status"] for c in found["status"]["conditions"]}
            assert conditions == {"NamesAccepted": "True", "Established": "True"}
            assert found["status"]["acceptedNames"] == made["spec"]["names"]
        yield server


def place(made: dict[str, Any]) -> str:
    kind = CRDS[made["kind"]]["spec"]
    within = "/namespaces/default" if kind["scope"] == "Namespaced" else ""
    return f"{ROOT_PATH}{within}/{kind['names']['plural']}"


async def test_a_server_with_them_takes_the_good(api: Server) -> None:
    for number, made in enumerate(GOOD):
        name = made["metadata"]["name"]
        answer = (await api.send("POST", place(made), made)).json
        assert answer["spec"] == stored(made)["spec"], number
        await api.send("DELETE", f"{place(made)}/{name}")


async def test_a_server_with_them_refuses_the_bad(api: Server) -> None:
    for made, before, expected in BAD:
        name = made["metadata"]["name"]
        verb, url, sent = "POST", place(made), made
        if before:
            there = (await api.send("POST", url, before)).json
            verb, url, sent = "PUT", f"{url}/{name}", made | {"metadata": there["metadata"]}
        with pytest.raises(ApiError) as refused:
            await api.send(verb, url, sent)
        body = refused.value.body
        assert (body["code"], body["reason"]) == (422, "Invalid")
        said = sorted(
            (c["field"].lstrip("."), words(c["message"])) for c in body["details"]["causes"]
        )
        assert said == expected
        if before:
            await api.send("DELETE", url)


async def test_status_is_written_apart_and_keeps_no_other_field(api: Server) -> None:
    made = pool()
    await api.send("POST", f"{ROOT_PATH}/pools", made | {"status": {"size": 1}})
    ready = Condition(
        type="Ready",
        status="True",
        reason="Fits",
        message="",
        last_transition_time=datetime(2026, 1, 31, 12, tzinfo=UTC),
    )
    status = to_builtins(PoolStatus(block=26, size=65536, blocks=1024, free=1024))
    status["conditions"] = [to_builtins(ready)]
    answer = await api.send(
        "PATCH",
        f"{ROOT_PATH}/pools/web/status",
        {"spec": {"block": 30}, "status": status | {"unknown": 1}},
        content_type="application/merge-patch+json",
    )
    assert answer.json["spec"] == stored(made)["spec"]
    assert answer.json["status"] == status
    assert from_object(Pool, answer.body) == from_object(Pool, stored(made))


async def test_blocks_of_a_node_can_be_asked_for(api: Server) -> None:
    for cidr, name in (("10.0.0.0/26", "n1"), ("10.0.0.64/26", "n2")):
        made = block(f"web.{cidr.replace('/', '-')}", cidr, node=name)
        await api.send("POST", f"{ROOT_PATH}/blocks", made)
    found = (await api.send("GET", f"{ROOT_PATH}/blocks?fieldSelector=spec.node%3Dn2")).json
    assert [o["metadata"]["name"] for o in found["items"]] == ["web.10.0.0.64-26"]


# ── the transcript: what a real server echoes of a definition of the same shape ─────────────────


def test_the_shape_is_the_one_that_a_real_server_took() -> None:
    echoed = _echoed(ROOT / "tests" / "apiserver" / "v1.36.jsonl.gz")
    ours = CRDS["Pool"]
    assert echoed["kind"] == ours["kind"]
    assert echoed["spec"].keys() - {"conversion"} == ours["spec"].keys()
    assert echoed["spec"]["names"].keys() <= ours["spec"]["names"].keys()
    theirs, version = echoed["spec"]["versions"][0], ours["spec"]["versions"][0]
    assert theirs.keys() == version.keys()
    assert theirs["additionalPrinterColumns"][0] == version["additionalPrinterColumns"][0]


def _echoed(file: Path) -> dict[str, Any]:
    for line in gzip.decompress(file.read_bytes()).splitlines():
        body = json.loads(line).get("body") or {}
        if body.get("kind") == "CustomResourceDefinition":
            return dict(body)
    raise AssertionError("no definition in the transcript")


# ── the files, the pages, the numbers of others ─────────────────────────────────────────────────


@cache
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_the_definitions_and_kustomize_has_them_all() -> None:
    directory = ROOT / "deploy" / "crds"
    files = sorted(set(directory.iterdir()) - {directory / "kustomization.yaml"})
    assert [f.name for f in files] == sorted(docs().definitions())
    listed = yaml.safe_load((directory / "kustomization.yaml").read_text())["resources"]
    assert listed == [f.name for f in files]
    for file in files:
        assert file.read_text().startswith("# generated by `make docs`; do not edit\n")
        made = yaml.safe_load(file.read_text())
        assert made == CRDS[made["spec"]["names"]["kind"]]


@pytest.mark.parametrize("kind", CRDS)
def test_the_example_in_the_docs_is_taken(kind: str) -> None:
    example = next(e for e in docs().EXAMPLES if KINDS[type(e)].kind == kind)
    assert causes(to_object(example)) == []
    typed = docs()._shown(example)
    assert causes(typed) == []
    assert from_object(type(example), stored(typed)) == example


@pytest.mark.parametrize("made", [o for o in GOOD if o["kind"] in ("Pool", "Network")])
def test_what_is_taken_has_no_fault_by_our_own_judgement(made: dict[str, Any]) -> None:
    assert faults(made) == []


def test_what_our_own_judgement_finds_is_refused() -> None:
    """With the same words, apart from the value where the API server says it by itself."""
    for made, before, causes_ in BAD:
        unread = any("not a " in text or "host bits" in text for _, text in causes_)
        if made["kind"] == "Pool" and before is None and not unread:
            words = [fault.removeprefix("pool web: ") for fault in faults(made)]
            assert [w.replace("cooldown -1.0 is", "cooldown is").replace(
                " (16 addresses)", ""
            ) for w in words] == [text for _, text in causes_]  # fmt: skip


def faults(made: dict[str, Any]) -> list[str]:
    if made["kind"] == "Network":
        value = from_object(Network, stored(made))
        pools = [from_object(Pool, stored(pool(name))) for name in value.pools]
        return [f for f in ipam.faults(value, pools) if "overlaps" not in f]
    one = from_object(Pool, stored(made))
    return ipam.faults(Network(name="default", backend="vxlan", pools=(one.name,)), [one])


def test_the_numbers_are_those_of_the_pools() -> None:
    assert (ours.SMALLEST, ours.LARGEST) == (ipam.SMALLEST, ipam.LARGEST)
