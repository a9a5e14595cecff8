"""`muslin install`, `upgrade` and `uninstall`: what an API server has before and after."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tomllib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from muslin.cli.main import app
from muslin.controller import rollout
from muslin.controller.manifests import MANAGER, targets
from muslin.controller.offers import OFFERED
from muslin.controller.rollout import Rollout
from muslin.errors import ConfigError, Conflict, NotReady
from muslin.kube import Api
from muslin.kube import kinds as known
from muslin.kube.values import KINDS, to_object
from muslin.model import Block, Network, Node, Pool, convert
from servers import Serve, Server, alive, everything

NODES = ("n1", "n2")
HOME = "muslin-system"
Json = dict[str, Any]


class Cluster:
    """A server, and whom a rollout waits for, played: a real one has all of them but kubelets."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.api = Api(server.access())
        self.kubeconfig = server.kubeconfig(directory / "kubeconfig")
        self.broken: set[str] = set()  # nodes whose pods never become ready
        self.history: list[str] = []  # DaemonSets as they came and went
        self.moment = 15.0 if server.real else 0.5  # seconds until whoever will be ready is

    async def state(self) -> dict[str, Json]:
        """Every object there is, without what servers count and their controllers say."""
        found = await everything(self.server)
        for obj in found.values():
            for counted in ("managedFields", "resourceVersion", "uid", "creationTimestamp"):
                obj["metadata"].pop(counted, None)
            obj.pop("status", None)
        passing = ("/events/", "/nodes/n", "/namespaces/kube-", "/apiservices/")
        return {p: obj for p, obj in found.items() if not any(w in p for w in passing)}

    async def muslin(self, *words: str) -> Result:
        argv = [*words, "--kubeconfig", str(self.kubeconfig), "--timeout", "60"]
        return await asyncio.to_thread(CliRunner().invoke, app, argv)

    async def outcomes(self, *words: str) -> dict[str, str]:
        done = await self.muslin(*words, "--json")
        assert done.exit_code == 0, done.output
        return {o["what"]: o["verb"] for o in json.loads(done.stdout)["objects"]}

    async def play(self) -> None:
        """The DaemonSet and Deployment controllers, and kubelets: one look after another."""
        sets: dict[str, Json] = {}
        while True:
            listed = await self.api.list(known.DAEMON_SETS, type=dict)
            now = {o["metadata"]["name"]: o for o in listed.items}
            for name in now.keys() - sets.keys():
                self.history.append(f"+{name}")
            for name in sets.keys() - now.keys():
                self.history.append(f"-{name}")
                if not self.server.real:
                    await self._drop_pods(name)
            sets = now
            if self.server.real:
                await self._kubelets()
                continue
            for obj in now.values():
                await self._daemons(obj)
            for obj in (await self.api.list(known.DEPLOYMENTS, type=dict)).items:
                status = {"updatedReplicas": 2, "availableReplicas": 2, "replicas": 2}
                await self._say(known.DEPLOYMENTS, obj, status)
            await asyncio.sleep(0.02)

    async def _kubelets(self) -> None:
        for pod in (await self.api.list(known.PODS, namespace=HOME, type=dict)).items:
            name, status = pod["metadata"]["name"], pod["status"]
            said = {c["type"]: c["status"] for c in status.get("conditions") or ()}
            if "deletionTimestamp" in pod["metadata"]:
                await self.api.delete(known.PODS, name, namespace=HOME, grace=0)
            elif pod["spec"].get("nodeName", "") in set(NODES) - self.broken and (
                said.get("Ready") != "True"
            ):
                ready = {"type": "Ready", "status": "True"}
                body = {"status": {"phase": "Running", "conditions": [ready]}}
                with contextlib.suppress(Conflict):  # it went meanwhile
                    await self.api.patch(known.PODS, name, body, namespace=HOME,
                                         how="strategic", subresource="status")  # fmt: skip
        await asyncio.sleep(0.1)

    async def _daemons(self, obj: Json) -> None:
        template = obj["spec"]["template"]
        for node in NODES:
            pod = {"metadata": dict(template["metadata"]), "spec": dict(template["spec"])}
            pod["metadata"]["name"] = f"{obj['metadata']['name']}-{node}"
            pod["spec"]["nodeName"] = node
            if await self.api.get(known.PODS, pod["metadata"]["name"], namespace=HOME) is None:
                await self.api.create(known.PODS, pod, namespace=HOME)
        ready = len(set(NODES) - self.broken)
        status = {
            "desiredNumberScheduled": len(NODES),
            "currentNumberScheduled": len(NODES),
            "numberMisscheduled": 0,
            "updatedNumberScheduled": len(NODES),
            "numberReady": ready,
        }
        await self._say(known.DAEMON_SETS, obj, status)

    async def _say(self, kind: Any, obj: Json, status: Json) -> None:
        status["observedGeneration"] = obj["metadata"].get("generation", 1)
        if obj.get("status", {}) | status != obj.get("status"):
            with contextlib.suppress(Exception):  # it went meanwhile
                await self.api.patch(
                    kind,
                    obj["metadata"]["name"],
                    {"status": status},
                    namespace=HOME,
                    subresource="status",
                )

    async def _drop_pods(self, name: str) -> None:
        for node in NODES:
            await self.api.delete(known.PODS, f"{name}-{node}", namespace=HOME, grace=0)


