"""What can befall an etcd: compaction, SIGKILL, silence, TLS, passwords.  Real processes."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import pytest
from benches import Etcd

from muslin.errors import ConfigError, Conflict, NotReady
from muslin.store import Event, Store
from muslin.store.etcd import EtcdStore
from muslin.store.open import open_store
from muslin.store.url import EtcdAt

Start = Callable[..., Etcd]


@asynccontextmanager
async def reach(
    *members: str, deadline: float = 3.0, keepalive: float = 10.0, **options: str
) -> AsyncIterator[EtcdStore]:
    at = EtcdAt(members=members, **options)
    async with EtcdStore(at, timeout=deadline, keepalive=keepalive) as store:
        yield store


async def until_ready(store: Store) -> None:
    """Come again until the store answers, as its callers do."""
    async with asyncio.timeout(20):
        while True:
            try:
                await store.get("")
            except NotReady:
                await asyncio.sleep(0.02)
            else:
                return


class Follower:
    """A watch that is read for as long as the `async with` lasts."""

    def __init__(self, store: Store) -> None:
        self._batches = store.watch("")
        self._state: dict[str, bytes] = {}
        self._news = asyncio.Event()

    async def becomes(self, wanted: dict[str, bytes]) -> None:
        """Return when everything that was delivered amounts to `wanted`."""
        async with asyncio.timeout(20):
            while self._state != wanted:
                self._news.clear()
                await self._news.wait()

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        ended = self._reader.done()
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader
        assert not ended

    async def _read(self) -> None:
        async for batch in self._batches:
            assert len({e.key for e in batch}) == len(batch)
            for event in batch:
                if event.record is None:
                    del self._state[event.key]
                else:
                    self._state[event.key] = event.record.value
            self._news.set()


async def test_after_a_restart_a_watcher_gets_the_difference_in_spite_of_compaction(
    etcd_process: Start,
) -> None:
    """Killed and restarted; meanwhile keys changed, went and came, and history was compacted.

    The watcher is cut off before the changes, so it can only learn of the deletes by listing.
    """
    etcd = etcd_process()
    async with (
        Gate(etcd.client) as gate,
        reach(etcd.address) as writer,
        reach(gate.address, deadline=0.5) as store,
        Follower(store) as follower,
    ):
        await writer.create("kept", b"1")
        changed = await writer.create("changed", b"1")
        await writer.create("gone", b"1")
        await follower.becomes({"kept": b"1", "changed": b"1", "gone": b"1"})
        await gate.shut()
        await writer.delete("gone")
        await writer.put("changed", b"2", if_revision=changed.revision)
        last = await writer.create("new", b"1")
        etcd.ctl("compact", str(last.revision))
        etcd.kill()
        etcd.start()
        await gate.open()
        await follower.becomes({"kept": b"1", "changed": b"2", "new": b"1"})


async def test_a_compaction_between_list_and_watch_is_survived(
    shared_etcd: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server cancels the new watch, since the revision it starts from is gone."""
    etcd = shared_etcd()
    async with reach(etcd.address, prefix="/compacted/") as store:
        await store.create("gone", b"")
        lists = 0
        plain = store._list

        async def list_then_compact(prefix: str) -> object:
            nonlocal lists
            lists += 1
            answer = await plain(prefix)
            if lists == 1:
                await store.delete("gone")
                made = await store.create("new", b"")
                etcd.ctl("compact", str(made.revision))
            return answer

        monkeypatch.setattr(store, "_list", list_then_compact)
        async with Follower(store) as follower:
            await follower.becomes({"new": b""})
        assert lists == 2


async def test_a_watch_over_a_connection_that_went_silent_is_taken_up_again(
    etcd_process: Start,
) -> None:
    """No packet says that it is dead: keepalive has to find out."""
    etcd = etcd_process("--grpc-keepalive-min-time", "500ms")
    async with (
        Gate(etcd.client) as gate,
        reach(etcd.address) as writer,
        reach(gate.address, deadline=0.5, keepalive=1.0) as store,
        Follower(store) as follower,
    ):
        await writer.create("gone", b"")
        await follower.becomes({"gone": b""})
        gate.freeze()
        await writer.delete("gone")
        await writer.create("new", b"")
        await follower.becomes({"new": b""})


