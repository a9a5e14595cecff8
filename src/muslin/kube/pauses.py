"""How long a watch waits before it tries again.

Two series.  Both have bounds that double, and later draws lie between a
quarter of the bound and all of it: never nothing, so that no fault makes a
loop spin, and spread enough that the agents of an estate, which all lose the
same API server in the same instant, do not come back in one.

    a lost or refused connection             0.2 s, 0.4 s ... 30 s
    410, so that all must be listed anew     spread, then twice as long ... 60 s

To resume costs the server little.  To list costs it much, and a server that
was restarted makes 410 likely: its caches begin at a later version than most
watches have come to.  So the first draw of the second series is from all of
`spread`, which is for who watches to say: 1000 agents that list four kinds in
`AGENTS` seconds make 100 lists a second, and may as long not know of a new
node's blocks; a controller is one, and is waited for; a node's own pods are
a small list, and a kubelet asks for the same one within two seconds.

The first list of a watch waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

Uniform = Callable[[float, float], float]

RESUME = (0.2, 30.0)  # seconds: the first bound and the last
SPREAD = 2.0  # seconds: of one client
AGENTS = 40.0  # seconds: of as many as there are nodes, for what all of them hold
OWN = 4.0  # seconds: of the same, for what concerns one node and is waited for
_LAST = 60.0


def pauses(uniform: Uniform, bounds: tuple[float, float]) -> Iterator[float]:
    """Yield seconds for ever, drawn below bounds that double from the first to the last."""
    bound, last = bounds
    while True:
        yield uniform(bound / 4, bound)
        bound = min(bound * 2, last)


def relists(uniform: Uniform, spread: float) -> Iterator[float]:
    """The same before lists: the first anywhere within `spread`, so that their rate is even."""
    least = RESUME[0]
    yield uniform(min(least, spread), spread)
    yield from pauses(uniform, (min(max(2 * spread, least), _LAST), _LAST))
