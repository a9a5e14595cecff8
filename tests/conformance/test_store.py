"""The contract of `muslin.store`, sentence by sentence, on every store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
from benches import Bench

from muslin.errors import Conflict, NotReady
from muslin.store import Event, Store

Batches = AsyncIterator[tuple[Event, ...]]
PATIENCE = 15.0  # seconds until "never"


class Reader:
    """A watcher that remembers what it was told, and checks each batch against the rules."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.state: dict[str, bytes] = {}
        self._revisions: dict[str, int | None] = {}

    async def batch(self) -> tuple[Event, ...]:
        """The next batch, no key in it twice, nothing in it told before."""
        async with asyncio.timeout(PATIENCE):
            batch = await anext(self._batches)
        assert len({e.key for e in batch}) == len(batch)
        for key, record in ((e.key, e.record) for e in batch):
            revision = record.revision if record else None
            assert self._revisions.get(key) != revision, f"{key} was told twice"
            self._revisions[key] = revision
            if record is None:
                del self.state[key]
            else:
                self.state[key] = record.value
        return batch

    async def until(self, reached: Callable[[dict[str, bytes]], bool]) -> None:
        while not reached(self.state):
            await self.batch()


@asynccontextmanager
async def watching(store: Store, prefix: str = "") -> AsyncIterator[Reader]:
    batches = store.watch(prefix)
    async with aclosing(batches):  # type: ignore[type-var]
        yield Reader(batches)


# ── reading and writing ─────────────────────────────────────────────────────────────────────────


async def test_what_was_created_is_read_back(store: Store) -> None:
    made = await store.create("a/b", b"\x00value")
    assert (made.key, made.value) == ("a/b", b"\x00value")
    assert await store.get("a/b") == made


async def test_what_was_never_written_is_none(store: Store) -> None:
    assert await store.get("nothing") is None


async def test_create_refuses_what_is_there_and_leaves_it_alone(store: Store) -> None:
    made = await store.create("key", b"first")
    with pytest.raises(Conflict) as refused:
        await store.create("key", b"second")
    assert refused.value.key == "key"
    assert await store.get("key") == made


async def test_create_succeeds_again_after_a_delete_with_a_greater_revision(store: Store) -> None:
    made = await store.create("key", b"")
    await store.delete("key")
    assert (await store.create("key", b"")).revision > made.revision


async def test_put_replaces_the_record_of_that_revision(store: Store) -> None:
    made = await store.create("key", b"1")
    changed = await store.put("key", b"2", if_revision=made.revision)
    assert changed.revision > made.revision
    assert await store.get("key") == changed


async def test_put_of_a_stale_revision_is_refused(store: Store) -> None:
    stale = await store.create("key", b"1")
    fresh = await store.put("key", b"2", if_revision=stale.revision)
    with pytest.raises(Conflict):
        await store.put("key", b"3", if_revision=stale.revision)
    assert await store.get("key") == fresh


@pytest.mark.parametrize("revision", [-1, 0, 1, 10**9])
async def test_put_never_creates(store: Store, revision: int) -> None:
    with pytest.raises(Conflict):
        await store.put("key", b"", if_revision=revision)
    assert await store.get("key") is None


async def test_put_does_not_resurrect_what_was_deleted(store: Store) -> None:
    made = await store.create("key", b"")
    await store.delete("key")
    with pytest.raises(Conflict):
        await store.put("key", b"", if_revision=made.revision)


async def test_delete_says_whether_there_was_something(store: Store) -> None:
    await store.create("key", b"")
    assert await store.delete("key") is True
    assert await store.delete("key") is False
    assert await store.get("key") is None


async def test_delete_of_another_revision_is_refused(store: Store) -> None:
    stale = await store.create("key", b"1")
    fresh = await store.put("key", b"2", if_revision=stale.revision)
    with pytest.raises(Conflict):
        await store.delete("key", if_revision=stale.revision)
    assert await store.get("key") == fresh
    assert await store.delete("key", if_revision=fresh.revision) is True
    assert await store.delete("key", if_revision=fresh.revision) is False


async def test_list_is_by_key_and_only_of_its_prefix(store: Store) -> None:
    for key in ("b/2", "a", "b/10", "b", "bb/1", "b/é", "b/\U0001f9f5", "c/1"):
        await store.create(key, key.encode())
    listed = [r.key for r in await store.list("b/")]
    assert listed == ["b/10", "b/2", "b/é", "b/\U0001f9f5"]
    everything = [r.key for r in await store.list("")]
    assert everything == sorted(everything)
    assert len(everything) == 8
    assert await store.list("z") == ()


