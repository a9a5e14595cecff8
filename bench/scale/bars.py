"""Which bars are met, computed from the figures of a run: no prose says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.scale.estate import Json

MB = (1 << 20) / 1e6  # in a MiB, which is what /proc tells
PROCESSES = ("supervisor", "cni", "sync")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What was found beside what it should be."""

    what: str
    limit: float
    unit: str = ""
    least: bool = False  # less than the limit misses it; otherwise more does
    found: Mapping[str, float]  # by backend, or by nothing

    @property
    def met(self) -> bool:
        """By every one of them."""
        if self.least:
            return all(value >= self.limit for value in self.found.values())
        return all(value <= self.limit for value in self.found.values())


def bars(figures: Json) -> Iterator[Bar]:
    """Every bar of a whole run."""
    agents: dict[str, Json] = figures["agent"]
    own = figures["size"]["own"]
    yield Bar(
        what=f"agent with {own} pods: all its memory, each page counted once",
        limit=60,
        unit="MB",
        found={name: together(one) for name, one in agents.items()},
    )
    yield Bar(
        what="the same as PSS, beside other processes of Python",
        limit=60,
        unit="MB",
        found={name: pss(one) for name, one in agents.items()},
    )
    for what, key in (
        ("pod bound → its wishes known to the CNI server, p99", "pod_ms"),
        ("a peer's block → its route in the kernel, p99", "block_ms"),
    ):
        found = {name: one["churn"][key]["p99"] for name, one in agents.items()}
        yield Bar(what=what, limit=100, unit="ms", found=found)
    yield Bar(
        what="writes to the API server in a pod's life, if it has wishes",
        limit=2,
        found={"": max(_writes(figures, one) for one in agents.values())},
    )
    yield Bar(
        what="events of other nodes' pods that an agent is sent",
        limit=0,
        found={name: others(one) for name, one in agents.items()},
    )
    yield Bar(
        what="lists after a restart: between the first twentieth and the last",
        limit=30,
        unit="s",
        least=True,
        found={"": spread(figures["storm"])},
    )


def together(agent: Json) -> float:
    """MB of an agent, each page counted once, at the worst moment that was looked at."""
    return MB * max(float(agent[f"memory_{when}"]["together"]) for when in ("synced", "churned"))


def pss(agent: Json) -> float:
    """MB of an agent as PSS, likewise."""
    moments = (agent["memory_synced"], agent["memory_churned"])
    return MB * max(sum(float(moment[p]["pss"]) for p in PROCESSES) for moment in moments)


def others(agent: Json) -> int:
    """Events of pods that the churn brought it, but for those of its own node's."""
    told = agent["churn"]["server"]["events"]
    return sum(count for what, count in told.items() if what.startswith("pods") and "=" not in what)


def spread(storm: Json) -> float:
    """Seconds in which the middle nine tenths of a relist's lists came."""
    lists = storm["relist"]["lists_at"]
    return float(lists["p95"] - lists["p5"])


def per_life(controller: Json) -> float:
    """Writes of the controller per pod that came and went."""
    pods = controller["pods"]
    return float(sum(pods["writes"].values()) / pods["lives"])


def _writes(figures: Json, agent: Json) -> float:
    """The controller's for a pod, and the agent's for one of its own with wishes.

    An agent that comes after another finds the pods with what that one wrote.
    """
    ours = agent["start"]["requests"].get("patch pods", 0) / figures["wishing"]
    return per_life(figures["controller"]) + float(ours)