@pytest.fixture
async def cluster(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(rollout, "PAUSE", 0.05)
    async with serve(collect=True, collect_interval=0.05) as server:
        made = Cluster(server, tmp_path)
        room = {"cpu": "8", "memory": "8Gi", "pods": "110"}
        for node in NODES:
            meta = {"name": node, "labels": {"kubernetes.io/os": "linux"}}
            body = {"metadata": meta, "status": {"capacity": room, "allocatable": room}}
            await made.api.create(known.NODES, body)
        playing = asyncio.create_task(made.play())
        async with alive(server, *NODES):
            yield made
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
        await made.api.close()


async def installed(cluster: Cluster, *words: str) -> None:
    done = await cluster.muslin("install", *words)
    assert done.exit_code == 0, done.output


async def test_everything_is_there_after_an_installation(cluster: Cluster) -> None:
    found = await cluster.outcomes("install")
    assert set(found.values()) == {"created"}
    assert len(found) == len(targets("vxlan"))
    network = await cluster.api.get(KINDS[Network], "default")
    assert network is not None
    assert network["spec"]["backend"] == "vxlan"
    assert network["spec"]["pools"] == ["pods4", "pods6"]


async def test_rules_come_before_whom_they_are_for(cluster: Cluster) -> None:
    order = [str(t) async for t in _applied(cluster)]
    agents = order.index("DaemonSet muslin-system/muslin-agent")
    for earlier in (
        "CustomResourceDefinition blocks.muslin.io",
        "ValidatingAdmissionPolicyBinding muslin-agent-objects",
        "ClusterRoleBinding muslin-agent",
        "ConfigMap muslin-system/muslin",
    ):
        assert order.index(earlier) < agents
    assert order[-1] == "Network default"


async def _applied(cluster: Cluster) -> AsyncIterator[str]:
    async for outcome in Rollout(cluster.api).apply(targets("hostgw")):
        yield outcome.what


async def test_a_dry_run_says_all_of_it_and_changes_nothing(cluster: Cluster) -> None:
    before = await cluster.state()
    found = await cluster.outcomes("install", "--dry-run")
    assert await cluster.state() == before
    await installed(cluster, "--no-wait")
    assert set(found) == {str(t) for t in targets("vxlan")}
    again = await cluster.outcomes("install", "--dry-run")
    assert set(again.values()) == {"same"}


async def test_a_dry_run_shows_what_would_differ(cluster: Cluster) -> None:
    await installed(cluster)
    before = await cluster.state()
    done = await cluster.muslin("install", "--dry-run", "--image", "muslin:9.9.9")
    assert "containers[agent].image: " in done.output
    assert '→ "muslin:9.9.9"' in done.output
    assert f"would be: 2 changed, {len(targets('vxlan')) - 2} same" in done.output
    assert await cluster.state() == before


async def test_a_second_installation_changes_nothing(cluster: Cluster) -> None:
    await installed(cluster)
    before = await cluster.state()
    found = await cluster.outcomes("install")
    assert set(found.values()) == {"same"}
    assert await cluster.state() == before


async def test_the_ranges_are_chosen_in_one_place(cluster: Cluster) -> None:
    await installed(cluster, "--overlay", "hostgw", "--cidr", "10.9.0.0/16")
    network = await cluster.api.get(KINDS[Network], "default")
    assert network is not None
    assert (network["spec"]["backend"], network["spec"]["pools"]) == ("hostgw", ["pods4"])
    pools = await cluster.api.list(KINDS[Pool], type=dict)
    assert [p["spec"]["cidr"] for p in pools.items] == ["10.9.0.0/16"]


async def test_an_upgrade_brings_the_image_and_leaves_what_is_yours(cluster: Cluster) -> None:
    await installed(cluster, "--image", "here/muslin:0.0.9")
    mine = {"data": {"agent.toml": 'store = "kubernetes:"\nlog_level = "debug"\n'}}
    await cluster.api.patch(known.CONFIG_MAPS, "muslin", mine, namespace=HOME)
    await cluster.api.patch(KINDS[Network], "default", {"spec": {"masquerade": False}})
    settings, network = await _mine(cluster)
    done = await cluster.muslin("upgrade")
    assert done.exit_code == 0, done.output
    assert await _mine(cluster) == (settings, network)
    agents = await cluster.api.get(known.DAEMON_SETS, "muslin-agent", namespace=HOME)
    assert agents is not None
    template = agents["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == "here/muslin:0.1.0"
    assert "muslin.io/settings: " in done.output.replace("annotations.", ""), "new pods read them"


async def _mine(cluster: Cluster) -> tuple[Json | None, Json | None]:
    settings = await cluster.api.get(known.CONFIG_MAPS, "muslin", namespace=HOME)
    return settings, await cluster.api.get(KINDS[Network], "default")


async def older(cluster: Cluster, *, by: str, agent: str = "") -> Json:
    """Settings as they were before there was a webhook, written by `by`."""
    await installed(cluster, "--image", "here/muslin:0.0.9")
    first = (
        'store = "kubernetes:"\n# mine\nlisten = "0.0.0.0:1"\n[store_options]\nnamespace = "x"\n'
    )
    told = {"metadata": {"annotations": {OFFERED: None}}, "data": {"controller.toml": first}}
    if agent:
        told["data"]["agent.toml"] = agent
    async with Api(cluster.server.access(), manager=by) as api:
        return await api.patch(known.CONFIG_MAPS, "muslin", told, namespace=HOME)


@pytest.mark.parametrize("by", ["kubectl-edit", MANAGER])
async def test_an_upgrade_adds_the_settings_that_are_new_and_names_them(
    cluster: Cluster, by: str
) -> None:
    """Whoever wrote what is there; a line of it never changes."""
    before = await older(cluster, by=by)
    state = await cluster.state()
    asked = await cluster.muslin("upgrade", "--dry-run")
    line = 'added to controller.toml: webhook = "0.0.0.0:9809"'
    assert (asked.exit_code, line in asked.output) == (0, True), asked.output
    assert await cluster.state() == state
    done = await cluster.muslin("upgrade")
    assert (done.exit_code, line in done.output) == (0, True), done.output
    after, _ = await _mine(cluster)
    assert after is not None
    assert after["data"]["agent.toml"] == before["data"]["agent.toml"]
    text = after["data"]["controller.toml"]
    assert text.endswith(before["data"]["controller.toml"])
    assert tomllib.loads(text) == {
        "store": "kubernetes:",
        "listen": "0.0.0.0:1",
        "webhook": "0.0.0.0:9809",
        "store_options": {"namespace": "x"},
    }
    again = await cluster.muslin("upgrade")
    assert again.exit_code == 0
    assert "added" not in again.output
    assert (await _mine(cluster))[0] == after


async def test_a_setting_that_was_taken_out_again_stays_out(cluster: Cluster) -> None:
    """Each is offered once; one that was there from the start is missing by intent."""
    await older(cluster, by="kubectl-edit", agent='store = "kubernetes:"\n')
    assert (await cluster.muslin("upgrade")).exit_code == 0
    out = {"data": {"controller.toml": 'store = "kubernetes:"\n'}}
    await cluster.api.patch(known.CONFIG_MAPS, "muslin", out, namespace=HOME)
    before = await _mine(cluster)
    assert (await cluster.muslin("upgrade")).exit_code == 0
    assert await _mine(cluster) == before
    assert before[0] is not None
    assert before[0]["data"]["agent.toml"] == 'store = "kubernetes:"\n'


async def test_an_upgrade_does_not_write_over_a_change_of_the_same_moment(
    cluster: Cluster,
) -> None:
    await older(cluster, by="kubectl-edit")
    async with Api(cluster.server.access(), manager=MANAGER) as api:
        made = Rollout(api)
        [settings] = [t for t in await made.upgradable("") if t.stage == "settings"]
        mine = {"data": {"agent.toml": "spare = 8\n"}}
        await cluster.api.patch(known.CONFIG_MAPS, "muslin", mine, namespace=HOME)
        with pytest.raises(NotReady, match="ConfigMap muslin-system/muslin"):
            [_ async for _ in made.apply([settings])]
    now, _ = await _mine(cluster)
    assert now is not None
    assert now["data"]["agent.toml"] == "spare = 8\n"
    assert "webhook" not in now["data"]["controller.toml"]


async def test_an_upgrade_of_nothing_says_so(cluster: Cluster) -> None:
    done = await cluster.muslin("upgrade")
    assert done.exit_code == 1
    assert "Muslin is not installed here" in done.output


async def test_what_another_hand_has_set_is_not_taken_over_unasked(cluster: Cluster) -> None:
    await installed(cluster)
    by_hand = Api(cluster.server.access(), manager="kubectl-edit")
    spec = {"spec": {"replicas": 3}}
    await by_hand.patch(known.DEPLOYMENTS, "muslin-controller", spec, namespace=HOME)
    await by_hand.close()
    done = await cluster.muslin("install")
    assert done.exit_code == 1
    assert "kubectl-edit" in done.output
    assert "--force takes them over" in done.output
    await installed(cluster, "--force")


async def test_a_server_that_is_too_old_is_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def version(_: Api) -> str:
        return "v1.30.14"

    monkeypatch.setattr(Api, "version", version)
    before = await cluster.state()
    done = await cluster.muslin("install")
    assert "v1.30.14; Muslin needs 1.31 or later" in done.output
    assert await cluster.state() == before


async def test_a_server_without_a_version_of_its_own_is_told_by_its_release(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def version(_: Api) -> str:
        return "v1.36 (v0.0.0-master+8e16b12f)"

    monkeypatch.setattr(Api, "version", version)
    assert (await cluster.muslin("install", "--dry-run")).exit_code == 0


async def test_waiting_ends_with_what_is_missing(cluster: Cluster) -> None:
    cluster.broken = {"n2"}
    made = Rollout(cluster.api, timeout=cluster.moment)
    async for _ in made.apply(targets("vxlan")):
        pass
    with pytest.raises(NotReady, match="muslin-agent: 1 of 2 ready"):
        await made.wait(targets("vxlan"))


@pytest.mark.parametrize("words", [(), ("--overlay", "podcidr")])
async def test_a_removal_leaves_the_server_as_it_was(
    cluster: Cluster, words: Sequence[str]
) -> None:
    before = await cluster.state()
    await installed(cluster, *words)
    await _claimed(cluster)
    done = await cluster.muslin("uninstall", "--purge")
    assert done.exit_code == 0, done.output
    assert await cluster.state() == before
    steps = ["+muslin-agent", "-muslin-agent", "+muslin-clean", "-muslin-clean"]
    assert cluster.history == steps


async def _claimed(cluster: Cluster) -> None:
    """What agents write."""
    node = convert(Node, {"name": "n1", "addresses": ["192.0.2.1/24"], "mtu": 1500}, subject="")
    block = {"pool": "pods4", "cidr": "10.244.3.0/26", "node": "n1"}
    for value in (node, convert(Block, block, subject="")):
        await cluster.api.create(KINDS[type(value)], to_object(value))
    lease = {"metadata": {"name": "muslin-0123456789abcdef"}}
    await cluster.api.create(known.LEASES, lease, namespace=HOME)


async def test_networks_of_yours_stay_unless_purged(cluster: Cluster) -> None:
    await installed(cluster)
    pool = convert(Pool, {"name": "mine", "cidr": "10.7.0.0/16"}, subject="")
    await cluster.api.create(KINDS[Pool], to_object(pool))
    await _claimed(cluster)
    done = await cluster.muslin("uninstall")
    assert done.exit_code == 0, done.output
    left = sorted(k for k in await cluster.state() if "muslin" in k)
    assert [k for k in left if "customresourcedefinitions" not in k] == [
        "/apis/muslin.io/v1alpha1/pools/mine"
    ]
    assert len(left) == 7
    assert "nothing to do" in (await cluster.muslin("uninstall")).output


async def test_pods_that_use_it_are_named(cluster: Cluster) -> None:
    await installed(cluster)
    for name, host, phase, ip in (
        ("web", False, "Running", "10.244.0.7"),
        ("proxy", True, "Running", "192.0.2.1"),
        ("job", False, "Succeeded", "10.244.0.8"),
        ("other-network", False, "Running", "10.88.0.2"),
    ):
        spec = {"hostNetwork": host, "nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}
        pod = {"metadata": {"name": name}, "spec": spec}
        await cluster.api.create(known.PODS, pod, namespace="default")
        status = {"status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]}}
        await cluster.api.patch(known.PODS, name, status, namespace="default", subresource="status")
    before = await cluster.state()
    done = await cluster.muslin("uninstall")
    assert done.exit_code == 1
    assert "1 pods use it: default/web" in done.output
    assert await cluster.state() == before
    assert (await cluster.muslin("uninstall", "--force")).exit_code == 0


async def test_a_dry_removal_changes_nothing(cluster: Cluster) -> None:
    await installed(cluster)
    await _claimed(cluster)
    before = await cluster.state()
    found = await cluster.outcomes("uninstall", "--purge", "--dry-run")
    assert await cluster.state() == before
    assert found["nodes: muslin node clean"] == "changed"
    assert found["Namespace muslin-system"] == "removed"
    assert found["CustomResourceDefinition blocks.muslin.io"] == "removed"


async def test_nodes_are_cleaned_by_pods_that_see_what_the_agent_saw(cluster: Cluster) -> None:
    await installed(cluster, "--image", "here/muslin:1")
    cluster.broken = {"n2"}
    made = Rollout(cluster.api, timeout=cluster.moment)
    why = r"nodes to be clean: 1 of 2 ready: (n1, )?n2 after \d+ s"  # played, n1 does not say so
    with pytest.raises(NotReady, match=why):
        await _removed(made)
    cleaner = await cluster.api.get(known.DAEMON_SETS, "muslin-clean", namespace=HOME)
    assert cleaner is not None
    spec = cleaner["spec"]["template"]["spec"]
    agent = next(t for t in targets("vxlan") if t.kind == known.DAEMON_SETS).body
    wanted = agent["spec"]["template"]["spec"]
    assert [v["name"] for v in spec["volumes"]] == [v["name"] for v in wanted["volumes"]]
    assert spec["tolerations"] == wanted["tolerations"]
    assert spec["hostNetwork"]
    [container] = spec["containers"]
    assert container["image"] == "here/muslin:1"
    assert "muslin node clean --force" in container["command"][-1]
    assert "livenessProbe" not in container
    cluster.broken = set()
    assert (await cluster.muslin("uninstall")).exit_code == 0, "it goes on where it was stopped"
    assert cluster.history[-1] == "-muslin-clean"


async def test_a_node_that_cannot_be_cleaned_is_left_when_forced(cluster: Cluster) -> None:
    await installed(cluster)
    cluster.broken = {"n1"}
    said: list[str] = []
    made = Rollout(cluster.api, timeout=cluster.moment, say=said.append)
    await _removed(made, force=True)
    assert any(s.startswith("going on: nodes to be clean: 1 of 2 ready") for s in said)
    assert await cluster.api.get(known.NAMESPACES, HOME) is None


async def _removed(made: Rollout, *, force: bool = False) -> None:
    async for _ in made.remove(force=force):
        pass


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--cidr", "10.1.2.3/16"), "has host bits set"),
        (("--cidr", "10.1.0.0/16", "--cidr", "10.2.0.0/16"), "one of each family"),
        (("--image", "muslin"), "expected name:tag"),
    ],
)
async def test_wrong_words_are_refused_before_anything_is_done(
    cluster: Cluster, words: Sequence[str], why: str
) -> None:
    before = await cluster.state()
    done = await cluster.muslin("install", *words)
    assert done.exit_code == 1
    assert why in done.output
    assert await cluster.state() == before


def test_no_kubeconfig_is_said_by_its_path(tmp_path: Path) -> None:
    argv = ["install", "--kubeconfig", str(tmp_path / "none")]
    done = CliRunner().invoke(app, argv)
    assert done.exit_code == 1
    assert str(tmp_path / "none") in done.output.replace("\n", "")
    with pytest.raises(ConfigError):
        targets("desert")
