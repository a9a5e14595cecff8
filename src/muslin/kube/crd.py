"""The CustomResourceDefinitions of muslin.io: what `deploy/crds` and `docs/objects.md` show.

One line of DEFINITIONS is one kind.  Schema, defaults and descriptions come
from its struct (schema.py), what the API server refuses from rules.py.  Two
kinds are called like Kubernetes' own or like a common word (Node, Address):
a bare `kubectl get nodes` stays the core one, ours are `nodes.muslin.io` or,
like every kind here, the short name.

Kubernetes 1.31 or later: CEL's ip() and cidr(), and `selectableFields`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from muslin.kube import rules
from muslin.kube.schema import schema
from muslin.kube.status import NetworkStatus, NodeStatus, PoolStatus, Status
from muslin.kube.values import KINDS, METADATA, Value
from muslin.model import Block, Network, Node, Pool, Reservation, Workload

OLDEST = "1.31"  # of Kubernetes


class Column(NamedTuple):
    """What `kubectl get` shows of a kind; `wide` only with -o wide."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False


READY = Column("Ready", '.status.conditions[?(@.type=="Ready")].status')
WHY = Column("Why", '.status.conditions[?(@.type=="Ready")].message', wide=True)
AGE = Column("Age", ".metadata.creationTimestamp", "date")


@dataclass(frozen=True, slots=True)
class Definition:
    """One kind: its struct, its short name, its status, what `kubectl get` shows and selects."""

    of: type[Value]
    short: str
    status: type[Status]
    columns: tuple[Column, ...]
    select: tuple[str, ...] = ()  # fields of spec for --field-selector


DEFINITIONS = (
    Definition(Network, "mnet", NetworkStatus, (
        Column("Backend", ".spec.backend"),
        Column("Pools", ".spec.pools"),
        Column("Nodes", ".status.nodes", "integer"),
        Column("Up", ".status.ready", "integer"),
        READY, WHY, AGE,
    )),
    Definition(Pool, "mpool", PoolStatus, (
        Column("CIDR", ".spec.cidr"),
        Column("Block", ".status.block", "integer"),
        Column("Held", ".status.held", "integer"),
        Column("Free", ".status.free", "integer"),
        READY, WHY, AGE,
    )),
    Definition(Node, "mnode", NodeStatus, (
        Column("Addresses", ".spec.addresses"),
        Column("Uplink", ".spec.uplink"),
        Column("MTU", ".spec.mtu", "integer"),
        Column("Pods", ".spec.pods", "boolean"),
        READY,
        Column("Agent", ".status.agent", wide=True),
        WHY, AGE,
    )),
    Definition(Block, "mblk", Status, (
        Column("Pool", ".spec.pool"),
        Column("CIDR", ".spec.cidr"),
        Column("Node", ".spec.node"),
        AGE,
    ), select=("pool", "node")),
    Definition(Reservation, "maddr", Status, (
        Column("Address", ".spec.address"),
        Column("State", ".spec.state"),
        Column("Owner", ".spec.owner.name"),
        Column("Namespace", ".spec.owner.namespace"),
        Column("Node", ".spec.node"),
        Column("Since", ".spec.since", "date"),
        Column("MAC", ".spec.mac", wide=True),
        Column("Pool", ".spec.pool", wide=True),
    ), select=("pool", "node", "state")),
    Definition(Workload, "mwl", Status, (
        Column("Addresses", ".spec.addresses"),
        Column("Node", ".spec.node"),
        Column("Ready", ".spec.ready", "boolean"),
        AGE,
    ), select=("node",)),
)  # fmt: skip


def definitions() -> Iterator[dict[str, Any]]:
    """Every CRD, as it is sent to the API server."""
    return map(crd, DEFINITIONS)


def crd(one: Definition) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind."""
    kind = KINDS[one.of]
    version = {
        "name": kind.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _object(one)},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(c) for c in one.columns],
    }
    if one.select:
        version["selectableFields"] = [{"jsonPath": f".spec.{name}"} for name in one.select]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.resource},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [one.short],
                "categories": ["muslin"],
            },
            "versions": [version],
        },
    }


def _object(one: Definition) -> dict[str, Any]:
    spec = schema(one.of, without=METADATA)
    summary = spec.pop("description")
    if checks := rules.SPEC.get(one.of):
        spec["x-kubernetes-validations"] = [rule.schema() for rule in checks]
    # The API server knows these four by itself; named here they are bounded, so that a rule may
    # look at the name without breaking the limit of what it may cost.
    name = {"type": "string", "maxLength": rules.NAMES.get(one.of, 253)}
    made = {
        "type": "object",
        "description": summary,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {
                "type": "object",
                "properties": {"name": name, "generateName": dict(name)},
            },
            "spec": spec,
            "status": schema(one.status, defaults=False),
        },
    }
    if checks := rules.OBJECT.get(one.of):
        made["x-kubernetes-validations"] = [rule.schema() for rule in checks]
    return made


def _column(column: Column) -> dict[str, Any]:
    made = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return made | ({"priority": 1} if column.wide else {})
