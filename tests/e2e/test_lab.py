"""Whole labs through the command line, as a person uses it.

Each test keeps its labs in a directory of its own (MUSLIN_LAB_DIR), and the
`labs` fixture fails a test that leaves a namespace, a process or a file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from muslin.kernel import netns

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

LABS = Path(__file__).parents[2] / "labs"
UNIQUE = f"t{os.getpid() % 100000}"  # lab names of this run; other runs may be at it too


class Labs:
    """The command, in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {**os.environ, "MUSLIN_LAB_DIR": str(home)}

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "muslin", "lab", *words]

    def run(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*words), env=self.env, capture_output=True, text=True, timeout=80, check=False
        )
        assert done.returncode == status, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", status=status).stdout)

    def up(self, lab: str, name: str, *more: str) -> str:
        self.run("up", str(LABS / f"{lab}.toml"), "--name", f"{UNIQUE}-{name}", *more)
        return f"{UNIQUE}-{name}"

    def pods(self, lab: str, **nodes: str) -> dict[str, list[str]]:
        return {
            pod: self.json("pod", "add", pod, "--node", node, "-l", lab)["addresses"]
            for pod, node in nodes.items()
        }


@pytest.fixture
def labs() -> Iterator[Labs]:
    # Not tmp_path: socket paths have 107 characters, and pytest's own take most of them.
    home = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))
    made = Labs(home)
    try:
        yield made
    finally:
        subprocess.run(made.argv("down", "--all"), env=made.env, check=False, timeout=80)
        left = [*ours(), *processes(home), *(str(p) for p in home.glob("*"))]
        shutil.rmtree(home, ignore_errors=True)
    assert not left, "left behind"


def ours() -> list[str]:
    return [n for n in netns.names() if n.startswith(f"mulab-{UNIQUE}")]


