"""Installing, upgrading and removing through the API server alone, by server-side apply.

Every step is a request that may be repeated: who was interrupted begins
again.  What another hand has set is not taken over unless that is asked for.
Nothing is guessed about a cluster's state: each object is read before it is
written, so the answer tells what changed.

Removing runs backwards, with one thing more: what agents put on the nodes.
When they have gone, a DaemonSet made from theirs runs `muslin node clean` on
the same nodes, and is removed when each of its pods says that it is done.  Not
the agents themselves, on some mark: then a node whose agent is broken would be
the one that nobody cleans.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from muslin.controller import manifests, offers
from muslin.controller.manifests import MADE_BY, MANAGER, Target
from muslin.errors import ConfigError, Conflict, NotReady
from muslin.kube import Api, Kind, crd
from muslin.kube import kinds as known
from muslin.kube.faults import Unserved
from muslin.kube.slim import Pod
from muslin.kube.values import KINDS
from muslin.model import Block, Network, Node, Pool

Verb = Literal["created", "changed", "same", "removed", "absent"]
Say = Callable[[str], None]

PAUSE = 1.0  # seconds between two looks at what is waited for
SHOWN = 5  # names in a message
_AGENTS = "app.kubernetes.io/name=muslin,app.kubernetes.io/component=agent"
_OURS = "app.kubernetes.io/name=muslin"
_CLEANERS = "app.kubernetes.io/name=muslin,app.kubernetes.io/component=clean"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object, or would."""

    what: str
    verb: Verb
    changes: tuple[str, ...] = ()


