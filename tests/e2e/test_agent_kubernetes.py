"""A real agent and the real CNI plugin beside an API server that comes, goes and forgets.

    namespace "node"    eth0 192.0.2.1/24, the agent, and on its loopback the API server
    namespace per pod

The server is a process of its own (tests/apiserver) and keeps its objects in a file, as etcd
would when only the API server dies.  Tests play the scheduler and the kubelet.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from apiserver.kubelet import node as node_object
from apiserver.kubelet import pod as pod_object
from grounds import UPLINK
from muslin.agent.api import ask
from muslin.agent.known import GONE
from muslin.errors import NotReady
from muslin.kernel import netns
from muslin.kube import crd
from muslin.kube.kinds import CRDS, LEASES, NAMESPACES, NODES
from muslin.kube.values import KINDS, to_object
from muslin.lab.boot import environment
from muslin.model import Block, Network, Node, Pool
from namespaces import Spaces, run

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
PORT = 8001  # in a namespace of its own
SYSTEM = "muslin-system"
FOUR = Pool(name="four", cidr=ip_network("10.244.0.0/16"), cooldown=0.5)
SIX = Pool(name="six", cidr=ip_network("fd00:244::/64"), cooldown=0.5)
OTHER = Pool(name="other", cidr=ip_network("10.9.0.0/16"), cooldown=0.5)
DEFAULT = Network(name="default", backend="hostgw", pools=("four", "six"))
BLUE = Network(name="blue", backend="hostgw", pools=("other",))
SETTINGS = """
node = "n1"
store = "kubernetes:{home}/kubeconfig"
state_dir = "{home}/state"
run_dir = "{home}/run"
uplink = "eth0"
cni_install = true
cni_bin_dir = "{home}/bin"
cni_conf_dir = "{home}/net.d"
"""

Json = dict[str, Any]


class Machine:
    """One node of a cluster, with its API server at hand."""

    def __init__(self, spaces: Spaces, home: Path) -> None:
        self.spaces, self.home, self.ns = spaces, home, spaces.new("node")
        self.api: subprocess.Popen[bytes] | None = None
        self.agent: subprocess.Popen[bytes] | None = None
        run(self.ns, UPLINK)
        (home / "agent.toml").write_text(SETTINGS.format(home=home))

    # ── the API server ──

    def serve(self) -> None:
        argv = [sys.executable, "-m", "tests.apiserver", "--port", str(PORT)]
        argv += ["--state", str(self.home / "etcd"), "--kubeconfig", str(self.home / "kubeconfig")]
        with (self.home / "api.log").open("ab") as out:
            argv = ["nsenter", f"--net={self.ns}", "--", *argv]
            self.api = subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=out)
        until(lambda: self.send("GET", "/version") is not None)

    def kill_api(self) -> None:
        assert self.api is not None
        self.api.kill()
        self.api.wait()

    def send(self, method: str, path: str, body: Json | None = None) -> Json | None:
        """One request; None when nobody answers."""
        with netns.inside(self.ns):
            client = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
            try:
                client.connect()
            except OSError:
                return None
        try:
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            client.request(method, path, json.dumps(body) if body else None, {"Content-Type": kind})
            found: Json = json.loads(client.getresponse().read())
            return found
        except (OSError, http.client.HTTPException):
            return None
        finally:
            client.close()

    def items(self, path: str) -> list[Json]:
        return list((self.send("GET", path) or {}).get("items", ()))

    def populate(self, *networks: Network) -> None:
        for definition in crd.definitions():
            self.send("POST", CRDS.path(), definition)
        self.send("POST", NAMESPACES.path(), {"metadata": {"name": SYSTEM}})
        self.send("POST", NODES.path(), node_object("n1", "192.0.2.1"))
        for pool in (FOUR, SIX, OTHER):
            self.send("POST", KINDS[Pool].path(), to_object(pool))
        for network in networks:
            self.send("POST", KINDS[Network].path(), to_object(network))

    def pod(self, name: str, *, bind: bool = True, **more: Any) -> str:
        """A pod, scheduled here; its uid."""
        made = self.send("POST", "/api/v1/namespaces/default/pods", pod_object(name, **more))
        assert made is not None, "nobody answered"
        assert made["kind"] == "Pod", made
        if bind:
            self.bind(name)
        return str(made["metadata"]["uid"])

    def bind(self, name: str) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": "n1"}
        body = {"metadata": {"name": name}, "target": target}
        self.send("POST", f"/api/v1/namespaces/default/pods/{name}/binding", body)

    def unpod(self, name: str) -> None:
        self.send("DELETE", f"/api/v1/namespaces/default/pods/{name}", {"gracePeriodSeconds": 0})

    # ── the agent ──

    def start(self, *, wait: bool = True) -> None:
        argv = [sys.executable, "-m", "muslin", "agent", "--config", str(self.home / "agent.toml")]
        with (self.home / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                ["nsenter", f"--net={self.ns}", "--", *argv], stderr=log, env=environment()
            )
        if wait:
            until(self.ready)

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.agent is not None
        pids = [self.agent.pid, *children(self.agent.pid)]
        for pid in pids:
            os.kill(pid, number)
        self.agent.wait()
        until(lambda: not any(alive(pid) for pid in pids))

    def status(self) -> Json:
        try:
            return ask(self.home / "run" / "api.sock", "status")
        except NotReady:
            return {"ready": False, "faults": [], "blocks": []}

    def ready(self) -> bool:
        return bool(self.status()["ready"]) and (self.home / "net.d/05-muslin.conflist").exists()

    def log(self) -> str:
        return (self.home / "agent.log").read_text()

    def cni(self, verb: str, container: str, pod: str = "", uid: str = "", ns: str = "") -> Json:
        """One call of the plugin that the agent installed, as containerd makes it."""
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}"
        args += f";K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID={uid}"
        config = {"cniVersion": "1.1.0", "name": "muslin", "type": "muslin-cni"}
        done = subprocess.run(
            [self.home / "bin" / "muslin-cni"],
            env={
                "CNI_COMMAND": verb,
                "CNI_CONTAINERID": container,
                "CNI_NETNS": ns,
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/opt/cni/bin",
                "CNI_ARGS": args,
            },
            input=json.dumps(config).encode(),
            capture_output=True,
            check=False,
        )
        return dict(json.loads(done.stdout)) if done.stdout else {}

    def add(self, pod: str, uid: str, container: str = "") -> Json:
        return self.cni("ADD", container or f"c-{pod}", pod, uid, self.spaces.new("pod"))


def run_out(ns: str, script: str) -> str:
    argv = ["nsenter", f"--net={ns}", "sh", "-ec", script]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def until(what: Callable[[], object], seconds: float = 20.0) -> float:
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "never came true"
        time.sleep(0.02)
    return time.monotonic() - began


def children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def addresses(made: Json) -> list[str]:
    assert "ips" in made, made
    return [ip["address"].partition("/")[0] for ip in made["ips"]]


@pytest.fixture
def bare(spaces: Spaces, tmp_path: Path) -> Iterator[Machine]:
    """A machine with an API server and nothing in it."""
    made = Machine(spaces, tmp_path)
    try:
        made.serve()
        yield made
    finally:
        if made.agent is not None and made.agent.poll() is None:
            made.stop(signal.SIGKILL)
        if made.api is not None and made.api.poll() is None:
            made.kill_api()


@pytest.fixture
def node(bare: Machine) -> Machine:
    """A node that takes pods."""
    bare.populate(DEFAULT, BLUE)
    bare.start()
    return bare


def test_the_plugin_is_installed_when_the_node_can_take_pods_and_stays(bare: Machine) -> None:
    bare.populate()
    bare.start(wait=False)
    other = bare.home / "net.d" / "99-other.conf"
    other.parent.mkdir()
    other.write_text("{}")
    until(lambda: "no network yet" in str(bare.status()["faults"]))
    path = f"{KINDS[Node].path(name='n1')}"

    def condition() -> Json:
        found = (bare.send("GET", path) or {}).get("status", {}).get("conditions")
        return dict(found[0]) if found else {}

    until(lambda: condition().get("status") == "False")
    assert "no network yet" in condition()["message"]
    assert sorted(p.name for p in bare.home.glob("net.d/*")) == ["99-other.conf"]
    assert not (bare.home / "bin").exists()
    bare.send("POST", KINDS[Network].path(), to_object(DEFAULT))
    until(bare.ready)
    until(lambda: condition().get("status") == "True")
    assert (bare.send("GET", path) or {})["status"]["mtu"] == 1500
    assert bare.cni("STATUS", "") == {}
    bare.stop()
    assert sorted(p.name for p in bare.home.glob("net.d/*")) == [
        "05-muslin.conflist",
        "99-other.conf",
    ]
    assert bare.add("a", "")["code"] == 11  # come again


def test_a_pod_gets_what_its_annotations_ask_for_and_is_told(node: Machine) -> None:
    block = next(ip_network(b) for b in node.status()["blocks"] if b.startswith("10.244."))
    fixed = str(block[20])
    wishes = {
        "muslin.io/addresses": fixed,
        "muslin.io/pools": "four",
        "muslin.io/mac": "02:00:5e:10:00:07",
        "kubernetes.io/ingress-bandwidth": "20M",
        "kubernetes.io/egress-bandwidth": "10M",
    }
    uid = node.pod("fixed", annotations=wishes)
    made = node.add("fixed", uid)
    assert addresses(made) == [fixed]  # no IPv6: that pool was not asked for
    assert made["interfaces"][1]["mac"] == "02:00:5e:10:00:07"
    dev = made["interfaces"][0]["name"]
    run(node.ns, f"tc qdisc show dev {dev} | grep -q 'tbf.*rate 20Mbit'")
    blue = node.add("blue", node.pod("blue", annotations={"muslin.io/network": "blue"}))
    assert addresses(blue)[0].startswith("10.9.")

    def told(name: str) -> Json:
        pod = node.send("GET", f"/api/v1/namespaces/default/pods/{name}") or {}
        return json.loads(pod["metadata"].get("annotations", {}).get("muslin.io/status", "{}"))

    until(lambda: told("fixed") and told("blue"), 10)
    assert told("fixed") == {
        "network": "default",
        "interface": "eth0",
        "addresses": [fixed],
        "mac": "02:00:5e:10:00:07",
    }
    assert told("blue")["network"] == "blue"
    plain = node.add("plain", node.pod("plain"))
    assert [":" in a for a in addresses(plain)] == [False, True]


def test_a_bad_wish_is_refused_by_name_and_mended_by_a_word(node: Machine) -> None:
    uid = node.pod("odd", annotations={"muslin.io/mac": "nonsense"})
    for i in range(2):
        refused = node.add("odd", uid, f"c{i}")
        assert refused["code"] == 7
        assert "pod default/odd: annotation muslin.io/mac 'nonsense'" in refused["msg"]
        assert "tried again by itself" in refused["details"]
    events = "/apis/events.k8s.io/v1/namespaces/default/events"
    until(lambda: node.items(events), 10)
    (event,) = node.items(events)
    assert event["reason"] == "NetworkRequestRefused"
    assert "annotation muslin.io/mac 'nonsense'" in event["note"]
    meta = {"metadata": {"annotations": {"muslin.io/mac": "02:00:00:00:00:09"}}}
    node.send("PATCH", "/api/v1/namespaces/default/pods/odd", meta)
    found: list[Json] = []

    def mended() -> bool:
        found.append(node.add("odd", uid, f"c{len(found) + 2}"))
        return "ips" in found[-1]

    until(mended, 5)
    assert found[-1]["interfaces"][1]["mac"] == "02:00:00:00:00:09"


def test_a_pod_with_further_nics_is_told_of_all_and_a_bad_list_is_mended_by_a_word(
    node: Machine,
) -> None:
    uid = node.pod("two", annotations={"muslin.io/nics": "green"})
    for i in range(2):
        refused = node.add("two", uid, f"c{i}")
        assert refused["code"] == 7, refused
        assert "network green is not known on this node" in refused["msg"]
    events = "/apis/events.k8s.io/v1/namespaces/default/events"
    until(lambda: node.items(events), 10)
    (event,) = node.items(events)
    assert event["reason"] == "NetworkRequestRefused"
    assert "annotation muslin.io/nics: network green" in event["note"]
    meta = {"metadata": {"annotations": {"muslin.io/nics": "blue"}}}
    node.send("PATCH", "/api/v1/namespaces/default/pods/two", meta)
    made: list[Json] = []

    def mended() -> bool:
        made.append(node.add("two", uid, f"c{len(made) + 2}"))
        return "ips" in made[-1]

    until(mended, 5)
    ends = made[-1]["interfaces"]
    assert [e["name"] for e in ends if "sandbox" in e] == ["eth0", "net1"]
    four, six, blue = addresses(made[-1])
    assert blue.startswith("10.9.")

    def told() -> Json:
        pod = node.send("GET", "/api/v1/namespaces/default/pods/two") or {}
        return json.loads(pod["metadata"]["annotations"].get("muslin.io/status", "{}"))

    until(told, 10)
    assert told() == [
        {"network": "default", "interface": "eth0", "addresses": [four, six],
         "mac": ends[1]["mac"]},
        {"network": "blue", "interface": "net1", "addresses": [blue], "mac": ends[3]["mac"]},
    ]  # fmt: skip
    pod = made[-1]["interfaces"][1]["sandbox"]
    run(pod, f"ip route get 10.9.200.1 | grep -q 'dev net1 src {blue}'")
    run(pod, f"ip route get 192.0.2.1 | grep -q 'dev eth0 src {four}'")
    run(pod, f"ip route get 192.0.2.1 from {blue} | grep -q 'dev net1'")
    node.stop(signal.SIGKILL)
    node.start()
    assert len(node.status()["attachments"]) == 2
    assert node.cni("DEL", f"c{len(made) + 1}", "two", uid, pod) == {}
    until(lambda: node.status()["attachments"] == [])
    until(lambda: "net1" not in run_out(pod, "ip link"))


def test_stateful_pods_take_addresses_by_ordinal_and_keep_them(node: Machine) -> None:
    block = next(ip_network(b) for b in node.status()["blocks"] if b.startswith("10.244."))
    three = [str(block[i]) for i in (30, 31, 32)]
    owner = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "name": "db",
        "controller": True,
    }
    wishes = {"muslin.io/addresses": ",".join(three), "muslin.io/pools": "four"}
    made = {
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "db", "namespace": "default"},
    }  # fmt: skip
    # The garbage collector is at work: the owner must be there.
    found = node.send("POST", "/api/v1/namespaces/default/configmaps", made) or {}
    owner["uid"] = found["metadata"]["uid"]
    for ordinal in (1, 0):
        uid = node.pod(f"db-{ordinal}", annotations=wishes, owner=owner)
        assert addresses(node.add(f"db-{ordinal}", uid)) == [three[ordinal]]
    node.unpod("db-1")
    node.cni("DEL", "c-db-1", "db-1")
    again = node.pod("db-1", annotations=wishes, owner=owner)
    time.sleep(0.7)  # the pool's cool-down
    assert addresses(node.add("db-1", again, "c-again")) == [three[1]]
    beyond = node.pod("db-3", annotations=wishes, owner=owner)
    refused = node.add("db-3", beyond)
    assert "3 IPv4 addresses, for the ordinals 0 to 2; db-3 needs one at 3" in refused["msg"]


def test_an_add_that_comes_before_its_pod_is_seen_waits_for_it(node: Machine) -> None:
    uid = node.pod("late", bind=False, annotations={"muslin.io/network": "blue"})
    with ThreadPoolExecutor(1) as one:
        adding = one.submit(node.add, "late", uid)
        time.sleep(0.7)
        assert not adding.done()
        node.bind("late")
        assert addresses(adding.result(10))[0].startswith("10.9.")
    began = time.monotonic()
    never = node.add("never", "0f3c0a3e-7d07-4d7a-9b5e-0d1f0a3c5e11")
    assert 4 < time.monotonic() - began < 8
    assert never["code"] == 11
    assert "pod default/never with uid 0f3c0a3e" in never["msg"]


def test_a_pod_made_anew_under_its_name_gets_its_own_wishes(node: Machine) -> None:
    first = node.pod("db-0", annotations={"muslin.io/network": "blue"})
    assert addresses(node.add("db-0", first))[0].startswith("10.9.")
    node.cni("DEL", "c-db-0", "db-0")
    node.unpod("db-0")
    second = node.pod("db-0", bind=False)
    with ThreadPoolExecutor(1) as one:
        adding = one.submit(node.add, "db-0", second, "c2")
        time.sleep(0.3)
        node.bind("db-0")
        assert addresses(adding.result(10))[0].startswith("10.244.")


def test_pods_start_while_the_api_server_is_away_and_all_converges_after(node: Machine) -> None:
    known = node.pod("known", annotations={"muslin.io/network": "blue"})
    assert "ips" in node.add("known", known)
    before = node.status()["blocks"]
    node.kill_api()
    time.sleep(GONE + 0.5)
    began = time.monotonic()
    assert addresses(node.add("static", "4f1b5a0d9c8e7f6a5b4c3d2e1f0a9b8c"))[0].startswith(
        "10.244."
    )
    assert time.monotonic() - began < 2
    node.stop(signal.SIGKILL)
    node.start(wait=False)  # with a node.db from before and nobody to ask
    until(lambda: node.cni("STATUS", "") == {})
    began = time.monotonic()
    assert addresses(node.add("known", known, "c-known-2"))[0].startswith("10.9.")  # remembered
    assert time.monotonic() - began < 2
    until(lambda: "not heard from yet" in str(node.status()["faults"]))
    began = time.monotonic()
    assert "ips" in node.add("other", "0f3c0a3e-7d07-4d7a-9b5e-0d1f0a3c5e11")
    assert time.monotonic() - began < 8
    assert "pod.unknown" in node.log()
    node.serve()
    until(node.ready, 60)
    assert node.status()["blocks"] == before
    held = {b["spec"]["cidr"] for b in node.items(KINDS[Block].path())}
    assert held == set(before)
    late = node.pod("late", annotations={"muslin.io/network": "blue"})
    until(lambda: "ips" in node.add("late", late), 30)


def test_a_pod_that_took_the_defaults_unknown_is_told_when_the_api_server_is_back(
    node: Machine,
) -> None:
    node.stop()
    asked = node.pod("asked", annotations={"muslin.io/network": "blue"})
    plain = node.pod("plain")
    node.kill_api()
    node.start(wait=False)
    until(lambda: node.cni("STATUS", "") == {})
    for name, uid in (("asked", asked), ("plain", plain)):
        assert addresses(node.add(name, uid))[0].startswith("10.244.")
    assert node.log().count("pod.unknown") == 2
    node.serve()
    events = "/apis/events.k8s.io/v1/namespaces/default/events"
    until(lambda: node.items(events), 60)
    (event,) = node.items(events)
    assert (event["reason"], event["regarding"]["uid"]) == ("NetworkRequestMissed", asked)
    assert "annotation muslin.io/network blue" in event["note"]
    assert "delete the pod" in event["note"]
    node.cni("DEL", "c-asked", "asked", asked)
    node.unpod("asked")
    again = node.pod("asked", annotations={"muslin.io/network": "blue"})
    until(lambda: "10.9." in str(node.add("asked", again, "c-again")), 30)
    time.sleep(1.5)  # a round of telling
    assert len(node.items(events)) == 1


def test_an_agent_that_starts_before_the_api_server_ever_ran_makes_a_node_of_it(
    bare: Machine,
) -> None:
    bare.kill_api()
    bare.start(wait=False)
    until(lambda: "not heard from yet" in str(bare.status()["faults"]))
    time.sleep(1)
    bare.serve()
    bare.populate(DEFAULT)
    until(bare.ready, 60)
    assert "ips" in bare.add("a", bare.pod("a"))


@pytest.mark.parametrize("dies", ["api", "agent"])
def test_churn_goes_on_while_one_of_them_dies(node: Machine, dies: str) -> None:
    """As runtimes do: a failed ADD is deleted and tried again; nobody gets another's address."""
    rng, done, taken, twice = random.Random(7), threading.Event(), {}, []
    guard, worst = threading.Lock(), [0.0]
    spaces = [node.spaces.new(f"w{i}") for i in range(4)]
    wishing = [node.pod(f"w{i}", annotations={"muslin.io/network": "blue"}) for i in range(4)]

    def worker(n: int) -> int:
        rounds = 0
        while not done.is_set():
            rounds += 1
            name, pod = f"{n}-{rounds}", f"w{n}"
            began = time.monotonic()
            while "ips" not in (made := node.cni("ADD", name, pod, wishing[n], spaces[n])):
                assert made["code"] == 11, made
                node.cni("DEL", name, pod, wishing[n], spaces[n])
                time.sleep(0.05)
            address = addresses(made)[0]
            assert address.startswith("10.9.")  # its wish, whoever is away
            with guard:
                worst[0] = max(worst[0], time.monotonic() - began)
                if address in taken:
                    twice.append((address, name, taken[address]))
                taken[address] = name
            time.sleep(rng.random() * 0.02)
            with guard:
                del taken[address]
            node.cni("DEL", name, pod, wishing[n], spaces[n])
        return rounds

    with ThreadPoolExecutor(4) as many:
        running = [many.submit(worker, n) for n in range(4)]
        try:
            time.sleep(1)
            if dies == "api":
                node.kill_api()
                time.sleep(5)
                node.serve()
            else:
                node.stop(signal.SIGKILL)
                node.start(wait=False)
            time.sleep(3)
        finally:
            done.set()
        rounds = sum(r.result(30) for r in running)
    assert rounds > 40
    assert twice == []
    assert worst[0] < (2 if dies == "api" else 8)
    until(node.ready, 60)
    until(lambda: node.status()["attachments"] == [])


