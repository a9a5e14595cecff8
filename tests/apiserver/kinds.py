"""What a kind is, and those that every API server has.

`zero` is the kind's empty object as Go serialises it: bookmarks look like it, and a
created object's managedFields are the difference to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .encode import Json
from .shapes import BUILTIN, Shape

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """One kind in one version."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    singular: str = ""
    list_kind: str = ""
    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    status: bool = False  # has the subresource /status
    generation: bool = False  # counts changes of its spec
    unconditional: bool = True  # a PUT without resourceVersion is taken
    create_on_update: bool = False  # a PUT on nothing creates
    returns_object: bool = False  # DELETE answers with the object, not with a Status
    selectable: tuple[str, ...] = ()  # fields of fieldSelector beyond name and namespace
    zero: Mapping[str, Any] = field(default_factory=dict)
    shape: Shape = BUILTIN
    stored_as: tuple[str, str] | None = None  # another kind's storage (events.k8s.io)
    crd: Any = None  # crds.Version of a custom resource

    @property
    def custom(self) -> bool:
        return self.crd is not None

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def storage(self) -> tuple[str, str]:
        return self.stored_as or (self.group, self.plural)

    @property
    def list_name(self) -> str:
        return self.list_kind or f"{self.kind}List"

    def bookmark(self, revision: int) -> Json:
        meta = {"resourceVersion": str(revision)}
        return {"kind": self.kind, "apiVersion": self.api_version, "metadata": meta, **self.zero}


_TEMPLATE = {"metadata": {}, "spec": {"containers": None}}
_NODE_INFO = (
    "machineID",
    "systemUUID",
    "bootID",
    "kernelVersion",
    "osImage",
    "containerRuntimeVersion",
    "kubeletVersion",
    "kubeProxyVersion",
    "operatingSystem",
    "architecture",
)
_POD_FIELDS = (
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
)
_EVENT_FIELDS = (
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
)


def _of_core(plural: str, kind: str, **more: Any) -> Kind:
    return Kind("", "v1", plural, kind, singular=kind.lower(), **more)


def _core() -> Iterator[Kind]:
    yield _of_core("configmaps", "ConfigMap", short=("cm",))
    yield _of_core("endpoints", "Endpoints", short=("ep",), create_on_update=True)
    yield _of_core(
        "events",
        "Event",
        short=("ev",),
        create_on_update=True,
        selectable=_EVENT_FIELDS,
        zero={
            "involvedObject": {},
            "source": {},
            "firstTimestamp": None,
            "lastTimestamp": None,
            "eventTime": None,
            "reportingComponent": "",
            "reportingInstance": "",
        },
    )
    yield _of_core(
        "namespaces",
        "Namespace",
        namespaced=False,
        short=("ns",),
        status=True,
        returns_object=True,
        selectable=("status.phase",),
        zero={"spec": {}, "status": {}},
    )
    yield _of_core("secrets", "Secret", selectable=("type",))
    yield _of_core("serviceaccounts", "ServiceAccount", short=("sa",), returns_object=True)


def _core_with_status() -> Iterator[Kind]:
    yield _of_core(
        "nodes",
        "Node",
        namespaced=False,
        short=("no",),
        status=True,
        selectable=("spec.unschedulable",),
        zero={
            "spec": {},
            "status": {
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
                "nodeInfo": dict.fromkeys(_NODE_INFO, ""),
            },
        },
    )
    yield _of_core(
        "pods",
        "Pod",
        short=("po",),
        categories=("all",),
        status=True,
        generation=True,
        returns_object=True,
        selectable=_POD_FIELDS,
        zero={"spec": {"containers": None}, "status": {}},
    )
    yield _of_core(
        "services",
        "Service",
        short=("svc",),
        categories=("all",),
        status=True,
        returns_object=True,
        create_on_update=True,
        selectable=("spec.clusterIP", "spec.type"),
        zero={"spec": {}, "status": {"loadBalancer": {}}},
    )


def _apps() -> Iterator[Kind]:
    def apps(plural: str, kind: str, short: str, spec: Json, status: Json) -> Kind:
        return Kind(
            "apps",
            "v1",
            plural,
            kind,
            singular=kind.lower(),
            short=(short,),
            categories=("all",),
            status=True,
            generation=True,
            zero={"spec": {"selector": None, **spec}, "status": status},
        )

    yield apps(
        "daemonsets",
        "DaemonSet",
        "ds",
        {"template": _TEMPLATE, "updateStrategy": {}},
        {
            "currentNumberScheduled": 0,
            "numberMisscheduled": 0,
            "desiredNumberScheduled": 0,
            "numberReady": 0,
        },
    )
    yield apps("deployments", "Deployment", "deploy", {"template": _TEMPLATE, "strategy": {}}, {})
    yield apps("replicasets", "ReplicaSet", "rs", {"template": {"metadata": {}}}, {"replicas": 0})
    yield apps(
        "statefulsets",
        "StatefulSet",
        "sts",
        {"template": _TEMPLATE, "updateStrategy": {}},
        {"replicas": 0, "availableReplicas": 0},
    )