async def test_a_prefix_is_text_and_not_a_pattern(store: Store) -> None:
    for key in ("a%b", "axb", "a_b", "a*b"):
        await store.create(key, b"")
    assert [r.key for r in await store.list("a_")] == ["a_b"]
    assert [r.key for r in await store.list("a%")] == ["a%b"]
    assert [r.key for r in await store.list("a*")] == ["a*b"]


async def test_every_handle_sees_the_same_records(store: Store, bench: Bench) -> None:
    made = await store.create("key", b"")
    assert await bench.open().get("key") == made


async def test_no_update_is_lost_among_many_writers(store: Store, bench: Bench) -> None:
    """Twenty tasks on two handles each count to five by compare-and-swap."""
    other: Store = bench.open()
    await store.create("counter", b"0")

    async def count(handle: Store) -> None:
        done = 0
        while done < 5:
            record = await handle.get("counter")
            assert record is not None
            following = str(int(record.value) + 1).encode()
            try:
                await handle.put("counter", following, if_revision=record.revision)
            except Conflict:
                continue
            done += 1

    await asyncio.gather(*(count(handle) for handle in (store, other) * 10))
    final = await store.get("counter")
    assert final is not None
    assert final.value == b"100"


async def test_of_many_creators_one_wins(store: Store) -> None:
    tries = (store.create("key", bytes([n])) for n in range(20))
    results = await asyncio.gather(*tries, return_exceptions=True)
    winners = [r for r in results if not isinstance(r, BaseException)]
    assert len(winners) == 1
    assert all(isinstance(r, Conflict) for r in results if isinstance(r, BaseException))
    assert await store.get("key") == winners[0]


# ── watching ────────────────────────────────────────────────────────────────────────────────────


async def test_the_first_batch_is_the_whole_state(store: Store) -> None:
    await store.create("a/1", b"one")
    await store.create("a/2", b"two")
    await store.create("b/1", b"other")
    async with watching(store, "a/") as reader:
        await reader.batch()
        assert reader.state == {"a/1": b"one", "a/2": b"two"}


async def test_the_first_batch_of_an_empty_prefix_is_empty(store: Store) -> None:
    async with watching(store, "a/") as reader:
        assert await reader.batch() == ()


async def test_a_watcher_follows_creates_puts_and_deletes(store: Store, bench: Bench) -> None:
    """Written through another handle, as another machine would."""
    writer: Store = bench.open()
    async with watching(store, "a/") as reader:
        await reader.batch()
        made = await writer.create("a/1", b"one")
        assert await reader.batch() == (Event("a/1", made),)
        changed = await writer.put("a/1", b"two", if_revision=made.revision)
        assert await reader.batch() == (Event("a/1", changed),)
        await writer.delete("a/1")
        assert await reader.batch() == (Event("a/1", None),)


async def test_a_watcher_hears_nothing_of_other_prefixes(store: Store) -> None:
    async with watching(store, "a/") as reader:
        await reader.batch()
        await store.create("b/1", b"")
        await store.create("ab", b"")
        mine = await store.create("a/1", b"")
        assert await reader.batch() == (Event("a/1", mine),)


async def test_a_watcher_that_reads_late_gets_each_final_state_once(store: Store) -> None:
    async with watching(store, "") as reader:
        await reader.batch()
        made = await store.create("changed", b"0")
        for n in range(1, 6):
            made = await store.put("changed", str(n).encode(), if_revision=made.revision)
        await store.create("kept", b"")
        await reader.until(lambda state: state == {"changed": b"5", "kept": b""})


async def test_two_watchers_of_one_store_are_told_the_same(store: Store) -> None:
    async with watching(store) as one, watching(store) as other:
        await one.batch()
        await other.batch()
        made = await store.create("key", b"")
        assert await one.batch() == (Event("key", made),)
        assert await other.batch() == (Event("key", made),)


@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_of_writers_ends_in_the_true_state(
    store: Store, bench: Bench, seed: int
) -> None:
    """Three writers, two watchers, one of them late; `Reader` checks each batch."""
    handles: list[Store] = [bench.open() for _ in range(3)]
    keys = [f"storm/{n}" for n in range(8)]

    async def write(handle: Store, dice: random.Random) -> None:
        for step in range(40):
            key = dice.choice(keys)
            record = await handle.get(key)
            value = f"{id(handle)}.{step}".encode()
            try:
                if record is None:
                    await handle.create(key, value)
                elif dice.random() < 0.4:
                    await handle.delete(key, if_revision=record.revision)
                else:
                    await handle.put(key, value, if_revision=record.revision)
            except Conflict:
                continue

    async def follow() -> dict[str, bytes]:
        async with watching(store, "storm/") as reader:
            await reader.until(lambda state: "storm/end" in state)
            return reader.state

    early = asyncio.create_task(follow())
    dice = random.Random(seed)
    writers = [write(h, random.Random(dice.random())) for h in handles]
    first = asyncio.create_task(writers[0])
    await asyncio.sleep(0)
    late = asyncio.create_task(follow())
    await asyncio.gather(first, *writers[1:])
    await store.create("storm/end", b"")
    truth = {r.key: r.value for r in await store.list("storm/")}
    assert await early == truth
    assert await late == truth