def test_a_node_that_is_deleted_and_made_again_keeps_its_blocks_under_a_lease_of_its_own(
    node: Machine,
) -> None:
    leases, blocks = LEASES.path(SYSTEM), KINDS[Block].path()
    assert "ips" in node.add("a", node.pod("a"))
    before = {b["metadata"]["name"] for b in node.items(blocks)}

    def owners() -> set[str]:
        found = [i["metadata"]["ownerReferences"] for i in node.items(leases)]
        return {o["uid"] for refs in found for o in refs}

    first = (node.send("GET", NODES.path(name="n1")) or {})["metadata"]["uid"]
    assert owners() == {first}
    node.send("DELETE", NODES.path(name="n1"))
    until(lambda: node.items(leases) == [])  # the garbage collector
    assert "ips" in node.add("b", "4f1b5a0d9c8e7f6a5b4c3d2e1f0a9b8c")  # from what it holds
    made = node.send("POST", NODES.path(), node_object("n1", "192.0.2.1")) or {}
    second = made["metadata"]["uid"]
    until(lambda: owners() == {second})

    def moved() -> bool:
        names = {i["metadata"]["name"] for i in node.items(leases)}
        under = {b["metadata"]["labels"]["muslin.io/lease"] for b in node.items(blocks)}
        return under == names

    until(moved)
    assert {b["metadata"]["name"] for b in node.items(blocks)} == before
    until(node.ready)


