"""DELs through the real plugin while a real agent is dead, and what it finds when it is back."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_agent import LABS, Estate, until

from muslin.cni.environment import VARIABLES
from muslin.kernel import boot, netns
from muslin.lab import cluster, state
from muslin.store.ledger import Ledger

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
def estate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Estate]:
    # Not tmp_path: socket paths have 107 characters, and pytest's own take most of them.
    home = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))
    monkeypatch.setenv("MUSLIN_LAB_DIR", str(home))
    lab = f"j{os.getpid() % 100000}"
    try:
        cluster.up((LABS / "three-nodes.toml").read_text(), stem="three-nodes", name=lab)
        made = Estate(lab)
        yield made
        for process in made.started:
            process.kill()
            process.wait()
    finally:
        cluster.down(lab)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def spaces(estate: Estate) -> Iterator[list[str]]:
    names = [f"mulab-{estate.lab}-s{number}" for number in range(2)]
    try:
        yield [netns.create(name) for name in names]
    finally:
        for name in names:
            netns.delete(name)


def state_of(estate: Estate) -> Path:
    return state.directory(estate.lab) / "n1" / "state"


def journal(estate: Estate) -> list[str]:
    return sorted(os.listdir(state_of(estate) / "journal"))


def resting(estate: Estate) -> int:
    ledger = Ledger(state_of(estate) / "node.db", boot.clock)
    try:
        return sum(usage.resting for usage in ledger.usage())
    finally:
        ledger.close()


def containers(estate: Estate) -> list[str]:
    return sorted(a["container"] for a in estate.status("n1")["attachments"])


def test_pods_deleted_while_no_agent_runs_are_gone_when_one_starts(
    estate: Estate, spaces: list[str]
) -> None:
    given = {c: estate.cni("ADD", "n1", c, ns)["ips"] for c, ns in zip("ab", spaces, strict=True)}
    estate.kill("n1")
    assert estate.cni("STATUS", "n1", "", "")["code"] == 50
    assert estate.cni("ADD", "n1", "c", spaces[0])["code"] == 11
    assert estate.cni("DEL", "n1", "a", spaces[0]) == {}
    assert estate.cni("DEL", "n1", "a", "") == {}  # runtimes repeat it
    assert len(journal(estate)) == 2
    assert estate.pods_part("n1")  # nobody has done anything yet
    estate.start("n1")
    until(lambda: containers(estate) == ["b"])
    assert journal(estate) == []
    assert resting(estate) == len(given["a"])
    again = estate.cni("ADD", "n1", "a", spaces[0])["ips"]
    taken = {ip["address"] for ip in given["a"] + given["b"]}
    assert not taken & {ip["address"] for ip in again}
    for container, ns in zip("ab", spaces, strict=True):
        assert estate.cni("DEL", "n1", container, ns) == {}
    until(lambda: not estate.pods_part("n1"))


def test_an_entry_that_appears_while_the_agent_runs_is_done_unless_its_pod_is_newer(
    estate: Estate, spaces: list[str]
) -> None:
    before = boot.clock()
    for container, ns in zip("ab", spaces, strict=True):
        assert "ips" in estate.cni("ADD", "n1", container, ns)
    for container, asked in (("a", boot.clock()), ("b", before)):
        call = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}
        body = b"".join(call.get(name, "").encode() + b"\0" for name in VARIABLES)
        body += b'{"cniVersion":"1.1.0","name":"storm","type":"muslin-cni"}'
        hidden = state_of(estate) / "journal" / f".{int(asked * 1e9):020}-{1:010}-{boot.identity()}"
        hidden.write_bytes(len(body).to_bytes(4, "big") + body)
        hidden.rename(hidden.with_name(hidden.name[1:]))
    until(lambda: not journal(estate))
    until(lambda: containers(estate) == ["b"])
    assert estate.cni("DEL", "n1", "b", spaces[1]) == {}
    until(lambda: not estate.pods_part("n1"))
