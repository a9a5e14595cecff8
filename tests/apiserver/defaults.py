"""What the server adds to built-in objects: at decoding, and when it accepts a new one.

`decoded` is what a client's request already means (a field manager owns it); `accepted` is
what only the server decides (nobody owns it: cluster addresses, a pod's service account).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from .encode import Json, clone
from .kinds import Kind
from .names import generate

_TOKEN_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"
_CONDITION_TIMES = {
    "Node": ("lastHeartbeatTime", "lastTransitionTime"),
    "Pod": ("lastProbeTime", "lastTransitionTime"),
}


def filled(obj: Any, zero: Any) -> Any:
    """`obj` with what Go always writes, from the kind's empty object."""
    if not isinstance(zero, dict):
        return obj
    if obj is None:
        return copy.deepcopy(zero)
    if not isinstance(obj, dict):
        return obj
    result = dict(obj)
    for name, value in zero.items():
        if name not in result:
            result[name] = copy.deepcopy(value)
        elif isinstance(value, dict):
            result[name] = filled(result[name], value)
    return result


def decoded(kind: Kind, obj: Json) -> Json:
    """The object with defaults, as if read into Go's types; a new value."""
    obj = filled(clone(obj), dict(kind.zero))
    default = _DECODED.get(kind.kind)
    if default and isinstance(obj, dict):
        default(obj)
    times = _CONDITION_TIMES.get(kind.kind)
    if times:
        for condition in (obj.get("status") or {}).get("conditions") or ():
            for name in times:
                condition.setdefault(name, None)
    return obj


def _pod(obj: Json) -> None:
    _pod_spec(obj["spec"])
    obj["spec"].setdefault("enableServiceLinks", True)


def _pod_spec(spec: Json) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    for volume in spec.get("volumes") or ():
        for source in ("configMap", "secret", "projected", "downwardAPI"):
            if source in volume:
                volume[source].setdefault("defaultMode", 420)
    for container in [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]:
        _container(container, host=bool(spec.get("hostNetwork")))


def _container(container: Json, *, host: bool) -> None:
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition(":")[2]
    latest = not tag or tag == "latest"
    container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if host:
            port.setdefault("hostPort", port.get("containerPort"))
    for name in ("readinessProbe", "livenessProbe", "startupProbe"):
        if probe := container.get(name):
            probe.setdefault("timeoutSeconds", 1)
            probe.setdefault("periodSeconds", 10)
            probe.setdefault("successThreshold", 1)
            probe.setdefault("failureThreshold", 3)
            if "httpGet" in probe:
                probe["httpGet"].setdefault("path", "/")
                probe["httpGet"].setdefault("scheme", "HTTP")
    for env in container.get("env") or ():
        if "fieldRef" in (env.get("valueFrom") or {}):
            env["valueFrom"]["fieldRef"].setdefault("apiVersion", "v1")


def _service(obj: Json) -> None:
    spec = obj["spec"]
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    if spec["type"] != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec["type"] in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))


def _namespace(obj: Json) -> None:
    meta = obj.setdefault("metadata", {})
    if meta.get("name"):
        meta["labels"] = {**(meta.get("labels") or {}), "kubernetes.io/metadata.name": meta["name"]}


def _deployment(obj: Json) -> None:
    spec = obj["spec"]
    _pod_spec(spec["template"]["spec"])
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)
    spec["strategy"].setdefault("type", "RollingUpdate")
    if spec["strategy"]["type"] == "RollingUpdate":
        rolling = spec["strategy"].setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")


def _replica_set(obj: Json) -> None:
    obj["spec"].setdefault("replicas", 1)
    _pod_spec(obj["spec"]["template"].setdefault("spec", {"containers": None}))


def _stateful_set(obj: Json) -> None:
    spec = obj["spec"]
    _pod_spec(spec["template"]["spec"])
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("podManagementPolicy", "OrderedReady")
    spec["updateStrategy"].setdefault("type", "RollingUpdate")
    if spec["updateStrategy"]["type"] == "RollingUpdate":
        spec["updateStrategy"].setdefault("rollingUpdate", {}).setdefault("partition", 0)
    keep = {"whenDeleted": "Retain", "whenScaled": "Retain"}
    spec.setdefault("persistentVolumeClaimRetentionPolicy", keep)


