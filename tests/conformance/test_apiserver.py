"""The API server of `tests/apiserver` held to the recording of a real one (Kubernetes 1.36.2).

Every recorded request is made again, in order, and every answer compared: status, Status
body, and the whole object with its managedFields.  What cannot be the same is put in its
place first: uids, resourceVersions, continue tokens and names with random ends are mapped as
they are learned, times and container ids are masked.  Pods are put through the recorded
events one by one with `apiserver.kubelet`; each watch must see the recorded events in order.

Left out, by name:
- the groups of /apis that the fake does not serve (GROUPS_NOT_SERVED);
- EndpointSlice events: the endpoint slice controller made them, and nobody plays it here;
- a Deployment's status and revision annotation, which its controller wrote;
- the text of continue tokens (the recorded one changes its form between pages).
Events are compared watch by watch: how those of different watches interleave is not.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from apiserver import ApiServer, Settings
from apiserver.kinds import BUILTINS
from apiserver.kubelet import Kubelet

RECORDING = Path(__file__).parents[1] / "apiserver" / "v1.36.jsonl.gz"
AGENT = "Python-urllib/3.11"
GROUPS_NOT_SERVED = {
    "apiregistration.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "storage.k8s.io",
    "node.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
}
PODS, SLICES, NAMESPACES = 40, 48, 45  # the recording's numbers of these watches

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_MASKS = (
    (re.compile(r"kube-api-access-[a-z0-9]{5}"), "kube-api-access-*"),
    (re.compile(r"containerd://[0-9a-f]{64}"), "containerd://*"),
    (re.compile(r"sha256:[0-9a-f]{64}"), "sha256:*"),
    (re.compile(r"too old resource version: \d+ \(\d+\)"), "too old resource version: * (*)"),
    (re.compile(r'"db-0\.[a-z0-9]{5}"'), '"db-0.*"'),
    (re.compile(r"^db-0\.[a-z0-9]{5}$"), "db-0.*"),
    (re.compile(r"127\.0\.0\.1:\d+|172\.30\.0\.1:6443"), "address"),
)

Json = dict[str, Any]


def recorded() -> list[Json]:
    with gzip.open(RECORDING, "rt") as lines:
        return [json.loads(line) for line in lines]


def masked(value: Any) -> Any:
    """What must be equal, with what cannot be put in its place."""
    if isinstance(value, dict):
        found = {masked(name): masked(below) for name, below in value.items()}
        for name in ("uid", "resourceVersion", "continue"):
            if found.get(name):
                found[name] = "*"
        if found.get("clusterIP") not in (None, "None"):
            found |= {"clusterIP": "*", "clusterIPs": ["*"]}
        return found
    if isinstance(value, list):
        return [masked(below) for below in value]
    if not isinstance(value, str):
        return value
    if _TIME.fullmatch(value) and not value.startswith("2026-11-23T00:00:00"):
        return "<time>"
    value = re.sub(r'"uid":"[0-9a-f-]{36}"', '"uid":"*"', value)
    for pattern, word in _MASKS:
        value = pattern.sub(word, value)
    return value


class Clock:
    """The recording's time: managedFields are sorted by it."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> datetime:
        return datetime(2026, 11, 23, 1, 49, 14, tzinfo=UTC) + timedelta(seconds=self.at)

    def text(self) -> str:
        return self().strftime("%Y-%m-%dT%H:%M:%SZ")


