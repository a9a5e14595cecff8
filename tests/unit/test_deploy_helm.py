"""The chart, rendered: with its own values it is deploy/overlays/vxlan, with others what they say.

Helm is in no registry that we use.  Templates are rendered by a small reader of our own
(tests/helm/template.py); where Go and sprig are installed, Go's text/template renders them too and
both must give the same.  Not tested: Helm's own order of creation, hooks (there are none) and
`lookup`.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm.template import Chart
from muslin import __version__, config
from muslin.controller import manifests
from muslin.kube.values import from_object
from muslin.model import Network, Pool

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "muslin"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
META = yaml.safe_load((CHART / "Chart.yaml").read_text())
GOCODE = Path("/usr/share/gocode")
Json = dict[str, Any]


def data(*, namespace: str = "muslin-system", **changes: Any) -> Json:
    values = copy.deepcopy(VALUES)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = values
        for name in parents:
            place = place[name]
        assert last in place, f"{path}: not in values.yaml"
        place[last] = value
    release = {"Name": "muslin", "Namespace": namespace}
    return {"Values": values, "Release": release, "Chart": {"AppVersion": META["appVersion"]}}


def objects(given: Mapping[str, Any]) -> dict[tuple[str, str], Json]:
    texts = Chart(CHART, given).rendered()
    made = [
        o for name, text in texts.items() if name != "NOTES.txt" for o in yaml.safe_load_all(text)
    ]
    found = {(o["kind"], o["metadata"]["name"]): o for o in made if o}
    assert len(found) == len([o for o in made if o])
    return found


def plain(found: Mapping[tuple[str, str], Json]) -> dict[tuple[str, str], Json]:
    """Without what differs by intent: settings' own lines, their digest, the pull policy."""
    made = copy.deepcopy(dict(found))
    for (kind, _), obj in made.items():
        if kind == "ConfigMap":
            obj["data"] = {}
        if kind in ("DaemonSet", "Deployment"):
            obj["spec"]["template"]["metadata"].pop("annotations", None)
            for one in obj["spec"]["template"]["spec"]["containers"]:
                one.pop("imagePullPolicy", None)
        if kind in ("Network", "Pool"):
            obj["metadata"].pop("labels", None)
    return made


def test_with_its_own_values_the_chart_is_the_overlay() -> None:
    wanted = {(t.kind.kind, t.name): t.body for t in manifests.targets("vxlan")}
    wanted = {
        k: o for k, o in wanted.items() if k[0] not in ("CustomResourceDefinition", "Namespace")
    }
    made = plain(objects(data()))
    network = made["Network", "default"]["spec"]
    assert (network.pop("options"), network.pop("masquerade")) == ({}, True), "the defaults, said"
    assert made == plain(wanted)


def test_the_settings_are_what_the_programs_take(tmp_path: Path) -> None:
    given = data(
        namespace="net",
        agent__settings='global_forwarding = true\nlog_level = "debug"',
        blocks="podcidr",
    )
    for name, text in objects(given)["ConfigMap", "muslin"]["data"].items():
        (tmp_path / name).write_text(text)
    agent = config.load(tmp_path / "agent.toml", {"MUSLIN_NODE": "n"})
    assert (agent.global_forwarding, agent.log_level, agent.blocks) == (True, "debug", "podcidr")
    assert agent.store_options == {"namespace": "net"}
    assert config.controller(tmp_path / "controller.toml", {"MUSLIN_IDENTITY": "x"})


def test_other_settings_make_other_pods() -> None:
    def digest(given: Json) -> str:
        pod = objects(given)["DaemonSet", "muslin-agent"]["spec"]["template"]
        return str(pod["metadata"]["annotations"]["muslin.io/settings"])

    assert digest(data()) == digest(data())
    assert digest(data()) != digest(data(agent__settings="spare = 8"))


def test_another_namespace_is_another_everywhere() -> None:
    made = objects(data(namespace="net"))
    assert {o["metadata"].get("namespace", "net") for o in made.values()} == {"net"}
    assert "muslin-system" not in json.dumps(list(made.values()))
    conditions = made["ValidatingAdmissionPolicy", "muslin-agent-pods"]["spec"]["matchConditions"]
    assert "system:serviceaccount:net:muslin-agent" in conditions[0]["expression"]


