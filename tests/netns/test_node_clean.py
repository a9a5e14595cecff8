"""`muslin node clean` beside strangers: the machine is as it was before, to the line."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from grounds import UPLINK
from muslin.agent.clean import clean
from muslin.cni.install import install
from muslin.config import Config
from muslin.errors import ConfigError
from muslin.kernel import netns
from muslin.kernel.linux import LinuxKernel
from namespaces import Spaces, run

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

STRANGERS = (
    "ip link add mustang type veth peer name docker0\n"  # begins like a pod's device of ours
    "ip link set mustang up\n"
    "ip route add 198.51.100.0/24 via 192.0.2.7 dev eth0 proto static\n"
    "ip -6 route add 2001:db8:f::/48 via 2001:db8:a::7 dev eth0 proto bgp\n"
    "ip rule add pref 900 fwmark 7 lookup 7\n"
    "nft add table inet filter\n"
    "nft 'add chain inet filter forward { type filter hook forward priority 0; }'\n"
    "nft 'add table ip muslin-not'\n"
)
NETWORK = """
[network]
name = "default"
backend = "vxlan"
pools = ["p4", "p6"]
[[pools]]
name = "p4"
cidr = "10.244.0.0/16"
[[pools]]
name = "p6"
cidr = "fd00:10:244::/56"
"""


@dataclass
class Machine:
    """A node in a namespace, with directories of its own."""

    node: str
    pod: str
    home: Path
    config: Config

    def snapshot(self) -> str:
        """Everything a person would look at, but for counters and ages."""
        ask = (
            "ip -d link; ip addr; ip route show table all; ip -6 route show table all;"
            " ip rule; ip -6 rule; ip neigh show nud permanent; tc qdisc; nft list ruleset;"
            " find . -path ./store -prune -o -printf '%p %y\\n' | sort;"
            " cat conf/* bin/* 2>/dev/null | sha256sum"
        )
        shell = ["nsenter", f"--net={self.node}", "sh", "-c", ask]
        done = subprocess.run(shell, cwd=self.home, capture_output=True, text=True, check=True)
        kept = (x for x in done.stdout.splitlines() if "valid_lft" not in x)
        return "\n".join(x for x in kept if not x.startswith(("multicast", "anycast")))

    def cni(self, verb: str) -> int:
        config = {"cniVersion": "1.1.0", "name": "muslin", "type": "muslin-cni"}
        done = subprocess.run(
            [self.home / "bin" / "muslin-cni"],
            env={
                "CNI_COMMAND": verb,
                "CNI_CONTAINERID": "c1",
                "CNI_NETNS": self.pod,
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/opt/cni/bin",
            },
            input=json.dumps(config).encode(),
            capture_output=True,
            check=False,
        )
        return done.returncode

    def clean(self, *, dry_run: bool = False, force: bool = False) -> list[str]:
        with netns.inside(self.node):
            done = clean(self.config, LinuxKernel(), dry_run=dry_run, force=force)
        return [*done.kernel.splitlines(), *map(str, done.files)]

    @contextlib.contextmanager
    def agent(self) -> Iterator[None]:
        (self.home / "agent.toml").write_text(
            f'store = "sqlite:{self.home}/store/store.db"\nnode = "n1"\n'
            f'state_dir = "{self.config.state_dir}"\nrun_dir = "{self.config.run_dir}"\n'
        )
        (self.home / "net.toml").write_text(NETWORK)
        store = self.config.store
        muslin = [sys.executable, "-m", "muslin"]
        subprocess.run(
            [*muslin, "networks", "apply", self.home / "net.toml", "--store", store],
            check=True,
            capture_output=True,
        )
        argv = [*muslin, "agent", "--config", str(self.home / "agent.toml")]
        with (self.home / "store" / "log").open("wb") as log:
            process = subprocess.Popen(["nsenter", f"--net={self.node}", "--", *argv], stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)
        for name in ("agent.toml", "net.toml"):
            (self.home / name).unlink()


@pytest.fixture
def machine(spaces: Spaces, tmp_path: Path) -> Machine:
    node, pod = spaces.new("node"), spaces.new("pod")
    run(node, UPLINK + "ip route add default via 192.0.2.254\n" + STRANGERS)
    asked = ["nsenter", f"--net={node}", "ip", "-6", "-o", "address", "show", "tentative"]
    until(lambda: not subprocess.run(asked, capture_output=True, check=True).stdout)
    home = tmp_path / "m"
    for name in ("bin", "conf", "store"):
        (home / name).mkdir(parents=True)
    other = {"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "bridge"}]}
    (home / "conf" / "87-bridge.conflist").write_text(json.dumps(other))
    (home / "bin" / "bridge").write_bytes(b"\x7fELF of somebody else")
    config = Config(
        node="n1",
        store=f"sqlite:{home}/store/store.db",
        state_dir=str(home / "state"),
        run_dir=str(home / "run"),
        cni_bin_dir=str(home / "bin"),
        cni_conf_dir=str(home / "conf"),
    )
    return Machine(node, pod, home, config)


def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.05)


def settle(machine: Machine) -> None:
    """Install, run, attach a pod, stop: a node as it is when Muslin is removed."""
    install(
        bin_dir=machine.home / "bin",
        conf_dir=machine.home / "conf",
        socket=machine.config.cni_socket,
        journal=machine.config.journal_dir,
    )
    with machine.agent():
        until(lambda: machine.cni("STATUS") == 0)
        assert machine.cni("ADD") == 0
        with pytest.raises(ConfigError, match="part `cni` is running"):
            machine.clean()


def test_a_node_is_left_as_it_was_found(machine: Machine) -> None:
    before = machine.snapshot()
    settle(machine)
    with_muslin = machine.snapshot()
    assert "table inet muslin" in with_muslin
    assert "mu.vx1" in with_muslin
    planned = machine.clean(dry_run=True)
    assert machine.snapshot() == with_muslin, "a dry run changes nothing"
    done = machine.clean()
    assert [p for p in planned if p not in done] == []
    assert machine.snapshot() == before
    assert machine.clean() == [], "a second time there is nothing to do"
    assert (machine.home / "store" / "store.db").exists(), "the estate's, not the node's"


def test_pods_that_live_keep_their_network(machine: Machine) -> None:
    settle(machine)
    with subprocess.Popen(["nsenter", f"--net={machine.pod}", "sleep", "60"]) as pod:
        until(lambda: netns.inhabited(machine.pod))
        with pytest.raises(ConfigError, match="1 pods use the network: c1"):
            machine.clean()
        assert machine.clean(force=True)
        pod.kill()


def test_what_looks_like_ours_and_is_not_stays(machine: Machine) -> None:
    both = {"name": "muslin", "plugins": [{"type": "muslin-cni"}, {"type": "portmap"}]}
    chained = machine.home / "conf" / "10-muslin.conflist"
    chained.write_text(json.dumps(both))
    program = machine.home / "bin" / "muslin-cni"
    program.write_bytes(b"#!/bin/sh\n# a wrapper of somebody's\n")
    state = machine.home / "state"
    (state / "journal").mkdir(parents=True)
    (state / "notes.txt").write_text("mine")
    with netns.inside(machine.node):
        done = clean(machine.config, LinuxKernel())
    assert [x.partition(":")[0] for x in done.left] == [str(chained), str(program), str(state)]
    assert chained.exists()
    assert program.exists()
    assert (state / "notes.txt").read_text() == "mine"


def test_a_lock_that_nobody_holds_is_no_agent(machine: Machine) -> None:
    state = machine.home / "state"
    state.mkdir()
    (state / "cni.lock").touch()
    assert machine.clean() == [str(state / "cni.lock"), str(state)]
    state.mkdir()
    descriptor = os.open(state / "sync.lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="part `sync` is running"):
            machine.clean()
    finally:
        os.close(descriptor)