class Replay:
    """The recording, played against a server of ours."""

    def __init__(self, api: ApiServer, client: aiohttp.ClientSession, clock: Clock) -> None:
        self.api, self.client, self.clock = api, client, clock
        self.kubelet = Kubelet(api.send, clock.text)
        self.words: dict[str, str] = {}  # recorded uid, revision or token -> ours
        self.events: dict[int, list[Json]] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.pods: dict[str, Json] = {}  # as last recorded
        self.seen = 0  # recorded pod events so far

    def learn(self, theirs: Any, ours: Any) -> None:
        """Remember how their uids, revisions and tokens are called here."""
        if isinstance(theirs, dict) and isinstance(ours, dict):
            for name in theirs.keys() & ours.keys():
                if name in ("uid", "resourceVersion", "continue") and theirs[name]:
                    self.words[theirs[name]] = ours[name]
                self.learn(theirs[name], ours[name])
        elif isinstance(theirs, list) and isinstance(ours, list):
            for left, right in zip(theirs, ours, strict=False):
                self.learn(left, right)

    def translated(self, text: str) -> str:
        for pattern in (
            r'(?<="resourceVersion": ")(\d+)(?=")',
            r"(?<=resourceVersion=)(\d+)",
            r"(?<=continue=)([\w-]+)",
            r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})",
        ):
            text = re.sub(pattern, lambda found: self.words.get(found[1], found[1]), text)
        return text

    async def ask(self, request: Json) -> tuple[int, Any]:
        body = request["body"]
        headers = {"User-Agent": AGENT}
        if request["contentType"]:
            headers["Content-Type"] = request["contentType"]
        async with self.client.request(
            request["method"],
            self.api.url + self.translated(request["path"]),
            data=self.translated(body) if body else None,
            headers=headers,
        ) as response:
            text = await response.text()
            is_json = response.content_type == "application/json"
            return response.status, json.loads(text) if is_json else text

    async def watch(self, number: int, request: Json) -> tuple[int, Any]:
        """Open a watch and go on; its events are gathered."""
        response = await self.client.get(self.api.url + self.translated(request["path"]))
        if response.status != 200:
            return response.status, await response.json()
        found = self.events.setdefault(number, [])

        async def gather() -> None:
            async for line in response.content:
                found.append(json.loads(line))
            response.release()

        self.tasks.append(asyncio.create_task(gather()))
        return 200, None

    async def end(self) -> None:
        """A last bookmark, then the end of every watch."""
        self.api.bookmark()
        await asyncio.sleep(0.05)
        self.api.router.watches.finish_all()
        await asyncio.gather(*self.tasks)
        self.tasks.clear()

    async def saw(self, number: int, count: int) -> Json:
        """A watch's event, when it has come."""
        async with asyncio.timeout(5):
            while len(self.events.get(number, ())) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        return self.events[number][count - 1]


