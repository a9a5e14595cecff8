"""Pods come and go while agents are killed at random; at the end everything must be accounted for.

    python -m bench.soak [--minutes 10] [--parallel 50] [--seed 1]

Workers behave as runtimes do: a failed ADD is followed by DEL and tried again,
a failed DEL is repeated.  A killer ends one part of the agent, or all of it,
every few seconds.  The audit then compares: devices, routes, neighbours, nft
elements, attachments and addresses in node.db, journal entries, open files and
memory.  Exit status 1 if anything is left or was given twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.cni import Node
from muslin.agent import api
from muslin.errors import NotReady
from muslin.kernel import netns
from muslin.kernel.linux import LinuxKernel
from muslin.plan.objects import is_pods

SETTLED = 30.0  # seconds for the last DELs to be completed
KILLS = (0.5, 6.0)  # seconds between two; with less the supervisor's backoff is most of the time


class Soak:
    """The whole run on one node."""

    def __init__(self, node: Node, parallel: int, seed: int) -> None:
        self.node, self.parallel = node, parallel
        self.rng = random.Random(seed)  # noqa: S311 - nothing secret
        self.counts: Counter[str] = Counter()
        self._holders: dict[str, str] = {}
        self._guard = threading.Lock()
        self._over = threading.Event()
        self.twice: list[str] = []

    def run(self, seconds: float) -> list[str]:
        """Storm for so long, then say everything that is wrong."""
        threading.Timer(seconds, self._over.set).start()
        self._await_ready()
        before = self._footprint()
        killer = threading.Thread(target=self._kill)
        killer.start()
        with ThreadPoolExecutor(self.parallel) as many:
            for done in [many.submit(self._work, n) for n in range(self.parallel)]:
                done.result()
        killer.join()
        self._await_ready()
        return self._audit(before)

    # ── the storm ───────────────────────────────────────────────────────────────────────────

    def _work(self, worker: int) -> None:
        serial = 0
        while not self._over.is_set():
            serial += 1
            name = f"soak-{worker}-{serial}"
            path = netns.create(f"{self.node.prefix}{name}")
            try:
                address = self._add(name, path)
                time.sleep(self.rng.random() * 0.3)
                with self._guard:
                    del self._holders[address]
                self._delete(name, path)
            finally:
                netns.delete(Path(path).name)

    def _add(self, name: str, path: str) -> str:
        while True:
            answer = self._cni("ADD", name, path)
            if "ips" in answer:
                break
            self.counts[f"ADD refused, code {answer.get('code')}"] += 1
            self._delete(name, path)
            time.sleep(0.1)
        address = str(answer["ips"][0]["address"])
        with self._guard:
            if address in self._holders:
                self.twice.append(f"{address}: {self._holders[address]} and {name}")
            self._holders[address] = name
        self.counts["ADD"] += 1
        return address

    def _delete(self, name: str, path: str) -> None:
        while "code" in (answer := self._cni("DEL", name, path)):
            self.counts[f"DEL refused, code {answer['code']}"] += 1
            time.sleep(0.1)
        self.counts["DEL"] += 1

    def _cni(self, verb: str, name: str, path: str) -> dict[str, Any]:
        config = {"cniVersion": "1.0.0", "name": "soak", "type": "muslin-cni"}
        done = subprocess.run(
            [self.node.home / "bin" / "muslin-cni"],
            env={
                "CNI_COMMAND": verb, "CNI_CONTAINERID": name, "CNI_NETNS": path,
                "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
            },
            input=json.dumps(config).encode(), capture_output=True, check=False,
        )  # fmt: skip
        return dict(json.loads(done.stdout)) if done.stdout else {}

    def _kill(self) -> None:
        while not self._over.wait(self.rng.uniform(*KILLS)):
            victim = self.rng.choice(["cni", "sync", "cni", "everything"])
            try:
                parts = self.node.parts()
                chosen = list(parts.values()) if victim == "everything" else [parts[victim]]
                for pid in chosen:
                    os.kill(pid, signal.SIGKILL)
            except (KeyError, ProcessLookupError, FileNotFoundError):
                continue  # it is just starting again
            self.counts[f"killed {victim}"] += 1
            if victim == "everything":
                self.node.agent.wait()
                self.node.agent = subprocess.Popen(self.node.argv)

    # ── the audit ───────────────────────────────────────────────────────────────────────────

    def _await_ready(self) -> None:
        deadline = time.monotonic() + SETTLED
        while time.monotonic() < deadline:
            try:
                answer = self._status()
                busy = answer["attachments"] or answer["journal"]["waiting"]
                if answer["ready"] and len(self.node.parts()) == 3 and not busy:
                    return
            except (NotReady, FileNotFoundError):
                pass
            time.sleep(0.1)

    def _status(self) -> dict[str, Any]:
        return api.ask(self.node.home / "run" / "api.sock", "status")

    def _footprint(self) -> dict[str, int]:
        parts = self.node.parts()
        files = {f"{n} files": len(list(Path(f"/proc/{p}/fd").iterdir())) for n, p in parts.items()}
        return files | {f"{n} KiB": kib for n, kib in self.node.rss().items()}

    def _audit(self, before: dict[str, int]) -> list[str]:
        wrong = [f"given twice: {t}" for t in self.twice]
        status = self._status()
        wrong += [f"attachment left: {a}" for a in status["attachments"]]
        wrong += [f"in the kernel: {o}" for o in LinuxKernel().observe() if is_pods(o)]
        size = sum(int(f) for f in status["free"].values())
        blocks = [b for b in status["blocks"] if ":" not in b]
        whole = sum(2 ** (32 - int(b.split("/")[1])) - 2 for b in blocks)
        if size != whole:
            wrong.append(f"addresses: {size} free of {whole}")
        journal = self.node.home / "state" / "journal"
        left = [p.name for p in journal.iterdir() if p.is_file()] if journal.exists() else []
        wrong += [f"journal entry left: {name}" for name in left]
        after = self._footprint()
        for name, count in after.items():
            room = 8 * 1024 if name.endswith("KiB") else 4
            if count > before.get(name, 0) + room:
                wrong.append(f"{name}: {before.get(name)} before, {count} after")
        self.counts.update(after)
        return wrong


def main() -> int:
    """Run it; 0 if all is accounted for."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--parallel", type=int, default=50)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is removed
    with Node() as node:
        soak = Soak(node, chosen.parallel, chosen.seed)
        wrong = soak.run(chosen.minutes * 60)
    for name, count in sorted(soak.counts.items()):
        print(f"{name:<28} {count}")
    for line in wrong:
        print(f"WRONG: {line}")
    print("all accounted for" if not wrong else f"{len(wrong)} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
