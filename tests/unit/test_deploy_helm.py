"""The chart, rendered: with its own values it is deploy/overlays/vxlan, with others what they say.

Helm is in no registry that we use.  Templates are rendered by a small reader of our own
(tests/helm/template.py); where Go and sprig are installed, Go's text/template renders them too, and
where a `helm` is on the PATH, Helm itself does, and all must give the same.  Not tested: Helm's own
order of creation, hooks (there are none) and `lookup`.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import tempfile
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
    text = objects(data(controller__settings='log_level = "debug"\nlease = 30.0'))
    controller = config_of(text["ConfigMap", "muslin"]["data"]["controller.toml"])
    assert (controller.log_level, controller.lease) == ("debug", 30.0)
    controller = config.controller(tmp_path / "controller.toml", {"MUSLIN_IDENTITY": "x"})
    assert controller.store_options == {"namespace": "net"}


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
            agent__resources=None,  # Helm merges maps: {} would be the defaults
            controller__replicas=3,
            metrics__service=False,
            networkPolicy=False,
        )
    )
    agent = made["DaemonSet", "muslin-agent"]["spec"]["template"]["spec"]
    assert agent["containers"][0]["image"] == "here/muslin:9"
    assert agent["tolerations"] == [{"key": "a", "operator": "Exists"}]
    assert agent["containers"][0]["resources"] is None
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


def test_ports_are_where_the_controllers_listen() -> None:
    """Probes, Prometheus and the API server ask by the ports' names: they must be the settings'."""
    made = objects(data(controller__listen="[::]:9818", controller__webhook="0.0.0.0:9819"))
    told = config_of(made["ConfigMap", "muslin"]["data"]["controller.toml"])
    assert (told.address[1], (told.webhook_address or ("", 0))[1]) == (9818, 9819)
    [one] = made["Deployment", "muslin-controller"]["spec"]["template"]["spec"]["containers"]
    assert {p["name"]: p["containerPort"] for p in one["ports"]} == {
        "metrics": 9818,
        "webhook": 9819,
    }
    [port] = made["Service", "muslin-controller"]["spec"]["ports"]
    assert port["port"] == 9818, "a headless service's name leads to the pods' own port"


def test_without_a_webhook_nobody_is_sent_to_one() -> None:
    made = objects(data(controller__webhook=""))
    text = made["ConfigMap", "muslin"]["data"]["controller.toml"]
    assert config_of(text).webhook_address is None
    webhook = {("ValidatingWebhookConfiguration", "muslin"), ("Service", "muslin-webhook")}
    assert not webhook & made.keys()
    [one] = made["Deployment", "muslin-controller"]["spec"]["template"]["spec"]["containers"]
    assert [p["name"] for p in one["ports"]] == ["metrics"]


def config_of(text: str) -> config.Controller:
    """The controller's settings, by the program's own reading."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "controller.toml"
        file.write_text(text)
        return config.controller(file, {"MUSLIN_IDENTITY": "x"})


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


SETS: list[Json] = [
    {},
    {"namespace": "net", "agent__settings": "a = 1\nb = 2", "network__pools__v6__cidr": ""},
    {"network__create": False, "metrics__service": False, "networkPolicy": False},
    {"agent__resources": None, "network__options": {"mtu": 1400}, "network__estate": ["::/0"]},
    {
        "controller__listen": "[::]:9818",
        "controller__webhook": "[::]:9819",
        "controller__settings": 'log_level = "debug"\nlease = 30.0',
        "network__pools__v4__block": 24,
    },
    {"controller__webhook": "", "image__tag": "9", "agent__tolerations": [], "blocks": "podcidr"},
]


@pytest.mark.parametrize("changes", SETS)
def test_go_renders_the_same(changes: Json, tmp_path_factory: pytest.TempPathFactory) -> None:
    go = shutil.which("go")
    if go is None or not (GOCODE / "src/github.com/Masterminds/sprig").is_dir():
        pytest.skip(
            "no Go with sprig (Debian: golang-go golang-github-masterminds-sprig-dev"
            " golang-github-ghodss-yaml-dev)"
        )
    given = data(**changes)
    asked = [go, "run", str(ROOT / "tests" / "helm" / "render.go"), str(CHART)]
    # One for all of them: to compile takes ten times as long as to render.
    cache = {"GOCACHE": os.environ.get("GOCACHE", str(tmp_path_factory.getbasetemp() / "go"))}
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


# ── Helm itself, where there is one ─────────────────────────────────────────────────────────────


def helm(*words: str, given: Json, into: Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which("helm")
    if found is None:
        pytest.skip("no helm")
    values = into / "values.yaml"
    values.write_text(yaml.safe_dump(given["Values"]))
    # A cluster that is not asked has no version; Helm takes that of its own libraries otherwise.
    argv = [found, *words, str(CHART), "--values", str(values), "--kube-version", "1.31.0"]
    home = {name: str(into) for name in ("HOME", "HELM_CONFIG_HOME", "HELM_CACHE_HOME")}
    return subprocess.run(
        [*argv, "--namespace", given["Release"]["Namespace"]],
        env={**os.environ, **home}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("changes", SETS)
def test_helm_renders_the_same(changes: Json, tmp_path: Path) -> None:
    given = data(**changes)
    done = helm("template", "muslin", given=given, into=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(done.stdout) if o}
    assert theirs == objects(given)


@pytest.mark.parametrize("changes", SETS)
def test_helm_has_nothing_against_it(changes: Json, tmp_path: Path) -> None:
    done = helm("lint", "--strict", given=data(**changes), into=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "changes",
    [
        {"image__repository": ""},
        {"image__tag": 1.0},
        {"blocks": "both"},
        {"network__backend": "host-gw"},
        {"network__name": "A"},
        {"network__pools__v4__cidr": "10.0.0.0"},
        {"controller__replicas": 0},
        {"controller__listen": "0.0.0.0"},
        {"controller__webhook": "9809"},
        {"agent__cniBinDir": "opt"},
    ],
)
def test_helm_refuses_values_that_cannot_work(changes: Json, tmp_path: Path) -> None:
    done = helm("template", "muslin", given=data(**changes), into=tmp_path)
    assert done.returncode != 0
    [path] = changes
    assert "/" + path.replace("__", "/") in done.stderr
