"""A cluster on its way from flannel: a real agent beside a node as flanneld makes one.

      n1 .1      n2 .2          one link, or one each behind a router
       └── 192.0.2.0/24 ── router, and on it the API server (tests/apiserver)

The other node is no flanneld: its device, routes, neighbours, FDB, bridge and annotations are put
by this file as flannel 0.28 does (pkg/backend/vxlan, pkg/backend/hostgw), out of the API server's
Nodes and of nothing else.  So what the agent writes there is what the way back depends on.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from apiserver.kubelet import node as node_object
from apiserver.kubelet import pod as pod_object
from muslin.agent.api import ask
from muslin.errors import NotReady
from muslin.kernel import netns
from muslin.kube import crd
from muslin.kube.kinds import CONFIG_MAPS, CRDS, NAMESPACES, NODES
from muslin.kube.values import KINDS, to_object
from muslin.lab.boot import environment
from muslin.model import Network, Pool
from namespaces import Spaces, run

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
A = "flannel.alpha.coreos.com/"
SETTINGS = """
node = "{name}"
store = "kubernetes:{home}/kubeconfig"
state_dir = "{home}/{name}/state"
run_dir = "{home}/{name}/run"
uplink = "eth0"
blocks = "podcidr"
flannel = "kube-flannel/kube-flannel-cfg"
cni_install = true
cni_bin_dir = "{home}/{name}/bin"
cni_conf_dir = "{home}/{name}/net.d"
"""
ROUTER = """
ip link set dev lo up
sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
for n in 1 2; do
    ip link add rack$n type bridge
    ip link set dev rack$n up
done
"""
MACS = {4: "0e:2a:00:00:00:02", 6: "0e:2a:00:00:00:06"}

Json = dict[str, Any]


class Ground:
    """The router, the API server on it, and what nodes are of."""

    def __init__(self, spaces: Spaces, home: Path, conf: Json, *, routed: bool) -> None:
        self.spaces, self.home, self.conf, self.routed = spaces, home, conf, routed
        self.six = bool(conf.get("EnableIPv6"))
        self.ns = spaces.new("router")
        run(self.ns, ROUTER)
        for rack, number in ((1, "192.0.2"), (2, "198.51.100")):
            run(self.ns, f"ip addr add {number}.254/24 dev rack{rack}")
            run(self.ns, f"ip addr add 2001:db8:{rack}::ff/64 dev rack{rack} nodad")
        argv = [sys.executable, "-m", "tests.apiserver", "--host", "192.0.2.254", "--port", "8001"]
        argv += ["--kubeconfig", str(home / "kubeconfig")]
        with (home / "api.log").open("ab") as out:
            argv = ["nsenter", f"--net={self.ns}", "--", *argv]
            self.api = subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=out)
        until(lambda: self.send("GET", "/version"))
        for definition in crd.definitions():
            self.send("POST", CRDS.path(), definition)
        for name in ("muslin-system", "kube-flannel"):
            self.send("POST", NAMESPACES.path(), {"metadata": {"name": name}})
        meta = {"name": "kube-flannel-cfg"}
        body = {"metadata": meta, "data": {"net-conf.json": json.dumps(conf)}}
        self.send("POST", CONFIG_MAPS.path("kube-flannel"), body)

    def place(self, number: int) -> tuple[str, str, str]:
        """A node's rack, and its addresses."""
        rack = 2 if self.routed and number == 2 else 1
        four = {1: "192.0.2", 2: "198.51.100"}[rack]
        return f"rack{rack}", f"{four}.{number}", f"2001:db8:{rack}::{number}"

    def join(self, number: int) -> str:
        """A machine on its rack; its namespace."""
        name, (rack, four, six) = f"n{number}", self.place(number)
        ns = self.spaces.new(name)
        run(
            ns,
            "sysctl -q -w net.ipv6.conf.default.accept_dad=0\n"
            "ip link set dev lo up\n"
            f"ip link add eth0 type veth peer name {name} netns {self.ns}\n"
            "ip link set dev eth0 up\n"
            f"ip addr add {four}/24 dev eth0\n"
            f"ip addr add {six}/64 dev eth0 nodad\n"
            f"ip route add default via {four.rpartition('.')[0]}.254\n"
            f"ip -6 route add default via {six.rpartition('::')[0]}::ff\n",
        )
        run(self.ns, f"ip link set dev {name} master {rack} up")
        return ns

    def node(self, number: int) -> None:
        """The core Node, with the ranges that the cluster gives it."""
        body = node_object(f"n{number}", self.place(number)[1])
        cidrs = [f"10.244.{number}.0/24"]
        cidrs += [f"fd00:244:0:{number}::/64"] if self.six else []
        # As every real node has one; flanneld ends in a panic on a node that has none.
        body["metadata"]["annotations"] = {"node.alpha.kubernetes.io/ttl": "0"}
        body.setdefault("spec", {}).update(podCIDR=cidrs[0], podCIDRs=cidrs)
        self.send("POST", NODES.path(), body)

    def send(self, method: str, path: str, body: Json | None = None) -> Json:
        """One request; nothing when nobody answers."""
        with netns.inside(self.ns):
            client = http.client.HTTPConnection("192.0.2.254", 8001, timeout=5)
            try:
                client.connect()
            except OSError:
                return {}
        try:
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            client.request(method, path, json.dumps(body) if body else None, {"Content-Type": kind})
            found: Json = json.loads(client.getresponse().read())
            return found
        finally:
            client.close()

    def annotations(self, name: str) -> dict[str, str]:
        """flannel's of one node."""
        found = self.send("GET", NODES.path(name=name)).get("metadata", {}).get("annotations", {})
        return {k.removeprefix(A): v for k, v in found.items() if k.startswith(A)}

    def annotate(self, name: str, **values: str) -> None:
        found = {A + k.replace("_", "-"): v for k, v in values.items()}
        self.send("PATCH", NODES.path(name=name), {"metadata": {"annotations": found}})


