"""One real agent on one node of the cluster: what it weighs, costs, and how fast it is.

A change is timed from the moment before the API server is told of it to the
kernel's own notification of the route (a peer's new block) or to the row in
node.db (a pod with wishes).
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.scale import estate, moments
from bench.scale.cost import cpu, memory, quantiles, together
from bench.scale.estate import APPS, Json, Length
from bench.scale.machine import Machine, Server, until
from muslin.agent import api
from muslin.errors import NotReady
from muslin.kernel import netns

SETTINGS = """
node = "{node}"
store = "kubernetes:{kubeconfig}"
state_dir = "{home}/state"
run_dir = "{home}/run"
cni_install = true
cni_bin_dir = "{home}/bin"
cni_conf_dir = "{home}/net.d"
"""


class Agent:
    """`muslin agent` on the machine; ended at the end of the block."""

    def __init__(self, machine: Machine, server: Server, name: str) -> None:
        self.machine, self.home = machine, machine.home / name
        self.home.mkdir()
        node = estate.name(estate.OURS)
        config = self.home / "agent.toml"
        text = SETTINGS.format(node=node, kubeconfig=server.kubeconfig, home=self.home)
        config.write_text(text)
        self._argv = ["-m", "muslin", "agent", "--config", str(config)]
        self._name = name

    def __enter__(self) -> Agent:
        self.began = time.monotonic()
        self.process = self.machine.start(self._argv, log=self._name)
        until(lambda: self.status()["ready"], "the agent is ready")
        self.ready = time.monotonic() - self.began
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)

    def status(self) -> Json:
        """What `muslin status` is told."""
        try:
            return api.ask(self.home / "run" / "api.sock", "status")
        except NotReady:
            return {"ready": False}

    def memory(self) -> dict[str, Any]:
        """MiB of each process, and of all together."""
        pids = self._parts()
        found: dict[str, Any] = {name: memory(pid) for name, pid in pids.items()}
        return found | {"together": together(pids.values())}

    def cpu(self) -> dict[str, float]:
        """Seconds of each process."""
        return {name: cpu(pid) for name, pid in self._parts().items()}

    def _parts(self) -> dict[str, int]:
        """Its processes by name."""
        pid = self.process.pid
        found = {"supervisor": pid}
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            found[words[3]] = int(child)  # python -m muslin NAME
        return found

    def add(self, pod: str, uid: str) -> float:
        """One pod, by the plugin that the agent installed; seconds."""
        path = netns.create(f"{self.machine.prefix}{pod}")
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={APPS};K8S_POD_NAME={pod};K8S_POD_UID={uid}"
        environ = {
            "CNI_COMMAND": "ADD", "CNI_CONTAINERID": f"c-{pod}", "CNI_NETNS": str(path),
            "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin", "CNI_ARGS": args,
        }  # fmt: skip
        config = {"cniVersion": "1.1.0", "name": "muslin", "type": "muslin-cni"}
        began = time.monotonic()
        done = subprocess.run(
            [self.home / "bin" / "muslin-cni"], input=json.dumps(config).encode(), env=environ,
            capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"ADD of {pod}: {done.stdout.decode()}")
        return time.monotonic() - began


def run(machine: Machine, server: Server, backend: str, length: Length) -> Json:
    """Everything about one agent with one backend."""
    server.ask("backend", backend=backend)
    server.ask("clear")
    with Agent(machine, server, backend) as agent:
        found: Json = {"ready_seconds": agent.ready}
        cpu_ready = agent.cpu()
        adds = [agent.add(*pod) * 1000 for pod in server.ask("pods", node=estate.OURS)["pods"]]
        found["add_ms"] = quantiles(adds)
        time.sleep(length.after)
        found["start"] = server.ask("figures") | {"agent_cpu": cpu_ready}
        found["memory_synced"] = agent.memory()
        server.ask("clear")
        found["idle"] = {"cpu": _rates(agent, lambda: time.sleep(length.idle))}
        found["idle"]["server"] = server.ask("figures")
        server.ask("clear")
        found["churn"] = _churn(machine, server, agent, length)
        found["churn"]["server"] = server.ask("figures")
        found["memory_churned"] = agent.memory()
        found["kernel"] = _kernel(machine)
    for pod in netns.names():
        if pod.startswith(f"{machine.prefix}p-"):
            netns.delete(pod)
    return found


def _rates(agent: Agent, what: Callable[[], object]) -> dict[str, float]:
    """Share of one CPU of each process while `what` runs."""
    before, began = agent.cpu(), time.monotonic()
    what()
    took = time.monotonic() - began
    return {name: (used - before[name]) / took for name, used in agent.cpu().items()}


def _churn(machine: Machine, server: Server, agent: Agent, length: Length) -> Json:
    nodes = length.size.nodes
    rates = {
        "blocks": max(nodes / 100, 5.0), "pods": length.pods_rate, "own": 5.0,
        "beats": nodes / estate.BEAT,
    }  # fmt: skip
    sent: Json = {}

    def churn() -> None:
        sent.update(
            server.ask("churn", seconds=length.churn, stay=length.stay, nodes=nodes, rates=rates)
        )

    database = agent.home / "state" / "node.db"
    with moments.routes(machine.path) as routes, moments.rows(database) as rows:
        used = _rates(agent, churn)
        time.sleep(length.after)
    blocks = [(routes[cidr] - at) * 1000 for cidr, at in sent["blocks"] if cidr in routes]
    own = [(rows[name] - at) * 1000 for name, at in sent["own"] if name in rows]
    return {
        "rates": rates,
        "cpu": used,
        "block_ms": quantiles(blocks),
        "blocks_missing": len(sent["blocks"]) - len(blocks),
        "pod_ms": quantiles(own),
        "pods_missing": len(sent["own"]) - len(own),
    }


def _kernel(machine: Machine) -> Json:
    """How much of the cluster is in the kernel."""

    def count(words: str) -> int:
        with netns.inside(machine.path):
            done = subprocess.run(words.split(), capture_output=True, text=True, check=False)
        return len(done.stdout.splitlines())

    return {
        "routes": count("ip -4 route show proto 109"),
        "neighbours": count("ip -4 neigh show nud permanent"),
        "fdb": count("bridge fdb show dev mu.vx1"),
    }