def processes(home: Path) -> list[str]:
    """What runs on behalf of a lab directory, by its command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"{home}/" in line:
            found.append(line)
    return found


def wait(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)


def marks(report: dict[str, Any]) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for f in report["findings"]:
        if f["what"] == "connect":
            found.setdefault((f["source"], f["target"]), set()).add(f["mark"])
    return found


def test_three_nodes_reach_each_others_pods_by_plain_routes_until_taken_down(labs: Labs) -> None:
    lab = labs.up("three-nodes", "three")
    labs.pods(lab, a="n1", b="n2", c="n3", d="n1")
    report = labs.json("check")
    assert report["ok"]
    pods, nodes = "abcd", ("n1", "n2", "n3")
    assert marks(report) == {
        pair: {"own"}
        for pair in (
            *((p, q) for p in pods for q in pods if p != q),
            *((p, n) for p in pods for n in nodes),
            *((n, p) for p in pods for n in nodes),
        )
    }
    ways = {(p["source"], p["target"], p["way"]) for p in labs.json("paths")["paths"]}
    assert {("a", "b", "direct"), ("a", "d", "local"), ("a", "n1", "local")} <= ways
    assert not [w for w in ways if w[2] in ("tunnel", "none")]
    labs.run("down")
    assert not ours()
    assert not labs.home.exists()
    labs.home.mkdir()


def test_two_racks_tunnel_between_and_masquerade_beyond(labs: Labs) -> None:
    lab = labs.up("two-racks", "racks")
    labs.pods(lab, a="n1", b="n2", c="n3")
    report = labs.json("check")
    assert report["ok"]
    seen = marks(report)
    assert {seen[p, "world"] == {"node"} for p in "abc"} == {True}
    assert {seen["world", p] == {"refused"} for p in "abc"} == {True}
    assert {f["mark"] for f in report["findings"] if f["what"] != "connect"} == {"refused"}
    ways = {(p["source"], p["target"]): p["way"] for p in labs.json("paths")["paths"]}
    assert (ways["a", "b"], ways["a", "c"], ways["a", "n3"]) == ("direct", "tunnel", "routed")
    rows = labs.json("bench", "--pair", "a:c", "--rounds", "1", "--seconds", "0.05")["rows"]
    assert rows[0]["way"] == "tunnel"
    assert rows[0]["latency"]["median"] > 0.5


def test_machines_that_run_no_pods_reach_pods_and_are_reached_without_nat(labs: Labs) -> None:
    lab = labs.up("mixed", "mixed")
    labs.pods(lab, a="n1", b="n3")
    report = labs.json("check")
    assert report["ok"]
    for machine in ("vm1", "pm1"):
        for pod in "ab":
            assert marks(report)[pod, machine] == {"own"} == marks(report)[machine, pod]
    agents = {a["node"]: a for a in labs.json("status")["agents"]}
    assert sorted(agents) == ["n1", "n2", "n3", "vm1"]
    assert agents["vm1"]["blocks"] == []
    assert agents["n1"]["blocks"]


def test_a_lab_can_keep_its_state_in_etcd(labs: Labs) -> None:
    if not shutil.which("etcd"):
        pytest.skip("etcd is not installed")
    lab = labs.up("two-racks", "etcd", "--store", "etcd")
    labs.pods(lab, a="n1", b="n3")
    assert labs.json("check")["ok"]


def test_two_labs_of_one_topology_stand_side_by_side(labs: Labs) -> None:
    one, two = labs.up("three-nodes", "one"), labs.up("three-nodes", "two")
    for lab in (one, two):
        labs.pods(lab, a="n1", b="n2")
    refused = labs.run("check", status=1).stderr
    assert one in refused
    assert two in refused
    assert labs.json("check", one)["ok"]
    labs.run("down", one)
    assert labs.json("check", two)["ok"]
    assert [entry["lab"] for entry in labs.json("list")] == [two]


@pytest.mark.parametrize("moment", ["namespaces", "agents", "ready"])
def test_a_lab_killed_in_its_making_leaves_nothing_after_down_all(labs: Labs, moment: str) -> None:
    argv = labs.argv("up", str(LABS / "two-racks.toml"), "--name", f"{UNIQUE}-dead")
    starting = subprocess.Popen(argv, env=labs.env, stderr=subprocess.DEVNULL)
    until: dict[str, Callable[[], object]] = {
        "namespaces": lambda: len(ours()) >= 3,
        "agents": lambda: any("agent --config" in line for line in processes(labs.home)),
        "ready": lambda: list(labs.home.glob("*/n4/run/api.sock")),
    }
    try:
        wait(until[moment], moment)
    finally:
        starting.send_signal(signal.SIGKILL)
        starting.wait()
    assert ours()
    if moment != "ready":  # by then it may have been up
        assert "half built" in labs.run("check", status=1).stderr
    labs.run("down", "--all")
    assert (ours(), processes(labs.home), labs.home.exists()) == ([], [], False)
    labs.home.mkdir()


def test_down_all_leaves_alone_what_is_kept_in_another_directory(labs: Labs) -> None:
    lab = labs.up("three-nodes", "mine")
    elsewhere = Labs(labs.home / "elsewhere")
    stray = f"mulab-{UNIQUE}-stray"
    netns.create(stray)  # as `up` would leave it, killed at its very first step
    assert stray in elsewhere.json("down", "--all")["removed"]
    assert stray not in netns.names()
    labs.pods(lab, a="n1")
    assert labs.json("check")["ok"]


def _as_in_a_terminal() -> None:
    """What a shell has put in the background ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_while_a_lab_comes_up_takes_it_down_again(labs: Labs) -> None:
    argv = labs.argv("up", str(LABS / "three-nodes.toml"), "--name", f"{UNIQUE}-stopped")
    for _ in range(5):
        starting = subprocess.Popen(
            argv, env=labs.env, stderr=subprocess.PIPE, text=True,
            preexec_fn=_as_in_a_terminal,  # noqa: PLW1509  (no threads here)
        )  # fmt: skip
        wait(ours, "a namespace")  # the first of many things it makes
        starting.send_signal(signal.SIGINT)
        _, said = starting.communicate(timeout=20)
        if starting.returncode != 0:
            break
        labs.run("down", f"{UNIQUE}-stopped")  # it was up before we had seen that it was coming
    assert starting.returncode != 0
    assert "Traceback" not in said
    assert (ours(), processes(labs.home)) == ([], [])


