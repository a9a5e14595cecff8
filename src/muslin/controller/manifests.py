"""What `muslin install` puts into a cluster: the manifests of deploy/, chosen and completed.  Pure.

    stage       objects                                      before the next one
    kinds       the CRDs                                     established
    ground      Namespace, accounts, RBAC, admission,        -
                services, NetworkPolicy
    settings    the ConfigMap                                -
    workloads   DaemonSet, Deployment, PodDisruptionBudget   (rolled out, at the end)
    network     Pools and the Network                        -

Admission comes before the agents that it is about, so that there is no moment
in which a node's token may write another node's objects.  The text comes from
deploy/ by scripts/manifests.py, the CRDs from the schema itself (kube/crd.py).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

from muslin.errors import ConfigError
from muslin.kube import Kind, crd
from muslin.kube import kinds as known
from muslin.kube.values import KINDS

Object = dict[str, Any]
Stage = Literal["kinds", "ground", "settings", "workloads", "network"]
STAGES: tuple[Stage, ...] = ("kinds", "ground", "settings", "workloads", "network")

DATA = Path(__file__).with_name("manifests.json")
DIGEST = "muslin.io/settings"  # on pod templates: other settings, other pods
CHOSEN = "muslin.io/agent"  # label of the nodes that agents are on, where not on all (flannel)
MADE_BY = "app.kubernetes.io/managed-by"
MANAGER = "muslin-install"  # field manager, and the label's value on a network that we made

_RBAC, _ADMISSION = "rbac.authorization.k8s.io", "admissionregistration.k8s.io"
POLICIES = Kind(_ADMISSION, "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False)
_KINDS = {
    kind.kind: kind
    for kind in (
        known.NAMESPACES,
        Kind("", "v1", "serviceaccounts", "ServiceAccount", True),
        Kind(_RBAC, "v1", "clusterroles", "ClusterRole", False),
        Kind(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", False),
        Kind(_RBAC, "v1", "roles", "Role", True),
        Kind(_RBAC, "v1", "rolebindings", "RoleBinding", True),
        POLICIES,
        Kind(
            _ADMISSION,
            "v1",
            "validatingadmissionpolicybindings",
            "ValidatingAdmissionPolicyBinding",
            False,
        ),
        known.CONFIG_MAPS,
        known.SERVICES,
        known.NETWORK_POLICIES,
        known.DAEMON_SETS,
        known.DEPLOYMENTS,
        Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", True),
        known.CRDS,
        known.VALIDATING_WEBHOOKS,
        *(kind for kind in KINDS.values() if kind.kind in ("Network", "Pool")),
    )
}
_STAGE_OF: dict[str, Stage] = {
    "CustomResourceDefinition": "kinds",
    "ConfigMap": "settings",
    "DaemonSet": "workloads",
    "Deployment": "workloads",
    "PodDisruptionBudget": "workloads",
    "Network": "network",
    "Pool": "network",
}


@dataclass(frozen=True, slots=True)
class Target:
    """One object that is to be there."""

    kind: Kind
    body: Object
    added: tuple[str, ...] | None = None  # to what somebody else wrote and keeps; None: all is ours

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.body["metadata"].get("namespace", ""))

    @property
    def stage(self) -> Stage:
        return _STAGE_OF.get(self.kind.kind, "ground")

    def __str__(self) -> str:
        return f"{self.kind.kind} {'/'.join(filter(None, (self.namespace, self.name)))}"


def grounds() -> tuple[str, ...]:
    """The overlays there are."""
    return tuple(sorted(_data()["grounds"]))


def targets(ground: str, *, cidrs: Sequence[str] = (), image: str = "") -> list[Target]:
    """Everything that an installation consists of, in the order in which it is applied.

    `cidrs` replace the ground's pools of the same family, and leave out one
    whose family is not among them; `image` replaces the manifests' own.
    ConfigError lists every fault of the arguments.
    """
    data = _data()
    faults = []
    if ground not in data["grounds"]:
        faults.append(f"overlay {ground!r}: there are {', '.join(grounds())}")
    if image and not _is_image(image):
        faults.append(f"image {image!r}: expected name:tag or name@sha256:digest")
    families = _families(cidrs, faults)
    if faults:
        raise ConfigError("install", faults)
    bodies = {(o["kind"], o["metadata"]["name"]): o for o in copy.deepcopy(data["base"])}
    bodies |= {
        (o["kind"], o["metadata"]["name"]): o for o in copy.deepcopy(data["grounds"][ground])
    }
    wanted = [*crd.definitions(), *bodies.values()]
    if families:
        wanted = list(_with_cidrs(wanted, families))
    for obj in wanted:
        if obj["kind"] in ("Network", "Pool"):
            obj["metadata"].setdefault("labels", {})[MADE_BY] = MANAGER
    found = _ordered(Target(_KINDS[o["kind"]], o) for o in wanted)
    settings = next(t.body["data"] for t in found if t.stage == "settings")
    return complete(found, settings, image=image)


def complete(
    found: Iterable[Target], settings: Mapping[str, str], *, image: str = ""
) -> list[Target]:
    """The same with `image`, and with pods that are of these settings.

    Settings are read at start, so other ones must make other pods.
    """
    made = []
    for target in found:
        body = copy.deepcopy(target.body)
        if target.kind.kind in ("DaemonSet", "Deployment"):
            template = body["spec"]["template"]
            part = "agent.toml" if target.kind.kind == "DaemonSet" else "controller.toml"
            digest = hashlib.sha256(settings.get(part, "").encode()).hexdigest()[:16]
            template["metadata"].setdefault("annotations", {})[DIGEST] = digest
            for container in template["spec"]["containers"]:
                container["image"] = image or container["image"]
        made.append(replace(target, body=body))
    return made


def image_of(workload: Mapping[str, Any]) -> str:
    """The image of its first container."""
    return str(workload["spec"]["template"]["spec"]["containers"][0]["image"])


def newer(image: str) -> str:
    """`image` from where it is now, in the version of these manifests."""
    own = next(image_of(o) for o in _data()["base"] if o["kind"] == "DaemonSet")
    name, _, last = image.partition("@")[0].rpartition("/")
    return f"{name}/".lstrip("/") + last.partition(":")[0] + ":" + own.rpartition(":")[2]


def _ordered(found: Iterable[Target]) -> list[Target]:
    """By stages; within one as the manifests have them, but pools before the network."""
    last = {"Network": 1}
    return sorted(found, key=lambda t: (STAGES.index(t.stage), last.get(t.kind.kind, 0)))


def cleaner(daemon_set: Mapping[str, Any]) -> Target:
    """A DaemonSet that cleans every node the agents were on, made from theirs.

    Its pods see what the agent's see, and are ready when their node is clean;
    they do nothing more until they are deleted.
    """
    name = "muslin-clean"
    labels = {"app.kubernetes.io/name": "muslin", "app.kubernetes.io/component": "clean"}
    pod = copy.deepcopy(daemon_set["spec"]["template"]["spec"])
    for container in pod["containers"]:
        container.pop("livenessProbe", None)
        container["command"] = [
            "/bin/sh", "-c",
            "muslin node clean --force --config /etc/muslin/agent.toml && touch /tmp/clean"
            " && exec sleep infinity",
        ]  # fmt: skip
        container["readinessProbe"] = {
            "exec": {"command": ["test", "-e", "/tmp/clean"]},  # noqa: S108 - its own
            "periodSeconds": 2,
        }
    pod["terminationGracePeriodSeconds"] = 1
    body = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": name,
            "namespace": daemon_set["metadata"]["namespace"],
            "labels": labels,
        },
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    return Target(_KINDS["DaemonSet"], body)


def changes(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[str]:
    """What differs, a line a field, as `spec.replicas: 2 → 3`; what a server counts is left out."""
    if before is None:
        return []
    return list(_changes("", _without_counts(before), _without_counts(after)))


def _changes(path: str, before: Any, after: Any) -> Iterator[str]:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys((*before, *after)):
            yield from _changes(f"{path}.{name}".lstrip("."), before.get(name), after.get(name))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from _changes(f"{path}[{_name(pair, index)}]", *pair)
    else:
        yield f"{path}: {_short(before)} → {_short(after)}"


def _name(pair: tuple[Any, Any], index: int) -> object:
    names = [x.get("name") for x in pair if isinstance(x, Mapping)]
    return names[0] if len(names) == 2 and names[0] and names[0] == names[1] else index


def _short(value: Any) -> str:
    text = "(nothing)" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _without_counts(obj: Mapping[str, Any]) -> Object:
    counted = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
    metadata = {k: v for k, v in obj.get("metadata", {}).items() if k not in counted}
    return {**{k: v for k, v in obj.items() if k != "status"}, "metadata": metadata}


@cache
def _data() -> Any:
    return json.loads(DATA.read_text())


def _is_image(text: str) -> bool:
    name = text.partition("@")[0]
    tagged = ":" in name.rpartition("/")[2] or "@sha256:" in text
    return tagged and text.isprintable() and " " not in text


def _families(cidrs: Sequence[str], faults: list[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for text in cidrs:
        try:
            network = ip_network(text)
        except ValueError as e:
            faults.append(f"cidr: {e}")
            continue
        if network.version in found:
            faults.append(f"cidr {text}: one of each family")
        found[network.version] = str(network)
    return found


def _with_cidrs(wanted: Iterable[Object], families: Mapping[int, str]) -> Iterator[Object]:
    """The pools with other ranges, without those of a family that is not asked for."""
    everything = list(wanted)
    pools = [o for o in everything if o["kind"] == "Pool"]
    versions = {o["metadata"]["name"]: ip_network(o["spec"]["cidr"]).version for o in pools}
    for obj in everything:
        if obj["kind"] == "Pool":
            version = versions[obj["metadata"]["name"]]
            if version not in families:
                continue
            obj["spec"]["cidr"] = families[version]
        elif obj["kind"] == "Network":
            obj["spec"]["pools"] = [n for n, version in versions.items() if version in families]
        yield obj
