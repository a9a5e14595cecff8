"""Services, pods, Workloads and EndpointSlices as Kubernetes has them, to our values and back.

Of a pod only what an endpoint needs is kept, and of pods only those that have
an address from us (annotation `muslin.io/status`): a cluster's other pods cost
no memory.  That annotation holds one NIC or a list of them; what cannot be
read is as if it were not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

import msgspec
from msgspec import field

from muslin.controller.slices.model import (
    Endpoint,
    Group,
    Member,
    Port,
    Service,
    ServicePort,
    Slice,
    Target,
)
from muslin.controller.slices.plan import ASKS
from muslin.errors import ConfigError
from muslin.kube.kinds import ENDPOINT_SLICES
from muslin.kube.slim import Condition, OwnerReference
from muslin.kube.values import KINDS, from_object
from muslin.log import log
from muslin.model import Workload

STATUS = "muslin.io/status"  # of pods, by agents
ZONE = "topology.kubernetes.io/zone"  # of Nodes
MOST_ADDRESSES = 32  # of one pod or Workload: no object of one person fills everybody's slices
_FAMILIES = {"IPv4": 4, "IPv6": 6}


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    pass


class Owner(OwnerReference, frozen=True):
    """An owner, by the only name that is not used twice."""

    uid: str = ""


class Meta(_Part, frozen=True):
    """`metadata`, as far as slices are made of it."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deletion_timestamp: str | None = None
    owner_references: tuple[Owner, ...] | None = None


class _ServicePort(_Part, frozen=True):
    name: str = ""
    protocol: str = "TCP"
    port: int = 0
    target_port: int | str = 0
    app_protocol: str | None = None


class _ServiceSpec(_Part, frozen=True):
    type: str = "ClusterIP"
    cluster_ip: str = field(name="clusterIP", default="")
    ip_families: tuple[str, ...] | None = None
    ports: tuple[_ServicePort, ...] | None = None
    selector: dict[str, str] | None = None
    publish_not_ready_addresses: bool = False


class RawService(_Part, frozen=True):
    """A Service."""

    metadata: Meta = Meta()
    spec: _ServiceSpec = _ServiceSpec()


class _ContainerPort(_Part, frozen=True):
    name: str = ""
    container_port: int = 0
    protocol: str = "TCP"


class _Container(_Part, frozen=True):
    ports: tuple[_ContainerPort, ...] | None = None
    restart_policy: str | None = None  # of init containers: "Always" is a sidecar


class _PodSpec(_Part, frozen=True):
    node_name: str = ""
    hostname: str = ""
    subdomain: str = ""
    containers: tuple[_Container, ...] | None = None
    init_containers: tuple[_Container, ...] | None = None


class _PodStatus(_Part, frozen=True):
    phase: str = ""
    pod_ip: str = field(name="podIP", default="")
    conditions: tuple[Condition, ...] | None = None


class RawPod(_Part, frozen=True):
    """A pod."""

    metadata: Meta = Meta()
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()


class RawWorkload(_Part, frozen=True):
    """A Workload (muslin.io)."""

    metadata: Meta = Meta()
    spec: msgspec.Raw = msgspec.Raw(b"{}")


class RawNode(_Part, frozen=True):
    """A core Node: its labels."""

    metadata: Meta = Meta()


