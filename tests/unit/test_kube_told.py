"""The watch rules, as values in and out."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from muslin.kube.told import Change, Event, Reader, Told
from scripted import config_map

Obj = dict[str, Any]


def raw(obj: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(obj).encode())


class Watcher:
    """One that is told, and checks that it is told what is news."""

    def __init__(self) -> None:
        self.reader: Reader[Obj] = Reader("configmaps", dict)
        self.told = Told(self.reader)
        self.state: dict[str, Obj] = {}

    def relist(self, *pages: list[Obj]) -> tuple[Change[Obj], ...] | None:
        relist = self.told.relist()
        for page in pages:
            relist.page([raw(o) for o in page])
        return self.told.end(relist)

    def events(self, *events: tuple[str, Obj]) -> tuple[Change[Obj], ...] | None:
        found = [(kind, raw(o)) for kind, o in events]
        return self.told.events(Event(kind, self.reader.meta(r), r) for kind, r in found)

    def take(self, batch: tuple[Change[Obj], ...] | None) -> None:
        for change in batch or ():
            assert self.state.get(change.name) != change.object
            if change.object is None:
                del self.state[change.name]
            else:
                self.state[change.name] = change.object


def obj(name: str, version: int) -> Obj:
    return config_map(name, version, v=version)


def test_only_the_first_list_may_be_an_empty_batch() -> None:
    it = Watcher()
    assert it.relist([]) == ()
    assert it.relist([]) is None


def test_a_second_list_is_told_as_its_difference_deletes_included() -> None:
    it = Watcher()
    it.relist([obj("same", 1), obj("changed", 2)], [obj("gone", 3)])
    batch = it.relist([obj("changed", 5), obj("new", 4)], [obj("same", 1)])
    assert batch == (
        Change("ns", "changed", obj("changed", 5)),
        Change("ns", "new", obj("new", 4)),
        Change("ns", "gone", None),
    )


def test_a_list_that_was_not_finished_counts_for_nothing() -> None:
    it = Watcher()
    it.relist([obj("a", 1)])
    it.told.relist().page([raw(obj("b", 2))])
    assert it.relist([obj("a", 1), obj("b", 2)]) == (Change("ns", "b", obj("b", 2)),)


def test_what_came_and_went_within_a_batch_is_not_mentioned() -> None:
    it = Watcher()
    it.relist([])
    assert it.events(("ADDED", obj("a", 1)), ("DELETED", obj("a", 2))) is None


def test_what_the_list_has_told_events_do_not_tell_again() -> None:
    it = Watcher()
    it.relist([obj("a", 7)])
    assert it.events(("ADDED", obj("a", 7))) is None


def test_a_cluster_restored_from_a_backup_is_followed_back() -> None:
    it = Watcher()
    it.relist([obj("a", 9)])
    assert it.relist([obj("a", 4)]) == (Change("ns", "a", obj("a", 4)),)


def test_the_same_name_in_two_namespaces_is_two_objects() -> None:
    it = Watcher()
    other = obj("a", 2)
    other["metadata"] = other["metadata"] | {"namespace": "other"}
    it.relist([obj("a", 1), other])
    assert it.events(("DELETED", other)) == (Change("other", "a", None),)


steps = st.lists(
    st.tuples(
        st.sampled_from(["relist", "events", "twice", "lost"]),
        st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=5),
    ),
    max_size=20,
)


@given(steps)
def test_whatever_is_lost_the_watcher_ends_with_the_truth(
    history: list[tuple[str, list[tuple[str, bool]]]],
) -> None:
    """Writes reach it by a list, by events, by events told twice, or not before the next list."""
    it, truth, version = Watcher(), dict[str, Obj](), 0
    for how, writes in (*history, ("relist", [])):
        events = []
        for name, present in writes:
            version += 1
            kind = "MODIFIED" if name in truth else "ADDED"
            if present:
                truth[name] = obj(name, version)
                events.append((kind, truth[name]))
            elif name in truth:
                del truth[name]
                events.append(("DELETED", obj(name, version)))
        if how == "relist":
            it.take(it.relist(list(truth.values())))
        elif how != "lost":
            it.take(it.events(*events))
            if how == "twice":
                it.take(it.events(*events[-1:]))
    assert it.state == truth
