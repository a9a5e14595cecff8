"""A watcher's memory: turns what a store says into batches that keep the watcher rules.

A watcher is told two kinds of things: the whole state (at first, and again
after anything may have been lost) and single changes.  Both pass through one
`Mirror`, which knows the revision last delivered for every key.  From that
alone follow the module's rules: nothing is delivered twice, a key that
disappeared while nobody was looking is delivered as gone, and a batch holds
one event per key, the last.

Pure, and one dictionary of key → revision per watcher: values are not kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from muslin.store import Event, Record


class Mirror:
    """What one watcher has been told so far."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._begun = False

    def relist(self, records: Iterable[Record]) -> tuple[Event, ...] | None:
        """The whole state, as what differs from the last: new and changed keys first, then gone.

        None when there is nothing to tell.  Only the first answer may be an
        empty batch, since a watcher waits for it.  Revisions are compared for
        difference, not order: a store restored from a backup counts anew.
        """
        present = {r.key: r for r in records}
        changed = [Event(k, r) for k, r in present.items() if self._known.get(k) != r.revision]
        gone = [Event(k, None) for k in sorted(self._known.keys() - present.keys())]
        self._known = {k: r.revision for k, r in present.items()}
        first, self._begun = not self._begun, True
        return (*changed, *gone) if changed or gone or first else None

    def changes(self, events: Iterable[Event]) -> tuple[Event, ...] | None:
        """Single changes, oldest first, as one batch; None when none is news."""
        last = {e.key: e for e in events}
        news = tuple(e for e in last.values() if self._is_news(e))
        for key, record in ((e.key, e.record) for e in news):
            if record is None:
                del self._known[key]
            else:
                self._known[key] = record.revision
        return news or None

    def _is_news(self, event: Event) -> bool:
        revision = event.record.revision if event.record else None
        return self._known.get(event.key) != revision