def test_values_go_where_they_belong() -> None:
    made = objects(
        data(
            image__repository="here/muslin",
            image__tag="9",
            agent__tolerations=[{"key": "a", "operator": "Exists"}],
            agent__cniBinDir="/usr/lib/cni",
            agent__resources={},
            controller__replicas=3,
            metrics__service=False,
            networkPolicy=False,
        )
    )
    agent = made["DaemonSet", "muslin-agent"]["spec"]["template"]["spec"]
    assert agent["containers"][0]["image"] == "here/muslin:9"
    assert agent["tolerations"] == [{"key": "a", "operator": "Exists"}]
    assert agent["containers"][0]["resources"] == {}
    paths = {v["name"]: v["hostPath"]["path"] for v in agent["volumes"] if "hostPath" in v}
    assert paths["cni-bin"] == "/usr/lib/cni"
    mounts = {m["name"]: m["mountPath"] for m in agent["containers"][0]["volumeMounts"]}
    assert mounts["cni-bin"] == "/opt/cni/bin", "within the pod its place is the same"
    assert made["Deployment", "muslin-controller"]["spec"]["replicas"] == 3
    assert not {("Service", "muslin-controller"), ("NetworkPolicy", "muslin-closed")} & made.keys()


def test_the_network_is_what_the_schema_takes() -> None:
    made = objects(
        data(
            network__backend="hostgw",
            network__estate=["10.20.0.0/16"],
            network__options={"mtu": 1400},
            network__pools__v6__cidr="",
            network__pools__v4__block=24,
        )
    )
    network = from_object(Network, made["Network", "default"])
    assert (network.backend, network.pools) == ("hostgw", ("pods4",))
    assert network.options == {"mtu": 1400}
    assert [str(p) for p in network.estate] == ["10.20.0.0/16"]
    assert from_object(Pool, made["Pool", "pods4"]).block_length == 24
    assert ("Pool", "pods6") not in made


def test_no_network_is_made_where_none_is_wanted() -> None:
    made = objects(data(network__create=False))
    assert not {"Network", "Pool"} & {kind for kind, _ in made}
    notes = Chart(CHART, data(network__create=False)).rendered()["NOTES.txt"]
    assert "nodes stay NotReady until you apply one" in notes


def test_every_value_is_described_and_used() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    texts = "".join(p.read_text() for p in (CHART / "templates").iterdir())

    def follow(values: Json, node: Json, path: str) -> None:
        assert set(values) <= set(node["properties"]), path
        for name, value in values.items():
            below = node["properties"][name]
            if "$ref" in below or name == "pools":
                continue
            if below.get("properties"):
                follow(value, below, f"{path}.{name}")
            else:
                assert f".Values{path}.{name}" in texts, f"{path}.{name} changes nothing"

    follow(VALUES, schema, "")
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", texts))
    for one in used:
        place: Any = VALUES
        for name in one.split("."):
            assert name in place, f".Values.{one} has no default"
            place = place[name]


def test_the_chart_is_of_this_version() -> None:
    assert META["version"] == META["appVersion"] == __version__
    assert {p.name for p in (CHART / "crds").iterdir()} == {
        p.name for p in (ROOT / "deploy" / "crds").glob("*.yaml") if p.name != "kustomization.yaml"
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"namespace": "net", "agent__settings": "a = 1\nb = 2", "network__pools__v6__cidr": ""},
        {"network__create": False, "metrics__service": False, "networkPolicy": False},
        {"agent__resources": {}, "network__options": {"mtu": 1400}, "network__estate": ["::/0"]},
    ],
)
def test_go_renders_the_same(changes: Json, tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None or not (GOCODE / "src/github.com/Masterminds/sprig").is_dir():
        pytest.skip(
            "no Go with sprig (Debian: golang-go golang-github-masterminds-sprig-dev"
            " golang-github-ghodss-yaml-dev)"
        )
    given = data(**changes)
    asked = [go, "run", str(ROOT / "tests" / "helm" / "render.go"), str(CHART)]
    cache = {"GOCACHE": os.environ.get("GOCACHE", str(tmp_path / "go"))}
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(GOCODE), **cache}
    done = subprocess.run(
        asked, input=json.dumps(given), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    theirs, ours = json.loads(done.stdout), Chart(CHART, given).rendered()
    assert theirs.keys() == ours.keys()
    for name, text in theirs.items():
        if name == "NOTES.txt":
            assert text == ours[name]
        else:
            assert list(yaml.safe_load_all(text)) == list(yaml.safe_load_all(ours[name])), name
