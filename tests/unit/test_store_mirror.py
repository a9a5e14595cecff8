"""The watcher rules, as values in and out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from muslin.store import Event, Record
from muslin.store.mirror import Mirror


def record(key: str, revision: int) -> Record:
    return Record(key, str(revision).encode(), revision)


def test_only_the_first_list_may_be_an_empty_batch() -> None:
    mirror = Mirror()
    assert mirror.relist([]) == ()
    assert mirror.relist([]) is None


def test_a_second_list_is_delivered_as_its_difference_deletes_included() -> None:
    mirror = Mirror()
    mirror.relist([record("same", 1), record("changed", 2), record("gone", 3)])
    batch = mirror.relist([record("changed", 5), record("new", 4), record("same", 1)])
    assert batch == (
        Event("changed", record("changed", 5)),
        Event("new", record("new", 4)),
        Event("gone", None),
    )


def test_of_several_changes_of_a_key_the_last_is_delivered() -> None:
    mirror = Mirror()
    mirror.relist([])
    changes = [Event("a", record("a", 1)), Event("b", record("b", 2)), Event("a", record("a", 3))]
    batch = mirror.changes(changes)
    assert batch == (Event("a", record("a", 3)), Event("b", record("b", 2)))


def test_what_came_and_went_within_a_batch_is_not_mentioned() -> None:
    mirror = Mirror()
    mirror.relist([])
    assert mirror.changes([Event("a", record("a", 1)), Event("a", None)]) is None


def test_what_the_list_has_told_the_stream_does_not_tell_again() -> None:
    mirror = Mirror()
    mirror.relist([record("a", 7)])
    assert mirror.changes([Event("a", record("a", 7))]) is None


def test_a_store_restored_from_a_backup_is_followed_back() -> None:
    """Its revisions are smaller than what was seen, and still news."""
    mirror = Mirror()
    mirror.relist([record("a", 9)])
    assert mirror.relist([record("a", 4)]) == (Event("a", record("a", 4)),)


steps = st.lists(
    st.tuples(
        st.sampled_from(["relist", "changes", "lost"]),
        st.dictionaries(st.sampled_from("abc"), st.booleans(), max_size=3),
    ),
    max_size=20,
)


@given(steps)
def test_whatever_is_lost_the_watcher_ends_with_the_truth(history: list[object]) -> None:
    """Writes reach the mirror by list, by stream, or not at all until the next list."""
    mirror, truth, told, revision = Mirror(), {}, {}, 0
    for how, writes in (*history, ("relist", {})):  # type: ignore[misc]
        events = []
        for key, present in writes.items():
            revision += 1
            truth[key] = record(key, revision)
            if not present:
                del truth[key]
            events.append(Event(key, truth.get(key)))
        batch = mirror.relist(truth.values()) if how == "relist" else None
        if how == "changes":
            batch = mirror.changes(events)
        for event in batch or ():
            assert told.get(event.key) != event.record
            told[event.key] = event.record
    assert {k: r for k, r in told.items() if r} == truth