def test_another_machine_under_the_same_name_takes_over_its_blocks(node: Machine) -> None:
    blocks = KINDS[Block].path()
    before = {b["metadata"]["name"] for b in node.items(blocks)}
    node.stop(signal.SIGKILL)
    node.send("DELETE", NODES.path(name="n1"))
    shutil.rmtree(node.home / "state")
    made = node.send("POST", NODES.path(), node_object("n1", "192.0.2.1")) or {}
    node.start()
    assert {b["metadata"]["name"] for b in node.items(blocks)} == before
    (lease,) = node.items(LEASES.path(SYSTEM))
    assert lease["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
    under = {b["metadata"]["labels"]["muslin.io/lease"] for b in node.items(blocks)}
    assert under == {lease["metadata"]["name"]}
    assert "ips" in node.add("a", node.pod("a"))


def test_podcidrs_are_the_nodes_blocks_and_move_with_its_node(bare: Machine) -> None:
    with (bare.home / "agent.toml").open("a") as settings:
        settings.write('blocks = "podcidr"\n')
    bare.populate()
    bare.send("DELETE", KINDS[Pool].path(name="four"))
    pool = Pool(name="four", cidr=FOUR.cidr, block=24, cooldown=0.5)
    bare.send("POST", KINDS[Pool].path(), to_object(pool))
    only = Network(name="default", backend="hostgw", pools=("four",))
    bare.send("POST", KINDS[Network].path(), to_object(only))
    bare.start(wait=False)
    until(lambda: "node n1 has no podCIDR" in str(bare.status()["faults"]))
    assert not (bare.home / "net.d").exists()  # no block, no pods
    cidr = "10.244.3.0/24"
    bare.send("PATCH", NODES.path(name="n1"), {"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}})
    until(bare.ready)
    assert addresses(bare.add("a", bare.pod("a"))) == ["10.244.3.1"]
    blocks = KINDS[Block].path()
    assert [b["spec"]["cidr"] for b in bare.items(blocks)] == [cidr]
    bare.send("DELETE", NODES.path(name="n1"))
    made = node_object("n1", "192.0.2.1", cidrs=["10.244.9.0/24"])
    bare.send("POST", NODES.path(), made)
    until(lambda: bare.status()["blocks"] == ["10.244.9.0/24"])
    assert addresses(bare.add("b", bare.pod("b"))) == ["10.244.9.1"]
    assert {b["spec"]["cidr"] for b in bare.items(blocks)} == {cidr, "10.244.9.0/24"}
    bare.cni("DEL", "c-a", "a")
    time.sleep(1.5)  # its address has rested
    os.utime(bare.home / "state" / "node.db")  # a pass now, not within half a minute
    until(lambda: [b["spec"]["cidr"] for b in bare.items(blocks)] == ["10.244.9.0/24"], 60)