def test_a_pod_is_attached_used_and_detached_through_the_commands(labs: Labs) -> None:
    lab = labs.up("three-nodes", "pods")
    addresses = labs.pods(lab, web="n2")["web"]
    assert labs.json("pod", "list") == [{"name": "web", "node": "n2", "addresses": addresses}]
    inside = labs.run("exec", "web", "--", "ip", "-o", "addr", "show", "dev", "eth0").stdout
    assert all(a in inside for a in addresses)
    assert labs.run("exec", "n1", "--", "sh", "-c", "exit 3", status=3)
    assert "web" in "\n".join(labs.json("picture")["picture"])
    status = labs.json("status")
    assert (status["phase"], [p["name"] for p in status["pods"]]) == ("up", ["web"])
    assert all(p["alive"] for p in status["processes"])
    labs.run("pod", "del", "web")
    assert f"mulab-{lab}-pod-web" not in netns.names()
    # DEL has answered; the reaper behind it takes the device and the address a moment later.
    wait(lambda: not labs.json("status")["agents"][1]["attachments"], "the address to be free")


def test_a_dead_agent_is_named_and_its_pods_keep_talking(labs: Labs) -> None:
    lab = labs.up("three-nodes", "dead-agent")
    labs.pods(lab, a="n1", b="n2")
    process = next(p for p in labs.json("status")["processes"] if p["name"] == "n1")
    os.kill(process["pid"], signal.SIGKILL)
    wait(lambda: not labs.json("status")["processes"][0]["alive"], "the agent to be dead")
    assert "not running: n1" in labs.run("status").stdout
    assert labs.json("check")["ok"]
    assert "n1" in labs.run("pod", "add", "c", "--node", "n1", status=1).stderr
    assert [p["name"] for p in labs.json("pod", "list")] == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check"], "no lab is up"),
        (["status", "nothing"], "no lab 'nothing'"),
        (["up", "nowhere.toml"], "nowhere.toml: No such file"),
        (["up", str(LABS / "mixed.toml"), "--name", "Wrong"], "lab name 'Wrong'"),
        (["pod", "add", "x", "--node", "n1"], "no lab is up"),
    ],
)
def test_an_error_is_one_line_and_a_mend(labs: Labs, words: list[str], said: str) -> None:
    assert said in labs.run(*words, status=1).stderr


def test_errors_about_one_lab_name_what_there_is(labs: Labs) -> None:
    lab = labs.up("three-nodes", "errors")
    for words, said in (
        (["up", str(LABS / "three-nodes.toml"), "--name", lab], "is up already"),
        (["check"], "has no pods to check"),
        (["bench"], "no two pods on different nodes"),
        (["exec", "n9", "--", "true"], "there are: lan, n1, n2, n3"),
        (["pod", "add", "x", "--node", "lan"], "nodes: n1, n2, n3"),
        (["pod", "add", "n1", "--node", "n1"], "names a part of the lab"),
        (["pod", "add", "Bad_Name", "--node", "n1"], "lower-case letter"),
        (["pod", "del", "x"], "no pod 'x'"),
    ):
        assert said in labs.run(*words, status=1).stderr, words


def test_a_broken_file_lists_all_its_faults(labs: Labs, tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text('[nodes.n1]\nswitch = "x"\ncolour = "red"\n')
    said = labs.run("up", str(file), status=1).stderr
    for fault in ("no switch 'x'", "unknown key 'colour'", "network: missing"):
        assert fault in said
