"""What only the SQLite store has: several processes, one file, and all that can befall a file."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from muslin.errors import ConfigError, NotReady
from muslin.store import Event, sqlite
from muslin.store.database import LAYOUT, Database, explain
from muslin.store.inotify import Touches
from muslin.store.sqlite import SqliteStore

_PRELUDE = """
import asyncio, itertools, sys
from pathlib import Path
from muslin.errors import ConfigError, Conflict, NotReady
from muslin.store.sqlite import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
"""


def child(program: str, *words: object) -> subprocess.Popen[str]:
    """Another process; its program finds `store` ready, and words[0] is the file."""
    command = [sys.executable, "-c", _PRELUDE + program, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return output


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(path) as store:
        yield store


# ── several processes ───────────────────────────────────────────────────────────────────────────

_WRITE_ONE = """
async def main():
    async with store:
        await store.get("")
        print("ready", flush=True)
        sys.stdin.readline()
        await store.create("key", b"")
asyncio.run(main())
"""


@pytest.mark.parametrize("inotify", [True, False])
async def test_a_write_of_another_process_is_heard_soon(
    path: Path, inotify: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the slow look, which is a minute away: the touch is heard, or the fast look is on."""
    monkeypatch.setattr(sqlite, "SLOW_LOOK", 60.0)

    def deaf(path: Path) -> Touches:
        raise OSError("no inotify")

    async with SqliteStore(path, listen=Touches if inotify else deaf) as store:
        batches = store.watch("")
        assert await anext(batches) == ()
        writer = child(_WRITE_ONE, path)
        assert writer.stdout is not None
        await asyncio.to_thread(writer.stdout.readline)
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.to_thread(finish, writer)
        async with asyncio.timeout(2.0):
            (event,) = await waiting
        assert event.key == "key"


async def test_an_idle_watcher_does_not_poll(path: Path) -> None:
    """In a second in which nothing happens, at most one look at the counter."""
    statements: list[str] = []
    async with SqliteStore(path, trace=statements.append) as store:
        batches = [store.watch(f"{n}/") for n in range(3)]
        for each in batches:
            assert await anext(each) == ()
        waiting = [asyncio.ensure_future(anext(each)) for each in batches]
        statements.clear()
        done, _ = await asyncio.wait(waiting, timeout=1.0)
        assert not done
        assert sum(s.startswith("SELECT") for s in statements) <= len(batches)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_write_that_nobody_announced_is_found_by_the_slow_look(
    path: Path, store: SqliteStore
) -> None:
    """A person with a SQL shell; or a writer that died between its commit and its touch."""
    await store.create("key", b"")
    batches = store.watch("")
    assert len(await anext(batches)) == 1
    with sqlite3.connect(path) as shell:
        shell.execute("DELETE FROM record")
    shell.close()
    async with asyncio.timeout(10):
        assert await anext(batches) == (Event("key", None),)


async def test_an_expiry_is_heard_on_time_when_nobody_writes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "SLOW_LOOK", 60.0)
    async with SqliteStore(path) as store:
        await store.create("key", b"", lease=await store.lease(1.0))
        batches = store.watch("")
        assert len(await anext(batches)) == 1
        async with asyncio.timeout(3.0):
            assert await anext(batches) == (Event("key", None),)


async def test_a_lease_kept_by_another_process_outlives_the_watchers_alarm(path: Path) -> None:
    """`keep` changes no record; the alarm finds the record alive and is set anew."""
    now = [1000.0]
    async with SqliteStore(path, clock=lambda: now[0]) as store:
        lease = await store.lease(10)
        await store.create("key", b"", lease=lease)
        async with SqliteStore(path, clock=lambda: now[0]) as other:
            batches = other.watch("")
            assert len(await anext(batches)) == 1
            now[0] += 9.99
            await lease.keep()
            now[0] += 9.99
            assert await other.get("key") is not None
            now[0] += 0.01
            assert await other.get("key") is None
            async with asyncio.timeout(10):
                assert await anext(batches) == (Event("key", None),)


_COUNT = """
async def main():
    async with store:
        try:
            await store.create("counter", b"0")
        except Conflict:
            pass
        done = 0
        while done < 50:
            record = await store.get("counter")
            try:
                value = str(int(record.value) + 1).encode()
                await store.put("counter", value, if_revision=record.revision)
            except Conflict:
                continue
            done += 1
asyncio.run(main())
"""


def test_processes_open_a_new_file_together_and_lose_no_update(path: Path) -> None:
    for process in [child(_COUNT, path) for _ in range(4)]:
        finish(process)
    record = Database(path, time.time).get("counter")
    assert record is not None
    assert record.value == b"200"


_WRITE_FOR_EVER = """
async def main():
    for n in itertools.count():
        await store.create(f"a/{n}", b"x" * 500)
        await store.create(f"b/{n}", b"x" * 500)
        print(n, flush=True)
asyncio.run(main())
"""


async def test_a_killed_writer_leaves_everything_it_was_told_of(tmp_path: Path) -> None:
    for n in range(3):
        path = tmp_path / f"{n}.db"
        writer = child(_WRITE_FOR_EVER, path)
        assert writer.stdout is not None
        acknowledged = [writer.stdout.readline() for _ in range(30)]
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate(timeout=10)
        last = int([*acknowledged, *rest.split()][-1])
        async with SqliteStore(path) as store:
            keys = {r.key for r in await store.list("")}
            assert {f"{d}/{n}" for d in "ab" for n in range(last + 1)} <= keys
            await store.create("c", b"")
        with sqlite3.connect(path) as shell:
            assert shell.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        shell.close()