async def test_a_dead_etcd_is_not_ready_at_once_and_back_after_a_restart(
    etcd_process: Start,
) -> None:
    etcd = etcd_process()
    async with reach(etcd.address) as store, Follower(store) as follower:
        made = await store.create("key", b"")
        await follower.becomes({"key": b""})
        etcd.kill()
        begin = time.monotonic()
        with pytest.raises(NotReady):
            await store.get("key")
        with pytest.raises(NotReady):
            await store.create("other", b"")
        assert time.monotonic() - begin < 6.0
        etcd.start()
        await until_ready(store)
        assert await store.get("key") == made
        await store.put("key", b"2", if_revision=made.revision)
        await follower.becomes({"key": b"2"})


async def test_an_etcd_that_hangs_is_not_ready_within_the_deadline(etcd_process: Start) -> None:
    """Stopped, not killed: connections stay open and nothing answers."""
    etcd = etcd_process()
    async with reach(etcd.address, deadline=0.5) as store:
        made = await store.create("key", b"")
        lease = await store.lease(60)
        etcd.signal(signal.SIGSTOP)
        try:
            for call in (
                store.get("key"),
                store.list(""),
                store.put("key", b"", if_revision=made.revision),
                store.lease(5),
                lease.keep(),
            ):
                begin = time.monotonic()
                with pytest.raises(NotReady, match="no answer in time"):
                    await call
                assert time.monotonic() - begin < 2.0
        finally:
            etcd.signal(signal.SIGCONT)
        await until_ready(store)


async def test_an_address_that_accepts_and_says_nothing_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        async with reach(address, deadline=0.5) as store:
            begin = time.monotonic()
            with pytest.raises(NotReady, match=address):
                await store.create("key", b"")
            assert time.monotonic() - begin < 2.0


async def test_the_next_member_answers_for_one_that_does_not(shared_etcd: Start) -> None:
    """One refuses, one is silent, one is well: reads and first writes reach the third."""
    with socket.create_server(("127.0.0.1", 0)) as mute, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        bad = [f"127.0.0.1:{s.getsockname()[1]}" for s in (closed, mute)]
        async with reach(*bad, shared_etcd().address, prefix="/members/") as store:
            made = await store.create("key", b"")
            begin = time.monotonic()
            assert await store.get("key") == made
            assert time.monotonic() - begin < 0.9  # it stays with the member that answers
            await store.delete("key")


async def test_a_write_whose_answer_was_lost_is_not_sent_again(shared_etcd: Start) -> None:
    """At the next member it would meet its own first coming, and say Conflict of what it did."""
    etcd = shared_etcd()
    async with (
        Gate(etcd.client) as gate,
        reach(gate.address, etcd.address, deadline=1.0, prefix="/lost/") as store,
    ):
        assert await store.get("key") is None
        gate.freeze(answers_only=True)
        with pytest.raises(NotReady) as fault:
            await store.create("key", b"")
        assert not isinstance(fault.value, Conflict)
        assert await store.get("key") is not None


async def test_other_programs_keys_are_neither_seen_nor_touched(shared_etcd: Start) -> None:
    etcd = shared_etcd()
    etcd.ctl("put", "/muslinx/theirs", "1")
    async with reach(etcd.address, prefix="/muslin/") as store:
        made = await store.create("mine", b"")
        assert await store.list("") == (made,)
        await store.delete("mine")


async def test_a_wrong_password_is_a_fault_with_the_mend(etcd_process: Start) -> None:
    """And with the right one a watch goes on after a restart."""
    etcd = etcd_process()
    etcd.ctl("user", "add", "root:right")
    etcd.ctl("user", "grant-role", "root", "root")
    etcd.ctl("auth", "enable")
    async with reach(etcd.address, user="root", password="wrong") as store:
        with pytest.raises(ConfigError, match="correct the store's options user and password"):
            await store.get("key")
        with pytest.raises(ConfigError):
            await anext(store.watch(""))
    async with reach(etcd.address) as store:
        with pytest.raises(ConfigError, match="set the store's options user and password"):
            await store.get("key")
    async with reach(etcd.address, user="root", password="right") as store:
        made = await store.create("key", b"1")
        async with Follower(store) as follower:
            await follower.becomes({"key": b"1"})
            etcd.kill()
            etcd.start()
            await until_ready(store)
            await store.put("key", b"2", if_revision=made.revision)
            await follower.becomes({"key": b"2"})