def _daemon_set(obj: Json) -> None:
    spec = obj["spec"]
    _pod_spec(spec["template"]["spec"])
    spec.setdefault("revisionHistoryLimit", 10)
    spec["updateStrategy"].setdefault("type", "RollingUpdate")
    if spec["updateStrategy"]["type"] == "RollingUpdate":
        rolling = spec["updateStrategy"].setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", 1)
        rolling.setdefault("maxSurge", 0)


def _network_policy(obj: Json) -> None:
    spec = obj["spec"]
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    for rule in [*(spec.get("ingress") or ()), *(spec.get("egress") or ())]:
        for port in rule.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _endpoint_slice(obj: Json) -> None:
    for port in obj.get("ports") or ():
        port.setdefault("name", "")
        port.setdefault("protocol", "TCP")
    for endpoint in obj.get("endpoints") or ():
        endpoint.setdefault("conditions", {})
    for name in ("endpoints", "ports"):
        obj[name] = obj.get(name) or None


def _endpoints(obj: Json) -> None:
    for subset in obj.get("subsets") or ():
        for port in subset.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _crd(obj: Json) -> None:
    spec = obj["spec"]
    spec.setdefault("conversion", {"strategy": "None"})
    names = spec["names"]
    if names.get("kind"):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", f"{names['kind']}List")


def _secret(obj: Json) -> None:
    obj.setdefault("type", "Opaque")
    if plain := obj.pop("stringData", None):
        import base64

        coded = {k: base64.b64encode(v.encode()).decode() for k, v in plain.items()}
        obj["data"] = {**(obj.get("data") or {}), **coded}


def _binding(obj: Json) -> None:
    for subject in obj.get("subjects") or ():
        if subject.get("kind") in ("User", "Group"):
            subject.setdefault("apiGroup", "rbac.authorization.k8s.io")
    obj["roleRef"]["apiGroup"] = obj["roleRef"].get("apiGroup") or "rbac.authorization.k8s.io"


def _webhooks(obj: Json) -> None:
    for hook in obj.get("webhooks") or ():
        hook.setdefault("failurePolicy", "Fail")
        hook.setdefault("matchPolicy", "Equivalent")
        hook.setdefault("timeoutSeconds", 10)
        hook.setdefault("namespaceSelector", {})
        hook.setdefault("objectSelector", {})
        for rule in hook.get("rules") or ():
            rule.setdefault("scope", "*")
        if service := (hook.get("clientConfig") or {}).get("service"):
            service.setdefault("port", 443)


def _policy(obj: Json) -> None:
    obj["spec"].setdefault("failurePolicy", "Fail")
    constraints = obj["spec"].get("matchConstraints")
    if constraints is not None:
        constraints.setdefault("matchPolicy", "Equivalent")
        constraints.setdefault("namespaceSelector", {})
        constraints.setdefault("objectSelector", {})
        for rule in constraints.get("resourceRules") or ():
            rule.setdefault("scope", "*")


def _priority_class(obj: Json) -> None:
    obj.setdefault("preemptionPolicy", "PreemptLowerPriority")


_DECODED: dict[str, Callable[[Json], None]] = {
    "Pod": _pod,
    "Service": _service,
    "Namespace": _namespace,
    "Deployment": _deployment,
    "ReplicaSet": _replica_set,
    "StatefulSet": _stateful_set,
    "DaemonSet": _daemon_set,
    "NetworkPolicy": _network_policy,
    "EndpointSlice": _endpoint_slice,
    "Endpoints": _endpoints,
    "CustomResourceDefinition": _crd,
    "Secret": _secret,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
    "ValidatingWebhookConfiguration": _webhooks,
    "ValidatingAdmissionPolicy": _policy,
    "PriorityClass": _priority_class,
}


