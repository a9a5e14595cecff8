"""deploy/ as it is read: every manifest, every verb, every path; and the copies made of it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from muslin import __version__, config
from muslin.agent import supervise
from muslin.controller import manifests
from muslin.controller.election import NAME
from muslin.controller.nodes import TAINT
from muslin.kube import crd
from muslin.kube.values import from_object
from muslin.model import Network, Pool
from muslin.store.url import NAMESPACE

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(p.name for p in (DEPLOY / "overlays").iterdir())
BASE = sorted((DEPLOY / "base").glob("*.yaml"))
Json = dict[str, Any]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manifests", ROOT / "scripts" / "manifests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "scripts"))
    spec.loader.exec_module(module)
    return module


SCRIPT = script()


def built(overlay: str = "vxlan") -> dict[tuple[str, str], Json]:
    found = SCRIPT.build(DEPLOY / "overlays" / overlay)
    return {(o["kind"], o["metadata"]["name"]): o for o in found}


def pods() -> Iterator[tuple[str, Json]]:
    for (kind, name), obj in built().items():
        if kind in ("DaemonSet", "Deployment"):
            yield name, obj["spec"]["template"]["spec"]


def container(name: str) -> Json:
    [found] = dict(pods())[name]["containers"]
    return dict(found)


# ── what a kustomization is ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_builds_the_same(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl (Debian: kubernetes-client)")
    argv = [kubectl, "kustomize", str(DEPLOY / "overlays" / overlay)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if "unknown field" in done.stderr or "invalid Kustomization" in done.stderr:
        pytest.skip(f"this kubectl's kustomize is too old: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr
    theirs = {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(done.stdout)}
    assert theirs == built(overlay)


def test_every_file_is_part_of_a_kustomization() -> None:
    for directory in (DEPLOY / "base", DEPLOY / "crds", *(DEPLOY / "overlays").iterdir()):
        told = yaml.safe_load((directory / "kustomization.yaml").read_text())
        named = {*told["resources"], *(p["path"] for p in told.get("patches", ()))}
        there = {p.name for p in directory.glob("*.yaml")} - {"kustomization.yaml"}
        assert there == {n for n in named if not n.startswith("..")}, directory


def test_copies_are_fresh() -> None:
    stale = [
        str(p) for p, text in SCRIPT.pages().items() if not p.exists() or p.read_text() != text
    ]
    assert stale == [], "run scripts/manifests.py"


def test_no_object_is_there_twice() -> None:
    found = [SCRIPT.key(o) for o in SCRIPT.build(DEPLOY / "overlays" / "vxlan")]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_networks_and_pools_are_what_the_schema_takes(overlay: str) -> None:
    values: dict[str, type[Network] | type[Pool]] = {"Network": Network, "Pool": Pool}
    found = [from_object(values[k], o) for (k, _), o in built(overlay).items() if k in values]
    pools = {v.name for v in found if isinstance(v, Pool)}
    assert all(set(v.pools) <= pools for v in found if isinstance(v, Network))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_are_what_the_programs_take(overlay: str, tmp_path: Path) -> None:
    data = built(overlay)["ConfigMap", "muslin"]["data"]
    for name, text in data.items():
        (tmp_path / name).write_text(text)
    agent = config.load(tmp_path / "agent.toml", {"MUSLIN_NODE": "n1"})
    assert agent.kubernetes
    assert agent.cni_install
    assert agent.blocks == ("podcidr" if overlay in ("podcidr", "flannel") else "claim")
    assert bool(agent.flannel) == (overlay == "flannel")
    given = config.controller(tmp_path / "controller.toml", {"MUSLIN_IDENTITY": "x"})
    ports = {p["name"]: p["containerPort"] for p in container("muslin-controller")["ports"]}
    assert given.webhook_address is not None
    assert ports == {"metrics": given.address[1], "webhook": given.webhook_address[1]}
    places = {m["mountPath"] for m in container("muslin-agent")["volumeMounts"]}
    for needed in (agent.state_dir, agent.run_dir, agent.cni_bin_dir, agent.cni_conf_dir):
        assert needed in places


def test_the_package_knows_the_same_objects() -> None:
    for overlay in OVERLAYS:
        wanted = {(t.kind.kind, t.name) for t in manifests.targets(overlay)}
        assert wanted == set(built(overlay))
    assert manifests.grounds() == tuple(OVERLAYS)
    assert all(t.namespace in ("", NAMESPACE) for t in manifests.targets("vxlan"))


# ── names and versions ──────────────────────────────────────────────────────────────────────────


def test_the_image_is_named_in_one_place_and_is_this_version() -> None:
    base = yaml.safe_load((DEPLOY / "base" / "kustomization.yaml").read_text())
    assert base["images"] == [{"name": "muslin", "newName": "muslin", "newTag": __version__}]
    for path in (*BASE, *DEPLOY.glob("overlays/*/*.yaml")):
        if path.name == "kustomization.yaml":
            continue
        images = [ln.strip() for ln in path.read_text().splitlines() if " image:" in ln]
        assert set(images) <= {"image: muslin"}, path
    used = {c["image"] for _, p in pods() for c in p["containers"]}
    assert used == {f"muslin:{__version__}"}


def test_everything_namespaced_is_in_ours_and_labelled() -> None:
    for (kind, name), obj in built().items():
        if kind in ("CustomResourceDefinition", "Network", "Pool"):
            continue
        assert obj["metadata"].get("namespace", "muslin-system") == "muslin-system", name
        assert obj["metadata"]["labels"]["app.kubernetes.io/name"] == "muslin", name


def test_the_names_that_policies_rely_on() -> None:
    text = (DEPLOY / "base" / "admission.yaml").read_text()
    assert f"system:serviceaccount:{NAMESPACE}:muslin-agent" in text
    assert NAME == "muslin-controller", "no name of a promise: they have 16 hexadecimal digits"
    assert TAINT in (DEPLOY / "base" / "controller-rbac.yaml").read_text()


# ── rights ──────────────────────────────────────────────────────────────────────────────────────

AGENT = {
    "nodes": {"get", "list", "watch"},
    "pods": {"get", "list", "watch", "patch"},
    "networks.muslin.io": {"get", "list", "watch"},
    "pools.muslin.io": {"get", "list", "watch"},
    "nodes.muslin.io": {"get", "list", "watch", "create", "patch", "delete"},
    "blocks.muslin.io": {"get", "list", "watch", "create", "patch", "delete"},
    "nodes/status.muslin.io": {"patch"},
    "events.events.k8s.io": {"create"},
    "muslin-system/leases.coordination.k8s.io": {"create", "get", "patch", "delete"},
}
CONTROLLER = {
    "nodes": {"list", "watch", "patch"},
    "nodes/status": {"patch"},
    "networks.muslin.io": {"list", "watch"},
    "pools.muslin.io": {"list", "watch"},
    "nodes.muslin.io": {"list", "watch", "delete"},
    "blocks.muslin.io": {"list", "watch", "delete"},
    "networks/status.muslin.io": {"patch"},
    "pools/status.muslin.io": {"patch"},
    "addresses.muslin.io": {"list", "watch"},
    "validatingwebhookconfigurations.admissionregistration.k8s.io": {"list", "watch", "patch"},
    "muslin-system/secrets": {"create", "list", "watch", "patch"},
    "services": {"list", "watch"},
    "pods": {"list", "watch"},
    "workloads.muslin.io": {"list", "watch"},
    "endpointslices.discovery.k8s.io": {"list", "watch", "create", "patch", "delete"},
    "events.events.k8s.io": {"create"},
    "muslin-system/leases.coordination.k8s.io": {"get", "list", "create", "patch", "delete"},
}


def granted(account: str) -> dict[str, set[str]]:
    """Resource → verbs, by every role that is bound to the account."""
    found: dict[str, set[str]] = {}
    objects = built()
    for (kind, _), binding in objects.items():
        if kind not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if [s["name"] for s in binding["subjects"]] != [account]:
            continue
        role = objects[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        where = f"{role['metadata']['namespace']}/" if "namespace" in role["metadata"] else ""
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    name = where + (f"{resource}.{group}" if group else resource)
                    found.setdefault(name, set()).update(rule["verbs"])
    return found


@pytest.mark.parametrize(
    ("account", "wanted"), [("muslin-agent", AGENT), ("muslin-controller", CONTROLLER)]
)
def test_the_rights_are_exactly_these(account: str, wanted: Mapping[str, set[str]]) -> None:
    assert granted(account) == wanted


@pytest.mark.parametrize("account", ["agent", "controller"])
def test_every_rule_says_why(account: str) -> None:
    lines = (DEPLOY / "base" / f"{account}-rbac.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("- apiGroups"):
            assert lines[number - 1].startswith("# "), line


# ── what pods may do to their node ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "pod"), list(pods()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_nobody_is_privileged(name: str, pod: Json) -> None:
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False
    for one in pod["containers"]:
        rights = one["securityContext"]
        assert rights["privileged"] is False
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"]["drop"] == ["ALL"]


def test_the_agent_has_three_capabilities_and_says_why() -> None:
    rights = container("muslin-agent")["securityContext"]["capabilities"]["add"]
    assert rights == ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"]
    text = (DEPLOY / "base" / "agent.yaml").read_text()
    assert all(f"- {one}" in text and "#" in text.split(f"- {one}")[1][:20] for one in rights)


def test_the_controller_has_none_and_is_nobody() -> None:
    pod = dict(pods())["muslin-controller"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert "add" not in container("muslin-controller")["securityContext"]["capabilities"]
    assert not any("hostPath" in v for v in pod["volumes"])
    assert not pod.get("hostPID")


def test_every_mount_has_a_volume_and_every_volume_a_mount() -> None:
    for name, pod in pods():
        mounts = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
        assert mounts == {v["name"] for v in pod["volumes"]}, name


def test_the_host_is_seen_where_it_must_be_and_nowhere_else() -> None:
    pod = dict(pods())["muslin-agent"]
    paths = {v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
    assert paths == {
        "/run/muslin",
        "/var/lib/muslin",
        "/opt/cni/bin",
        "/etc/cni/net.d",
        "/run/netns",
        "/proc/sys/net",
    }
    propagation = {
        m["name"]: m.get("mountPropagation") for m in container("muslin-agent")["volumeMounts"]
    }
    assert propagation["netns"] == "HostToContainer"
    assert {v for k, v in propagation.items() if k != "netns"} == {None}


def test_an_agent_has_the_time_to_end() -> None:
    assert dict(pods())["muslin-agent"]["terminationGracePeriodSeconds"] > supervise.PATIENCE


def test_probes_ask_the_plugin_and_not_an_interpreter() -> None:
    found = container("muslin-agent")
    for probe in ("readinessProbe", "livenessProbe"):
        [*_, script_] = found[probe]["exec"]["command"]
        asked = json.loads(script_.partition("'")[2].partition("'")[0])
        assert asked["type"] == "muslin-cni"
        assert "CNI_COMMAND=STATUS /opt/cni/bin/muslin-cni" in script_
    assert found["livenessProbe"]["exec"]["command"][-1].endswith("|| true")


def test_a_drained_node_and_a_new_one_are_no_deadlock() -> None:
    objects = built()
    assert objects["PodDisruptionBudget", "muslin-controller"]["spec"]["maxUnavailable"] == 1
    strategy = objects["Deployment", "muslin-controller"]["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}
    keys = {t.get("key") for t in dict(pods())["muslin-controller"]["tolerations"]}
    assert {
        "node-role.kubernetes.io/control-plane",
        "node.kubernetes.io/network-unavailable",
        "node.kubernetes.io/not-ready",
    } <= keys
    assert dict(pods())["muslin-agent"]["tolerations"] == [{"operator": "Exists"}]


# ── the docs ────────────────────────────────────────────────────────────────────────────────────


def test_the_docs_name_every_file_and_every_right() -> None:
    kubernetes = (ROOT / "docs" / "kubernetes.md").read_text()
    rbac = (ROOT / "docs" / "rbac.md").read_text()
    for path in BASE:
        assert f"`{path.name}`" in kubernetes, path.name
    for overlay in OVERLAYS:
        assert f"deploy/overlays/{overlay}" in kubernetes
    agent, _, controller = rbac.partition("## Controller")
    for wanted, part in ((AGENT, agent), (CONTROLLER, controller)):
        for resource, verbs in wanted.items():
            [row] = [ln for ln in part.splitlines() if ln.startswith(f"| `{resource}` |")]
            told = row.split("|")[2].replace("`", "").replace(" ", "")
            assert set(told.split(",")) == verbs, row
    assert crd.OLDEST in kubernetes