class Rollout:
    """One cluster; `say` hears what is waited for.  With `dry_run` the Api is one too."""

    def __init__(
        self, api: Api, *, dry_run: bool = False, say: Say = lambda _: None, timeout: float = 300.0
    ) -> None:
        self._api, self._dry, self._say, self._timeout = api, dry_run, say, timeout

    async def check(self) -> str:
        """The server's version; ConfigError if it is older than what the manifests need."""
        version = await self._api.version()
        found = re.match(r"v?(\d+)\.(\d+)", version)
        oldest = tuple(map(int, crd.OLDEST.split(".")))
        if found is None or tuple(map(int, found.groups())) < oldest:
            fault = f"the API server is {version}; Muslin needs {crd.OLDEST} or later"
            raise ConfigError("kubernetes", [fault])
        return version

    async def apply(
        self, targets: Sequence[Target], *, force: bool = False
    ) -> AsyncIterator[Outcome]:
        """Bring every object to its state, stage by stage; what is so already is not touched."""
        there = await self._api.get(known.NAMESPACES, _namespace(targets)) is not None
        for stage in manifests.STAGES:
            part = [t for t in targets if t.stage == stage]
            for target in part:
                there = there or (target.kind == known.NAMESPACES and not self._dry)
                if self._dry and target.namespace and not there:
                    yield Outcome(str(target), "created")  # the server cannot judge it yet
                else:
                    yield await self._apply(target, force)
            if stage == "kinds" and not self._dry:
                await self._until("the new kinds to be served", partial(self._unserved, part))

    async def upgradable(self, image: str) -> list[Target]:
        """What an upgrade applies: all but settings and networks that are there, which are yours.

        Settings that are new are added (`offers`).  The image stays where it
        was pulled from, unless one is named.
        """
        agent = _agent()
        live = await self._api.get(agent.kind, agent.name, namespace=agent.namespace)
        if live is None:
            raise ConfigError("upgrade", ["Muslin is not installed here"], hint="muslin install")
        selector = live["spec"]["template"]["spec"].get("nodeSelector") or {}
        targets = _base("flannel" if manifests.CHOSEN in selector else "hostgw")
        [at] = [n for n, t in enumerate(targets) if t.stage == "settings"]
        settings = targets[at]
        found = await self._api.get(settings.kind, settings.name, namespace=settings.namespace)
        if found is not None:
            targets[at : at + 1] = with_offers(settings, found)
        data = next((t.body["data"] for t in targets if t.stage == "settings"), None)
        data = data or (found or {}).get("data") or {}
        new = image or manifests.newer(manifests.image_of(live))
        return manifests.complete(targets, data, image=new)

    async def wait(self, targets: Iterable[Target]) -> None:
        """Until both workloads are what they are to be and ready; NotReady says which are not."""
        for target in (t for t in targets if t.kind in (known.DAEMON_SETS, known.DEPLOYMENTS)):
            await self._until(f"{target}", partial(self._unready, target))

    async def users(self) -> list[str]:
        """The pods that have an address of ours, as namespace/name."""
        try:
            pools = await self._api.list(KINDS[Pool], type=dict)
        except Unserved:
            return []
        ranges = [ip_network(p["spec"]["cidr"]) for p in pools.items]
        pods = await self._api.list(known.PODS, type=Pod)
        return [
            f"{pod.metadata.namespace}/{pod.metadata.name}"
            for pod in pods.items
            if not pod.spec.host_network
            and pod.status.phase not in ("Succeeded", "Failed")
            and any(ip_address(a.ip) in r for a in pod.status.pod_ips or () if a.ip for r in ranges)
        ]

    async def remove(self, *, force: bool = False, purge: bool = False) -> AsyncIterator[Outcome]:
        """Take everything away again, the nodes' part included.

        Networks and pools that somebody else made stay, and the kinds with
        them, unless `purge`.  ConfigError when pods still need it, unless
        `force`; NotReady names nodes that could not be cleaned.
        """
        users = await self.users()
        if users and not force:
            more = f" and {len(users) - SHOWN} more" if len(users) > SHOWN else ""
            fault = f"{len(users)} pods use it: {', '.join(users[:SHOWN])}{more}"
            raise ConfigError("uninstall", [fault], hint="delete them first, or --force")
        async for outcome in self._clean_nodes(force):
            yield outcome
        base = _base("flannel")  # which has all that there may be
        for target in (t for t in reversed(base) if t.stage == "workloads"):
            yield await self._delete(target.kind, target.name, target.namespace)
        for target in (t for t in base if t.kind == known.VALIDATING_WEBHOOKS):
            yield await self._delete(target.kind, target.name)  # it would ask whether we mean it
        for kind, labels in (
            (KINDS[Network], f"{MADE_BY}={MANAGER}"),
            (KINDS[Pool], f"{MADE_BY}={MANAGER}"),
            (KINDS[Block], ""),
            (KINDS[Node], ""),
        ):
            for name in await self._names(kind, "" if purge else labels):
                yield await self._delete(kind, name)
        last = [t for t in base if t.stage in ("settings", "ground")]
        for target in (t for t in reversed(last) if t.kind != known.VALIDATING_WEBHOOKS):
            yield await self._delete(target.kind, target.name, target.namespace)
        gone = [t for t in base if t.kind == known.NAMESPACES]
        for target in (t for t in base if t.stage == "kinds" and purge):
            yield await self._delete(target.kind, target.name)
            gone.append(target)
        if not self._dry:
            for target in gone:
                await self._until(f"{target} to go", partial(self._present, target))

    # ── the nodes' part ─────────────────────────────────────────────────────────────────────

    async def _clean_nodes(self, force: bool) -> AsyncIterator[Outcome]:
        agent = await self._agent_as_it_is()
        if agent is None:
            return
        cleaner = manifests.cleaner(agent.body)
        yield await self._delete(agent.kind, agent.name, agent.namespace)
        if self._dry:
            yield Outcome("nodes: muslin node clean", "changed")
            return
        await self._gave_up(force, self._until("agents to end", partial(self._pods_of, _AGENTS)))
        await self._apply(cleaner, True)
        waiting = self._until("nodes to be clean", partial(self._unclean, cleaner))
        await self._gave_up(force, waiting)
        yield Outcome("nodes: muslin node clean", "changed")
        await self._delete(cleaner.kind, cleaner.name, cleaner.namespace)
        gone = self._until("cleaners to end", partial(self._pods_of, _CLEANERS))
        await self._gave_up(force, gone)

    async def _agent_as_it_is(self) -> Target | None:
        """The agents' DaemonSet; after an interrupted removal, ours with the image in use."""
        agent = _agent()
        live = await self._api.get(agent.kind, agent.name, namespace=agent.namespace)
        if live is not None:
            return Target(agent.kind, live)
        for kind, name in ((agent.kind, "muslin-clean"), (known.DEPLOYMENTS, "muslin-controller")):
            other = await self._api.get(kind, name, namespace=agent.namespace)
            if other is not None:
                [found] = manifests.complete([agent], {}, image=manifests.image_of(other))
                return found
        return None

    async def _gave_up(self, force: bool, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except NotReady as e:
            if not force:
                raise
            self._say(f"going on: {e.message}")

    async def _unclean(self, cleaner: Target) -> str:
        why = await self._unready(cleaner)
        pods = await self._api.list(
            known.PODS, namespace=cleaner.namespace, labels=_CLEANERS, type=Pod
        )
        nodes = [p.spec.node_name for p in pods.items if not _is_ready(p)]
        return f"{why}: {_some(nodes)}" if why and nodes else why

    async def _pods_of(self, labels: str) -> str:
        namespace = _agent().namespace
        pods = await self._api.list(known.PODS, namespace=namespace, labels=labels, type=Pod)
        return f"pods on {_some(p.spec.node_name for p in pods.items)}" if pods.items else ""

    # ── single objects ──────────────────────────────────────────────────────────────────────

    async def _apply(self, target: Target, force: bool) -> Outcome:
        kind, name, namespace = target.kind, target.name, target.namespace
        if target.added is not None:
            return await self._add(target, target.added)
        try:
            before = await self._api.get(kind, name, namespace=namespace)
            after = await self._api.apply(kind, name, target.body, namespace=namespace, force=force)
        except Unserved:
            if self._dry:
                return Outcome(str(target), "created")  # its kind is among what would be made
            raise
        except Conflict as e:
            raise ConfigError(str(target), [e.message], hint="--force takes them over") from e
        found = tuple(manifests.changes(before, after))
        verb: Verb = "created" if before is None else "changed" if found else "same"
        return Outcome(str(target), verb, found)

    async def _add(self, target: Target, lines: tuple[str, ...]) -> Outcome:
        """Write what has more than before and nothing else, whoever wrote what was there.

        By server-side apply where all of it is ours, so that it stays ours
        alone; by a patch where others have a part.  Both name the version
        that was read, so that nobody's change is lost in between.
        """
        kind, name, namespace = target.kind, target.name, target.namespace
        try:
            try:
                await self._api.apply(kind, name, target.body, namespace=namespace)
            except Conflict:
                meta, data = target.body["metadata"], target.body["data"]
                meta = {part: meta[part] for part in ("annotations", "resourceVersion")}
                await self._api.patch(
                    kind, name, {"metadata": meta, "data": data}, namespace=namespace
                )
        except Conflict as e:
            raise NotReady(f"{target}: {e.message}", hint="do the same again") from e
        return Outcome(str(target), "changed", lines)

    async def _delete(self, kind: Kind, name: str, namespace: str = "") -> Outcome:
        what = f"{kind.kind} {'/'.join(filter(None, (namespace, name)))}"
        if self._dry:
            there = await self._api.get(kind, name, namespace=namespace) is not None
        else:
            there = await self._api.delete(kind, name, namespace=namespace)
        return Outcome(what, "removed" if there else "absent")

    async def _names(self, kind: Kind, labels: str) -> list[str]:
        try:
            found = await self._api.list(kind, labels=labels, type=dict)
        except Unserved:
            return []
        return sorted(o["metadata"]["name"] for o in found.items)

    async def _present(self, target: Target) -> str:
        there = await self._api.get(target.kind, target.name, namespace=target.namespace)
        return "still there" if there else ""

    async def _unserved(self, crds: Iterable[Target]) -> str:
        """The kinds that are not established yet."""
        missing = []
        for target in crds:
            live = await self._api.get(target.kind, target.name) or {}
            conditions = live.get("status", {}).get("conditions") or ()
            if not any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
                missing.append(target.name)
        return _some(missing) if missing else ""

    async def _unready(self, target: Target) -> str:
        """What a workload lacks; "" when it is rolled out."""
        live = await self._api.get(target.kind, target.name, namespace=target.namespace)
        if live is None:
            return "not there yet"
        status = live.get("status") or {}
        if status.get("observedGeneration", 0) < live["metadata"].get("generation", 0):
            return "not seen by the controller manager yet"
        if target.kind == known.DAEMON_SETS:
            wanted = status.get("desiredNumberScheduled", 0)
            new, ready = status.get("updatedNumberScheduled", 0), status.get("numberReady", 0)
        else:  # one of two is enough: a cluster of one node has place for no more
            wanted = min(1, live["spec"].get("replicas", 1))
            new, ready = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
        if new >= wanted and ready >= wanted:
            return ""
        return f"{min(new, ready)} of {wanted} ready{await self._reasons(live)}"

    async def _reasons(self, live: dict[str, Any]) -> str:
        """Why pods of it do not start, as the kubelet says."""
        selector = live["spec"]["selector"]["matchLabels"]
        labels = ",".join(f"{k}={v}" for k, v in sorted(selector.items()))
        namespace = live["metadata"]["namespace"]
        pods = await self._api.list(known.PODS, namespace=namespace, labels=labels, type=dict)
        states = (
            c.get("state", {}).get("waiting", {}).get("reason", "")
            for p in pods.items
            for c in p.get("status", {}).get("containerStatuses") or ()
        )
        reasons = sorted({s for s in states if s})
        return f" ({', '.join(reasons)})" if reasons else ""

    async def _until(self, what: str, lacking: Callable[[], Awaitable[str]]) -> None:
        """Look until nothing lacks; NotReady with what still does when time is over."""
        end = asyncio.get_running_loop().time() + self._timeout
        said = ""
        while lack := await self._look(lacking):
            if asyncio.get_running_loop().time() > end:
                hint = "kubectl -n muslin-system get pods; --timeout gives it longer"
                raise NotReady(f"{what}: {lack} after {self._timeout:.0f} s", hint=hint)
            if lack != said:
                self._say(f"waiting for {what}: {lack}")
                said = lack
            await asyncio.sleep(PAUSE)

    async def _look(self, lacking: Callable[[], Awaitable[str]]) -> str:
        try:
            return await lacking()
        except NotReady as e:
            return e.message
        except Unserved as e:
            return str(e)


def with_offers(base: Target, live: dict[str, Any]) -> list[Target]:
    """The settings with what is new in `base`; nothing if nothing is."""
    made = offers.offer(base.body, live)
    annotation = (live["metadata"].get("annotations") or {}).get(offers.OFFERED)
    if not made.lines and annotation == made.offered:
        return []
    meta = base.body["metadata"]
    meta = {
        **meta,
        "annotations": {**meta.get("annotations", {}), offers.OFFERED: made.offered},
        "resourceVersion": live["metadata"]["resourceVersion"],
    }
    lines = tuple(f"added to {line}" for line in made.lines)
    body = {**base.body, "metadata": meta, "data": made.files}
    return [replace(base, body=body, added=lines)]


def _base(ground: str = "hostgw") -> list[Target]:
    """What every installation has; beside flannel there is more (deploy/overlays/flannel)."""
    return [t for t in manifests.targets(ground) if t.stage != "network"]


def _agent() -> Target:
    return next(t for t in _base() if t.kind == known.DAEMON_SETS)


def _namespace(targets: Iterable[Target]) -> str:
    return next((t.namespace for t in targets if t.namespace), _agent().namespace)


def _is_ready(pod: Pod) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())


def _some(names: Iterable[str]) -> str:
    found = sorted({n or "(no node)" for n in names})
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
