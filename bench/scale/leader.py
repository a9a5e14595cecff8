"""The real controller on the cluster: what it weighs, and what it writes for pods and blocks."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request

from bench.scale import estate
from bench.scale.cost import cpu, memory, writes
from bench.scale.estate import Json, Length
from bench.scale.machine import Machine, Server, until
from muslin.kernel import netns

PAGES = "127.0.0.1:9808"
PODS_RATE = 60.0  # lives begun per second


def run(machine: Machine, server: Server, length: Length) -> Json:
    """Everything about one controller that leads."""
    server.ask("clear")
    environ = {
        "MUSLIN_STORE": f"kubernetes:{server.kubeconfig}",
        "MUSLIN_LISTEN": PAGES,
        "MUSLIN_IDENTITY": "c1",
    }
    process = machine.start(["-m", "muslin", "controller"], log="controller", environ=environ)
    pid = process.pid

    def during(seconds: float, **rates: float) -> Json:
        return _during(server, pid, length, seconds=seconds, rates=rates)

    try:
        until(lambda: _metric(machine, "muslin_controller_leading") == 1, "the controller leads")
        until(lambda: _metric(machine, "muslin_pool_blocks") > 0, "it has counted the blocks")
        time.sleep(length.after)
        return {
            "start": server.ask("figures") | {"controller_cpu": cpu(pid)},
            "memory_synced": memory(pid),
            "pods": during(length.lives / PODS_RATE, pods=PODS_RATE),
            "blocks": during(length.churn, blocks=max(length.size.nodes / 100, 5.0)),
            "idle": during(length.idle),
            "memory_churned": memory(pid),
            "lag": _metric(machine, "muslin_controller_lag_seconds_sum")
            / max(_metric(machine, "muslin_controller_lag_seconds_count"), 1),
        }
    finally:
        process.terminate()
        process.wait(20)


def _during(
    server: Server, pid: int, length: Length, *, seconds: float, rates: dict[str, float]
) -> Json:
    """Counts and CPU while so much changes, beside kubelets' reports."""
    server.ask("clear")
    nodes = length.size.nodes
    rates = {"blocks": 0, "pods": 0, "own": 0, "beats": nodes / estate.BEAT} | rates
    before, began = cpu(pid), time.monotonic()
    sent = server.ask("churn", seconds=seconds, stay=length.stay, nodes=nodes, rates=rates)
    time.sleep(length.after)
    told, took = server.ask("figures"), time.monotonic() - began
    written = writes(told["requests"])
    renewals = sum(written.pop(what, 0) for what in ("create leases", "patch leases"))
    return {
        "seconds": took,
        "lives": sent["lives"],
        "moves": len(sent["blocks"]),
        "cpu": (cpu(pid) - before) / took,
        "renewals": renewals,
        "writes": written,
        "requests": told["requests"],
        "bytes": told["bytes"],
        "events": told["events"],
        "server_cpu": told["cpu"] / took,
    }


def _metric(machine: Machine, name: str) -> float:
    """The sum of a metric over its labels; 0 while nobody answers."""
    try:
        with netns.inside(machine.path):
            text = urllib.request.urlopen(f"http://{PAGES}/metrics", timeout=2).read().decode()
    except (urllib.error.URLError, OSError):
        return 0.0
    lines = (line.rpartition(" ") for line in text.splitlines() if re.match(rf"{name}[ {{]", line))
    return sum(float(value) for _, _, value in lines)