class _Conditions(_Part, frozen=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class _Endpoint(_Part, frozen=True):
    addresses: tuple[str, ...] | None = None
    conditions: _Conditions = _Conditions()
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    target_ref: dict[str, str] | None = None


class _Port(_Part, frozen=True):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    app_protocol: str | None = None


class RawSlice(_Part, frozen=True):
    """An EndpointSlice."""

    metadata: Meta = Meta()
    address_type: str = ""
    endpoints: tuple[_Endpoint, ...] | None = None
    ports: tuple[_Port, ...] | None = None


class _Nic(_Part, frozen=True):
    network: str = ""
    addresses: tuple[str, ...] = ()


_nics = msgspec.json.Decoder(_Nic | tuple[_Nic, ...])


# ── from Kubernetes ─────────────────────────────────────────────────────────────────────────────


def service_of(found: RawService) -> Service | None:
    """None for a Service without our annotations."""
    meta, spec = found.metadata, found.spec
    asks = {k: v for k, v in (meta.annotations or {}).items() if k in ASKS}
    if not asks:
        return None
    families = tuple(_FAMILIES[f] for f in spec.ip_families or () if f in _FAMILIES)
    return Service(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        labels=meta.labels or {},
        asks=asks,
        headless=spec.cluster_ip in ("", "None"),
        external=spec.type == "ExternalName",
        families=families or (4, 6),
        ports=tuple(
            ServicePort(p.name, p.protocol, p.target_port or p.port, p.app_protocol or "")
            for p in spec.ports or ()
        ),
        selector=spec.selector or {},
        publish=spec.publish_not_ready_addresses,
    )


def pod_of(found: RawPod) -> Member | None:
    """None for a pod that has ended, or has no address from us.

    As in Kubernetes only a pod whose kubelet has told an address counts.  So
    an annotation that came with a backup, or from a template, is nothing
    before the agent has had its chance to write the right one.
    """
    meta, spec, status = found.metadata, found.spec, found.status
    told = (meta.annotations or {}).get(STATUS)
    if not told or not status.pod_ip or status.phase in ("Succeeded", "Failed"):
        return None
    addresses = tuple(_addresses(told))
    if not addresses:
        return None
    sidecars = (c for c in spec.init_containers or () if c.restart_policy == "Always")
    return Member(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        labels=meta.labels or {},
        addresses=addresses,
        serving=any(c.type == "Ready" and c.status == "True" for c in status.conditions or ()),
        terminating=meta.deletion_timestamp is not None,
        node=spec.node_name,
        hostname=spec.hostname,
        subdomain=spec.subdomain,
        ports=tuple(
            (p.name, p.protocol, p.container_port)
            for c in (*(spec.containers or ()), *sidecars)
            for p in c.ports or ()
            if p.name
        ),
    )


def _addresses(told: str) -> Sequence[tuple[str, Any]]:
    try:
        nics = _nics.decode(told)
        nics = (nics,) if isinstance(nics, _Nic) else nics
        found = [(n.network, ip_address(a)) for n in nics for a in n.addresses if n.network]
    except (ValueError, RecursionError):  # of msgspec too
        return ()
    return found[:MOST_ADDRESSES]


def workload_of(found: RawWorkload) -> Member | None:
    """None for one that cannot be read; the CRD's rules refuse most of these."""
    meta = found.metadata
    plain = {"name": meta.name, "namespace": meta.namespace, "labels": meta.labels or {}}
    try:
        spec = msgspec.json.decode(found.spec)
        value = from_object(Workload, {"metadata": plain, "spec": spec})
    except ConfigError as e:
        log.warning("workload.skipped", namespace=meta.namespace, name=meta.name, why=str(e))
        return None
    return Member(
        kind="Workload",
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        labels=value.labels,
        addresses=tuple(("", a) for a in value.addresses[:MOST_ADDRESSES]),
        serving=value.ready,
        terminating=meta.deletion_timestamp is not None,
        node=value.node,
    )


def zone_of(found: RawNode) -> str:
    """A node's zone, or ""."""
    return (found.metadata.labels or {}).get(ZONE, "")


def slice_of(found: RawSlice) -> Slice:
    """One of our slices."""
    meta = found.metadata
    ports = [
        Port(p.name or "", p.protocol or "TCP", p.port or 0, p.app_protocol or "")
        for p in found.ports or ()
    ]
    owners = (o.uid for o in meta.owner_references or () if o.kind == "Service")
    return Slice(
        namespace=meta.namespace,
        name=meta.name,
        version=meta.resource_version,
        labels=meta.labels or {},
        owners=frozenset(owners),
        group=Group(_FAMILIES.get(found.address_type, 0), tuple(sorted(ports))),
        endpoints=tuple(_read(e, found.address_type) for e in found.endpoints or ()),
        going=meta.deletion_timestamp is not None,
    )


def _read(found: _Endpoint, family: str) -> Endpoint | None:
    said, ref = found.conditions, found.target_ref or {}
    addresses = found.addresses or ()
    if len(addresses) != 1 or said.ready is None or said.serving is None:
        return None
    try:
        address = ip_address(addresses[0])
    except ValueError:
        return None
    if address.version != _FAMILIES.get(family) or said.terminating is None:
        return None
    return Endpoint(
        address=address,
        ready=said.ready,
        serving=said.serving,
        terminating=said.terminating,
        hostname=found.hostname or "",
        node=found.node_name or "",
        zone=found.zone or "",
        target=Target(*(ref.get(k, "") for k in ("kind", "namespace", "name", "uid"))),
    )


# ── to Kubernetes ───────────────────────────────────────────────────────────────────────────────


def body(
    service: Service,
    name: str,
    labels: Mapping[str, str],
    group: Group,
    endpoints: Sequence[Endpoint],
) -> dict[str, Any]:
    """A new slice.  Deleting the Service takes it along."""
    # Not blockOwnerDeletion: that would need a right on services/finalizers, and wins nothing.
    owner = {"apiVersion": "v1", "kind": "Service", "name": service.name, "uid": service.uid}
    metadata = {
        "name": name,
        "namespace": service.namespace,
        "labels": dict(labels),
        "ownerReferences": [{**owner, "controller": True}],
    }
    return {
        "apiVersion": ENDPOINT_SLICES.api_version,
        "kind": ENDPOINT_SLICES.kind,
        "metadata": metadata,
        "addressType": f"IPv{group.family}",
        "endpoints": [endpoint(e) for e in endpoints],
        "ports": [_port(p) for p in group.ports],
    }


def endpoint(one: Endpoint) -> dict[str, Any]:
    """One entry of a slice."""
    target = one.target._asdict()
    if one.target.kind == "Workload":
        target["apiVersion"] = KINDS[Workload].api_version
    made: dict[str, Any] = {
        "addresses": [str(one.address)],
        "conditions": {
            "ready": one.ready,
            "serving": one.serving,
            "terminating": one.terminating,
        },
        "targetRef": target,
    }
    for key, value in (("hostname", one.hostname), ("nodeName", one.node), ("zone", one.zone)):
        if value:
            made[key] = value
    return made


def _port(one: Port) -> dict[str, Any]:
    made = {"name": one.name, "protocol": one.protocol, "port": one.number}
    return made | ({"appProtocol": one.app} if one.app else {})