def _of_network() -> Iterator[Kind]:
    yield Kind(
        "events.k8s.io",
        "v1",
        "events",
        "Event",
        singular="event",
        short=("ev",),
        create_on_update=True,
        selectable=_EVENT_FIELDS,
        stored_as=("", "events"),
        zero={"eventTime": None, "deprecatedSource": {}, "regarding": {}},
    )
    yield Kind(
        "networking.k8s.io",
        "v1",
        "networkpolicies",
        "NetworkPolicy",
        singular="networkpolicy",
        short=("netpol",),
        generation=True,
        zero={"spec": {"podSelector": {}}},
    )


def _more() -> Iterator[Kind]:
    yield Kind(
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        singular="poddisruptionbudget",
        short=("pdb",),
        status=True,
        generation=True,
        unconditional=False,
        zero={
            "spec": {},
            "status": {
                "disruptionsAllowed": 0,
                "currentHealthy": 0,
                "desiredHealthy": 0,
                "expectedPods": 0,
            },
        },
    )
    yield Kind(
        "coordination.k8s.io",
        "v1",
        "leases",
        "Lease",
        singular="lease",
        unconditional=False,
        create_on_update=True,
        zero={"spec": {}},
    )
    yield Kind(
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        "EndpointSlice",
        singular="endpointslice",
        generation=True,
        zero={"addressType": "", "endpoints": None, "ports": None},
    )


def _access() -> Iterator[Kind]:
    rbac, admission = "rbac.authorization.k8s.io", "admissionregistration.k8s.io"
    ref = {"roleRef": {"apiGroup": "", "kind": "", "name": ""}}
    for scope, kind, zero in (
        (False, "ClusterRoleBinding", ref),
        (False, "ClusterRole", {"rules": None}),
        (True, "RoleBinding", ref),
        (True, "Role", {"rules": None}),
    ):
        name = kind.lower()
        yield Kind(rbac, "v1", f"{name}s", kind, namespaced=scope, singular=name, zero=zero)
    yield Kind(
        admission,
        "v1",
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
        namespaced=False,
        singular="validatingwebhookconfiguration",
        generation=True,
        unconditional=False,
    )
    for kind, zero in (
        ("ValidatingAdmissionPolicy", {"spec": {}, "status": {}}),
        ("ValidatingAdmissionPolicyBinding", {"spec": {}}),
    ):
        plural = kind.lower() + "s" if kind.endswith("Binding") else "validatingadmissionpolicies"
        yield Kind(
            admission,
            "v1",
            plural,
            kind,
            namespaced=False,
            singular=kind.lower(),
            status="status" in zero,
            generation=True,
            unconditional=False,
            zero=zero,
        )


def _definitions() -> Iterator[Kind]:
    yield Kind(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        namespaced=False,
        singular="customresourcedefinition",
        short=("crd", "crds"),
        categories=("api-extensions",),
        status=True,
        generation=True,
        unconditional=False,
        zero={
            "spec": {
                "group": "",
                "names": {"plural": "", "kind": ""},
                "scope": "",
                "versions": None,
            },
            "status": {
                "conditions": None,
                "acceptedNames": {"plural": "", "kind": ""},
                "storedVersions": None,
            },
        },
    )
    yield Kind(
        "scheduling.k8s.io",
        "v1",
        "priorityclasses",
        "PriorityClass",
        namespaced=False,
        singular="priorityclass",
        short=("pc",),
        generation=True,
        zero={"value": 0},
    )


# In the order of /apis of a real server.
GROUP_ORDER = (
    "",
    "apps",
    "events.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
)
_ALL = (_core, _core_with_status, _apps, _of_network, _more, _access, _definitions)
BUILTINS = {(kind.group, kind.version, kind.plural): kind for some in _ALL for kind in some()}
CRD = BUILTINS["apiextensions.k8s.io", "v1", "customresourcedefinitions"]
POD = BUILTINS["", "v1", "pods"]
NAMESPACE = BUILTINS["", "v1", "namespaces"]
EVENT = BUILTINS["", "v1", "events"]
