"""Starting what runs in a lab: the store, the agents; and waiting until all of it is ready.

A process that ends while it should start is reported with the end of its log,
because the lab, and the log with it, is gone the next moment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from muslin.agent.api import ask
from muslin.cni.install import install
from muslin.config import PREFIX as VARIABLE_PREFIX
from muslin.errors import MuslinError, NotReady
from muslin.kernel import netns
from muslin.lab import build, state
from muslin.lab.process import Process, last_lines, spawn
from muslin.lab.state import State
from muslin.lab.topology import UPLINK, Host

Say = Callable[[str], None]  # told what happens, for a person who waits

DEADLINE = 30.0  # seconds for the store, and again for all agents
POLL = 0.05
PATIENCE = 2.0  # seconds for one answer; an agent that is busy longer is not well
BLOCK_TTL = 3600  # a lab seldom lives a day, and a block should not outlive it


class Boot:
    """The processes of one lab being started; `state` is what is on disk."""

    def __init__(self, now: State, say: Say) -> None:
        self.state = now
        self.say = say
        self.topology = now.topology
        self.home = state.directory(now.lab)

    def start_store(self) -> None:
        """Have a store that answers and holds the lab's network."""
        if self.state.store == "etcd":
            self.say("starting etcd")
            url = f"http://{build.mgmt_address()}:2379"
            argv = ["etcd", "--data-dir", str(self.home / "etcd"), "--listen-client-urls", url,
                    "--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:2380",
                    "--unsafe-no-fsync", "--logger", "zap", "--log-level", "warn"]  # fmt: skip
            self._spawn("etcd", build.MGMT, argv)
        self.say(f"writing network {self.topology.network.name} into the store")
        argv = [sys.executable, "-m", "muslin.lab.seed", self.store_url(), self.state.lab]
        if self.state.store == "etcd":
            argv = self._within(build.MGMT, argv)
        deadline = time.monotonic() + DEADLINE
        while True:
            done = subprocess.run(
                argv, input=self.state.source, capture_output=True, text=True, check=False,
                env=environment(),
            )  # fmt: skip
            if done.returncode == 0:
                return
            self._refuse_dead()
            if self.state.store != "etcd" or time.monotonic() > deadline:
                why = done.stderr.strip() or f"exit status {done.returncode}"
                raise MuslinError(f"lab {self.state.lab}: the store takes no network: {why}")

    def store_url(self) -> str:
        """The store as every agent of this lab reaches it."""
        if self.state.store == "etcd":
            return f"etcd://{build.mgmt_address()}:2379"
        return f"sqlite:{self.home / 'store.db'}"

    def start_agents(self) -> None:
        """One agent per node and member, all at once."""
        self.say(f"starting {len(self.topology.agents)} agents")
        for host in self.topology.agents:
            own = self.home / host.name
            for part in ("run", "state"):
                (own / part).mkdir(mode=0o700, parents=True)
            config = own / "agent.toml"
            config.write_text(self._config(host))
            if host.role == "node":
                where = cni_of(self.state.lab, host.name)
                cni = socket_of(self.state.lab, host.name, "cni")
                install(
                    bin_dir=where, conf_dir=where, socket=cni, journal=own / "state" / "journal"
                )
            argv = [sys.executable, "-m", "muslin", "agent", "--config", str(config)]
            self._spawn(host.name, host.name, argv)

    def wait_ready(self) -> None:
        """Until every agent is ready and sees all others; MuslinError says who is not and why."""
        waiting = list(self.topology.agents)
        deadline = time.monotonic() + DEADLINE
        seen, total = -1, len(waiting)
        last: dict[str, Any] = {}
        while waiting:
            self._refuse_dead()
            answers = {h.name: answer(self.state.lab, h) for h in waiting}
            last |= answers
            waiting = [h for h in waiting if not self._is_ready(answers[h.name])]
            if len(waiting) != seen:
                seen = len(waiting)
                self.say(f"agents ready: {total - seen} of {total}")
            if waiting and time.monotonic() > deadline:
                raise self._late(waiting[0], last[waiting[0].name])
            if waiting:
                time.sleep(POLL)

    def _is_ready(self, answer: Mapping[str, Any]) -> bool:
        others = len(self.topology.agents) - 1
        return bool(answer.get("ready")) and len(answer.get("peers", ())) >= others

    def _late(self, host: Host, answer: Mapping[str, Any]) -> MuslinError:
        faults = "; ".join(answer.get("faults", ())) or f"sees {len(answer.get('peers', ()))} peers"
        log = next(Path(p.log) for p in self.state.processes if p.name == host.name)
        said = "\n  ".join(["", *last_lines(log)])
        return MuslinError(
            f"lab {self.state.lab}: {host.name} is not ready in {DEADLINE:.0f} s: {faults}{said}",
            hint="its log ends as above; the lab was taken down",
        )

    def _refuse_dead(self) -> None:
        for process in self.state.processes:
            if not process.alive:
                said = "\n  ".join(["", *last_lines(Path(process.log), 12)])
                what = "etcd" if process.name == "etcd" else f"the agent of {process.name}"
                raise MuslinError(
                    f"lab {self.state.lab}: {what} ended while starting{said}",
                    hint="its log ends as above; the lab was taken down",
                )

    def _config(self, host: Host) -> str:
        own = self.home / host.name
        values: dict[str, object] = {
            "node": host.name,
            "store": self.store_url(),
            "state_dir": str(own / "state"),
            "run_dir": str(own / "run"),
            "uplink": UPLINK,
            "pods": host.role == "node",
            "block_ttl": BLOCK_TTL,
            "global_forwarding": True,  # before Linux 6.17; the namespaces are ours
        }
        # JSON's strings, numbers and booleans are TOML's too.
        lines = (f"{key} = {msgspec.json.encode(v).decode()}" for key, v in values.items())
        return "\n".join(lines) + "\n"

    def _spawn(self, name: str, thing: str, argv: list[str]) -> None:
        def record(process: Process) -> None:
            processes = (*self.state.processes, process)
            self.state = msgspec.structs.replace(self.state, processes=processes)
            state.save(self.state)

        log = self.home / f"{name}.log"
        spawn(name, self._within(thing, argv), log=log, env=environment(), record=record)

    def _within(self, thing: str, argv: list[str]) -> list[str]:
        path = netns.path_of(build.namespace(self.state.lab, thing))
        return ["nsenter", f"--net={path}", "--", *argv]


def answer(lab: str, host: Host) -> dict[str, Any]:
    """One agent's own view of itself, or why there is none."""
    try:
        return ask(socket_of(lab, host.name, "api"), "status", timeout=PATIENCE)
    except NotReady as e:
        return {"node": host.name, "ready": False, "faults": [e.message]}


def socket_of(lab: str, node: str, which: Literal["api", "cni"]) -> Path:
    """Where a node's agent listens."""
    return state.directory(lab) / node / "run" / f"{which}.sock"


def cni_of(lab: str, node: str) -> Path:
    """One node's CNI directory: the executable knows its agent's socket, as on a real machine."""
    return state.directory(lab) / node / "cni"


def environment() -> dict[str, str]:
    """Our environment without settings: a lab's agents are configured by their files alone."""
    return {k: v for k, v in os.environ.items() if not k.startswith(VARIABLE_PREFIX)}
