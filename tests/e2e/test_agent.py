"""Real agents in a lab on bad days: killed under traffic, readdressed, without a store."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import muslin
from muslin.agent.api import ask
from muslin.errors import NotReady
from muslin.kernel import netns
from muslin.kernel.linux import LinuxKernel
from muslin.lab import build, cluster, pods, state
from muslin.lab.boot import environment, socket_of
from muslin.plan.objects import Link, Neigh, Route

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

LABS = Path(__file__).parents[2] / "labs"
UNIQUE = f"a{os.getpid() % 100000}"


class Estate:
    """One lab, whose agents can be killed and started again."""

    def __init__(self, lab: str) -> None:
        self.lab = lab
        self.started: list[subprocess.Popen[bytes]] = []

    def ns(self, thing: str) -> str:
        return netns.path_of(build.namespace(self.lab, thing))

    def pod_ns(self, pod: str) -> str:
        return netns.path_of(build.pod_namespace(self.lab, pod))

    def status(self, node: str) -> dict[str, Any]:
        return ask(socket_of(self.lab, node, "api"), "status")

    def ready(self, node: str) -> bool:
        try:
            return bool(self.status(node)["ready"])
        except NotReady:
            return False

    def part(self, node: str, part: str) -> int:
        """The process of one part of a node's agent; 0 while there is none."""
        return next((p for p in children(self.pid(node)) if part in arguments(p)), 0)

    def pid(self, node: str) -> int:
        """The supervisor's process: nsenter becomes it."""
        for process in reversed(self.started):
            if process.poll() is None and process.args[-1].endswith(f"/{node}/agent.toml"):  # type: ignore[union-attr,index]
                return process.pid
        found = state.load(self.lab)
        assert found is not None
        return next(p.pid for p in found.processes if p.name == node)

    def kill(self, node: str, number: int = signal.SIGKILL) -> None:
        """End the supervisor and both parts, at once."""
        everything = [self.pid(node), *children(self.pid(node))]
        for pid in everything:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until(lambda: not any(alive(pid) for pid in everything))

    def start(self, node: str, *, wait: bool = True, package: Path | None = None) -> None:
        config = state.directory(self.lab) / node / "agent.toml"
        with (state.directory(self.lab) / f"{node}.log").open("ab") as log:
            argv = [sys.executable, "-m", "muslin", "agent", "--config", str(config)]
            self.started.append(
                subprocess.Popen(
                    ["nsenter", f"--net={self.ns(node)}", "--", *argv],
                    stderr=log,
                    env=environment() | ({"PYTHONPATH": str(package)} if package else {}),
                )
            )
        if wait:
            until(lambda: self.ready(node))
            until(lambda: self.cni("STATUS", node, "", "") == {})  # a killed one's socket remains

    def cni(self, verb: str, node: str, container: str, ns: str, **more: object) -> Any:
        """One call of the node's real CNI binary; its JSON, errors included."""
        config = {"cniVersion": "1.1.0", "name": "storm", "type": "muslin-cni", **more}
        done = subprocess.run(
            [state.directory(self.lab) / node / "cni" / "muslin-cni"],
            env={
                "CNI_COMMAND": verb,
                "CNI_CONTAINERID": container,
                "CNI_NETNS": ns,
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/opt/cni/bin",
            },
            input=json.dumps(config).encode(),
            capture_output=True,
            check=False,
        )
        return json.loads(done.stdout) if done.stdout else {}

    def routes(self, node: str) -> set[str]:
        with netns.inside(self.ns(node)):
            observed = LinuxKernel().observe()
        return {f"{o.dst} via {o.via}" for o in observed if isinstance(o, Route) and o.via}

    def pods_part(self, node: str) -> set[str]:
        """Everything on the node that belongs to pods."""
        with netns.inside(self.ns(node)):
            observed = LinuxKernel().observe()
        mine = (o for o in observed if isinstance(o, Link | Route | Neigh) and o.dev)
        return {str(o) for o in mine if str(o.dev).startswith("mu") and "." not in str(o.dev)}

    def ip(self, thing: str, *words: str) -> None:
        subprocess.run(["nsenter", f"--net={self.ns(thing)}", "ip", *words], check=True)