def seed(api: ApiServer, lines: list[Json]) -> None:
    """What was there before the recording began: two nodes, the service of the server itself."""
    for line in lines:
        body = line.get("body")
        if isinstance(body, dict) and body.get("kind") in ("NodeList", "ServiceList"):
            name = body["kind"].removesuffix("List")
            kind = BUILTINS["", "v1", f"{name.lower()}s"]
            for item in body["items"]:
                api.core.commit(kind, {"kind": name, "apiVersion": "v1", **item})
        if isinstance(body, dict) and body.get("kind") == "EndpointSliceList":
            kind = BUILTINS["discovery.k8s.io", "v1", "endpointslices"]
            for item in body["items"]:
                head = {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1"}
                api.core.commit(kind, {**head, **item})


async def step(replay: Replay, before: Json | None, event: Json) -> None:
    """Make happen what a recorded pod event shows."""
    kubelet, obj = replay.kubelet, event["object"]
    meta, status = obj["metadata"], obj["status"]
    where = (meta["namespace"], meta["name"])
    if event["type"] == "ADDED":
        await kubelet.create(as_posted(replay, obj))
        return
    if event["type"] == "DELETED":
        return  # came with the step before
    assert before is not None
    was = before["status"]
    conditions = {one["type"]: one["status"] for one in status.get("conditions", ())}
    old = {one["type"]: one["status"] for one in was.get("conditions", ())}
    if "nodeName" not in before["spec"]:
        await kubelet.schedule(*where, obj["spec"]["nodeName"])
    elif "startTime" not in was:
        await kubelet.starting(*where, status["hostIP"])
    elif meta.get("deletionGracePeriodSeconds") == 0:
        await kubelet.gone(*where)
    elif "deletionTimestamp" not in before["metadata"]:
        await kubelet.delete(*where)
    elif status["phase"] == "Succeeded":
        await kubelet.stopped(*where)
    else:
        await kubelet.noticed(*where)
    assert conditions.keys() >= old.keys()


async def rise(replay: Replay, before: Json, event: Json) -> bool:
    """The steps of a pod that comes up, if this is one."""
    obj = event["object"]
    meta, status, was = obj["metadata"], obj["status"], before["status"]
    where = (meta["namespace"], meta["name"])
    if "deletionTimestamp" in meta or "startTime" not in was:
        return False
    if status["phase"] == "Running" and was["phase"] == "Pending":
        await replay.kubelet.running(*where, [one["ip"] for one in status["podIPs"]])
    elif status["phase"] == "Running":
        await replay.kubelet.ready(*where)
    else:
        await replay.kubelet.sandboxed(*where)
    return True


def as_posted(replay: Replay, obj: Json) -> Json:
    """A pod as its controller posted it: what admission and the server added taken away."""
    meta, spec = obj["metadata"], json.loads(json.dumps(obj["spec"]))
    for name in ("volumes", "serviceAccount", "serviceAccountName", "priority"):
        spec.pop(name, None)
    for container in spec["containers"]:
        container.pop("volumeMounts", None)
    for name in ("tolerations", "preemptionPolicy"):
        spec.pop(name)
    kept = ("name", "generateName", "namespace", "labels", "annotations", "ownerReferences")
    body = {"metadata": {name: meta[name] for name in kept if name in meta}, "spec": spec}
    posted: Json = json.loads(replay.translated(json.dumps(body)))
    return {"apiVersion": "v1", "kind": "Pod", **posted}


def own_view(body: Any, path: str) -> Any:
    """An answer without what a controller, not the server, had put into it."""
    if path == "/apis" and isinstance(body, dict):
        groups = [one for one in body["groups"] if one["name"] not in GROUPS_NOT_SERVED]
        return {**body, "groups": [one for one in groups if one["name"] != "muslin.io"]}
    if "/deployments/" in path and isinstance(body, dict):
        meta = dict(body["metadata"])
        meta.pop("annotations", None)
        mine = [one for one in meta["managedFields"] if one["manager"] == "Python-urllib"]
        return {**body, "metadata": {**meta, "managedFields": mine}, "status": {}}
    return body


@pytest.fixture
async def replay() -> AsyncIterator[Replay]:
    settings, clock = Settings(cache_delay=0.15, bookmark_interval=3600), Clock()
    api = ApiServer(settings=settings, now=clock)
    async with api, aiohttp.ClientSession() as client:
        yield Replay(api, client, clock)


async def play(replay: Replay, lines: list[Json]) -> list[str]:
    """Make every recorded request and every step of a pod; what differed."""
    differences: list[str] = []
    for at, line in enumerate(lines):
        replay.clock.at = line["t"]
        if "request" in line:
            differences += await request(replay, lines, at)
        elif "event" in line and line["event"]["type"] in ("ADDED", "MODIFIED", "DELETED"):
            await happen(replay, line)
    return differences


async def happen(replay: Replay, line: Json) -> None:
    """Do what made a recorded event, unless a request of the recording did."""
    number, event = line["n"], line["event"]
    if number == NAMESPACES and event["object"]["status"].get("conditions"):
        await replay.api.collector.namespaces()
    if number != PODS:
        return
    meta = event["object"]["metadata"]
    before = replay.pods.get(meta["name"])
    replay.pods[meta["name"]] = event["object"]
    replay.seen += 1
    if len(replay.api.storage.table(("", "pods")).log) < replay.seen:
        if await ends_with_namespace(replay, before, event):
            await replay.api.collector.namespaces()
        elif event["type"] == "ADDED" or not await rise(replay, before or {}, event):
            await step(replay, before, event)
    replay.learn(event, await replay.saw(PODS, replay.seen))


async def ends_with_namespace(replay: Replay, before: Json | None, event: Json) -> bool:
    """Whether a pod is marked for deletion because its namespace ends."""
    marked = "deletionTimestamp" in event["object"]["metadata"]
    if before is None or not marked or "deletionTimestamp" in before["metadata"]:
        return False
    namespace = (await replay.api.send("GET", "/api/v1/namespaces/shop")).json
    return "deletionTimestamp" in namespace["metadata"]


async def request(replay: Replay, lines: list[Json], at: int) -> list[str]:
    """One recorded request made again, its answer compared."""
    number, asked = lines[at]["n"], lines[at]["request"]
    wanted = next(x for x in lines[at + 1 :] if x["n"] == number and "status" in x)
    if "watch=true" in asked["path"]:
        status, body = await replay.watch(number, asked)
    else:
        status, body = await replay.ask(asked)
    theirs = wanted.get("body")
    replay.learn(theirs, body)
    title = f"{asked['method']} {asked['path']} ({at})"
    if status != wanted["status"]:
        return [f"{title}: {wanted['status']} there, {status} here: {body}"]
    theirs, ours = own_view(theirs, asked["path"]), own_view(body, asked["path"])
    return [different(title, theirs, ours)] if masked(theirs) != masked(ours) else []


def different(title: str, theirs: Any, ours: Any) -> str:
    left, right = dict(flat(masked(theirs))), dict(flat(masked(ours)))
    lines = [f"{title}:"]
    for path in left | right:
        if left.get(path, "(nothing)") != right.get(path, "(nothing)"):
            lines.append(
                f"  {path}: {left.get(path, '(nothing)')} -> {right.get(path, '(nothing)')}"
            )
    return "\n".join(lines)


def flat(value: Any, path: str = "") -> Any:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from flat(below, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for number, below in enumerate(value):
            yield from flat(below, f"{path}[{number}]")
    else:
        yield path, json.dumps(value)


def streams(lines: list[Json]) -> dict[int, list[Json]]:
    found: dict[int, list[Json]] = {}
    for line in lines:
        if "event" in line:
            found.setdefault(line["n"], []).append(line["event"])
    return found


def stream_differences(number: int, theirs: list[Json], ours: list[Json]) -> list[str]:
    """How one watch differs: order first, then each event."""
    # Bookmarks came twice there, 60 s apart and before the end; here once, when asked.
    marks = [event for event in theirs if event["type"] == "BOOKMARK"]
    theirs = [event for event in theirs if event["type"] != "BOOKMARK"] + marks[-1:]
    order = [
        [(e["type"], e["object"]["metadata"].get("name")) for e in all_] for all_ in (theirs, ours)
    ]
    if order[0] != order[1]:
        return [f"watch {number}: {order[0]} there, {order[1]} here"]
    return [
        different(f"watch {number}, event {at}", left, right)
        for at, (left, right) in enumerate(zip(theirs, ours, strict=True))
        if masked(left) != masked(right)
    ]


async def test_every_recorded_request_is_answered_as_recorded(replay: Replay) -> None:
    lines = recorded()
    restart = next(at for at, line in enumerate(lines) if at and line["t"] < lines[at - 1]["t"] - 1)
    first, second = lines[:restart], lines[restart:]
    seed(replay.api, first[:100])
    differences = await play(replay, first)
    await replay.end()
    for number, theirs in streams(first).items():
        if number != SLICES:
            differences += stream_differences(number, theirs, replay.events.get(number, []))
    await replay.api.restart()
    replay.events.clear()
    differences += await play(replay, second)
    await replay.end()
    for number, theirs in streams(second).items():
        differences += stream_differences(number, theirs, replay.events.get(number, []))
    print("\n".join(differences)[:20000])
    assert not differences
