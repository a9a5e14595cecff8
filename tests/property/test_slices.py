"""The laws of our slices, on any pods, machines and services: their union, and how few change.

The other opinion is computed from the objects as they are, one by one, by the
rules of the API's documentation; nothing of `muslin.controller` is in it.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apiserver.patches import json_patch
from muslin.controller.slices import pack, plan, wire

Json = dict[str, Any]
Entry = tuple[Any, ...]

few = st.booleans
apps = st.sampled_from(["db", "web"])
networks = st.sampled_from(["blue", "red"])
v4 = st.integers(1, 40).map(lambda i: f"10.9.0.{i}")
v6 = st.integers(1, 40).map(lambda i: f"fd09::{i:x}")


@st.composite
def pods(draw: st.DrawFn, name: str) -> Json:
    addresses = draw(st.lists(st.one_of(v4, v6), max_size=2, unique=True))
    nic = {"network": draw(networks), "interface": "eth0", "addresses": addresses}
    told: Any = draw(st.sampled_from([nic, [nic], [{"network": "mgmt", "addresses": []}, nic]]))
    meta: Json = {"name": name, "namespace": "shop", "uid": name, "labels": {"app": draw(apps)}}
    if draw(st.integers(0, 5)):
        meta["annotations"] = {"muslin.io/status": msgspec.json.encode(told).decode()}
    if draw(st.integers(0, 4)) == 0:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    web = {"name": "web", "containerPort": draw(st.sampled_from([80, 8080]))}
    spec = {
        "nodeName": draw(st.sampled_from(["n1", "n2"])),
        "hostname": name,
        "subdomain": draw(st.sampled_from(["db", ""])),
        "containers": [{"ports": [web] if draw(few()) else []}],
    }
    ready = {"type": "Ready", "status": draw(st.sampled_from(["True", "True", "False"]))}
    phase = draw(st.sampled_from(["Running"] * 4 + ["Failed"]))
    status: Json = {"phase": phase, "conditions": [ready]}
    status |= {"podIP": "10.1.0.1"} if draw(st.integers(0, 5)) else {}
    return {"metadata": meta, "spec": spec, "status": status}


@st.composite
def workloads(draw: st.DrawFn, name: str) -> Json:
    meta = {"name": name, "namespace": "shop", "uid": name, "labels": {"app": draw(apps)}}
    spec = {"addresses": draw(st.lists(st.one_of(v4, v6), max_size=2, unique=True))}
    return {"metadata": meta, "spec": {**spec, "ready": draw(few()), "node": "n1"}}


@st.composite
def services(draw: st.DrawFn) -> Json:
    spec: Json = {"clusterIP": "None", "publishNotReadyAddresses": draw(few())}
    spec["ipFamilies"] = draw(st.sampled_from([["IPv4"], ["IPv6", "IPv4"]]))
    spec["ports"] = [{"name": "a", "port": 70, "targetPort": draw(st.sampled_from([71, "web"]))}]
    if draw(few()):
        asks = {"muslin.io/workloads": "true"}
        spec["selector"] = {"app": "db"}
    else:
        asks = {"muslin.io/network": draw(networks), "muslin.io/selector": "app in (db)"}
    return {
        "metadata": {"name": "db", "namespace": "shop", "uid": "s", "annotations": asks},
        "spec": spec,
    }


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Json]:
    """Pods and machines by name; each name always of one kind."""
    some = draw(st.sets(st.integers(0, 29), max_size=14))
    return {f"o{i}": draw(pods(f"o{i}") if i % 4 else workloads(f"o{i}")) for i in sorted(some)}


def naive(service: Json, objects: dict[str, Json]) -> list[Entry]:
    """What the slices should say: family, ports, address, conditions, names; the best of each."""
    spec, asks = service["spec"], service["metadata"]["annotations"]
    candidates: dict[str, list[Entry]] = {}
    for name, one in objects.items():
        if one["metadata"]["labels"]["app"] != "db":
            continue
        status, gone = one.get("status"), "deletionTimestamp" in one["metadata"]
        if status:
            told = one["metadata"].get("annotations", {}).get("muslin.io/status", "[]")
            nics = msgspec.json.decode(told)
            nics = nics if isinstance(nics, list) else [nics]
            mine = [n for n in nics if n["network"] == asks.get("muslin.io/network")]
            addresses = [a for n in mine for a in n["addresses"]]
            if status["phase"] == "Failed" or "podIP" not in status:
                continue
            serving = status["conditions"][0]["status"] == "True"
            node = one["spec"]["nodeName"]
            host = name if one["spec"]["subdomain"] == "db" else ""
        else:
            addresses, serving = one["spec"]["addresses"], one["spec"]["ready"]
            node, host = "n1", name
        target = spec["ports"][0]["targetPort"]
        if target == "web":
            held = one["spec"]["containers"][0]["ports"] if status else []
            target = held[0]["containerPort"] if held else None
        ready = spec["publishNotReadyAddresses"] or (serving and not gone)
        for address in addresses:
            family = f"IPv{ip_address(address).version}"
            if family in spec["ipFamilies"]:
                kind = "Pod" if status else "Workload"
                rank = (ready, serving, not gone, kind == "Pod", kind, name)
                entry = (family, target, address, ready, serving, gone, host, node, kind, name)
                candidates.setdefault(address, []).append((rank, entry))
    return sorted((max(found)[1] for found in candidates.values()), key=str)


def union(slices: dict[str, Json]) -> list[Entry]:
    found: list[Entry] = []
    for one in slices.values():
        target = one["ports"][0]["port"] if one["ports"] else None
        for e in one["endpoints"]:
            said = e["conditions"]
            (address,) = e["addresses"]
            found.append(
                (one["addressType"], target, address, said["ready"], said["serving"],
                 said["terminating"], e.get("hostname", ""), e["nodeName"],
                 e["targetRef"]["kind"], e["targetRef"]["name"])
            )  # fmt: skip
    return sorted(found, key=str)


def wanted(service: Json, objects: dict[str, Json]) -> tuple[Any, Any]:
    known = wire.service_of(msgspec.convert(service, wire.RawService))
    assert known
    members = []
    for one in objects.values():
        if "status" in one:
            members.append(wire.pod_of(msgspec.convert(one, wire.RawPod)))
        else:
            raw = msgspec.json.encode(one)
            members.append(wire.workload_of(msgspec.json.decode(raw, type=wire.RawWorkload)))
    index = plan.Index(m for m in members if m)
    return known, plan.endpoints(known, plan.wish(known), index, {"n1": "", "n2": ""})[0]


def bring(service: Json, objects: dict[str, Json], slices: dict[str, Json]) -> int:
    """Write what is to be written; how many writes that was."""
    known, found = wanted(service, objects)
    raw = msgspec.json.encode(list(slices.values()))
    there = [wire.slice_of(s) for s in msgspec.json.decode(raw, type=list[wire.RawSlice])]
    done = list(pack.changes(known, found, there))
    for number, change in enumerate(done):
        match change:
            case pack.Create(name, made):
                slices[name] = msgspec.json.decode(msgspec.json.encode(made))
            case pack.Patch(name, steps):
                slices[name] = json_patch(slices[name], steps)
            case pack.Delete(name, _):
                del slices[name]
                continue
        slices[name]["metadata"]["resourceVersion"] = f"{number}"
        assert 0 < len(slices[name]["endpoints"]) <= pack.MOST
    return len(done)


@settings(max_examples=400, deadline=None)
@given(services(), st.lists(objects(), min_size=1, max_size=4), st.sampled_from([2, 5, 100]))
def test_slices_say_what_is_and_few_change(
    service: Json, states: list[dict[str, Json]], most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "MOST", most)
        slices: dict[str, Json] = {}
        before: list[Entry] = []
        for state in states:
            now = naive(service, state)
            writes = bring(service, state, slices)
            assert union(slices) == now
            # Of what is another than before: an address of a group, however it changed.
            changed = {e[:3] for e in set(now) ^ set(before)}
            assert writes <= len(changed)
            assert bring(service, state, slices) == 0
            before = now


@settings(max_examples=150, deadline=None)
@given(st.data(), services(), objects())
def test_one_object_is_one_write_for_each_of_its_addresses(
    data: st.DataObject, service: Json, state: dict[str, Json]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "MOST", 3)
        slices: dict[str, Json] = {}
        bring(service, state, slices)
        old = naive(service, state)
        name = data.draw(st.sampled_from([f"o{i}" for i in range(1, 30) if i % 4]))
        state[name] = data.draw(pods(name))
        addresses = {e[2] for e in {*naive(service, state)} ^ {*old}}
        assert bring(service, state, slices) <= 2 * len(addresses)  # out of a slice, into another
