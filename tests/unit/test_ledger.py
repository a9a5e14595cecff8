"""node.db: which address comes next, what survives, what is refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from muslin.errors import ConfigError, Conflict, Exhausted, NotReady
from muslin.model import Address, Pool, Prefix
from muslin.store.layout import LAYOUT
from muslin.store.ledger import Ledger

FOUR = Pool(name="four", cidr=ip_network("10.0.0.0/24"), block=29)
SIX = Pool(name="six", cidr=ip_network("fd00::/64"), block=124)
BLOCK4, BLOCK6 = ip_network("10.0.0.8/29"), ip_network("fd00::20/124")  # 10.0.0.9 … .14


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "state" / "node.db", clock)
    yield opened
    opened.close()


def hold(ledger: Ledger, *blocks: Prefix) -> None:
    for block in blocks or (BLOCK4,):
        ledger.hold(block, FOUR if block.version == 4 else SIX)


def claim(ledger: Ledger, container: str, pools: tuple[Pool, ...] = (FOUR,)) -> tuple[Address, ...]:
    made = ledger.claim(
        container, "eth0", netns="/n", conf="muslin", network="net", mtu=1450, pools=pools
    )
    return made.addresses


def texts(addresses: tuple[Address, ...]) -> list[str]:
    return [str(a) for a in addresses]


def test_the_first_and_last_address_of_an_ipv4_block_are_left_alone(ledger: Ledger) -> None:
    hold(ledger)
    given = [texts(claim(ledger, f"c{i}"))[0] for i in range(6)]
    assert given == [f"10.0.0.{i}" for i in range(9, 15)]


def test_a_full_block_is_an_error_that_names_the_pool_and_changes_nothing(ledger: Ledger) -> None:
    hold(ledger)
    for i in range(6):
        claim(ledger, f"c{i}")
    with pytest.raises(Exhausted, match=r"pool four: no free IPv4 address .*6 of 6 in use"):
        claim(ledger, "one-too-many")
    assert ledger.of("one-too-many").get("eth0") is None


def test_dual_stack_gives_one_of_each_or_nothing(ledger: Ledger) -> None:
    hold(ledger, BLOCK4)
    with pytest.raises(Exhausted, match="pool six: no free IPv6"):
        claim(ledger, "c", (SIX, FOUR))
    assert ledger.usage()[0].used == 0
    hold(ledger, BLOCK6)
    assert texts(claim(ledger, "c", (SIX, FOUR))) == ["10.0.0.9", "fd00::21"]


def test_fresh_addresses_come_before_used_ones_and_the_last_freed_is_the_last_reused(
    ledger: Ledger, clock: Clock
) -> None:
    hold(ledger)
    for i in range(5):
        claim(ledger, f"c{i}")  # .9 to .13
    for i in (2, 0, 4):
        ledger.release(f"c{i}", "eth0")  # .11, then .9, then .13
        clock.now += 1
    clock.now += 31
    again = [texts(claim(ledger, f"d{i}"))[0] for i in range(4)]
    assert again == ["10.0.0.14", "10.0.0.11", "10.0.0.9", "10.0.0.13"]


def test_a_freed_address_rests_for_its_pools_cooldown(ledger: Ledger, clock: Clock) -> None:
    hold(ledger)
    for i in range(6):
        claim(ledger, f"c{i}")
    ledger.release("c3", "eth0")
    clock.now += 29.9
    with pytest.raises(Exhausted, match="1 resting"):
        claim(ledger, "d")
    clock.now += 0.2
    assert texts(claim(ledger, "d")) == ["10.0.0.12"]


def test_times_of_a_former_boot_do_not_lock_addresses_away(ledger: Ledger, clock: Clock) -> None:
    hold(ledger)
    for i in range(6):
        claim(ledger, f"c{i}")
    ledger.release("c0", "eth0")
    clock.now -= 86400  # `new_boot` has not been called yet
    assert ledger.usage()[0].resting == 0
    assert texts(claim(ledger, "d")) == ["10.0.0.9"]


def test_excluded_prefixes_are_stepped_over(ledger: Ledger) -> None:
    pool = Pool(name="four", cidr=FOUR.cidr, block=29, exclude=(ip_network("10.0.0.8/30"),))
    ledger.hold(BLOCK4, pool)
    assert texts(claim(ledger, "c")) == ["10.0.0.12"]
    assert ledger.usage()[0].size == 3  # .12, .13 and .14


def test_no_address_comes_from_a_block_that_was_let_go(ledger: Ledger) -> None:
    hold(ledger)
    claim(ledger, "c")
    ledger.let_go(BLOCK4)
    with pytest.raises(Exhausted):
        claim(ledger, "d")
    assert texts(ledger.attachments()[0].addresses) == ["10.0.0.9"]  # the pod keeps it
    hold(ledger)
    assert texts(claim(ledger, "d")) == ["10.0.0.10"]


def test_an_attachment_is_claimed_once(ledger: Ledger) -> None:
    hold(ledger)
    claim(ledger, "c")
    with pytest.raises(Conflict):
        claim(ledger, "c")


def test_what_was_committed_is_there_for_the_next_process(tmp_path: Path, clock: Clock) -> None:
    first = Ledger(tmp_path / "node.db", clock)
    hold(first)
    claim(first, "c")  # no close: the process dies here
    second = Ledger(tmp_path / "node.db", clock)
    found = second.of("c").get("eth0")
    assert found is not None
    assert found.state == "adding"
    assert texts(claim(second, "d")) == ["10.0.0.10"]


def test_threads_never_get_the_same_address(ledger: Ledger) -> None:
    ledger.hold(ip_network("10.0.0.0/24"), FOUR)
    given: list[str] = []

    def worker(n: int) -> None:
        for i in range(25):
            given.extend(texts(claim(ledger, f"c{n}-{i}")))

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(given) == len(set(given)) == 200


def test_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from muslin.store.ledger import Ledger\n"
        "sys.stdin.read(1); Ledger(Path(sys.argv[1]), time.time).set_fact('a', 'b')"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "new" / "node.db")]
    started = [subprocess.Popen(argv, stdin=subprocess.PIPE) for _ in range(4)]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
    assert [p.wait(20) for p in started] == [0, 0, 0, 0]
    for process in started:
        assert process.stdin is not None
        process.stdin.close()


def test_another_boot_releases_everything_and_the_first_takes_note_only(
    ledger: Ledger, clock: Clock
) -> None:
    assert ledger.new_boot("boot-1") == []
    hold(ledger)
    claim(ledger, "c")
    assert ledger.new_boot("boot-1") == []
    assert [a.container for a in ledger.new_boot("boot-2")] == ["c"]
    assert ledger.attachments() == []
    assert [u.resting for u in ledger.usage()] == [1]


def test_another_boots_clock_begins_anew_and_a_rest_goes_on_from_there(
    ledger: Ledger, clock: Clock
) -> None:
    """Nobody knows how long the machine was off: what still rested rests on, the others do not."""
    ledger.new_boot("boot-1")
    hold(ledger)
    for i in range(6):
        claim(ledger, f"c{i}")
    for i, moment in enumerate((0, 25, 5)):
        clock.now += moment
        ledger.release(f"c{i}", "eth0")  # .9, 25 s later .10, 5 s later .11
    for i in range(3, 6):
        ledger.release(f"c{i}", "eth0")
    clock.now = 3.0
    ledger.new_boot("boot-2")
    assert ledger.usage()[0].resting == 5
    assert texts(claim(ledger, "d")) == ["10.0.0.9"]
    with pytest.raises(Exhausted, match="5 resting"):
        claim(ledger, "e")
    clock.now += 25.1
    assert texts(claim(ledger, "e")) == ["10.0.0.10"]


def test_a_file_of_layout_1_is_brought_up_and_its_times_with_it(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times were the wall clock's."""
    path, unix = tmp_path / "node.db", 1_800_000_000.0
    older = Ledger(path, clock)
    clock.now = unix
    older.new_boot("boot-1")
    hold(older)
    for i in range(6):
        claim(older, f"c{i}")
    older.release("c0", "eth0")
    older.close()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE attachment DROP COLUMN netns_id")
        db.execute("PRAGMA user_version=1")
    clock.now = 500.0
    monkeypatch.setattr("time.time", lambda: unix + 20)
    for _ in range(2):
        ledger = Ledger(path, clock)
        assert {a.since for a in ledger.attachments()} == {480.0}
        assert {a.netns_id for a in ledger.attachments()} == {""}
        assert ledger.usage()[0].resting == 1
        ledger.close()
    ledger = Ledger(path, clock)
    clock.now += 10.1
    assert ledger.claim(
        "d", "eth0", netns="/n", conf="m", network="net", mtu=1450, pools=(FOUR,), netns_id="4:7"
    ).addresses == (ip_address("10.0.0.9"),)
    assert [a.netns_id for a in ledger.attachments()][-1] == "4:7"
    ledger.close()


