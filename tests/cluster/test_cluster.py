"""What every cluster network promises, on a cluster that is there: pods, nodes, services, names.

Source of the promises: https://kubernetes.io/docs/concepts/services-networking/#the-kubernetes-network-model
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from kube import Json, Kube, addresses, until

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(300)]

# It answers with its pod's name, or with two megabytes, and logs who asked.
SERVES = (
    "mkdir /tmp/w && hostname >/tmp/w/name && head -c 2097152 /dev/zero >/tmp/w/big"
    " && exec httpd -f -v -p 8080 -h /tmp/w"
)


def url(address: str, path: str, port: int = 8080) -> str:
    return (
        f"http://[{address}]:{port}/{path}" if ":" in address else f"http://{address}:{port}/{path}"
    )


def fetch(kube: Kube, pod: str, address: str, path: str = "name", port: int = 8080) -> str:
    return kube.exec(pod, f"timeout 5 wget -q -O - '{url(address, path, port)}'").strip()


def status_of(kube: Kube, pod: str) -> str:
    found: str = kube.get("pod", pod)["metadata"]["annotations"].get("muslin.io/status", "")
    return found


def server(kube: Kube, name: str, node: str, **more: Any) -> Json:
    return kube.pod(name, node=node, command=SERVES, ready="/name", **more)


def one_per_node(kube: Kube, nodes: list[str], prefix: str, **more: Any) -> list[Json]:
    return kube.run(*(server(kube, f"{prefix}-{i}", n, **more) for i, n in enumerate(nodes)))


def test_every_node_has_an_agent_and_the_network_is_ready(kube: Kube, nodes: list[str]) -> None:
    assert sorted(kube.agents()) == sorted(nodes)
    for network in kube.items("networks.muslin.io"):
        conditions = {c["type"]: c["status"] for c in network["status"]["conditions"]}
        assert conditions["Ready"] == "True", network["status"]
    for node in kube.items("nodes"):
        conditions = {c["type"]: c["status"] for c in node["status"]["conditions"]}
        assert conditions.get("NetworkUnavailable", "False") == "False", node["metadata"]["name"]


def test_every_pod_reaches_every_pod_by_every_address(kube: Kube, nodes: list[str]) -> None:
    pods = one_per_node(kube, nodes, "a") + one_per_node(kube, nodes, "b")
    assert len({a for p in pods for a in addresses(p)}) == sum(
        len(list(addresses(p))) for p in pods
    )
    for one, other in itertools.permutations(pods, 2):
        for address in addresses(other):
            name = fetch(kube, one["metadata"]["name"], address)
            assert name == other["metadata"]["name"], (one["status"], other["status"])


def test_a_pod_is_seen_with_its_own_address(kube: Kube, nodes: list[str]) -> None:
    [target] = kube.run(server(kube, "target", nodes[0]))
    clients = kube.run(*(kube.pod(f"client-{i}", node=n) for i, n in enumerate(nodes)))
    for client in clients:
        for its in addresses(target):
            fetch(kube, client["metadata"]["name"], its)
        for mine in addresses(client):
            until(
                lambda a=mine: f"{a}]:" in kube.logs("target"),
                10, lambda a=mine: f"nobody asked as {a}:\n{kube.logs('target')}",
            )  # fmt: skip


def test_nodes_and_pods_reach_each_other(kube: Kube, nodes: list[str]) -> None:
    """The kubelet's probes need the first, webhooks in pods and hostNetwork daemons both."""
    pods = one_per_node(kube, nodes, "pod")
    hosts = [
        kube.pod(f"host-{i}", node=n, host=True, command="exec sleep 3600")
        for i, n in enumerate(nodes)
    ]
    for host, pod in itertools.product(kube.run(*hosts), pods):
        for address in addresses(pod):
            found = fetch(kube, host["metadata"]["name"], address)
            assert found == pod["metadata"]["name"]
        for address in addresses(host):
            kube.exec(pod["metadata"]["name"], f"ping -c 1 -W 3 {address}")


def test_two_megabytes_pass_between_nodes(kube: Kube, nodes: list[str]) -> None:
    pods = one_per_node(kube, nodes, "big")
    for one, other in itertools.permutations(pods, 2):
        for address in addresses(other):
            line = f"timeout 10 wget -q -O - '{url(address, 'big')}' | wc -c"
            assert kube.exec(one["metadata"]["name"], line).strip() == str(2048 * 1024)


def test_a_host_port_leads_to_its_pod(kube: Kube, nodes: list[str]) -> None:
    ports = [{"containerPort": 8080, "hostPort": 18080}]
    [pod] = kube.run(server(kube, "ported", nodes[0], ports=ports))
    clients = [kube.pod(f"c-{i}", node=n) for i, n in enumerate(nodes)]
    for client in kube.run(*clients):
        node = pod["status"]["hostIP"]
        assert fetch(kube, client["metadata"]["name"], node, port=18080) == "ported"
    kube.delete("pod", "ported")
    line = f"timeout 2 wget -q -O - '{url(node, 'name', 18080)}'"
    until(lambda: not kube.exec("c-0", line, check=False), 20, "the port still answers")


