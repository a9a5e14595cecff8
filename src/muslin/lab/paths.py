"""The way a packet takes from each pod, as the kernel of its node would route it now.

Not what was planned and not what was once measured: `ip route get … iif` asks
the kernel's own forwarding lookup (rules, tables, next hops) about a packet
that comes out of that pod.

    local     the target is on the same node
    direct    a plain route; the next hop is the target, or its node
    routed    a plain route through a router that is not ours
    tunnel    through a device of the backend (mu.*)
    none      no route
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal

import msgspec

from muslin.lab import build
from muslin.lab.check import endpoints
from muslin.lab.pods import IFNAME
from muslin.lab.probe import Endpoint
from muslin.lab.state import State
from muslin.model import Address, device_name, is_pod_device

Way = Literal["local", "direct", "routed", "tunnel", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One pod's way to one target over one IP version."""

    source: str
    target: str
    version: int
    way: Way
    dev: str = ""
    via: str = ""


def paths(now: State) -> tuple[Path, ...]:
    """From every pod to everything else."""
    ends = endpoints(now, now.topology)
    found: list[Path] = []
    for node in now.topology.of_role("node"):
        sources = [e for e in ends if e.kind == "pod" and e.node == node.name]
        devs = {p.name: device_name(p.container, IFNAME) for p in now.pods}
        questions = list(_questions(sources, ends))
        answers = _look_up(build.namespace(now.lab, node.name), questions, devs)
        for source, target, version in questions:
            key = (source.address(version), target.address(version))
            found.append(judge(source, target, version, answers.get(key), ends))
    return tuple(found)


def judge(
    source: Endpoint,
    target: Endpoint,
    version: int,
    answer: Mapping[str, Any] | None,
    ends: Iterable[Endpoint],
) -> Path:
    """What one answer of `ip -j route get` means."""
    names = {"source": source.name, "target": target.name}
    if answer is None:
        return Path(**names, version=version, way="none")
    dev, via = str(answer.get("dev", "")), str(answer.get("gateway", ""))
    near = next((e for e in ends if e.name == target.node), target)
    way: Way = "direct"
    if answer.get("type") == "local" or is_pod_device(dev):
        way = "local"
    elif dev.startswith("mu."):
        way = "tunnel"
    elif via and ip_address(via) != near.address(version):
        way = "routed"
    return Path(**names, version=version, way=way, dev=dev, via=via)


def summary(found: Sequence[Path]) -> dict[tuple[str, str], str]:
    """One word per pair; two if the IP versions take different ways."""
    words: dict[tuple[str, str], list[str]] = {}
    for path in found:
        known = words.setdefault((path.source, path.target), [])
        if path.way not in known:
            known.append(path.way)
    return {pair: "/".join(ways) for pair, ways in words.items()}


def _questions(
    sources: Iterable[Endpoint], ends: Sequence[Endpoint]
) -> Iterator[tuple[Endpoint, Endpoint, int]]:
    for source in sources:
        for target in ends:
            for version in (4, 6):
                if target != source and source.address(version) and target.address(version):
                    yield source, target, version


def _look_up(
    namespace: str,
    questions: Sequence[tuple[Endpoint, Endpoint, int]],
    devs: Mapping[str, str],
) -> dict[tuple[Address | None, Address | None], Mapping[str, Any]]:
    """All questions in one process; a question without a route has no answer."""
    lines = [
        f"route get {target.address(version)} from {source.address(version)}"
        f" iif {devs[source.name]}"
        for source, target, version in questions
    ]
    done = subprocess.run(
        ["ip", "-j", "-n", namespace, "-force", "-batch", "-"],
        input="\n".join(lines) + "\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    answers: dict[tuple[Address | None, Address | None], Mapping[str, Any]] = {}
    for line in done.stdout.splitlines():
        if line.strip():
            for answer in msgspec.json.decode(line):
                answers[ip_address(answer["from"]), ip_address(answer["dst"])] = answer
    return answers