def children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except FileNotFoundError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(what: Callable[[], bool], seconds: float = 20.0) -> float:
    """Wait for a condition; how long it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "never came true"
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture
def estate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Estate]:
    """A lab of its own; `indirect` parameters are (file, store)."""
    file, store = getattr(request, "param", ("two-racks", "sqlite"))
    home = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))
    monkeypatch.setenv("MUSLIN_LAB_DIR", str(home))
    lab = f"{UNIQUE}-{abs(hash(request.node.name)) % 10000}"
    try:
        cluster.up((LABS / f"{file}.toml").read_text(), stem=file, name=lab, store=store)
        made = Estate(lab)
        yield made
        for process in made.started:
            process.kill()
            process.wait()
    finally:
        cluster.down(lab)
        shutil.rmtree(home, ignore_errors=True)


class Traffic:
    """Datagrams and one TCP connection between two pods, counted, until stopped."""

    def __init__(self, source: str, target: str, address: str) -> None:
        self.sent = self.echoed = self.tcp_rounds = 0
        self.tcp_fault: OSError | None = None
        self._stop = threading.Event()
        with netns.inside(target):
            self._udp_server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._tcp_server = socket.create_server((address, 0))
        self._udp_server.bind((address, 0))
        with netns.inside(source):
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._tcp = socket.create_connection(self._tcp_server.getsockname(), timeout=5)
        self._udp.connect(self._udp_server.getsockname())
        self._udp.settimeout(0.2)
        self._udp_server.settimeout(0.2)
        self._peer, _ = self._tcp_server.accept()
        self._peer.settimeout(5)
        self._threads = [
            threading.Thread(target=t) for t in (self._echo, self._datagrams, self._stream)
        ]
        for t in self._threads:
            t.start()

    def _echo(self) -> None:
        while not self._stop.is_set():
            try:
                data, sender = self._udp_server.recvfrom(64)
            except TimeoutError:
                continue
            self._udp_server.sendto(data, sender)

    def _datagrams(self) -> None:
        while not self._stop.is_set():
            self._udp.send(b"%d" % self.sent)
            self.sent += 1
            try:
                self._udp.recv(64)
                self.echoed += 1
            except OSError:
                pass  # lost, or refused: either is counted
            time.sleep(0.001)

    def _stream(self) -> None:
        try:
            while not self._stop.is_set():
                self._tcp.sendall(b"x")
                self._peer.sendall(self._peer.recv(1))
                self._tcp.recv(1)
                self.tcp_rounds += 1
                time.sleep(0.001)
        except OSError as e:
            self.tcp_fault = e

    def stop(self) -> None:
        self._stop.set()
        for t in self._threads:
            t.join()
        for s in (self._udp, self._udp_server, self._tcp, self._tcp_server, self._peer):
            s.close()


def test_an_agent_that_is_killed_and_started_again_loses_no_packet(estate: Estate) -> None:
    pods.add(estate.lab, "a", "n1")
    b = pods.add(estate.lab, "b", "n3")
    traffic = Traffic(estate.pod_ns("a"), estate.pod_ns("b"), str(b.address(4)))
    try:
        for node in ("n1", "n3"):
            before = traffic.sent
            estate.kill(node)
            until(lambda at=before: traffic.sent > at + 50)  # without an agent
            estate.start(node)
            until(lambda at=traffic.sent: traffic.sent > at + 50)  # type: ignore[misc]
    finally:
        traffic.stop()
    assert traffic.sent > 200
    assert traffic.sent - traffic.echoed == 0
    assert traffic.tcp_fault is None
    assert traffic.tcp_rounds > 100
    for node in ("n1", "n3"):
        log = (state.directory(estate.lab) / f"{node}.log").read_text()
        restarted = log.split("agent.started")[-1]
        assert "kernel.changed" not in restarted  # it found everything as it should be


def test_crash_loops_and_another_version_of_the_package_lose_no_packet(
    estate: Estate, tmp_path: Path
) -> None:
    pods.add(estate.lab, "a", "n1")
    b = pods.add(estate.lab, "b", "n3")
    shutil.copytree(Path(muslin.__file__).parent, tmp_path / "muslin")
    init = tmp_path / "muslin" / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "99.'))
    traffic = Traffic(estate.pod_ns("a"), estate.pod_ns("b"), str(b.address(4)))
    try:
        for _ in range(5):
            estate.kill("n1")
            estate.start("n1", wait=False)
            until(lambda: len(children(estate.pid("n1"))) == 2)
        until(lambda: estate.ready("n1"))
        estate.kill("n1", signal.SIGTERM)  # as a package upgrade does
        estate.start("n1", package=tmp_path)
        maps = Path(f"/proc/{estate.part('n1', 'cni')}/environ").read_text()
        assert f"PYTHONPATH={tmp_path}" in maps
        pods.add(estate.lab, "c", "n1")
        until(lambda at=traffic.sent: traffic.sent > at + 50)  # type: ignore[misc]
    finally:
        traffic.stop()
    assert traffic.sent > 200
    assert traffic.sent - traffic.echoed == 0
    assert traffic.tcp_fault is None


@pytest.mark.parametrize("part", ["cni", "sync"])
def test_either_part_dies_and_comes_back_alone(estate: Estate, part: str) -> None:
    other = {"cni": "sync", "sync": "cni"}[part]
    stays, dies = estate.part("n1", other), estate.part("n1", part)
    os.kill(dies, signal.SIGKILL)
    until(lambda: estate.part("n1", part) not in (0, dies))
    until(lambda: estate.ready("n1"))
    assert estate.part("n1", other) == stays
    until(lambda: estate.cni("STATUS", "n1", "", "") == {})
    pods.add(estate.lab, "after", "n1")


def test_500_pods_come_and_go_without_a_trace(estate: Estate) -> None:
    spaces = [netns.create(f"mulab-{estate.lab}-x{i}") for i in range(8)]
    pid = estate.part("n1", "cni")

    def cycles(worker: int) -> list[str]:
        given = []
        for i in range(63):
            made = estate.cni("ADD", "n1", f"c{worker}-{i}", spaces[worker])
            assert "ips" in made, made
            given.append(made["ips"][0]["address"])
            assert estate.cni("DEL", "n1", f"c{worker}-{i}", spaces[worker]) == {}
            with netns.inside(spaces[worker]):  # as a runtime's next pod finds a fresh namespace
                until(lambda: len(socket.if_nameindex()) == 1)
        return given

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    try:
        with ThreadPoolExecutor(8) as many:
            list(many.map(lambda w: estate.cni("ADD", "n1", f"w{w}", spaces[w]), range(8)))
            list(many.map(lambda w: estate.cni("DEL", "n1", f"w{w}", spaces[w]), range(8)))
            before, rss = descriptors(), resident(pid)
            given = [a for part in many.map(cycles, range(8)) for a in part]
        assert len(given) == 504
        assert len(set(given)) == 504  # 30 s of rest: nobody had another's
        until(lambda: estate.status("n1")["attachments"] == [])
        assert estate.pods_part("n1") == set()
        until(lambda: descriptors() <= before)
        assert resident(pid) < rss + 8 * 1024  # KiB
    finally:
        for i in range(8):
            netns.delete(f"mulab-{estate.lab}-x{i}")


def resident(pid: int) -> int:
    """KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("VmRSS")).split()[1])


