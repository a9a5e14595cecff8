"""An ADD and what is known of its pod: taken, waited for, done without, and who is told of it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import muslin
from muslin.agent import known
from muslin.agent.known import EARLY, GONE, STALE, WAITING, Known, State, Watch
from muslin.agent.wishes import NONE, Wishes
from muslin.cni.protocol import Request
from muslin.errors import Exhausted, NotReady, RequestError, Taken
from muslin.model import encode
from muslin.store.ledger import Ledger
from muslin.store.pods import MISSED, MOST, WATCH, PodKey, PodRow

UID = "0f3c0a3e-7d07-4d7a-9b5e-0d1f0a3c5e11"
OTHER = "0f3c0a3e-7d07-4d7a-9b5e-0d1f0a3c5e12"
DIGEST = "4f1b5a0d9c8e7f6a5b4c3d2e1f0a9b8c"  # of a pod from a file
POD = PodKey("shop", "db-0")
BLUE = Wishes(network="blue")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.ledger = Ledger(directory / "node.db", self.clock)

    def known(self, patience: float = 0.1, *, early: bool = False) -> Known:
        """`early`: the CNI server has only just started."""
        made = Known(self.ledger, clock=self.clock, boot_id="b1", patience=patience)
        self.clock.now += 0 if early else EARLY + 1
        return made

    def watch(self, state: State, *, boot: str = "b1", since: float = 60.0) -> None:
        now = self.clock.now
        said = Watch(state=state, since=now - since, at=now, boot=boot)
        self.ledger.set_fact(WATCH, encode(said).decode())

    def row(self, uid: str = UID, found: Wishes = BLUE) -> None:
        self.ledger.learn({POD: PodRow(uid, "" if found == NONE else encode(found).decode())})


def asked(uid: str = UID, ifname: str = "eth0", **args: str) -> Request:
    pod = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "db-0", "K8S_POD_UID": uid}
    return Request(verb="ADD", ifname=ifname, args={k: v for k, v in (pod | args).items() if v})


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    sink = lambda _level, event, fields: found.append(f"{event} {fields.get('why', '')}")  # noqa: E731
    monkeypatch.setattr("muslin.log.log.sink", sink)
    return found


@pytest.mark.parametrize("state", ["here", "away", "starting"])
def test_a_row_is_taken_at_once_however_the_watch_is(node: Node, state: State) -> None:
    pods = node.known()
    node.watch(state)
    node.row()
    assert pods.wishes(asked()) == BLUE
    assert pods.wishes(asked(uid="")) == BLUE  # an old runtime does not say it
    node.row(found=NONE)
    assert pods.wishes(asked()) == NONE


def test_a_row_is_taken_after_a_reboot_with_the_api_server_away(node: Node) -> None:
    node.row()
    node.watch("here", boot="former")
    assert node.known().wishes(asked()) == BLUE


def test_who_is_no_pod_and_whose_second_nic_it_is_has_no_wishes(node: Node) -> None:
    pods = node.known()
    node.watch("here")
    node.row()
    assert pods.wishes(Request(verb="ADD", ifname="eth0")) == NONE
    assert pods.wishes(asked(K8S_POD_NAME="")) == NONE
    assert pods.wishes(asked(ifname="net1")) == NONE


def test_a_pod_that_is_not_known_yet_is_waited_for(node: Node) -> None:
    pods = node.known(patience=5)
    node.watch("here")
    threading.Timer(0.15, node.row).start()
    began = time.monotonic()
    assert pods.wishes(asked()) == BLUE
    assert 0.1 < time.monotonic() - began < 2


def test_the_former_pod_of_the_same_name_is_another_one(node: Node) -> None:
    """A StatefulSet makes db-0 again: its DEL and the new one's ADD are milliseconds apart."""
    pods = node.known(patience=5)
    node.watch("here")
    node.row(OTHER, Wishes(network="old"))
    threading.Timer(0.1, node.row).start()
    assert pods.wishes(asked()) == BLUE


def test_what_the_api_server_does_not_tell_of_is_not_ready_by_name(node: Node) -> None:
    node.watch("here")
    pods = node.known()
    node.watch("here")
    with pytest.raises(NotReady, match=f"pod shop/db-0 with uid {UID}: the API server") as caught:
        pods.wishes(asked())
    assert caught.value.cni_code == 11


@pytest.mark.parametrize("how", ["away", "stale", "former boot", "never", "later away"])
def test_without_an_api_server_there_are_defaults_at_once(
    node: Node, told: list[str], how: str
) -> None:
    pods = node.known(patience=30)
    if how in ("away", "later away"):
        node.watch("here" if how == "later away" else "away")
    elif how != "never":
        node.watch("here", boot="former" if how == "former boot" else "b1")
    if how == "stale":
        node.clock.now += STALE + 1
    if how == "later away":
        threading.Timer(0.1, node.watch, ["away"]).start()
    began = time.monotonic()
    assert pods.wishes(asked()) == NONE
    assert time.monotonic() - began < 2
    assert [line.split()[0] for line in told] == ["pod.unknown"]
    (remembered,) = node.ledger.failures()
    assert (remembered.pod, remembered.uid, remembered.reason) == (POD, UID, MISSED)
    assert "API server" in remembered.message


