"""Our values as Kubernetes objects and back, and what each object is called there.

    value        in the store                         in Kubernetes
    Network      networks/<name>                      Network <name>; pools and nodes alike
    Block        blocks/<pool>/<address>-<prefixlen>  Block <pool>.<address>-<prefixlen>
    Reservation  addresses/<pool>/<address>           Address <pool>.<address>
    Workload     workloads/<namespace>/<name>         Workload <name> of that namespace

An object's name is an RFC 1123 subdomain, so an IPv6 address stands in it in
full with `-` for `:`, and the pool ends at the first dot.  As in every store,
the name is what makes a block unique, so a value has one name and a name is
read in one spelling only (rules.py says the same to the API server).

`metadata` carries a value's name, namespace and labels, `spec` everything
else; `from_object` of `to_object` is the same value, also after the API
server has pruned and filled in defaults.  Two things it does change: it sorts
the keys of maps, so compare values and not their text, and it writes a number
without a fraction (`2.0`) as an integer, which only a backend's options show.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, TypeVar

import msgspec

from muslin.errors import ConfigError
from muslin.kube.kinds import MUSLIN_GROUP, MUSLIN_VERSION, Kind, muslin
from muslin.model import (
    Address,
    Block,
    Network,
    Node,
    Pool,
    Prefix,
    Reservation,
    Workload,
    convert,
    encode,
)

Value = Network | Pool | Node | Block | Reservation | Workload
T = TypeVar("T", Network, Pool, Node, Block, Reservation, Workload)

KINDS: Mapping[type[Value], Kind] = {
    Network: muslin("networks", "Network"),
    Pool: muslin("pools", "Pool"),
    Node: muslin("nodes", "Node"),
    Block: muslin("blocks", "Block"),
    Reservation: muslin("addresses", "Address"),
    Workload: Kind(MUSLIN_GROUP, MUSLIN_VERSION, "workloads", "Workload", True),
}
METADATA = ("name", "namespace", "labels")  # fields of a value that an object has in its metadata


class Ref(NamedTuple):
    """Which object: enough to ask the API server for it."""

    kind: type[Value]
    name: str
    namespace: str = ""


class _Metadata(msgspec.Struct):
    name: str
    namespace: str = ""
    labels: dict[str, str] = {}


class _Object(msgspec.Struct):
    metadata: _Metadata
    spec: dict[str, Any] = {}
    kind: str = ""


def to_object(
    value: Value,
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The object of a value, ready to be sent.

    A workload's labels are its object's, so whatever is added to them here
    belongs to the value that is read back.
    """
    spec = msgspec.json.decode(encode(value))
    own = {key: spec.pop(key) for key in METADATA if key in spec}
    metadata = {**own, "name": name_of(value)}
    if labels or own.get("labels"):
        metadata["labels"] = {**own.get("labels", {}), **(labels or {})}
    else:
        metadata.pop("labels", None)
    if annotations:
        metadata["annotations"] = dict(annotations)
    kind = KINDS[type(value)]
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec}


def from_object(kind: type[T], data: Mapping[str, Any] | bytes) -> T:
    """The value of an object, decoded or as it came.

    ConfigError names the object and what is wrong: a field that this version
    does not know, a name that belongs to another value.
    """
    word = KINDS[kind].kind
    try:
        if isinstance(data, bytes):
            found = msgspec.json.decode(data, type=_Object)
        else:
            found = msgspec.convert(data, type=_Object)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(word, [str(e)]) from e
    subject = f"{word} {found.metadata.name}"
    if found.kind not in ("", word):
        raise ConfigError(subject, [f"is a {found.kind}"])
    own = {k: getattr(found.metadata, k) for k in METADATA if k in kind.__struct_fields__}
    if twice := sorted(own.keys() & found.spec.keys()):
        raise ConfigError(subject, [f"{', '.join(twice)}: belongs in metadata, not in spec"])
    value = convert(kind, found.spec | own, subject=subject)
    if name_of(value) != found.metadata.name:
        raise ConfigError(subject, [f"holds what belongs in {name_of(value)}"])
    return value


def name_of(value: Value) -> str:
    """The `metadata.name` of a value's object."""
    if isinstance(value, Block):
        return f"{value.pool}.{_of_prefix(value.cidr)}"
    if isinstance(value, Reservation):
        return f"{value.pool}.{_of_address(value.address)}"
    return value.name


def key_of_object(kind: type[Value], name: str, namespace: str = "") -> str:
    """The store's key of an object; ConfigError if no value could have that name."""
    pool, _, at = name.partition(".")
    try:
        if "/" in name + namespace:
            raise ValueError("not a name in Kubernetes")
        if kind is Block:
            cidr = _to_prefix(at)
            rest, again = f"{pool}/{cidr.network_address}-{cidr.prefixlen}", _of_prefix(cidr)
        elif kind is Reservation:
            address = _to_address(at)
            rest, again = f"{pool}/{address}", _of_address(address)
        else:
            rest, again = f"{namespace}/{name}" if KINDS[kind].namespaced else name, at
    except ValueError as e:
        raise ConfigError(f"{KINDS[kind].kind} {name!r}", [str(e)]) from e
    if again != at:  # one value, one spelling
        raise ConfigError(f"{KINDS[kind].kind} {name!r}", [f"is written {pool}.{again}"])
    return f"{KINDS[kind].plural}/{rest}"


def object_of_key(key: str) -> Ref:
    """The inverse of `key_of_object`."""
    directory, _, rest = key.partition("/")
    kind = next((k for k, is_ in KINDS.items() if is_.plural == directory), None)
    group, _, last = rest.rpartition("/")
    try:
        if kind is Block:
            return Ref(kind, f"{group}.{_of_prefix(ip_network(last.replace('-', '/', 1)))}")
        if kind is Reservation:
            return Ref(kind, f"{group}.{_of_address(ip_address(last))}")
    except ValueError as e:
        raise ConfigError(f"key {key!r}", [str(e)]) from e
    if kind is None or not last or bool(group) is not KINDS[kind].namespaced:
        raise ConfigError(f"key {key!r}", ["belongs to no kind of object"])
    return Ref(kind, last, group)


def _of_address(address: Address) -> str:
    return str(address) if address.version == 4 else address.exploded.replace(":", "-")


def _of_prefix(prefix: Prefix) -> str:
    return f"{_of_address(prefix.network_address)}-{prefix.prefixlen}"


def _to_address(text: str) -> Address:
    return ip_address(text.replace("-", ":"))


def _to_prefix(text: str) -> Prefix:
    address, _, length = text.rpartition("-")
    return ip_network(f"{_to_address(address)}/{length}")