def test_kills_in_the_middle_of_a_storm_leave_nothing_and_give_nothing_twice(
    estate: Estate,
) -> None:
    """Runtimes retry; agents die at random moments; in the end the audit is exact."""
    rng, workers = random.Random(5), 6
    spaces = [netns.create(f"mulab-{estate.lab}-y{i}") for i in range(workers)]
    holders: dict[str, str] = {}
    guard, done, twice = threading.Lock(), threading.Event(), []

    def worker(n: int) -> None:
        for i in range(20):
            name = f"s{n}-{i}"
            while "ips" not in (made := estate.cni("ADD", "n1", name, spaces[n])):
                estate.cni("DEL", "n1", name, spaces[n])  # what a runtime does after a failed ADD
                time.sleep(0.05)
            address = made["ips"][0]["address"]
            with guard:
                if address in holders:
                    twice.append((address, holders[address], name))
                holders[address] = name
            time.sleep(rng.random() * 0.05)
            with guard:
                del holders[address]
            while "code" in estate.cni("DEL", "n1", name, spaces[n]):
                time.sleep(0.05)

    def killer() -> None:
        while not done.wait(rng.random() * 0.5):
            estate.kill("n1")
            estate.start("n1", wait=False)
            until(lambda: done.is_set() or estate.ready("n1"))  # else a slow machine never serves

    killing = threading.Thread(target=killer)
    killing.start()
    try:
        with ThreadPoolExecutor(workers) as many:
            list(many.map(worker, range(workers)))
    finally:
        done.set()
        killing.join()
        for i in range(workers):
            netns.delete(f"mulab-{estate.lab}-y{i}")
    until(lambda: estate.ready("n1"))
    assert len(estate.started) >= 2  # it really was killed
    assert twice == []
    until(lambda: estate.status("n1")["attachments"] == [])
    assert estate.pods_part("n1") == set()