# ── the file ────────────────────────────────────────────────────────────────────────────────────


async def test_only_its_owner_may_read_the_file(path: Path, store: SqliteStore) -> None:
    before = os.umask(0)
    try:
        await store.create("key", b"")
    finally:
        os.umask(before)
    files = [path, Path(f"{path}-wal"), Path(f"{path}-shm")]
    assert [f.stat().st_mode & 0o777 for f in files] == [0o600] * 3


async def test_records_outlive_the_process(path: Path, store: SqliteStore) -> None:
    made = await store.create("key", b"value")
    await store.close()
    async with SqliteStore(path) as again:
        assert await again.get("key") == made


async def test_a_revoked_lease_never_comes_back_as_another(store: SqliteStore) -> None:
    """Numbers of leases are not reused, so a stale handle cannot keep somebody else's."""
    stale = await store.lease(60)
    await stale.revoke()
    fresh = await store.lease(60)
    await store.create("key", b"", lease=fresh)
    await stale.revoke()
    assert await store.get("key") is not None


async def test_a_missing_directory_is_named_with_the_mend(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "none" / "store.db") as store:
        with pytest.raises(ConfigError, match=r"none/store\.db.*No such file.*make its directory"):
            await store.get("key")


async def test_a_watcher_does_not_wait_for_what_cannot_mend_itself(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "none" / "store.db") as store:
        with pytest.raises(ConfigError):
            await anext(store.watch(""))


async def test_once_mended_the_same_handle_works(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "new" / "store.db") as store:
        with pytest.raises(ConfigError):
            await store.create("key", b"")
        (tmp_path / "new").mkdir()
        await store.create("key", b"")


def test_a_file_that_is_no_database_is_named_and_left_alone(path: Path) -> None:
    path.write_bytes(b"[store]\n" * 1000)
    with pytest.raises(ConfigError, match=r"store\.db: not a sound database.*move it away"):
        Database(path, time.time).create("key", b"", None)
    assert path.read_bytes() == b"[store]\n" * 1000


def test_a_damaged_database_is_named(path: Path) -> None:
    database = Database(path, time.time)
    for n in range(50):
        database.create(f"key{n}", b"x" * 1000, None)
    database.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)  # all but the first page
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"store\.db: not a sound database"):
        database.look("")
    database.close()


async def test_another_programs_database_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    async with SqliteStore(path) as store:
        with pytest.raises(ConfigError, match="another program's database; name another file"):
            await store.get("key")


async def test_a_newer_layout_is_refused_with_the_mend(path: Path, store: SqliteStore) -> None:
    await store.create("key", b"")
    await store.close()
    with sqlite3.connect(path) as shell:
        shell.execute(f"PRAGMA user_version = {LAYOUT + 1}")
    shell.close()
    async with SqliteStore(path) as again:
        with pytest.raises(ConfigError, match=r"store\.db: written by a newer Muslin.*upgrade"):
            await again.get("key")


async def test_a_lock_held_for_too_long_is_not_ready(path: Path) -> None:
    database = Database(path, time.time, busy=0.05)
    database.get("")
    shell = sqlite3.connect(path, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(NotReady, match=r"store\.db: locked by another process"):
        database.create("key", b"", None)
    assert database.get("key") is None  # readers are not in its way
    shell.close()
    database.create("key", b"", None)
    database.close()


def test_a_read_only_file_is_named_with_the_mend(path: Path) -> None:
    """By SQLite's own refusal: file modes do not stop root, who may run this."""
    Database(path, time.time).get("")
    shell = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError) as refusal:
        shell.execute("DELETE FROM record")
    shell.close()
    fault = explain(refusal.value, path)
    assert isinstance(fault, ConfigError)
    assert f"{path}: cannot be written" in str(fault)
    assert "writable by this user" in fault.hint


_FILL = """
async def main():
    async with store:
        try:
            for n in itertools.count():
                await store.create(f"key/{n:06}", b"x" * 10_000)
        except NotReady as e:
            print(e)
        assert n > 0
        kept = await store.list("")
        assert [r.key for r in kept] == [f"key/{i:06}" for i in range(n)]
        assert all(r.value == b"x" * 10_000 for r in kept)
asyncio.run(main())
"""


@pytest.mark.root
def test_a_full_disk_is_named_and_nothing_is_half_written(tmp_path: Path) -> None:
    """On a file system of one megabyte, in a mount namespace of the child's own."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed (Debian: util-linux)")
    prelude = 'mount -t tmpfs -o size=1m none $0 && exec $1 -c "$2" $0/store.db'
    words = [str(tmp_path), sys.executable, _PRELUDE + _FILL]
    command = ["unshare", "-Urm", "sh", "-c", prelude, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/store.db: the disk is full, nothing was written; free space" in done.stdout


async def test_sql_does_not_hold_up_the_loop(path: Path, store: SqliteStore) -> None:
    """While a call waits for another process's lock, the loop goes on."""
    await store.get("")
    shell = sqlite3.connect(path, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(store.create("key", b""))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not waiting.done()
    shell.execute("ROLLBACK")
    shell.close()
    assert (await waiting).key == "key"
