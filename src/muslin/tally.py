"""How often this process listed whole kinds anew, and why its watches ended.

A list of everything is what an API server pays most for, and nothing else
tells an operator whether it happens once a week or once a minute.  Counts are
of the process, as its memory is: whoever shows them (the controller's
/metrics, `muslin status --json`) need not know who watches.  At the root and
not in `kube`, which costs an agent on another store 2 MiB.

    gone       410: what came since then is no longer kept; a list follows
    ended      the server ended it, as it does every few minutes
    silent     nothing came for `idle` seconds, not even a bookmark: a connection half open
    error      anything else, a watch that could not be opened among them
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal

End = Literal["gone", "ended", "silent", "error"]


class Tally:
    """Counts that only grow, by resource (`pods`, `nodes.muslin.io`)."""

    def __init__(self) -> None:
        self.lists: Counter[str] = Counter()
        self.ends: Counter[tuple[str, End]] = Counter()

    def listed(self, resource: str) -> None:
        """A watch began to list all of a kind: at its start, or because it could not resume."""
        self.lists[resource] += 1

    def ended(self, resource: str, why: End) -> None:
        """A watch that had a version to watch from came to an end."""
        self.ends[resource, why] += 1

    def shown(self) -> dict[str, dict[str, int | dict[str, int]]]:
        """By resource, as JSON: `{"pods": {"lists": 1, "ends": {"ended": 7}}}`."""
        return {
            resource: {
                "lists": count,
                "ends": {why: n for (of, why), n in sorted(self.ends.items()) if of == resource},
            }
            for resource, count in sorted(self.lists.items())
        }


tally: Final = Tally()
