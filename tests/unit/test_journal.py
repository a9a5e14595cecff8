"""Entries of the journal are done once, in order, and never to a pod that came after them."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from muslin.agent import ground
from muslin.agent.attach import Attachments
from muslin.agent.ground import Ground
from muslin.agent.journal import BAD, MAX_BAD, Waiting, replay, waiting
from muslin.cni import plugin
from muslin.cni.environment import VARIABLES
from muslin.cni.protocol import Request
from muslin.errors import KernelError, MuslinError, NotReady
from muslin.kernel import boot
from muslin.kernel.fake import FakeKernel
from muslin.model import Host, Network, Pool
from muslin.plan.objects import Link, Present
from muslin.store.ledger import Ledger

CONFIG = b'{"cniVersion":"1.0.0","name":"muslin","type":"muslin-cni"}'
NOW = 1_800_000_000.0  # after the boot
OTHER_BOOT = "00000000-0000-4000-8000-000000000000"
POOL = Pool(name="four", cidr=ip_network("10.0.0.0/24"), block=29)
NETWORK = Network(name="default", backend="hostgw", pools=("four",))


def body(container: str = "c1", *, verb: str = "DEL", stdin: bytes = CONFIG) -> bytes:
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}
    return b"".join(env.get(name, "").encode() + b"\0" for name in VARIABLES) + stdin


def framed(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


def leave(
    directory: Path,
    content: bytes,
    *,
    at: float = NOW,
    process: int = 1,
    boot_id: str = boot.identity(),
) -> Path:
    """An entry as the plugin leaves it."""
    directory.mkdir(exist_ok=True)
    name = f"{round(at * 1e9):020}-{process:010}-{boot_id}"
    path = directory / name.removesuffix("-")
    path.write_bytes(content)
    return path


class Deleter:
    """Writes down what it is told to delete, and fails where it is told to."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.before: list[float] = []
        self.fails: dict[str, Exception] = {}

    def delete(self, request: Request, *, before: float) -> None:
        if fault := self.fails.get(request.container):
            raise fault
        self.deleted.append(request.container)
        self.before.append(before)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def deleter() -> Deleter:
    return Deleter()


# ── entries ─────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_directory_is_made_for_root_alone(journal: Path, deleter: Deleter) -> None:
    assert replay(journal, deleter) == 0
    assert stat.S_IMODE(journal.stat().st_mode) == 0o700


def test_entries_are_done_newest_first_with_their_time_and_then_gone(
    journal: Path, deleter: Deleter
) -> None:
    for number in (3, 1, 2):
        leave(journal, framed(body(f"c{number}")), at=NOW + number)
    assert replay(journal, deleter) == 0
    assert deleter.deleted == ["c3", "c2", "c1"]
    assert deleter.before == pytest.approx([NOW + 3, NOW + 2, NOW + 1], abs=1e-6)
    assert list(journal.iterdir()) == []
    assert replay(journal, deleter) == 0
    assert len(deleter.deleted) == 3