async def test_closing_a_store_ends_its_watchers(store: Store) -> None:
    async with watching(store) as reader:
        await reader.batch()
        waiting = asyncio.create_task(reader.batch())
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StopAsyncIteration):
            await _answer(waiting)


async def test_a_watcher_can_be_cancelled_while_it_waits(store: Store) -> None:
    async with watching(store) as reader:
        await reader.batch()
        waiting = asyncio.create_task(reader.batch())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert await store.get("key") is None


async def test_a_closed_store_is_not_ready_and_closing_again_is_success(store: Store) -> None:
    await store.create("key", b"")
    await store.close()
    await store.close()
    with pytest.raises(NotReady):
        await store.get("key")


# ── leases ──────────────────────────────────────────────────────────────────────────────────────


async def test_keys_vanish_with_a_lease_that_is_not_kept(store: Store, bench: Bench) -> None:
    """Readers, watchers and creators all see it, and the lease itself is gone."""
    lease = await store.lease(1)
    async with watching(store) as reader:
        leased = await store.create("leased", b"", lease=lease)
        await store.create("free", b"")
        await reader.until(lambda state: len(state) == 2)
        if bench.kind == "memory":
            await bench.elapse(lease.ttl)
        await reader.until(lambda state: state == {"free": b""})
    assert await store.get("leased") is None
    assert [r.key for r in await store.list("")] == ["free"]
    with pytest.raises(Conflict):
        await store.put("leased", b"", if_revision=leased.revision)
    assert await store.delete("leased") is False
    assert (await store.create("leased", b"")).revision > leased.revision
    with pytest.raises(Conflict):
        await lease.keep()


async def test_keep_starts_the_time_again(store: Store, bench: Bench) -> None:
    lease = await store.lease(1)
    made = await store.create("leased", b"", lease=lease)
    for _ in range(6):
        await bench.elapse(lease.ttl * 0.4)
        await lease.keep()
    assert await store.get("leased") == made


async def test_the_granted_time_is_at_least_what_was_asked(store: Store) -> None:
    assert (await store.lease(0.2)).ttl >= 1
    assert (await store.lease(7.5)).ttl >= 7.5


async def test_revoke_removes_the_keys_and_watchers_see_it(store: Store) -> None:
    lease = await store.lease(60)
    async with watching(store) as reader:
        await store.create("1", b"", lease=lease)
        await store.create("2", b"", lease=lease)
        await reader.until(lambda state: len(state) == 2)
        await lease.revoke()
        await reader.until(lambda state: not state)
    assert await store.list("") == ()


async def test_revoke_twice_is_success_and_keep_after_it_a_conflict(store: Store) -> None:
    lease = await store.lease(60)
    await lease.revoke()
    await lease.revoke()
    with pytest.raises(Conflict):
        await lease.keep()


async def test_nothing_is_written_under_a_lease_that_is_gone(store: Store) -> None:
    made = await store.create("old", b"")
    lease = await store.lease(60)
    await lease.revoke()
    with pytest.raises(Conflict):
        await store.create("new", b"", lease=lease)
    with pytest.raises(Conflict):
        await store.put("old", b"", if_revision=made.revision, lease=lease)
    assert await store.list("") == (made,)


async def test_put_moves_a_key_to_another_lease(store: Store) -> None:
    former, latter = await store.lease(60), await store.lease(60)
    made = await store.create("key", b"", lease=former)
    moved = await store.put("key", b"", if_revision=made.revision, lease=latter)
    await former.revoke()
    assert await store.get("key") == moved
    await latter.revoke()
    assert await store.get("key") is None


async def test_put_without_a_lease_sets_a_key_free(store: Store) -> None:
    lease = await store.lease(60)
    made = await store.create("key", b"", lease=lease)
    freed = await store.put("key", b"", if_revision=made.revision)
    await lease.revoke()
    assert await store.get("key") == freed


async def test_a_deleted_key_may_be_created_again_outside_its_lease(store: Store) -> None:
    lease = await store.lease(60)
    await store.create("key", b"", lease=lease)
    await store.delete("key")
    made = await store.create("key", b"")
    await lease.revoke()
    assert await store.get("key") == made


async def _answer(task: asyncio.Task[tuple[Event, ...]]) -> tuple[Event, ...]:
    """What the task ends with.  A task may not raise StopAsyncIteration across `await` itself."""
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait([task])
    error = task.exception()
    if error is not None:
        raise error
    return task.result()
