"""Playing the controllers: small steps that put a pod through the life that was recorded.

Each step is one request, made with the user agent of who makes it in a real cluster, and
gives one event (the last step of a deletion two: MODIFIED, DELETED).

    create      ADDED      the pod waits                          kube-controller-manager
    schedule    MODIFIED   spec.nodeName, PodScheduled            kube-scheduler
    starting    MODIFIED   hostIP, conditions, ContainerCreating  kubelet
    sandboxed   MODIFIED   PodReadyToStartContainers              kubelet, after CNI ADD
    running     MODIFIED   podIP, phase Running                   kubelet
    ready       MODIFIED   Ready                                  kubelet, after its probe
    delete      MODIFIED   deletionTimestamp, grace               anybody
    noticed     MODIFIED   observedGeneration                     kubelet
    stopped     MODIFIED   phase Succeeded, terminated            kubelet, after CNI DEL
    gone        MODIFIED, DELETED                                 kubelet

`bring_up` and `take_down` are the whole life; a forced delete is `delete(..., grace=0)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from .call import Answer
from .encode import Json

_KUBELET = "kubelet/v1.36.2 (linux/amd64) kubernetes"
_MANAGER = "kube-controller-manager/v1.36.2 (linux/amd64) kubernetes"
_SCHEDULER = "kube-scheduler/v1.36.2 (linux/amd64) kubernetes"
_MERGE = "application/merge-patch+json"


class Sender(Protocol):
    """Where requests go: `ApiServer.send`, or a client of a server elsewhere."""

    def __call__(
        self,
        method: str,
        url: str,
        body: Json | bytes | None = None,
        *,
        content_type: str = ...,
        agent: str = ...,
    ) -> Awaitable[Answer]: ...


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(
    name: str,
    *,
    namespace: str = "default",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    owner: Json | None = None,
    **spec: Any,
) -> Json:
    """A pod as a controller writes it; `spec` overrides."""
    meta: Json = {"name": name, "namespace": namespace}
    if labels:
        meta["labels"] = labels
    if annotations:
        meta["annotations"] = annotations
    if owner:
        meta["ownerReferences"] = [owner]
    container = {"name": "c", "image": "registry.k8s.io/pause:3.10"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 2, **spec},
    }


def node(name: str, address: str, *, cidrs: Sequence[str] = (), ready: bool = True) -> Json:
    """A node as its kubelet registers it."""
    when = now()
    spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}
    addresses = [
        {"type": "InternalIP", "address": address},
        {"type": "Hostname", "address": name},
    ]
    condition = {
        "type": "Ready",
        "status": "True" if ready else "False",
        "lastHeartbeatTime": when,
        "lastTransitionTime": when,
        "reason": "KubeletReady" if ready else "KubeletNotReady",
        "message": "kubelet is posting ready status",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": spec,
        "status": {"addresses": addresses, "conditions": [condition]},
    }


class Kubelet:
    """Every part that controllers play for pods, over one sender."""

    def __init__(self, send: Sender, now: Callable[[], str] = now) -> None:
        self._send, self._now = send, now

    async def create(self, body: Json) -> Json:
        namespace = body["metadata"]["namespace"]
        url = f"/api/v1/namespaces/{namespace}/pods"
        return (await self._send("POST", url, body, agent=_MANAGER)).json

    async def get(self, namespace: str, name: str) -> Json:
        return (await self._send("GET", _url(namespace, name))).json

    async def schedule(self, namespace: str, name: str, node: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        await self._send("POST", f"{_url(namespace, name)}/binding", body, agent=_SCHEDULER)

    async def starting(self, namespace: str, name: str, host: str) -> Json:
        def change(obj: Json) -> None:
            names = [one["name"] for one in obj["spec"]["containers"]]
            waits = f"containers with unready status: [{' '.join(names)}]"
            unready = {"reason": "ContainersNotReady", "message": waits}
            status, generation = obj["status"], obj["metadata"]["generation"]
            when = self._now()
            status["observedGeneration"] = generation
            status["conditions"] = [
                _condition("PodReadyToStartContainers", "False", generation, when),
                _condition("Initialized", "True", generation, when),
                {**_condition("Ready", "False", generation, when), **unready},
                {**_condition("ContainersReady", "False", generation, when), **unready},
                {**_found(obj, "PodScheduled"), "observedGeneration": generation},
            ]
            status |= {"hostIP": host, "hostIPs": [{"ip": host}], "startTime": when}
            status["containerStatuses"] = [_waiting(one) for one in obj["spec"]["containers"]]
            status["resources"] = {}

        return await self._report(namespace, name, change)

    async def sandboxed(self, namespace: str, name: str) -> Json:
        return await self._report(
            namespace,
            name,
            lambda obj: _turn(self._now(), obj, "PodReadyToStartContainers", "True"),
        )

    async def running(
        self, namespace: str, name: str, addresses: Sequence[str], *, container: str = ""
    ) -> Json:
        def change(obj: Json) -> None:
            status = obj["status"]
            status["phase"] = "Running"
            if addresses:
                status["podIP"] = addresses[0]
                status["podIPs"] = [{"ip": one} for one in addresses]
            for one in status["containerStatuses"]:
                one["state"] = {"running": {"startedAt": self._now()}}
                one["imageID"] = f"sha256:{'0' * 64}"
                one["containerID"] = container or f"containerd://{'0' * 64}"
                one["started"] = True
                one["resources"] = {}

        return await self._report(namespace, name, change)

    async def ready(self, namespace: str, name: str) -> Json:
        def change(obj: Json) -> None:
            for kind in ("Ready", "ContainersReady"):
                _turn(self._now(), obj, kind, "True", reason=None)
            for one in obj["status"]["containerStatuses"]:
                one["ready"] = True

        return await self._report(namespace, name, change)

    async def delete(
        self, namespace: str, name: str, *, grace: int | None = None, agent: str = _MANAGER
    ) -> None:
        options: Json = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        await self._send("DELETE", _url(namespace, name), options, agent=agent)

    async def noticed(self, namespace: str, name: str) -> Json:
        def change(obj: Json) -> None:
            generation = obj["metadata"]["generation"]
            for part in (obj["status"], *obj["status"].get("conditions", ())):
                part["observedGeneration"] = generation

        return await self._report(namespace, name, change)

    async def stopped(self, namespace: str, name: str) -> Json:
        def change(obj: Json) -> None:
            status = obj["status"]
            status["phase"] = "Succeeded"
            _turn(self._now(), obj, "PodReadyToStartContainers", "False")
            for kind in ("Ready", "ContainersReady"):
                _turn(self._now(), obj, kind, "False", reason="PodCompleted")
            _found(obj, "Initialized")["reason"] = "PodCompleted"
            for one in status["containerStatuses"]:
                began = (one["state"].get("running") or {}).get("startedAt", self._now())
                ended = {"exitCode": 0, "reason": "Completed", "startedAt": began}
                ended |= {"finishedAt": self._now(), "containerID": one.get("containerID", "")}
                one |= {"state": {"terminated": ended}, "ready": False, "started": False}

        return await self._report(namespace, name, change)

    async def gone(self, namespace: str, name: str) -> None:
        uid = (await self.get(namespace, name))["metadata"]["uid"]
        options = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": uid},
        }
        await self._send("DELETE", _url(namespace, name), options, agent=_KUBELET)

    async def bring_up(
        self, body: Json, node: str, addresses: Sequence[str], *, host: str = "192.0.2.1"
    ) -> Json:
        """From nothing to ready."""
        made = await self.create(body)
        meta = made["metadata"]
        where = (meta["namespace"], meta["name"])
        await self.schedule(*where, node)
        await self.starting(*where, host)
        await self.sandboxed(*where)
        await self.running(*where, addresses)
        return await self.ready(*where)

    async def take_down(self, namespace: str, name: str) -> None:
        """From running to gone, gracefully."""
        await self.delete(namespace, name)
        await self.noticed(namespace, name)
        await self.stopped(namespace, name)
        await self.gone(namespace, name)

    async def _report(self, namespace: str, name: str, change: Callable[[Json], None]) -> Json:
        """Write a pod's status as its kubelet."""
        obj = await self.get(namespace, name)
        before = set(obj["status"])
        change(obj)
        patch = {"status": {**dict.fromkeys(before - set(obj["status"])), **obj["status"]}}
        url = f"{_url(namespace, name)}/status"
        return (await self._send("PATCH", url, patch, content_type=_MERGE, agent=_KUBELET)).json


