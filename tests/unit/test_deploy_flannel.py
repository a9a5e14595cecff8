"""What an agent may do beside flannel, asked as a server asks; and who else may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from test_deploy_helm import data, objects, plain

from apiserver import ApiServer, Settings
from muslin.agent.flannel import annotate, forget
from muslin.controller import manifests
from muslin.controller.manifests import CHOSEN
from muslin.controller.rollout import Rollout
from muslin.errors import ConfigError, MuslinError, NotReady
from muslin.kube import Access, Api
from muslin.kube import kinds as known
from muslin.store import flannel

HOME = "muslin-system"
DATA = {flannel.DATA[4]: '{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}', flannel.MANAGED: "true"}
SPECIAL = "muslin-agent-flannel"


class Cluster:
    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.admin = Api(Access(server=server.url, token="admin"))
        self._opened = [self.admin]

    async def fill(self, overlay: str) -> None:
        await self.admin.create(known.NAMESPACES, {"metadata": {"name": "kube-flannel"}})
        for name in ("kube-flannel-cfg", "other"):
            body = {"metadata": {"name": name}, "data": {"net-conf.json": "{}"}}
            await self.admin.create(known.CONFIG_MAPS, body, namespace="kube-flannel")
        async for _ in Rollout(self.admin).apply(manifests.targets(overlay)):
            pass
        for node in ("n1", "n2"):
            meta = {"name": node, "annotations": {"other": "x"}, "labels": {"a": "b"}}
            await self.admin.create(known.NODES, {"metadata": meta})

    def agent(self, node: str = "n1") -> Api:
        token = self.server.accounts.service_account(
            HOME, "muslin-agent", pod="muslin-agent-x", node=node
        )
        self._opened.append(Api(Access(server=self.server.url, token=token)))
        return self._opened[-1]

    async def close(self) -> None:
        for api in self._opened:
            await api.close()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with ApiServer(settings=Settings(rbac=True)) as server:
        made = Cluster(server)
        await made.fill("flannel")
        yield made
        await made.close()


async def test_an_agent_reads_flannels_text_and_announces_itself(cluster: Cluster) -> None:
    agent = cluster.agent()
    assert await agent.get(known.CONFIG_MAPS, "kube-flannel-cfg", namespace="kube-flannel")
    await annotate(agent, "n1", DATA)
    there = await agent.get(known.NODES, "n1")
    assert there is not None
    assert there["metadata"]["annotations"] == {"other": "x", **DATA}
    assert await forget(agent, "n1", dry_run=True) == sorted(DATA, reverse=True)
    assert set(await forget(agent, "n1")) == set(DATA)
    assert await forget(agent, "n1") == []
    there = await agent.get(known.NODES, "n1")
    assert there is not None
    assert there["metadata"]["annotations"] == {"other": "x"}


@pytest.mark.parametrize(
    ("name", "body", "why"),
    [
        ("n2", {"metadata": {"annotations": DATA}}, "its own Node: this is the agent of n1"),
        ("n1", {"metadata": {"annotations": {"x": "y"}}}, "no annotation of a Node but flannel's"),
        ("n1", {"metadata": {"annotations": {"other": None}}}, "no annotation of a Node but"),
        (
            "n1",
            {"metadata": {"annotations": {flannel.OVERWRITE[4]: "203.0.113.7"}}},
            "no annotation of a Node but flannel's",
        ),
        ("n1", {"metadata": {"labels": {"node-role": "x"}}}, "a Node's labels"),
        ("n1", {"metadata": {"finalizers": ["a.b/c"]}}, "a Node's finalizers"),
        ("n1", {"spec": {"unschedulable": True}}, "a Node's taints or ranges"),
    ],
)
async def test_a_stolen_token_writes_nothing_else(
    cluster: Cluster, name: str, body: dict[str, Any], why: str
) -> None:
    with pytest.raises(MuslinError, match=why):
        await cluster.agent().patch(known.NODES, name, body)


async def test_a_token_without_a_node_announces_nobody(cluster: Cluster) -> None:
    with pytest.raises(MuslinError, match="patches its own Node"):
        await annotate(cluster.agent(""), "n1", DATA)


async def test_no_other_text_of_flannels_is_read(cluster: Cluster) -> None:
    with pytest.raises(MuslinError, match="cannot get"):
        await cluster.agent().get(known.CONFIG_MAPS, "other", namespace="kube-flannel")
    with pytest.raises(MuslinError, match="cannot patch"):
        await cluster.agent().patch(
            known.CONFIG_MAPS, "kube-flannel-cfg", {"data": {}}, namespace="kube-flannel"
        )
    with pytest.raises(ConfigError, match="cannot delete"):
        await cluster.agent().delete(known.NODES, "n1")


async def test_without_the_overlay_no_agent_may_any_of_it() -> None:
    async with ApiServer(settings=Settings(rbac=True)) as server:
        made = Cluster(server)
        await made.fill("podcidr")
        agent = made.agent()
        with pytest.raises(MuslinError, match="cannot patch"):
            await annotate(agent, "n1", DATA)
        with pytest.raises(MuslinError, match="cannot get"):
            await agent.get(known.CONFIG_MAPS, "kube-flannel-cfg", namespace="kube-flannel")
        await made.close()


async def test_an_upgrade_keeps_agents_to_the_nodes_that_were_chosen(cluster: Cluster) -> None:
    """Else the next version would start beside flanneld on all the others."""
    targets = await Rollout(cluster.admin).upgradable("")
    [agent] = [t for t in targets if t.kind == known.DAEMON_SETS]
    assert agent.body["spec"]["template"]["spec"]["nodeSelector"][CHOSEN] == "true"
    assert SPECIAL in {t.name for t in targets}
    assert {t.namespace for t in targets if t.name == SPECIAL} == {"", "kube-flannel"}


async def test_an_uninstall_takes_the_rights_away(cluster: Cluster) -> None:
    with pytest.raises(NotReady, match="Namespace muslin-system to go"):  # no controller is here
        async for _ in Rollout(cluster.admin, timeout=1).remove(force=True):
            pass
    for target in manifests.targets("flannel"):
        if target.name == SPECIAL:
            there = await cluster.admin.get(target.kind, SPECIAL, namespace=target.namespace)
            assert there is None, target


def test_only_that_overlay_leaves_nodes_out() -> None:
    for ground in manifests.grounds():
        [agent] = [t for t in manifests.targets(ground) if t.kind == known.DAEMON_SETS]
        selector = agent.body["spec"]["template"]["spec"]["nodeSelector"]
        assert (CHOSEN in selector) == (ground == "flannel")
        special = {t.name for t in manifests.targets(ground)} & {SPECIAL}
        assert bool(special) == (ground == "flannel")


def test_the_chart_makes_the_same_of_its_value() -> None:
    given = data(flannel="kube-flannel/kube-flannel-cfg", blocks="podcidr", network__create=False)
    text = objects(given)["ConfigMap", "muslin"]["data"]["agent.toml"]
    assert 'flannel = "kube-flannel/kube-flannel-cfg"' in text
    made = plain(objects(given))
    wanted = {(t.kind.kind, t.name): t.body for t in manifests.targets("flannel")}
    for key, body in plain(wanted).items():
        if SPECIAL in key or key == ("DaemonSet", "muslin-agent"):
            assert made[key] == body, key
    elsewhere = objects(data(flannel="kube-system/cfg", namespace="net"))
    role = elsewhere["Role", SPECIAL]
    assert role["metadata"]["namespace"] == "kube-system"
    assert role["rules"][0]["resourceNames"] == ["cfg"]
    binding = elsewhere["RoleBinding", SPECIAL]
    assert binding["subjects"][0]["namespace"] == "net"
    assert not [key for key in objects(data()) if SPECIAL in key]
