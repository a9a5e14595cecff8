"""The simulation of a large cluster, small: what is asked, told and written, by count.

Times are for `make scale` on a quiet machine; counts hold on any.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.scale.cost import writes
from bench.scale.estate import QUICK

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
NODES = QUICK.size.nodes
LISTED = ("networks.muslin.io", "pools.muslin.io", "nodes.muslin.io", "blocks.muslin.io")
OTHERS = ("nodes", "pods")  # one node's

Json = dict[str, Any]


@pytest.fixture(scope="module")
def figures() -> Json:
    argv = [sys.executable, "-m", "bench.scale", "--quick", "--json"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    found: Json = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def agent(figures: Json) -> Json:
    found: Json = figures["agent"]["vxlan"]
    return found


def test_an_agent_asks_for_six_things_and_follows_them(agent: Json) -> None:
    asked = agent["start"]["requests"]
    for kind in (*LISTED, *OTHERS):
        assert asked[f"list {kind}"] == 1, kind
        assert asked[f"watch {kind}"] == 1, kind
    assert agent["start"]["watchers"] == 6
    assert not [w for w in asked if w.split()[1] in ("services", "endpointslices", "namespaces")]


def test_it_writes_once_for_itself_and_once_for_each_pod_with_wishes(agent: Json) -> None:
    wrote = writes(agent["start"]["requests"])
    assert wrote.pop("patch pods") == QUICK.size.wishing
    assert wrote.pop("patch nodes.muslin.io/status") <= 2  # not ready, ready
    once = ("create leases", "create nodes.muslin.io", "create blocks.muslin.io")
    assert wrote == dict.fromkeys(once, 1)


def test_its_kernel_holds_the_whole_cluster(agent: Json) -> None:
    assert agent["kernel"]["fdb"] == NODES - 1
    assert agent["kernel"]["routes"] >= NODES - 1 + QUICK.size.own
    assert agent["churn"]["blocks_missing"] == 0
    assert agent["churn"]["block_ms"]["count"] > 0


def test_it_hears_of_its_own_pods_and_asks_nothing_while_others_come_and_go(agent: Json) -> None:
    told, idle = agent["churn"]["server"], agent["idle"]["server"]
    assert told["requests"] == {}
    assert (idle["requests"], idle["events"]) == ({}, {})
    assert set(told["events"]) <= {"blocks", "pods spec.nodeName=node-00000"}
    own = agent["churn"]["pod_ms"]["count"]
    assert own > 0
    assert agent["churn"]["pods_missing"] == 0
    # Bound, given a deletion time, gone; nothing of the pods elsewhere, which write ten times each.
    assert told["events"]["pods spec.nodeName=node-00000"] <= 4 * own


def test_a_controller_writes_nothing_for_pods_and_little_for_blocks(figures: Json) -> None:
    found = figures["controller"]
    assert found["pods"]["lives"] > 50
    assert found["pods"]["writes"] == {}
    assert found["idle"]["writes"] == {}
    assert set(found["blocks"]["writes"]) == {"patch pools.muslin.io/status"}
    most = found["blocks"]["seconds"] + 1  # one a second
    assert found["blocks"]["writes"]["patch pools.muslin.io/status"] <= most
    first = writes(found["start"]["requests"])
    assert not any("pods" in w or w.endswith(" nodes") for w in first), first


def test_a_restart_makes_each_agent_list_each_kind_once(figures: Json) -> None:
    storm = figures["storm"]["relist"]
    assert storm["gone"] == 6 * NODES
    assert storm["watchers"] == 6 * NODES
    for kind in (*LISTED, *OTHERS):
        assert storm["requests"][f"list {kind}"] == NODES, kind
        assert storm["requests"][f"watch {kind}"] == 2 * NODES, kind  # told 410, and for good
    assert not writes(storm["requests"])


def test_a_restart_that_keeps_history_makes_nobody_list(figures: Json) -> None:
    storm = figures["storm"]["resume"]
    assert not [w for w in storm["requests"] if w.startswith("list")]
    assert storm["watchers"] == 6 * NODES
    assert storm["gone"] == 0


def test_what_waits_for_changes_keeps_the_values_and_no_more(figures: Json) -> None:
    (held,) = figures["holding"]
    assert held["node_bytes"] + held["block_bytes"] < 2500  # 1.9 kB; 5.5 with what they came in
