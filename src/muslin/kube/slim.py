"""The parts of Kubernetes objects that Muslin reads, and nothing else.

Of a running pod most is `managedFields`.  30,000 pods of 7.8 kB of JSON are
2.5 KiB of memory each as `Pod`, 40 as a dict; followed by a watch 3.2, with its
own dictionary and the reader's.  What is not named here is skipped without
being built.  These are for reading only: an object written back from one
would lose the rest, so writes are patches (`Api.patch`, `Api.apply`).

Every field has a default, since servers leave out what is empty, and the
lists that Go encodes as `null` when they are empty (those without `omitempty`
in k8s.io/api: `containers`, `endpoints`, `addresses`, `ports` of a slice) may
be None: write `for e in slice.endpoints or ()`.  Attributes are the JSON
names in snake_case.

Words that thousands of pods share are kept once (`intern`), which is a
quarter of the memory for 2 µs a pod.  `gc=False`: these are trees of strings
and can form no cycle, so the collector need not walk them.
"""

from __future__ import annotations

from sys import intern

from msgspec import Struct, field
from msgspec.structs import force_setattr

_FLANNEL = "flannel.alpha.coreos.com/"


class _Part(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    pass


class OwnerReference(_Part, frozen=True):
    """Whose child an object is."""

    kind: str = ""
    name: str = ""
    controller: bool = False


class Meta(_Part, frozen=True):
    """`metadata` of every object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deletion_timestamp: str | None = None  # RFC 3339; None: nobody wants it gone
    owner_references: tuple[OwnerReference, ...] | None = None

    def __post_init__(self) -> None:
        force_setattr(self, "namespace", intern(self.namespace))


class Condition(_Part, frozen=True):
    """One of an object's conditions; `status` is "True", "False" or "Unknown"."""

    type: str = ""
    status: str = ""

    def __post_init__(self) -> None:
        force_setattr(self, "type", intern(self.type))
        force_setattr(self, "status", intern(self.status))


class ContainerPort(_Part, frozen=True):
    """A port that a container declares; policies and services may use its name."""

    name: str = ""
    container_port: int = 0
    protocol: str = "TCP"


class Container(_Part, frozen=True):
    """One container of a pod, as far as its ports go."""

    name: str = ""
    ports: tuple[ContainerPort, ...] | None = None


class PodSpec(_Part, frozen=True):
    """Where a pod runs and what it listens on; `node_name` is empty until it is scheduled."""

    node_name: str = ""
    host_network: bool = False
    containers: tuple[Container, ...] | None = None

    def __post_init__(self) -> None:
        force_setattr(self, "node_name", intern(self.node_name))


class PodIP(_Part, frozen=True):
    """One address of a pod."""

    ip: str = ""


class PodStatus(_Part, frozen=True):
    """What the kubelet says of a pod."""

    phase: str = ""
    pod_ip: str = field(name="podIP", default="")
    pod_ips: tuple[PodIP, ...] | None = field(name="podIPs", default=None)
    conditions: tuple[Condition, ...] | None = None


class Pod(_Part, frozen=True):
    """A pod."""

    metadata: Meta = Meta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Taint(_Part, frozen=True):
    """Why pods stay away from a node."""

    key: str = ""
    value: str = ""
    effect: str = ""


class NodeSpec(_Part, frozen=True):
    """What the cluster has decided about a node."""

    pod_cidr: str = field(name="podCIDR", default="")
    pod_cidrs: tuple[str, ...] | None = field(name="podCIDRs", default=None)
    taints: tuple[Taint, ...] | None = None
    unschedulable: bool = False


class NodeAddress(_Part, frozen=True):
    """One address of a node; `type` is InternalIP, ExternalIP, Hostname..."""

    type: str = ""
    address: str = ""


class NodeStatus(_Part, frozen=True):
    """What a node's kubelet and its network say of it (Ready, NetworkUnavailable)."""

    addresses: tuple[NodeAddress, ...] | None = None
    conditions: tuple[Condition, ...] | None = None


class Node(_Part, frozen=True):
    """A node."""

    metadata: Meta = Meta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ServicePort(_Part, frozen=True):
    """A service's port; `target_port` is a number or a container port's name."""

    name: str = ""
    protocol: str = "TCP"
    port: int = 0
    target_port: int | str = 0
    node_port: int = 0


class ServiceSpec(_Part, frozen=True):
    """A service's addresses and which pods it stands for."""

    type: str = "ClusterIP"
    cluster_ip: str = field(name="clusterIP", default="")  # "None": headless
    cluster_ips: tuple[str, ...] | None = field(name="clusterIPs", default=None)
    external_ips: tuple[str, ...] | None = field(name="externalIPs", default=None)
    ports: tuple[ServicePort, ...] | None = None
    selector: dict[str, str] | None = None
    session_affinity: str = "None"
    internal_traffic_policy: str = "Cluster"
    external_traffic_policy: str = "Cluster"
    publish_not_ready_addresses: bool = False


class Service(_Part, frozen=True):
    """A service."""

    metadata: Meta = Meta()
    spec: ServiceSpec = ServiceSpec()


class EndpointConditions(_Part, frozen=True):
    """None means unknown, which is to be read as ready and serving (discovery/v1)."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class TargetRef(_Part, frozen=True):
    """The pod behind an endpoint."""

    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class Endpoint(_Part, frozen=True):
    """Where a service's traffic goes."""

    addresses: tuple[str, ...] | None = None
    conditions: EndpointConditions = EndpointConditions()
    node_name: str | None = None
    zone: str | None = None
    target_ref: TargetRef | None = None


class EndpointPort(_Part, frozen=True):
    """A port of all endpoints of a slice; None: of every port."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSlice(_Part, frozen=True):
    """A part of a service's endpoints; the label kubernetes.io/service-name says whose."""

    metadata: Meta = Meta()
    address_type: str = ""
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None


class Namespace(_Part, frozen=True):
    """A namespace; what matters are its labels."""

    metadata: Meta = Meta()


class LeaseSpec(_Part, frozen=True):
    """Who leads, and since when (`times.parse_time`)."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(_Part, frozen=True):
    """A lease of coordination.k8s.io."""

    metadata: Meta = Meta()
    spec: LeaseSpec = LeaseSpec()


class ConfigMap(_Part, frozen=True):
    """Configuration as text; `binaryData` is not read."""

    metadata: Meta = Meta()
    data: dict[str, str] | None = None


class FlannelAnnotations(_Part, frozen=True, rename=lambda name: _FLANNEL + name.replace("_", "-")):
    """Of a node's annotations flannel's alone, None for what is not there (store/flannel.py)."""

    kube_subnet_manager: str | None = None
    backend_type: str | None = None
    backend_data: str | None = None
    backend_v6_data: str | None = None
    public_ip: str | None = None
    public_ipv6: str | None = None
    public_ip_overwrite: str | None = None
    public_ipv6_overwrite: str | None = None

    def given(self) -> dict[str, str]:
        """Those that are there, by their names."""
        names = zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True)
        return {there: v for name, there in names if (v := getattr(self, name)) is not None}


class FlannelMeta(_Part, frozen=True):
    """`metadata` of a node, as far as flannel goes."""

    name: str = ""
    annotations: FlannelAnnotations | None = None


class FlannelNode(_Part, frozen=True):
    """A node as flannel describes it: its annotations and podCIDRs."""

    metadata: FlannelMeta = FlannelMeta()
    spec: NodeSpec = NodeSpec()
