"""ADD and DEL beside the reference plugins, interleaved, in namespaces of their own.

    python -m bench.cni [--samples 500] [--write docs]

One namespace plays the node.  Muslin's agent runs in it as on any node; the
reference plugins are Debian's (containernetworking-plugins).  Every round
takes every variant once, in random order, each with a fresh pod namespace
made before the clock starts.  Then 50 and 200 pods at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from bench import report
from bench.runtime import Failed, Pod, Sample, Variant, together
from muslin.agent import api
from muslin.cni.install import install
from muslin.controller import networks
from muslin.errors import NotReady
from muslin.kernel import netns
from muslin.model import Network, Pool
from muslin.store.open import open_store

PEERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))  # Debian's place; the usual one
PORTS = [{"containerPort": 80, "protocol": "tcp"}]
RATES = {"ingressRate": 10**8, "ingressBurst": 10**6, "egressRate": 10**8, "egressBurst": 10**6}


def main() -> int:
    """Run it all; the exit status."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--samples", type=int, default=500)
    options.add_argument("--write", type=Path, help="write performance.md, .json and plots there")
    chosen = options.parse_args()
    if os.geteuid() != 0:
        print("run as root: network namespaces are made", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is removed
    with Node() as node:
        figures = measure(node, chosen.samples)
    print(report.markdown(figures))
    if chosen.write:
        report.write(figures, chosen.write)
    return 0


class Node:
    """A namespace with an uplink and Muslin's agent; this thread lives in it meanwhile."""

    def __enter__(self) -> Node:
        self._stack = contextlib.ExitStack()
        self.home = Path(tempfile.mkdtemp(prefix="bench", dir="/tmp"))
        self._stack.callback(shutil.rmtree, self.home, ignore_errors=True)
        self.prefix = f"mub-{os.getpid()}-"
        self._numbers = iter(range(10**9))
        self._stack.callback(self._clear)
        path = netns.create(self.prefix + "node")
        self._stack.enter_context(netns.inside(path))
        for words in (
            "link add eth0 type veth peer name eth1",
            "addr add 192.0.2.1/24 dev eth0",
            "link set dev eth0 up", "link set dev eth1 up", "link set dev lo up",
            "route add default via 192.0.2.254",
        ):  # fmt: skip
            subprocess.run(["ip", *words.split()], check=True)
        self._start_agent()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_agent(self) -> None:
        store = f"sqlite:{self.home}/store.db"
        pool = Pool(name="bench", cidr=ip_network("10.244.0.0/16"), block=20)
        network = Network(name="bench", backend="hostgw", pools=("bench",))

        async def seed() -> None:
            async with open_store(store) as opened:
                await networks.apply(opened, network, [pool])

        asyncio.run(seed())
        config = self.home / "agent.toml"
        config.write_text(
            f'node = "n1"\nstore = "{store}"\nuplink = "eth0"\nlog_level = "warning"\n'
            f'state_dir = "{self.home}/state"\nrun_dir = "{self.home}/run"\nspare = 1024\n'
        )
        self.argv = [sys.executable, "-m", "muslin", "agent", "--config", str(config)]
        self.agent = subprocess.Popen(self.argv)
        self._stack.callback(self._stop_agent)
        run, state = self.home / "run", self.home / "state"
        install(
            bin_dir=self.home / "bin", conf_dir=self.home / "conf",
            socket=run / "cni.sock", journal=state / "journal",
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(NotReady):
                if api.ask(run / "api.sock", "status")["ready"]:
                    return
            if time.monotonic() > deadline or self.agent.poll() is not None:
                raise SystemExit("the agent does not become ready")
            time.sleep(0.05)

    def _stop_agent(self) -> None:
        self.agent.terminate()
        self.agent.wait(20)

    def _clear(self) -> None:
        for name in netns.names():
            if name.startswith(self.prefix):
                netns.delete(name)

    def pods(self, variant: Variant, count: int) -> list[Pod]:
        """Pods to be, each with a namespace."""
        made = []
        for _ in range(count):
            container = f"bench-{next(self._numbers)}"
            made.append(Pod(variant, container, netns.create(f"{self.prefix}{container}")))
        return made

    def drop(self, pods: Sequence[Pod]) -> None:
        """The namespaces of pods that are gone."""
        for pod in pods:
            netns.delete(Path(pod.netns).name)

    def parts(self) -> dict[str, int]:
        """The agent's processes by name."""
        pid = self.agent.pid
        found = {"supervisor": pid}
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            found[words[3]] = int(child)
        return found

    def rss(self) -> dict[str, int]:
        """KiB of each of the agent's processes."""
        return {
            name: int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])
            for name, pid in self.parts().items()
        }

    def pss(self) -> dict[str, int]:
        """KiB each of the agent's processes costs the node: what they share is shared out."""
        return {
            name: int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0])
            for name, pid in self.parts().items()
        }

    def cpu(self) -> float:
        """Seconds of CPU that the agent has used."""
        ticks = 0
        for pid in self.parts().values():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def variants(node: Node) -> tuple[list[Variant], dict[str, str]]:
    """What there is to compare, and why some of it is not."""
    where = next((p for p in PEERS if (p / "bridge").exists()), None)
    ours: dict[str, Any] = {
        "type": "muslin-cni", "capabilities": {"portMappings": True, "bandwidth": True},
    }  # fmt: skip
    wishes = {"portMappings": PORTS, "bandwidth": RATES}
    found = [
        Variant("muslin", (ours,), node.home / "bin"),
        Variant("muslin, port and rates", (ours,), node.home / "bin", wishes),
    ]
    if where is None:
        return found, {"the peers": "apt-get install containernetworking-plugins"}

    def local(n: int) -> dict[str, Any]:
        return {
            "type": "host-local", "ranges": [[{"subnet": f"10.{n}.0.0/16"}]],
            "dataDir": str(node.home / "host-local"),
        }  # fmt: skip

    bridge = {"type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "ipam": local(91)}
    masked = {
        "type": "bridge",
        "bridge": "cni1",
        "isDefaultGateway": True,
        "ipMasq": True,
        "ipam": local(92),
    }
    way_out = {"routes": [{"dst": "0.0.0.0/0"}]}  # the bridges' isDefaultGateway sets their own
    ptp = {"type": "ptp", "ipam": local(93) | way_out}
    macvlan = {"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": local(95) | way_out}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    rates = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    found += [
        Variant("bridge + host-local", (bridge,), where),
        Variant("ptp + host-local", (ptp,), where),
        Variant("macvlan + host-local", (macvlan,), where),
        Variant("bridge + masquerade", (masked,), where),
        Variant("bridge + masq + portmap + bandwidth", (masked, portmap, rates), where, wishes),
    ]
    return _working(node, found)


def _working(node: Node, wanted: Sequence[Variant]) -> tuple[list[Variant], dict[str, str]]:
    """Those that work here, and the others' own words."""
    found, missing = [], {}
    for variant in wanted:
        pods = node.pods(variant, 1)
        try:
            together(pods, "ADD")
            together(pods, "DEL")
            found.append(variant)
        except Failed as e:
            missing[variant.name] = str(e)[:200]
        node.drop(pods)
    return found, missing


def measure(node: Node, samples: int) -> dict[str, Any]:
    """Every figure of one run."""
    chosen, missing = variants(node)
    busy = Busy()
    single: dict[str, dict[str, list[Sample]]] = {v.name: {"ADD": [], "DEL": []} for v in chosen}
    agent_cpu: dict[str, float] = {v.name: 0.0 for v in chosen}
    for n in range(samples + 5):
        for variant in random.sample(chosen, len(chosen)):
            pods = node.pods(variant, 1)
            before = node.cpu()
            for verb in ("ADD", "DEL"):
                taken = together(pods, verb)
                if n >= 5:  # the first rounds warm caches
                    single[variant.name][verb] += taken
            agent_cpu[variant.name] += node.cpu() - before
            node.drop(pods)
        _progress(f"one at a time: {n + 1} of {samples + 5}")
    crowd = {
        str(count): _crowd(node, [v for v in chosen if "port" not in v.name], count)
        for count in (50, 200)
    }
    _progress("")
    return {
        "samples": samples,
        "kernel": os.uname().release,
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "variants": [v.name for v in chosen],
        "missing": missing,
        "single": {
            name: {verb: [s.__dict__ for s in taken] for verb, taken in verbs.items()}
            for name, verbs in single.items()
        },
        "agent_cpu_per_pod": {k: v / (samples + 5) for k, v in agent_cpu.items() if "muslin" in k},
        "crowd": crowd,
        "rss_kib": node.rss(),
        "pss_kib": node.pss(),
        "noise": busy.said(),
    }


def _crowd(node: Node, chosen: Sequence[Variant], count: int) -> dict[str, Any]:
    """`count` pods at once, three rounds, interleaved; the medians of the rounds."""
    rounds: dict[str, list[dict[str, float]]] = {v.name: [] for v in chosen}
    for turn in range(3):
        for variant in random.sample(list(chosen), len(chosen)):
            _progress(f"{count} at once: round {turn + 1} of 3, {variant.name}")
            pods = node.pods(variant, count)
            took: dict[str, float] = {}
            for verb in ("ADD", "DEL"):
                began = time.perf_counter()
                taken = sorted(s.wall for s in together(pods, verb))
                took[f"{verb} rate"] = count / (time.perf_counter() - began)
                took[f"{verb} p50"] = statistics.median(taken)
                took[f"{verb} p99"] = taken[int(len(taken) * 0.99)]
            node.drop(pods)
            rounds[variant.name].append(took)
    return {
        name: {key: statistics.median(r[key] for r in taken) for key in taken[0]}
        for name, taken in rounds.items()
    }


class Busy:
    """How much of the machine others used meanwhile."""

    def __init__(self) -> None:
        self._before, self._load = self._ticks(), os.getloadavg()[0]

    def _ticks(self) -> tuple[int, int]:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
        return sum(fields), fields[7]  # all, stolen by the hypervisor

    def said(self) -> dict[str, float]:
        after = self._ticks()
        total = max(after[0] - self._before[0], 1)
        return {
            "load_before": self._load,
            "load_after": os.getloadavg()[0],
            "stolen": (after[1] - self._before[1]) / total,
        }


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")


if __name__ == "__main__":
    sys.exit(main())