async def test_a_forgotten_token_is_renewed_without_the_caller_noticing(
    etcd_process: Start,
) -> None:
    """etcd forgets a token after five idle minutes; here it never knew it."""
    etcd = etcd_process()
    etcd.ctl("user", "add", "root:right")
    etcd.ctl("user", "grant-role", "root", "root")
    etcd.ctl("auth", "enable")
    async with reach(etcd.address, user="root", password="right") as store:
        forgotten = (("token", "forgotten.1"),)
        store._members._token = forgotten
        made = await store.create("key", b"")
        store._members._token = forgotten
        assert await anext(store.watch("")) == (Event("key", made),)
        assert store._members._token != forgotten
        lease = await store.lease(60)
        store._members._token = forgotten
        await lease.keep()


async def test_a_user_without_a_role_is_a_fault_with_the_mend(etcd_process: Start) -> None:
    etcd = etcd_process()
    etcd.ctl("user", "add", "root:right")
    etcd.ctl("user", "grant-role", "root", "root")
    etcd.ctl("user", "add", "guest:guest")
    etcd.ctl("auth", "enable")
    async with reach(etcd.address, user="guest", password="guest") as store:
        with pytest.raises(ConfigError, match=r"permission denied.*grant the user a role"):
            await store.get("key")


async def test_a_password_that_nobody_asks_for_is_no_fault(shared_etcd: Start) -> None:
    async with reach(shared_etcd().address, user="root", password="any") as store:
        assert await store.get("key") is None


async def test_tls_with_a_client_certificate(tmp_path: Path, etcd_process: Start) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (Debian: openssl)")
    pem = _certificates(tmp_path)
    etcd = etcd_process(
        *("--cert-file", pem["server.pem"], "--key-file", pem["server.key"]),
        *("--trusted-ca-file", pem["ca.pem"], "--client-cert-auth"),
        scheme="https",
    )
    url = f"etcd://{etcd.address}"
    mutual = {"ca": pem["ca.pem"], "cert": pem["client.pem"], "key": pem["client.key"]}
    async with open_store(url, mutual) as store:
        await until_ready(store)
        made = await store.create("key", b"")
        assert await anext(store.watch("")) == (Event("key", made),)
    strangers = ({"ca": pem["ca.pem"]}, {}, {**mutual, "ca": pem["client.pem"]})
    for options in strangers:
        async with open_store(url, options) as store:
            with pytest.raises(NotReady, match=etcd.address):
                await store.get("key")
    async with open_store(url, strangers[-1]) as store:  # the server is not of that CA
        with pytest.raises(NotReady, match="check the store's options ca, cert and key"):
            await store.get("key")


class Gate:
    """A way through to a port.

    Shut, its connections end and new ones are refused.  Frozen, those that are open stay so and
    carry nothing more; new ones pass.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._port = 0
        self._ends: set[asyncio.StreamWriter] = set()
        self._backs: set[asyncio.StreamWriter] = set()
        self._frozen: set[asyncio.StreamWriter] = set()
        self._carriers: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        self._server.close()
        for end in self._ends:
            end.transport.abort()
        await asyncio.gather(*self._carriers, return_exceptions=True)

    def freeze(self, *, answers_only: bool = False) -> None:
        self._frozen |= self._backs if answers_only else self._ends

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shut()

    def _accept(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._carriers.add(asyncio.create_task(self._carry(near, back)))

    async def _carry(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._ends.add(back)
        self._backs.add(back)
        try:
            far, forth = await asyncio.open_connection("127.0.0.1", self._target)
            self._ends.add(forth)
            await asyncio.gather(self._copy(near, forth), self._copy(far, back))
        except OSError:
            back.transport.abort()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if sink not in self._frozen:
                sink.write(data)
                await sink.drain()
        sink.close()


def _certificates(directory: Path) -> dict[str, str]:
    """A CA, and a server's and a client's certificate of it, by file name."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA")
    (directory / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=root")
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san")
        openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem")
    return {p.name: str(p) for p in directory.iterdir() if p.suffix in (".pem", ".key")}
