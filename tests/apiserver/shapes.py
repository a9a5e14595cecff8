"""How the parts of an object may be owned and merged: which lists are sets, maps or one value.

Built-in kinds are described by the names of their fields, for in the Kubernetes API a name
means the same nearly everywhere; the few that do not are told apart by the name above them.
Custom kinds bring a schema, from which `schema.py` makes the same answers.
"""

from __future__ import annotations

from typing import Protocol


class Shape(Protocol):
    """One place in an object."""

    @property
    def keys(self) -> tuple[str, ...]:
        """What tells a list's items apart; () for a set, or where it is one value."""

    @property
    def listing(self) -> str:
        """`atomic`, `set` or `map`: what a list here is."""

    @property
    def atomic(self) -> bool:
        """Whether an object here is one value."""

    def known(self, name: str) -> bool:
        """Whether `name` is a field of its own, not a key of a free map."""

    def child(self, name: str) -> Shape:
        """The place under a field."""

    def item(self) -> Shape:
        """The place of a list's items."""


_MAPS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
    "claims": ("name",),
    "conditions": ("type",),
    "ownerReferences": ("uid",),
    "podIPs": ("ip",),
    "webhooks": ("name",),
    "matchConditions": ("name",),
    "variables": ("name",),
    "secrets": ("name",),
}
# Same name, another meaning: (name above, name) -> keys.
_BY_PARENT: dict[tuple[str, str], tuple[str, ...]] = {
    ("containers", "ports"): ("containerPort", "protocol"),
    ("initContainers", "ports"): ("containerPort", "protocol"),
    ("spec", "ports"): ("port", "protocol"),
    ("status", "addresses"): ("type",),
}
_SETS = {("metadata", "finalizers"), ("spec", "podCIDRs"), ("spec", "validationActions")}
# Objects that are one value.
_ATOMS = {
    "selector",
    "labelSelector",
    "namespaceSelector",
    "podSelector",
    "objectSelector",
    "nodeSelector",
    "configMapKeyRef",
    "secretKeyRef",
    "fieldRef",
    "resourceFieldRef",
    "requiredDuringSchedulingIgnoredDuringExecution",
    "roleRef",
    "matchConstraints",
    "matchResources",
    "paramKind",
    "paramRef",
    "involvedObject",
    "regarding",
    "related",
    "targetRef",
}
# Objects with free keys.
_FREE = {
    "labels",
    "annotations",
    "data",
    "stringData",
    "binaryData",
    "matchLabels",
    "capacity",
    "allocatable",
    "limits",
    "requests",
}
_ATOMIC_ITEMS = {"ownerReferences", "imagePullSecrets", "secrets", "variables"}


class Named:
    """A place in a built-in object, known by its name and the one above."""

    __slots__ = ("_above", "_name", "_of_item")

    def __init__(self, name: str = "", above: str = "", *, of_item: bool = False) -> None:
        self._name, self._above, self._of_item = name, above, of_item

    @property
    def keys(self) -> tuple[str, ...]:
        if self._of_item:
            return ()
        return _BY_PARENT.get((self._above, self._name)) or _MAPS.get(self._name, ())

    @property
    def listing(self) -> str:
        if (self._above, self._name) in _SETS:
            return "set"
        return "map" if self.keys else "atomic"

    @property
    def atomic(self) -> bool:
        if self._of_item:
            return self._name in _ATOMIC_ITEMS
        return self._name in _ATOMS

    def known(self, name: str) -> bool:
        return self._of_item or self._name not in _FREE

    def child(self, name: str) -> Shape:
        return _named(name, self._name)

    def item(self) -> Shape:
        return _item(self._name, self._above)


_places: dict[tuple[str, str, bool], Named] = {}


def _named(name: str, above: str) -> Named:
    place = _places.get((name, above, False))
    if place is None:
        place = _places[name, above, False] = Named(name, above)
    return place


def _item(name: str, above: str) -> Named:
    place = _places.get((name, above, True))
    if place is None:
        place = _places[name, above, True] = Named(name, above, of_item=True)
    return place


BUILTIN = Named()
METADATA = _named("metadata", "")