def _url(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


def _condition(kind: str, status: str, generation: int, when: str) -> Json:
    return {
        "type": kind,
        "observedGeneration": generation,
        "status": status,
        "lastProbeTime": None,
        "lastTransitionTime": when,
    }


def _found(obj: Json, kind: str) -> Json:
    found: Json = next(one for one in obj["status"]["conditions"] if one["type"] == kind)
    return found


def _turn(when: str, obj: Json, kind: str, status: str, *, reason: str | None = "") -> None:
    """Set a condition; a reason of None clears it, '' leaves it."""
    one = _found(obj, kind)
    one |= {"status": status, "lastTransitionTime": when}
    if reason != "":
        one.pop("reason", None)
        one.pop("message", None)
        if reason is not None:
            one["reason"] = reason


def _waiting(container: Json) -> Json:
    mounts = [
        {
            "name": one["name"],
            "mountPath": one["mountPath"],
            "readOnly": one.get("readOnly", False),
            "recursiveReadOnly": "Disabled",
        }
        for one in container.get("volumeMounts") or ()
    ]
    status = {
        "name": container["name"],
        "state": {"waiting": {"reason": "ContainerCreating"}},
        "lastState": {},
        "ready": False,
        "restartCount": 0,
        "image": container["image"],
        "imageID": "",
        "started": False,
    }
    return {**status, "volumeMounts": mounts} if mounts else status
