"""The `muslin` command: help everywhere, JSON for scripts, errors without tracebacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from muslin.agent import doctor
from muslin.cli.main import app

NETWORK = """\
[network]
name = "default"
backend = "vxlan"
pools = ["four"]

[[pools]]
name = "four"
cidr = "10.244.0.0/16"
"""


def muslin(*words: str, home: Path, status: int = 0) -> str:
    """Run the command with settings of its own; its output, errors included."""
    file = home / "muslin.toml"
    file.write_text(
        f'node = "n1"\nstore = "sqlite:{home}/store.db"\n'
        f'state_dir = "{home}/state"\nrun_dir = "{home}/run"\n'
    )
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    return done.output


def config(home: Path) -> tuple[str, str]:
    return ("-c", str(home / "muslin.toml"))


@pytest.mark.parametrize(
    "words",
    [
        (),
        *[
            (w,)
            for w in (
                "agent",
                "status",
                "nodes",
                "pods",
                "plan",
                "doctor",
                "networks",
                "cni",
                "lab",
            )
        ],
        ("networks", "apply"),
        ("networks", "list"),
        ("cni", "install"),
        ("lab", "up"),
        ("lab", "pod", "add"),
    ],
)
def test_every_command_has_help(words: tuple[str, ...], tmp_path: Path) -> None:
    said = muslin(*words, "--help", home=tmp_path)
    assert "Usage: " in said
    assert len(said.splitlines()) > 4


def test_a_network_is_applied_once_and_listed(tmp_path: Path) -> None:
    file = tmp_path / "net.toml"
    file.write_text(NETWORK)
    said = muslin("networks", "apply", str(file), *config(tmp_path), home=tmp_path)
    assert said == "pool four 10.244.0.0/16\nnetwork default\n"
    said = muslin("networks", "apply", str(file), "--json", *config(tmp_path), home=tmp_path)
    assert json.loads(said) == {"changed": []}
    listed = json.loads(muslin("networks", "list", "--json", *config(tmp_path), home=tmp_path))
    assert [n["name"] for n in listed["networks"]] == ["default"]
    assert listed["pools"][0]["cidr"] == "10.244.0.0/16"
    assert "in blocks of /26" in muslin("networks", "list", *config(tmp_path), home=tmp_path)


def test_a_bad_network_file_lists_every_fault(tmp_path: Path) -> None:
    file = tmp_path / "net.toml"
    file.write_text(NETWORK.replace("vxlan", "teleport").replace("/16", "/30"))
    said = muslin("networks", "apply", str(file), *config(tmp_path), home=tmp_path, status=1)
    assert "teleport" in said
    assert "does not fit" in said


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    assert "no networks" in muslin("networks", "list", *config(tmp_path), home=tmp_path)
    assert "no node has joined" in muslin("nodes", *config(tmp_path), home=tmp_path)
    assert json.loads(muslin("nodes", "--json", *config(tmp_path), home=tmp_path))["nodes"] == []


@pytest.mark.parametrize("verb", ["status", "pods", "plan"])
def test_without_an_agent_the_mend_is_named(verb: str, tmp_path: Path) -> None:
    said = muslin(verb, *config(tmp_path), home=tmp_path, status=1)
    assert "is `muslin agent` running here" in said


def test_a_plan_for_an_unknown_node_names_the_known(tmp_path: Path) -> None:
    said = muslin("plan", "--node", "n9", *config(tmp_path), home=tmp_path, status=1)
    assert "n9" in said
    assert "known: none" in said


def test_a_store_that_cannot_be_is_an_error_by_name(tmp_path: Path) -> None:
    said = muslin("nodes", "--store", "mysql://x", *config(tmp_path), home=tmp_path, status=1)
    assert "mysql" in said


def test_settings_that_are_not_there_are_an_error_by_name(tmp_path: Path) -> None:
    said = muslin("status", "-c", str(tmp_path / "none.toml"), home=tmp_path, status=1)
    assert "none.toml" in said


def test_the_plugin_is_installed_once(tmp_path: Path) -> None:
    where = ("--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path / "net.d"))
    said = muslin("cni", "install", *where, *config(tmp_path), home=tmp_path)
    assert said.count("wrote") == 2
    again = muslin("cni", "install", "--json", *where, *config(tmp_path), home=tmp_path)
    assert json.loads(again)["written"] == []


def test_an_agent_on_sqlite_does_not_load_grpc() -> None:
    """Start-up and memory count."""
    code = "import sys, muslin.agent.main; print('grpc' in sys.modules, 'aetcd' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "False False\n"


def test_a_forward_chain_that_drops_is_found() -> None:
    listed = """\
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
	chain INPUT {
		type filter hook input priority filter; policy drop;
	}
}
table inet fw {
	chain forward {
		type filter hook forward priority 0; policy accept;
	}
}
"""
    assert list(doctor._dropping(listed)) == ["table ip filter chain FORWARD"]


@pytest.mark.root
def test_the_doctor_tries_the_kernel_and_leaves_nothing(tmp_path: Path) -> None:
    before = set(Path("/run/netns").iterdir()) if Path("/run/netns").exists() else set()
    muslin("nodes", *config(tmp_path), home=tmp_path)
    done = CliRunner().invoke(app, ["doctor", "--json", *config(tmp_path)])
    found = {f["what"]: f["verdict"] for f in json.loads(done.output)}
    assert found["veth pairs"] == "good"
    assert found["nftables with fib and masquerade"] == "good"
    left = {p for p in set(Path("/run/netns").iterdir()) - before if "doctor" in p.name}
    assert left == set()