def test_a_service_answers_from_everywhere(kube: Kube, nodes: list[str]) -> None:
    """Whose translation it is does not matter here: kube-proxy's, or another's."""
    one_per_node(kube, nodes, "s", labels={"app": "svc"})
    kube.apply({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "svc"},
        "spec": {"selector": {"app": "svc"}, "ipFamilyPolicy": "PreferDualStack",
                 "ports": [{"port": 80, "targetPort": 8080}]},
    })  # fmt: skip
    clients = [kube.pod(f"in-{i}", node=n) for i, n in enumerate(nodes)]
    clients += [kube.pod(f"on-{i}", node=n, host=True) for i, n in enumerate(nodes)]
    kube.run(*clients)
    for address in kube.get("service", "svc")["spec"]["clusterIPs"]:
        for client in clients:
            name = client["metadata"]["name"]
            until(
                lambda n=name, a=address: fetch(kube, n, a, port=80).startswith("s-"),
                30, f"{name} does not reach {address}",
            )  # fmt: skip


def test_wishes_are_met_and_told(kube: Kube, nodes: list[str]) -> None:
    node = nodes[0]
    [first] = kube.run(kube.pod("probe", node=node))
    mac, rate = "02:00:5e:10:00:77", "50M"
    wishes = {"muslin.io/mac": mac, "kubernetes.io/ingress-bandwidth": rate}
    [pod] = kube.run(kube.pod("wishes", node=node, annotations=wishes))
    assert mac in kube.exec("wishes", "ip link show eth0")
    until(lambda: mac in status_of(kube, "wishes"), 10, "muslin.io/status was not written")
    assert sorted(addresses(pod)) != sorted(addresses(first))


def test_a_wrong_wish_is_an_event_and_is_mended_by_a_word(kube: Kube, nodes: list[str]) -> None:
    kube.apply(kube.pod("wrong", node=nodes[0], annotations={"muslin.io/mac": "02:00"}))
    until(lambda: "NetworkRequestRefused" in kube.events(), 60, kube.events)
    [event] = [e for e in kube.items("events") if e["reason"] == "NetworkRequestRefused"]
    assert "muslin.io/mac '02:00'" in event["message"]
    kube("-n", kube.namespace, "annotate", "--overwrite", "pod", "wrong", "muslin.io/mac-")
    until(lambda: kube._ready(["wrong"]), 60, kube.events)


def test_a_fixed_address_follows_the_ordinal(kube: Kube, nodes: list[str]) -> None:
    node = nodes[0]
    [probe] = kube.run(kube.pod("probe", node=node))
    first = next(addresses(probe))
    base, last = first.rpartition(".")[0], int(first.rpartition(".")[2])
    block = last - last % 64
    wanted = [f"{base}.{block + 40}", f"{base}.{block + 41}"]
    template = kube.pod("x", node="", labels={"app": "db"},
                        annotations={"muslin.io/addresses": ",".join(wanted)})  # fmt: skip
    spec = template["spec"] | {"nodeSelector": {"kubernetes.io/hostname": node}}
    kube.apply({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {"serviceName": "db", "replicas": 2, "selector": {"matchLabels": {"app": "db"}},
                 "template": {"metadata": {"labels": {"app": "db"},
                                           "annotations": template["metadata"]["annotations"]},
                              "spec": spec}},
    })  # fmt: skip
    for _ in range(2):  # the second time after they were made anew
        until(lambda: kube._ready(["db-0", "db-1"]), 60, lambda: kube._trouble(["db-0", "db-1"]))
        assert [next(addresses(kube.get("pod", f"db-{i}"))) for i in range(2)] == wanted
        uid = kube.get("pod", "db-1")["metadata"]["uid"]
        kube.delete("pod", "db-1")
        until(
            lambda u=uid: kube.get("pod", "db-1", )["metadata"]["uid"] != u, 60, "no new db-1"
        )  # fmt: skip


def test_an_agent_is_replaced_under_traffic(kube: Kube, nodes: list[str]) -> None:
    one, other = nodes[0], nodes[-1]
    [target] = kube.run(kube.pod("target", node=other))
    address = next(addresses(target))
    line = f"ping -i 0.05 -c 400 {address} >/tmp/log 2>&1; sleep 3600"
    kube.run(kube.pod("pings", node=one, command=line))
    before = kube.agents()
    for node in (one, other):
        kube("-n", "muslin-system", "delete", "pod", before[node], "--timeout=60s")
    until(lambda: set(kube.agents()) >= {one, other}, 90, "the agents did not come back")
    until(lambda: "transmitted" in kube.exec("pings", "cat /tmp/log"), 60, "ping did not end")
    summary = kube.exec("pings", "tail -n 3 /tmp/log")
    assert "400 packets transmitted, 400 packets received" in summary


def test_many_pods_come_and_go_without_a_trace(kube: Kube, nodes: list[str]) -> None:
    until(lambda: not any(kube.held().values()), 60, lambda: f"pods of others: {kube.held()}")
    names = [f"many-{i}" for i in range(20 * len(nodes))]
    began = time.monotonic()
    pods = kube.run(
        *(kube.pod(n, node=nodes[i % len(nodes)]) for i, n in enumerate(names)), seconds=240
    )
    up = time.monotonic() - began
    given = [a for p in pods for a in addresses(p)]
    assert len(set(given)) == len(given)
    kube.delete("pod", *names)
    until(lambda: not any(kube.held().values()), 60, lambda: f"left: {kube.held()}")
    print(
        f"{len(names)} pods ready after {up:.1f} s, gone after {time.monotonic() - began - up:.1f}"
    )
