"""A thousand agents lose their API server in one instant: what asks it for what when it is back.

relist    the server has forgotten what happened: every watch is told 410
resume    its history is there: every watch goes on from its version
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter

from bench.scale.cost import quantiles
from bench.scale.estate import Json, Length
from bench.scale.machine import Machine, Server

AGENTS = 500  # in one process, at most


def run(machine: Machine, server: Server, length: Length) -> Json:
    """Both storms, each with a server of its own in the place of the one before."""
    server.kill()
    server = machine.serve(tls=False)
    nodes = length.size.nodes
    crowds = [
        _crowd(machine, server, range(first, min(first + AGENTS, nodes)), length)
        for first in range(0, nodes, AGENTS)
    ]
    try:
        for crowd in crowds:
            _line(crowd)
        found: Json = {"agents": nodes, "spread": length.spread}
        found["first"] = _figures(server)
        for how in ("relist", "resume"):
            time.sleep(length.settle)
            server.ask("touch")  # later than what any watch has come to
            server.kill()
            time.sleep(length.down)  # and as long as the next one takes to read the journal
            server = machine.serve(tls=False, keep=how == "resume")
            found[how] = _storm(server, crowds)
        return found
    finally:
        for crowd in crowds:
            crowd.terminate()
            crowd.wait(30)


def _crowd(
    machine: Machine, server: Server, nodes: range, length: Length
) -> subprocess.Popen[bytes]:
    argv = ["-m", "bench.scale.crowd", "--kubeconfig", str(server.kubeconfig)]
    for name, value in {
        "first": nodes.start, "count": len(nodes), "spread": length.spread,
        "pace": length.pace, "steady": length.steady,
    }.items():  # fmt: skip
        argv += [f"--{name}", str(value)]
    pipe = subprocess.PIPE
    return machine.start(argv, log="crowd", stdin=pipe, stdout=pipe)


def _line(crowd: subprocess.Popen[bytes]) -> Json:
    assert crowd.stdout is not None
    line = crowd.stdout.readline()
    if not line:
        raise SystemExit("a crowd has ended: see crowd.log")
    found: Json = json.loads(line)
    return found


def _storm(server: Server, crowds: list[subprocess.Popen[bytes]]) -> Json:
    for crowd in crowds:
        assert crowd.stdin is not None
        crowd.stdin.write(b"\n")
        crowd.stdin.flush()
    answers = [_line(crowd) for crowd in crowds]
    found = _figures(server)
    for what in ("agents", "pods"):
        back = [at - server.began for answer in answers for at in answer[what]]
        found[f"{what}_back"] = quantiles(back)
    return found


def _figures(server: Server) -> Json:
    """What the server was asked, in all and by the second since it was there."""
    found = server.ask("figures")
    by_second: dict[str, Counter[int]] = {"list": Counter(), "watch": Counter()}
    lists: list[float] = []
    for at, what in server.ask("series")["series"]:
        verb, since = what.split()[0], at - server.began
        if verb in by_second:
            by_second[verb][int(since)] += 1
        if verb == "list":
            lists.append(since)
    found["by_second"] = {
        verb: [counts[i] for i in range(max(counts, default=-1) + 1)]
        for verb, counts in by_second.items()
    }
    found["lists_at"] = _spread(lists)
    return found


def _spread(times: list[float]) -> dict[str, float]:
    """Between which moments the lists came, all and the middle nine tenths of them."""
    ordered = sorted(times)
    if not ordered:
        return {"count": 0}
    cut = len(ordered) // 20
    return {
        "count": len(ordered),
        "first": ordered[0],
        "p5": ordered[cut],
        "p50": ordered[len(ordered) // 2],
        "p95": ordered[-1 - cut],
        "last": ordered[-1],
    }