def test_what_was_asked_again_and_again_is_done_once(journal: Path, deleter: Deleter) -> None:
    for number in (3, 1, 2):
        leave(journal, framed(body("c1")), at=NOW + number)
    leave(journal, framed(body("c2")), at=NOW)
    assert replay(journal, deleter) == 0
    assert deleter.deleted == ["c1", "c2"]
    assert deleter.before == pytest.approx([NOW + 3, NOW], abs=1e-6)
    assert list(journal.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0\0", id="half a length"),
        pytest.param(framed(body())[:-1], id="one byte short"),
        pytest.param(framed(body()) + b"}", id="one byte long"),
        pytest.param(framed(b"DEL\0c1"), id="too few variables"),
        pytest.param(framed(body("../c1")), id="no name of a container"),
        pytest.param(framed(body(verb="ADD")), id="another verb"),
        pytest.param(framed(body(verb="VERSION")), id="a verb without a container"),
        pytest.param(framed(body(stdin=b"{")), id="no JSON"),
        pytest.param(framed(body(stdin=b"{" + b" " * (3 << 20))), id="larger than any request"),
    ],
)
def test_what_makes_no_sense_is_set_aside_by_name_and_the_others_are_done(
    journal: Path, deleter: Deleter, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    bad = leave(journal, content)
    leave(journal, framed(body("c2")), at=NOW + 1)
    assert replay(journal, deleter) == 0
    assert deleter.deleted == ["c2"]
    assert (journal / BAD / bad.name).read_bytes() == content
    assert os.listdir(journal) == [BAD]
    assert bad.name in capsys.readouterr().err


def test_what_is_no_file_of_roots_is_set_aside(journal: Path, deleter: Deleter) -> None:
    real = leave(journal.parent, framed(body()))
    names = [f"{number:020}-{number:010}" for number in range(3)]
    journal.mkdir()
    os.symlink(real, journal / names[0])
    os.mkfifo(journal / names[1])
    (journal / names[2]).mkdir()
    replay(journal, deleter)
    assert deleter.deleted == []
    assert sorted(os.listdir(journal / BAD)) == names
    assert real.exists()


def test_what_waits_is_counted_without_what_is_unfinished_or_bad(journal: Path) -> None:
    assert waiting(journal) == Waiting(0, 0.0)
    for number in (3, 1, 2):
        leave(journal, b"", at=NOW + number)
    (journal / f".{1:020}-{1:010}").touch()
    (journal / BAD).mkdir()
    assert waiting(journal, lambda: NOW + 11) == Waiting(3, 10.0)
    assert waiting(journal, lambda: NOW).oldest == 0  # a clock that was set back
    assert replay(journal, Deleter()) == 0  # all bad
    assert waiting(journal) == Waiting(0, 0.0)


def test_an_entry_of_another_user_is_set_aside(
    journal: Path, deleter: Deleter, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = leave(journal, framed(body()))
    if os.geteuid():
        pytest.skip("giving a file away needs root")
    os.chown(entry, 65534, 65534)
    replay(journal, deleter)
    assert deleter.deleted == []
    assert os.listdir(journal / BAD) == [entry.name]


def test_a_stray_file_is_set_aside_and_a_hidden_one_is_left_alone(
    journal: Path, deleter: Deleter
) -> None:
    leave(journal, framed(body())).rename(journal / "notes.txt")
    (journal / ".nfs0001").touch()
    replay(journal, deleter)
    assert sorted(os.listdir(journal)) == [".nfs0001", BAD]
    assert os.listdir(journal / BAD) == ["notes.txt"]


def test_only_the_newest_bad_ones_are_kept(journal: Path, deleter: Deleter) -> None:
    names = [leave(journal, b"", process=n).name for n in range(MAX_BAD + 20)]
    replay(journal, deleter)
    assert sorted(os.listdir(journal / BAD)) == names[20:]


# ── failures ────────────────────────────────────────────────────────────────────────────────────


def test_what_may_pass_ends_the_call_and_is_done_by_a_later_one(
    journal: Path, deleter: Deleter
) -> None:
    for number in (1, 2, 3):
        leave(journal, framed(body(f"c{number}")), at=NOW + number)
    deleter.fails["c2"] = NotReady("node.db: disk is full")
    assert replay(journal, deleter) == 2
    assert deleter.deleted == ["c3"]
    deleter.fails.clear()
    assert replay(journal, deleter) == 0
    assert deleter.deleted == ["c3", "c2", "c1"]


@pytest.mark.parametrize(
    "fault", [KernelError("remove", "link", 16), MuslinError("?"), RuntimeError("a bug")]
)
def test_one_that_fails_stays_and_keeps_no_other_waiting(
    journal: Path, deleter: Deleter, fault: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        leave(journal, framed(body(f"c{number}")), at=NOW + number)
    deleter.fails["c2"] = fault
    assert replay(journal, deleter) == 1
    assert deleter.deleted == ["c3", "c1"]
    assert str(fault) in capsys.readouterr().err.replace('\\"', '"')
    assert replay(journal, deleter) == 1
    deleter.fails.clear()
    assert replay(journal, deleter) == 0


def test_killed_between_the_deletion_and_the_end_of_its_entry_it_deletes_again(
    journal: Path, deleter: Deleter, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(journal, framed(body()))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            replay(journal, deleter)
    assert replay(journal, deleter) == 0
    assert deleter.deleted == ["c1", "c1"]


def test_a_journal_that_cannot_be_read_keeps_no_agent_from_starting(
    journal: Path, deleter: Deleter
) -> None:
    journal.write_text("not a directory")
    assert replay(journal, deleter) == 0


# ── unfinished entries ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("age", "left"), [(59.0, 1), (61.0, 0)])
def test_an_unfinished_entry_is_never_done_and_goes_when_its_writer_must_be_dead(
    journal: Path, deleter: Deleter, age: float, left: int
) -> None:
    entry = leave(journal, framed(body()))
    entry.rename(journal / f".{entry.name}")
    assert replay(journal, deleter, clock=lambda: NOW + age) == 0
    assert deleter.deleted == []
    assert len(os.listdir(journal)) == left


# ── newer pods ──────────────────────────────────────────────────────────────────────────────────


class Node:
    """The real main path on a kernel in a dict, with a clock in hand."""

    def __init__(self, directory: Path) -> None:
        self.now = NOW
        self.kernel = FakeKernel()
        self.ledger = Ledger(directory / "node.db", lambda: self.now)
        self.ledger.hold(ip_network("10.0.0.8/29"), POOL)
        where = Ground(network=NETWORK, pools=(POOL,), mtu=1500, host=Host(uplink="eth0"))
        ground.publish(self.ledger, [where])
        self.attachments = Attachments(self.ledger, self.kernel, clock=lambda: self.now)
        self.journal = directory / "journal"
        self.netns = str(directory / "ns")
        Path(self.netns).touch()  # stands for a namespace: the fake kernel asks for no more
        lo = Link(ns=self.netns, name="lo", kind=Present())
        self.kernel.strangers[lo.key] = lo

    def add(self, at: float) -> str:
        self.now = at
        request = Request(
            verb="ADD", container="c1", ifname="eth0", netns=self.netns, name="muslin"
        )
        return str(self.attachments.add(request).nic.addresses[0])

    def replay(self, at: float) -> None:
        self.now = at
        assert replay(self.journal, self.attachments, lambda: self.now) == 0
        assert not [name for name in os.listdir(self.journal) if name != BAD]
        self.attachments.reap()

    @property
    def pods(self) -> list[str]:
        return [a.container for a in self.ledger.attachments()]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.ledger.close()


def test_a_pod_whose_del_was_left_is_gone_and_its_address_rests(node: Node) -> None:
    first = node.add(NOW)
    leave(node.journal, framed(body()), at=NOW + 10)
    node.replay(NOW + 20)
    assert node.pods == []
    assert node.kernel.observe() == frozenset()
    assert node.ledger.usage()[0].resting == 1
    assert node.add(NOW + 21) != first


def test_a_del_of_what_is_not_there_is_done(node: Node) -> None:
    leave(node.journal, framed(body()))
    node.replay(NOW)


def test_an_entry_that_came_late_spares_the_pod_that_came_after_it(node: Node) -> None:
    """The plugin found nobody, the agent began to listen, the same container was added again."""
    node.add(NOW)
    asked = NOW + 10
    node.replay(NOW + 10.001)  # at the agent's start: the entry has not got its name yet
    node.attachments.delete(Request(verb="DEL", container="c1", ifname="eth0"))
    second = node.add(NOW + 10.01)
    leave(node.journal, framed(body()), at=asked)
    node.replay(NOW + 15)
    assert node.pods == ["c1"]
    assert node.add(NOW + 16) == second


def test_an_add_that_finds_everything_in_place_is_newer_than_the_del_before_it(node: Node) -> None:
    """The same race without a DEL that worked: ADD answers what is there, and it must stay."""
    first = node.add(NOW)
    assert node.add(NOW + 10.01) == first
    leave(node.journal, framed(body()), at=NOW + 10)
    node.replay(NOW + 15)
    assert node.pods == ["c1"]


@pytest.mark.parametrize("step", [-3600, 3600])
def test_a_wall_clock_that_is_set_between_them_changes_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """The plugin's own clock against the agent's, as both are without a test."""
    node.attachments = Attachments(node.ledger, node.kernel)
    node.journal.mkdir()
    monkeypatch.setattr(plugin, "JOURNAL", str(node.journal))
    real = time.time_ns
    node.add(boot.clock())
    monkeypatch.setattr(time, "time_ns", lambda: real() + int(step * 1e9))
    plugin.journal(framed(body()))
    node.replay(boot.clock())
    assert node.pods == []  # younger than the ADD
    plugin.journal(framed(body()))
    node.add(boot.clock())
    node.replay(boot.clock())
    assert node.pods == ["c1"]  # older than the ADD


def test_what_was_left_in_a_former_boot_spares_every_pod_of_this_one(node: Node) -> None:
    node.add(NOW)
    leave(node.journal, framed(body()), at=NOW + 10, boot_id=OTHER_BOOT)
    node.replay(NOW + 20)
    assert node.pods == ["c1"]


@pytest.mark.parametrize(("later", "left"), [(-1, ["c1"]), (1, [])])
def test_an_entry_of_a_plugin_from_before_is_named_by_the_wall_clock(
    node: Node, monkeypatch: pytest.MonkeyPatch, later: float, left: list[str]
) -> None:
    monkeypatch.setattr(time, "time", lambda: node.now + 500_000_000)
    node.add(NOW)
    leave(node.journal, framed(body()), at=NOW + 500_000_000 + later, boot_id="")
    node.replay(NOW + 20)
    assert node.pods == left


def test_the_comparison_waits_for_an_add_in_progress(node: Node) -> None:
    """Between the look and the deletion no other call for the attachment can come."""
    node.add(NOW)
    leave(node.journal, framed(body()), at=NOW + 10)
    order: list[str] = []
    look, alone = node.ledger.of, node.attachments._alone

    def watched(container: str) -> object:
        order.append("alone")
        return alone(container)

    node.attachments._alone = watched  # type: ignore[method-assign,assignment]
    node.ledger.of = lambda name: (order.append("look"), look(name))[1]  # type: ignore[method-assign]
    node.replay(NOW + 11)
    assert order == ["alone", "look"]