def test_gc_and_status_through_the_binary(estate: Estate) -> None:
    spaces = [netns.create(f"mulab-{estate.lab}-z{i}") for i in range(2)]
    try:
        for i, ns in enumerate(spaces):
            assert "ips" in estate.cni("ADD", "n1", f"g{i}", ns)
        assert estate.cni("STATUS", "n1", "", "") == {}
        valid = [{"containerID": "g0", "ifname": "eth0"}]
        assert estate.cni("GC", "n1", "", "", **{"cni.dev/valid-attachments": valid}) == {}
        until(lambda: len(estate.status("n1")["attachments"]) == 1)
        left = [a["container"] for a in estate.status("n1")["attachments"]]
        assert left == ["g0"]
        with netns.inside(spaces[1]):
            assert [name for _, name in socket.if_nameindex()] == ["lo"]
        assert estate.cni("DEL", "n1", "g0", spaces[0]) == {}
        estate.kill("n1")
        assert estate.cni("STATUS", "n1", "", "")["code"] == 50
        assert estate.cni("ADD", "n1", "g2", spaces[0])["code"] == 11
    finally:
        for i in range(2):
            netns.delete(f"mulab-{estate.lab}-z{i}")


def test_a_node_that_changes_its_address_is_followed_without_breaking_others(
    estate: Estate,
) -> None:
    a, b = pods.add(estate.lab, "a", "n1"), pods.add(estate.lab, "b", "n2")
    far = pods.add(estate.lab, "far", "n3")
    traffic = Traffic(estate.pod_ns("a"), estate.pod_ns("far"), str(far.address(4)))
    try:
        block = next(x for x in estate.status("n2")["blocks"] if ":" not in x)
        assert f"{block} via 192.0.2.12" in estate.routes("n1")
        # The kernel drops every route by way of the old address's link with it.
        estate.ip("n2", "addr", "del", "192.0.2.12/24", "dev", "eth0")
        estate.ip("n2", "addr", "add", "192.0.2.99/24", "dev", "eth0")
        estate.ip("n2", "route", "replace", "default", "via", "192.0.2.1")
        until(lambda: f"{block} via 192.0.2.99" in estate.routes("n1"), 5)
        until(lambda: reaches(estate.pod_ns("a"), estate.pod_ns("b"), str(b.address(4))), 5)
        until(lambda: reaches(estate.pod_ns("far"), estate.pod_ns("b"), str(b.address(4))), 5)
    finally:
        traffic.stop()
    assert a.address(4) != b.address(4)
    assert traffic.sent - traffic.echoed == 0  # n1 to n3 has not noticed
    assert traffic.tcp_fault is None


def reaches(source: str, target: str, address: str) -> bool:
    with netns.inside(target):
        server = socket.create_server((address, 0))
    with netns.inside(source):
        client = socket.socket()
    client.settimeout(0.5)
    try:
        client.connect(server.getsockname())
    except OSError:
        return False
    finally:
        client.close()
        server.close()
    return True


def test_a_node_that_is_gone_is_forgotten_and_comes_back_to_its_block(estate: Estate) -> None:
    config = state.directory(estate.lab) / "n2" / "agent.toml"
    config.write_text(config.read_text().replace("block_ttl = 3600", "block_ttl = 5"))
    estate.kill("n2")
    estate.start("n2")  # now under a lease of 5 seconds
    blocks = estate.status("n2")["blocks"]
    before = estate.routes("n1")
    assert any(r.startswith(blocks[0]) for r in before)
    began = time.monotonic()
    until(lambda: time.monotonic() > began + 7)
    assert estate.routes("n1") == before  # kept alive for longer than its lease
    estate.kill("n2")
    took = until(lambda: not any(r.startswith(blocks[0]) for r in estate.routes("n1")), 10)
    assert took > 1  # not at once: the block outlives its node's last word
    estate.start("n2")
    assert estate.status("n2")["blocks"] == blocks
    until(lambda: estate.routes("n1") == before, 5)


@pytest.mark.parametrize("estate", [("two-racks", "etcd")], indirect=True)
def test_pods_start_while_etcd_is_away_and_nothing_is_undone(estate: Estate) -> None:
    pods.add(estate.lab, "a", "n1")
    before = estate.routes("n1")
    found = state.load(estate.lab)
    assert found is not None
    etcd = next(p for p in found.processes if p.name == "etcd")
    os.kill(etcd.pid, signal.SIGKILL)
    until(lambda: not alive(etcd.pid))
    b = pods.add(estate.lab, "b", "n1")  # from the block that n1 holds
    assert reaches(estate.pod_ns("a"), estate.pod_ns("b"), str(b.address(4)))
    estate.kill("n1")
    estate.start("n1", wait=False)
    until(lambda: "not heard from yet" in " ".join(faults(estate, "n1")))
    c = pods.add(estate.lab, "c", "n1")  # a restarted agent remembers
    assert reaches(estate.pod_ns("a"), estate.pod_ns("c"), str(c.address(4)))
    assert estate.routes("n1") == before


def faults(estate: Estate, node: str) -> list[str]:
    try:
        return list(estate.status(node)["faults"])
    except NotReady:
        return []
