"""A container runtime reduced to what is timed: starting CNI plugins and waiting for them.

Wall time is from before posix_spawn(3) to the exit seen by wait4(2), standard
output read to its end, as a runtime does it.  Configurations go in by memfd
and results come out by memfd, so nobody waits for a pipe.  CPU is what
wait4(2) says of the plugin and its children.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way to give a pod its network: a chain of plugins from one directory."""

    name: str
    plugins: tuple[Config, ...]
    directory: Path
    runtime: Config = field(default_factory=dict)  # runtimeConfig, for those that declare it

    @property
    def network(self) -> str:
        """The name in the configuration: letters, digits and dashes, by the specification."""
        return "bench-" + "".join(c if c.isalnum() else "-" for c in self.name)


@dataclass
class Sample:
    """One ADD or DEL of one pod, the whole chain."""

    wall: float  # seconds
    cpu: float  # seconds, of the plugins


class Failed(Exception):
    """A plugin answered with an error."""


class Call:
    """One plugin process."""

    def __init__(self, path: Path, verb: str, container: str, netns: str, config: Config) -> None:
        self.path = path
        self._in = os.memfd_create("stdin")
        os.write(self._in, json.dumps(config).encode())
        os.lseek(self._in, 0, os.SEEK_SET)
        self._out = os.memfd_create("stdout")
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(path.parent),
            "PATH": os.environ["PATH"],
        }
        actions = [(os.POSIX_SPAWN_DUP2, self._in, 0), (os.POSIX_SPAWN_DUP2, self._out, 1)]
        self.began = time.perf_counter()
        self.pid = os.posix_spawn(path, [str(path)], environment, file_actions=actions)

    def ended(self, status: int) -> Config:
        """The plugin's answer; Failed with its words if it was an error."""
        size = os.lseek(self._out, 0, os.SEEK_END)
        text = os.pread(self._out, size, 0)
        os.close(self._in)
        os.close(self._out)
        if status:
            raise Failed(f"{self.path.name}: {text.decode(errors='replace')[:500]}")
        answer: Config = json.loads(text) if text else {}
        return answer


class Pod:
    """One pod of one variant: its chain, step by step, as libcni goes through it."""

    def __init__(self, variant: Variant, container: str, netns: str) -> None:
        self.variant, self.container, self.netns = variant, container, netns
        self._result: Config = {}
        self._steps: Iterator[tuple[str, Config]] = iter(())
        self.began = self.cpu = 0.0

    def start(self, verb: str) -> Call:
        """Begin a verb; `went_on` continues it until it returns None."""
        order: Sequence[Config] = self.variant.plugins
        order = order if verb == "ADD" else tuple(reversed(order))
        self._verb, self._steps = verb, iter([(p["type"], p) for p in order])
        self.cpu = 0.0
        call = self._next()
        assert call is not None
        self.began = call.began
        return call

    def went_on(self, answer: Config, cpu: float) -> Call | None:
        """After one plugin: the next one of the chain, or None at its end."""
        self.cpu += cpu
        if self._verb == "ADD":
            self._result = answer
        return self._next()

    def _next(self) -> Call | None:
        step = next(self._steps, None)
        if step is None:
            return None
        kind, plugin = step
        config: Config = {"cniVersion": "1.0.0", "name": self.variant.network, **plugin}
        wanted = {
            k: v for k, v in self.variant.runtime.items() if plugin.get("capabilities", {}).get(k)
        }
        if wanted:
            config["runtimeConfig"] = self._own_ports(wanted)
        if self._result and not (self._verb == "ADD" and plugin is self.variant.plugins[0]):
            config["prevResult"] = self._result
        return Call(self.variant.directory / kind, self._verb, self.container, self.netns, config)

    def _own_ports(self, wanted: Config) -> Config:
        """Every pod its own host port: two cannot have one."""
        number = 20000 + int(self.container.rsplit("-", 1)[1]) % 20000
        ports = [{**p, "hostPort": number} for p in wanted.get("portMappings", ())]
        return {**wanted, "portMappings": ports} if ports else wanted


def together(pods: Sequence[Pod], verb: str, *, at_once: int = 0) -> list[Sample]:
    """One verb for all pods, at most `at_once` (0: all) in flight; samples as they end."""
    waiting, running, samples = list(reversed(pods)), {}, []
    most = at_once or len(pods)
    while waiting or running:
        while waiting and len(running) < most:
            pod = waiting.pop()
            call = pod.start(verb)
            running[call.pid] = (pod, call)
        pid, status, usage = os.wait4(-1, 0)
        now = time.perf_counter()
        if pid not in running:
            continue  # not one of ours
        pod, call = running.pop(pid)
        answer = call.ended(os.waitstatus_to_exitcode(status))
        more = pod.went_on(answer, usage.ru_utime + usage.ru_stime)
        if more is not None:
            running[more.pid] = (pod, more)
        else:
            samples.append(Sample(wall=now - pod.began, cpu=pod.cpu))
    return samples