@pytest.mark.parametrize("how", ["no word", "former boot", "starting"])
def test_while_everything_starts_it_is_waited_for_and_then_done_without(
    node: Node, how: str
) -> None:
    pods = node.known(early=True)
    if how != "no word":
        node.watch("starting", boot="former" if how == "former boot" else "b1")
    began = time.monotonic()
    assert pods.wishes(asked()) == NONE
    assert time.monotonic() - began > 0.09
    pods = node.known(patience=5, early=True)
    threading.Timer(0.1, node.row).start()
    assert pods.wishes(asked()) == BLUE


def test_a_watch_that_ends_and_is_begun_again_is_waited_for(node: Node) -> None:
    """Every watch ends after some minutes, and a busy server refuses the next one for a second."""
    pods = node.known(patience=5)
    node.watch("away", since=0.5)
    threading.Timer(0.1, node.row).start()
    assert pods.wishes(asked()) == BLUE
    node.ledger.learn({POD: None})
    threading.Timer(0.1, lambda: setattr(node.clock, "now", node.clock.now + GONE)).start()
    began = time.monotonic()
    assert pods.wishes(asked()) == NONE
    assert 0.05 < time.monotonic() - began < 2


def test_a_pod_from_a_file_gets_the_defaults_where_its_mirror_never_comes(node: Node) -> None:
    pods = node.known()
    node.watch("here")
    assert pods.wishes(asked(uid=DIGEST)) == NONE


def test_only_so_many_wait_and_others_are_told_to_come_again(node: Node) -> None:
    pods = node.known(patience=1)
    node.watch("here")
    results: list[object] = []

    def one() -> None:
        try:
            results.append(pods.wishes(asked()))
        except NotReady as e:
            results.append(str(e))

    threads = [threading.Thread(target=one) for _ in range(WAITING)]
    for t in threads:
        t.start()
    time.sleep(0.2)
    with pytest.raises(NotReady, match="others wait already"):
        pods.wishes(asked())
    node.row()
    for t in threads:
        t.join()
    assert results == [BLUE] * WAITING


def test_failures_that_a_person_must_mend_are_counted_by_pod_and_uid(node: Node) -> None:
    pods = node.known()
    for error in (NotReady("later"), RequestError(4, "environment")):
        pods.failed(asked(), error)
    pods.failed(Request(verb="ADD"), Exhausted("pool four: full"))
    assert node.ledger.failures() == []
    for _ in range(3):
        pods.failed(asked(), Exhausted("pool four: full", hint="delete pods"))
    found = node.ledger.failures()
    assert [(f.pod, f.uid, f.reason, f.message, f.times) for f in found] == [
        (POD, UID, "PoolExhausted", "pool four: full; delete pods", 3)
    ]
    pods.failed(asked(OTHER), RequestError(7, "annotation"))
    pods.failed(asked(OTHER), Taken("address 10.0.0.9 belongs to pod shop/x"))
    found = node.ledger.failures()
    assert [(f.uid, f.reason, f.times) for f in found] == [(OTHER, "AddressTaken", 2)]
    node.ledger.learn({POD: None})
    assert node.ledger.failures() == []


def test_a_disk_that_is_full_keeps_no_pod_from_its_defaults(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise NotReady("node.db: no space left")

    pods = node.known()
    node.watch("away")
    monkeypatch.setattr(node.ledger, "failed", full)
    assert pods.wishes(asked()) == NONE


def test_failures_are_bounded(node: Node) -> None:
    for i in range(MOST + 20):
        node.clock.now += 1
        node.ledger.failed(PodKey("shop", f"p{i}"), UID, reason="R", message="m")
    found = node.ledger.failures()
    assert (len(found), found[0].pod.name) == (MOST, "p20")


def test_another_store_than_kubernetes_forgets_its_pods(node: Node) -> None:
    node.row()
    node.watch("here")
    known.forget(node.ledger)
    assert node.ledger.pods() == {}
    assert node.ledger.pod(POD) == (None, None)


def test_a_node_db_of_layout_2_is_brought_up(tmp_path: Path) -> None:
    Ledger(tmp_path / "node.db", Clock()).close()
    with sqlite3.connect(tmp_path / "node.db") as db:
        db.executescript("DROP TABLE pod; DROP TABLE failure; PRAGMA user_version=2")
    again = Ledger(tmp_path / "node.db", Clock())
    again.learn({POD: PodRow(UID, "")})
    assert again.pods() == {POD: PodRow(UID, "")}
    again.close()


def test_the_sync_process_loads_its_client_and_nothing_that_comes_along() -> None:
    code = """
import sys
from muslin.agent import following
with following._lightly():
    from muslin.kube import Access, Api, wire
print(wire._AGENT, *sys.modules)
from importlib.metadata import version
assert version("msgspec")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    agent, *loaded = done.stdout.split()
    assert agent == f"muslin/{muslin.__version__}"
    assert "httpcore2" in loaded
    assert not {"email", "zipfile", "csv", "h2", "yaml", "lightkube", "grpc"} & set(loaded)


def test_the_cni_server_knows_nothing_of_kubernetes() -> None:
    """Neither its client nor asyncio: memory, and no way to ask the API server within an ADD."""
    modules = "attach, known, wishes, server, journal, main, ground"
    code = f"import sys; from muslin.agent import {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not [m for m in loaded if m.startswith(("muslin.kube", "httpcore", "asyncio"))]