def test_an_adopted_address_is_given_to_nobody(ledger: Ledger) -> None:
    hold(ledger)
    assert ledger.adopt("mu00000001", ip_address("10.0.0.9"))
    assert not ledger.adopt("mu00000002", ip_address("10.0.0.9"))  # known already
    assert texts(claim(ledger, "c")) == ["10.0.0.10"]
    assert ledger.devices() == {"mu00000001", ledger.attachments()[0].dev}


def test_a_newer_layout_is_refused_with_the_mend_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={LAYOUT + 1}")
    with pytest.raises(ConfigError, match="newer version") as caught:
        Ledger(path, Clock())
    assert "install that version" in caught.value.hint


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match=r"node\.db: file is not a database"):
        Ledger(path, Clock())


def test_a_full_disk_is_not_ready_and_loses_nothing(ledger: Ledger) -> None:
    hold(ledger)
    claim(ledger, "c")
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(NotReady, match="full"):
        ledger.set_fact("big", "x" * 100_000)
    assert ledger.of("c").get("eth0") is not None
    ledger._db.execute("PRAGMA max_page_count=1000000")
    ledger.set_fact("big", "y")
    assert ledger.fact("big") == "y"


def test_the_file_is_for_root_alone(tmp_path: Path) -> None:
    Ledger(tmp_path / "node.db", Clock()).close()
    assert (tmp_path / "node.db").stat().st_mode & 0o777 == 0o600


def test_what_is_written_together_is_there_whole_or_not_at_all(ledger: Ledger) -> None:
    hold(ledger)
    with pytest.raises(Exhausted), ledger.together():
        for i in range(7):  # of six
            claim(ledger, f"c{i}")
    assert ledger.attachments() == []
    assert texts(claim(ledger, "c")) == ["10.0.0.9"]  # never given out, so no rest
    with ledger.together():
        ledger.ready("c", "eth0")
        ledger.release("c", "eth0")
    assert ledger.of("c") == {}