class Addresses:
    """Cluster addresses for services, in order; none is given twice."""

    def __init__(self, network: IPv4Network | IPv6Network) -> None:
        self.network = network
        self._free = (str(network[number]) for number in itertools.count(10))

    def next(self, taken: set[str]) -> str:
        return next(address for address in self._free if address not in taken)


def accepted(kind: Kind, obj: Json, addresses: Addresses, taken: set[str]) -> Json:
    """A new object as the server stores it."""
    match kind.kind:
        case "Pod":
            _accept_pod(obj)
        case "Namespace":
            obj["spec"] = {**obj["spec"], "finalizers": ["kubernetes"]}
            obj["status"] = {"phase": "Active"}
        case "Service":
            _accept_service(obj, addresses, taken)
        case "CustomResourceDefinition":
            stored = [one["name"] for one in obj["spec"]["versions"] or () if one.get("storage")]
            obj["status"] = {**copy.deepcopy(kind.zero["status"]), "storedVersions": stored}
        case _ if not kind.custom and kind.status and kind.kind != "Node":
            obj["status"] = copy.deepcopy(kind.zero.get("status", {}))
    return obj


def _accept_pod(obj: Json) -> None:
    spec = obj["spec"]
    account = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    spec["serviceAccountName"] = spec["serviceAccount"] = account
    spec.setdefault("priority", 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    tolerations = list(spec.get("tolerations") or ())
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(one.get("key") in (key, None, "") for one in tolerations):
            own = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            tolerations.append({"key": key, **own})
    spec["tolerations"] = tolerations
    if spec.get("automountServiceAccountToken") is not False and spec["containers"]:
        _mount_token(spec)
    obj["status"] = {"phase": "Pending", "qosClass": _quality(spec["containers"] or ())}


def _mount_token(spec: Json) -> None:
    """The volume that carries a service account's token, as admission adds it."""
    name = generate("kube-api-access-")
    mount = {"name": name, "readOnly": True, "mountPath": _TOKEN_DIR}
    namespace = {"apiVersion": "v1", "fieldPath": "metadata.namespace"}

    def config(what: str, key: str) -> Json:
        return {"configMap": {"name": what, "items": [{"key": key, "path": key}]}}

    sources: list[Json] = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        config("kube-root-ca.crt", "ca.crt"),
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": namespace}]}},
        config("openshift-service-ca.crt", "service-ca.crt"),  # as recorded
    ]
    volume = {"name": name, "projected": {"sources": sources, "defaultMode": 420}}
    spec["volumes"] = [*(spec.get("volumes") or ()), volume]
    for container in [*spec["containers"], *(spec.get("initContainers") or ())]:
        mounts = container.get("volumeMounts") or []
        if all(one["mountPath"] != _TOKEN_DIR for one in mounts):
            container["volumeMounts"] = [*mounts, mount]


def _quality(containers: Any) -> str:
    def amounts() -> Iterator[tuple[Json, Json]]:
        for container in containers:
            resources = container.get("resources") or {}
            yield resources.get("requests") or {}, resources.get("limits") or {}

    both = list(amounts())
    if not any(requests or limits for requests, limits in both):
        return "BestEffort"
    same = all(
        {"cpu", "memory"} <= set(limits) and (requests or limits) == limits
        for requests, limits in both
    )
    return "Guaranteed" if same else "Burstable"


def _accept_service(obj: Json, addresses: Addresses, taken: set[str]) -> None:
    spec = obj["spec"]
    obj["status"] = {"loadBalancer": {}}
    if spec["type"] == "ExternalName":
        return
    if not spec.get("clusterIP"):
        spec["clusterIP"] = (spec.get("clusterIPs") or [None])[0] or addresses.next(taken)
    spec.setdefault("clusterIPs", [spec["clusterIP"]])
    version = 6 if ":" in spec["clusterIP"] else addresses.network.version
    spec.setdefault("ipFamilies", ["IPv4" if version == 4 else "IPv6"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")
