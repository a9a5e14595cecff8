"""How long a watch waits before it tries again.

Two series, both with bounds that double and draws from a quarter of the bound
up to all of it: never nothing, so that no fault makes a loop spin, and spread
enough that the agents of an estate, which all lose the same API server in the
same instant, do not come back in one.

    a lost or refused connection             0.2 s, 0.4 s ... 30 s
    410, so that all must be listed anew     4 s, 8 s ... 60 s

To resume costs the server little.  To list costs it much: 1000 agents make
330 lists a second at first, then fewer.

A server that was restarted makes 410 likely for a kind that nobody wrote
meanwhile (its cache begins at a later version than the watch has come to), so
the second series begins as slowly as a network can bear to be out of date.
The first list of a watch waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

Uniform = Callable[[float, float], float]

RESUME = (0.2, 30.0)  # seconds: the first bound and the last
RELIST = (4.0, 60.0)


def pauses(uniform: Uniform, bounds: tuple[float, float]) -> Iterator[float]:
    """Yield seconds for ever, drawn below bounds that double from the first to the last."""
    bound, last = bounds
    while True:
        yield uniform(bound / 4, bound)
        bound = min(bound * 2, last)