class Flanneld:
    """A node of flannel's, whose kernel `look` brings to what the Nodes say."""

    def __init__(self, ground: Ground, number: int) -> None:
        self.ground, self.number, self.name = ground, number, f"n{number}"
        self.ns = ground.join(number)
        self.vxlan = ground.conf["Backend"]["Type"] == "vxlan"
        ground.node(number)
        run(self.ns, "sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        run(self.ns, "sysctl -q -w net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1")
        run(self.ns, "sysctl -q -w net.ipv4.conf.eth0.rp_filter=1")
        self.macs = dict(MACS)
        self.start()

    def versions(self) -> list[tuple[int, str, str, str]]:
        """IP version, device, subnet, own underlay address."""
        _, four, six = self.ground.place(self.number)
        number, vni = self.number, self.ground.conf["Backend"].get("VNI", 1)
        found = [(4, f"flannel.{vni}", f"10.244.{number}.0/24", four)]
        if self.ground.six:
            found.append((6, f"flannel-v6.{vni}", f"fd00:244:0:{number}::/64", six))
        return found

    def start(self) -> None:
        told = {"kube_subnet_manager": "true", "backend_type": self.ground.conf["Backend"]["Type"]}
        vni = self.ground.conf["Backend"].get("VNI", 1)
        for version, dev, subnet, local in self.versions():
            if self.vxlan:
                port = self.ground.conf["Backend"].get("Port", 8472)
                run(
                    self.ns,
                    f"ip link del {dev} 2>/dev/null || true\n"
                    f"ip link add {dev} mtu 1450 address {self.macs[version]} type vxlan id {vni}"
                    f" dev eth0 local {local} dstport {port} nolearning\n"
                    f"ip addr add {subnet.partition('/')[0]}/{32 if version == 4 else 128}"
                    f" dev {dev}\n"
                    f"ip link set {dev} up\n",
                )
            data = f'{{"VNI":{vni},"VtepMAC":"{self.macs[version]}"}}' if self.vxlan else "null"
            told |= {"backend_data" if version == 4 else "backend_v6_data": data}
            told |= {"public_ip" if version == 4 else "public_ipv6": local}
        self.ground.annotate(self.name, **told)

    def look(self) -> None:
        """As its backend does for an event of every other node."""
        for node in self.ground.send("GET", NODES.path())["items"]:
            if node["metadata"]["name"] == self.name:
                continue
            said = node["metadata"].get("annotations", {})
            if said.get(f"{A}kube-subnet-manager") != "true":
                continue
            assert said[f"{A}backend-type"] == self.ground.conf["Backend"]["Type"]
            for version, dev, _, _ in self.versions():
                cidrs = node["spec"]["podCIDRs"]
                subnet = next(c for c in cidrs if (":" in c) == (version == 6))
                public = said[f"{A}public-ip" if version == 4 else f"{A}public-ipv6"]
                if not self.vxlan:
                    run(self.ns, f"ip route replace {subnet} via {public} dev eth0 proto boot")
                    continue
                data = json.loads(
                    said[f"{A}backend-data" if version == 4 else f"{A}backend-v6-data"]
                )
                hop, mac = subnet.partition("/")[0], data["VtepMAC"]
                run(
                    self.ns,
                    f"ip neigh replace {hop} lladdr {mac} dev {dev} nud permanent\n"
                    f"bridge fdb replace {mac} dev {dev} dst {public} self permanent\n"
                    f"ip route replace {subnet} via {hop} dev {dev} onlink proto boot\n",
                )

    def pod(self, last: int) -> Pod:
        """A pod on cni0, as flannel's plugin makes it, with `last` for its address."""
        ns, number = self.ground.spaces.new("old"), self.number
        pod = Pod(ns, [f"10.244.{number}.{last}"])
        make = (
            "ip link show cni0 2>/dev/null || ip link add cni0 type bridge\nip link set cni0 up\n"
        )
        make += f"ip addr replace 10.244.{number}.1/24 dev cni0\n"
        into = "ip link set lo up\nip link set eth0 up\n"
        into += (
            f"ip addr add {pod.ips[0]}/24 dev eth0\nip route add default via 10.244.{number}.1\n"
        )
        if self.ground.six:
            pod.ips.append(f"fd00:244:0:{number}::{last}")
            make += f"ip addr replace fd00:244:0:{number}::1/64 dev cni0 nodad\n"
            into += f"ip addr add {pod.ips[1]}/64 dev eth0 nodad\n"
            into += f"ip route add default via fd00:244:0:{number}::1\n"
        make += f"ip link add old{last} type veth peer name eth0 netns {ns}\n"
        make += f"ip link set old{last} master cni0 up\n"
        run(self.ns, make)
        run(ns, into)
        name = f"old-{last}"
        body = pod_object(name)
        self.ground.send("POST", "/api/v1/namespaces/default/pods", body)
        target = {"apiVersion": "v1", "kind": "Node", "name": self.name}
        bind = {"metadata": {"name": name}, "target": target}
        self.ground.send("POST", f"/api/v1/namespaces/default/pods/{name}/binding", bind)
        status = {"status": {"podIP": pod.ips[0], "podIPs": [{"ip": a} for a in pod.ips]}}
        self.ground.send("PATCH", f"/api/v1/namespaces/default/pods/{name}/status", status)
        return pod


class Pod:
    """A namespace with addresses."""

    def __init__(self, ns: str, ips: list[str]) -> None:
        self.ns, self.ips = ns, ips

    def reaches(self, *ips: str) -> bool:
        return all(self._ping(ip) for ip in ips)

    def _ping(self, ip: str) -> bool:
        argv = ["nsenter", f"--net={self.ns}", "ping", "-n", "-q", "-c1", "-W2", ip]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0


class Agent:
    """A real agent in a namespace, and the plugin that it installs."""

    def __init__(self, ground: Ground, number: int, ns: str) -> None:
        self.ground, self.name, self.ns = ground, f"n{number}", ns
        self.home = ground.home / self.name
        self.home.mkdir()
        settings = SETTINGS.format(name=self.name, home=ground.home)
        (self.home / "agent.toml").write_text(settings)
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-m", "muslin", "agent", "--config", str(self.home / "agent.toml")]
        with (self.home / "agent.log").open("ab") as log:
            argv = ["nsenter", f"--net={self.ns}", "--", *argv]
            self.process = subprocess.Popen(argv, stderr=log, env=environment())

    def stop(self) -> None:
        pids = [self.process.pid, *children(self.process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # a child that was ending anyway
                os.kill(pid, signal.SIGTERM)
        self.process.wait()
        until(lambda: not any(alive(pid) for pid in pids))

    def status(self) -> Json:
        try:
            return ask(self.home / "run" / "api.sock", "status")
        except NotReady:
            return {"ready": False, "faults": [], "blocks": []}

    def faults(self) -> list[str]:
        """But what it says of this machine's own container runtime."""
        return [f for f in self.status()["faults"] if not f.startswith("containerd:")]

    def ready(self) -> bool:
        status = self.status()
        return bool(status["ready"]) and (self.home / "net.d/05-muslin.conflist").exists()

    def log(self) -> str:
        return (self.home / "agent.log").read_text()

    def pod(self, name: str) -> Pod:
        ns = self.ground.spaces.new("pod")
        config = {"cniVersion": "1.1.0", "name": "muslin", "type": "muslin-cni"}
        done = subprocess.run(
            [self.home / "bin" / "muslin-cni"],
            env={
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": name,
                "CNI_NETNS": ns,
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/opt/cni/bin",
            },
            input=json.dumps(config).encode(),
            capture_output=True,
            check=False,
        )
        made = json.loads(done.stdout)
        assert "ips" in made, made
        return Pod(ns, [ip["address"].partition("/")[0] for ip in made["ips"]])

    def clean(self) -> str:
        argv = [sys.executable, "-m", "muslin", "node", "clean", "--force"]
        argv = ["nsenter", f"--net={self.ns}", "--", *argv, "--config", f"{self.home}/agent.toml"]
        return subprocess.run(argv, capture_output=True, check=True, text=True).stdout


def until(what: Callable[[], object], seconds: float = 40.0) -> None:
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "never came true"
        time.sleep(0.05)


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


class Estate:
    """Makes grounds and agents, and ends them."""

    def __init__(self, spaces: Spaces, home: Path) -> None:
        self.spaces, self.home = spaces, home
        self.ground: Ground | None = None
        self.agents: list[Agent] = []

    def on(self, conf: Json, *, routed: bool = False) -> Ground:
        self.ground = Ground(self.spaces, self.home, conf, routed=routed)
        return self.ground

    def agent(self, number: int, ns: str = "") -> Agent:
        assert self.ground is not None
        if not ns:
            ns = self.ground.join(number)
            self.ground.node(number)
        self.agents.append(Agent(self.ground, number, ns))
        until(self.agents[-1].ready)
        return self.agents[-1]

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # each is ended, whatever became of the others
            if self.ground is not None:
                stack.callback(self.ground.api.wait)
                stack.callback(self.ground.api.kill)
            for agent in self.agents:
                if agent.process.poll() is None:
                    stack.callback(agent.stop)


@pytest.fixture
def estate(spaces: Spaces, tmp_path: Path) -> Iterator[Estate]:
    made = Estate(spaces, tmp_path)
    try:
        yield made
    finally:
        made.close()


VXLAN = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
DUAL = {
    "Network": "10.244.0.0/16",
    "IPv6Network": "fd00:244::/48",
    "EnableIPv6": True,
    "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789},
}
HOSTGW = {"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}
DIRECT = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": True}}


@pytest.mark.parametrize(
    ("conf", "routed"),
    [(VXLAN, False), (VXLAN, True), (DUAL, True), (HOSTGW, False), (DIRECT, True)],
    ids=["vxlan", "vxlan-routed", "dual-stack", "host-gw", "direct-routed"],
)
def test_pods_of_both_kinds_of_node_reach_each_other(
    estate: Estate, conf: Json, routed: bool
) -> None:
    ground = estate.on(conf, routed=routed)
    theirs = Flanneld(ground, 2)
    old = theirs.pod(5)
    ours = estate.agent(1)
    until(lambda: "public-ip" in ground.annotations("n1"))
    new = ours.pod("a")
    assert len(new.ips) == (2 if ground.six else 1)
    theirs.look()
    assert new.reaches(*old.ips), ours.log()
    assert old.reaches(*new.ips)
    node = Pod(theirs.ns, [theirs.versions()[0][3]])
    assert node.reaches(*new.ips), "the other node itself"
    assert new.reaches(*node.ips), "with a strict rp_filter there"
    assert Pod(ours.ns, []).reaches(*old.ips), "our node itself"
    assert ours.faults() == []


@pytest.mark.parametrize("conf", [VXLAN, DUAL], ids=["vxlan", "dual-stack"])
def test_a_mac_that_changes_there_is_followed_here(estate: Estate, conf: Json) -> None:
    ground = estate.on(conf, routed=True)
    theirs = Flanneld(ground, 2)
    old = theirs.pod(5)
    ours = estate.agent(1)
    until(lambda: "public-ip" in ground.annotations("n1"))
    new = ours.pod("a")
    theirs.look()
    assert new.reaches(*old.ips)
    theirs.macs = {4: "0e:2a:00:00:00:12", 6: "0e:2a:00:00:00:16"}
    theirs.start()
    theirs.look()
    until(lambda: new.reaches(*old.ips), 15)
    assert old.reaches(*new.ips)
    ground.send("DELETE", NODES.path(name="n2"))
    shown = ["nsenter", f"--net={ours.ns}", "ip", "route", "show", "10.244.2.0/24"]
    until(lambda: not subprocess.run(shown, capture_output=True, check=True).stdout, 15)


@pytest.mark.parametrize("conf", [VXLAN, HOSTGW], ids=["vxlan", "host-gw"])
def test_a_node_moves_and_its_pods_lose_no_packet(estate: Estate, conf: Json) -> None:
    """flanneld ends, an agent begins: the same device, MAC, address and range."""
    ground = estate.on(conf)
    theirs = Flanneld(ground, 2)
    old = theirs.pod(2)  # the first address that Muslin would give out, too
    ours = estate.agent(1)
    until(lambda: "public-ip" in ground.annotations("n1"))
    before = ground.annotations("n2")
    new = ours.pod("a")
    theirs.look()
    argv = ["nsenter", f"--net={new.ns}", "ping", "-n", "-q", "-i", "0.02", *old.ips]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as pinging:
        moved = estate.agent(2, theirs.ns)
        fresh = moved.pod("b")
        time.sleep(0.5)
        pinging.send_signal(signal.SIGINT)
        said = pinging.communicate(timeout=10)[0]
    assert " 0% packet loss" in said, said + moved.log()
    assert ("device flannel.1" in moved.log()) == theirs.vxlan
    assert "route 10.244.1.0/24 via" in moved.log()
    assert not set(fresh.ips) & {*old.ips, "10.244.2.1"}
    assert fresh.reaches(*new.ips, *old.ips)
    assert new.reaches(*fresh.ips)
    assert old.reaches(*new.ips, *fresh.ips), "of the same node: cni0 answers for it"
    assert ground.annotations("n2") == before
    assert moved.faults() == []


def test_at_the_end_the_network_is_an_object_and_nothing_changes(estate: Estate) -> None:
    ground = estate.on(VXLAN, routed=True)
    agents = [estate.agent(1), estate.agent(2)]
    until(lambda: all("public-ip" in ground.annotations(n) for n in ("n1", "n2")))
    one, two = agents[0].pod("a"), agents[1].pod("b")
    until(lambda: one.reaches(*two.ips))
    macs = [ground.annotations(n)["backend-data"] for n in ("n1", "n2")]
    pool = Pool(name="flannel4", cidr=ip_network("10.244.0.0/16"), block=24)
    network = Network(name="default", backend="flannel", pools=("flannel4",))
    ground.send("POST", KINDS[Pool].path(), to_object(pool))
    ground.send("POST", KINDS[Network].path(), to_object(network))
    until(lambda: "network default is in the store too" in str(agents[0].faults()))
    argv = ["nsenter", f"--net={one.ns}", "ping", "-n", "-q", "-i", "0.02", *two.ips]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as pinging:
        for agent in agents:
            agent.stop()
            file = agent.home / "agent.toml"
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join(x for x in lines if not x.startswith("flannel =")))
            agent.start()
        until(lambda: all(agent.ready() for agent in agents))
        third = agents[0].pod("c")
        pinging.send_signal(signal.SIGINT)
        said = pinging.communicate(timeout=10)[0]
    assert " 0% packet loss" in said
    assert third.reaches(*two.ips)
    assert agents[0].faults() == []
    for agent, mac in zip(agents, macs, strict=True):
        run(agent.ns, f"ip link show flannel.1 | grep -q {json.loads(mac)['VtepMAC']}")


def test_clean_removes_the_annotations_and_a_stop_does_not(estate: Estate) -> None:
    ground = estate.on(VXLAN)
    ours = estate.agent(1)
    until(lambda: "public-ip" in ground.annotations("n1"))
    ground.annotate("n1", public_ip_overwrite="203.0.113.7")
    until(lambda: ground.annotations("n1")["public-ip"] == "203.0.113.7")
    ours.stop()
    assert ground.annotations("n1")["kube-subnet-manager"] == "true"
    assert f"kubectl annotate node n1 {A}backend-data-" in ours.clean()
    assert ground.annotations("n1") == {"public-ip-overwrite": "203.0.113.7"}


def test_a_backend_that_muslin_has_not_is_refused_by_name(estate: Estate) -> None:
    ground = estate.on({**VXLAN, "Backend": {"Type": "wireguard"}})
    ns = ground.join(1)
    ground.node(1)
    agent = Agent(ground, 1, ns)
    estate.agents.append(agent)
    until(lambda: "Backend.Type 'wireguard'" in str(agent.status()["faults"]))
    assert not (agent.home / "net.d").exists()
    assert ground.annotations("n1") == {}
