"""How endpoints are put into slices: few writes, each thing in its place, nothing of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import msgspec

from apiserver.patches import json_patch
from muslin.controller.slices import pack, wire
from muslin.controller.slices.model import Endpoint, Group, Port, Service, Slice, Target
from muslin.model import Address

HTTP = Group(4, (Port("http", "TCP", 80),))
DB = Service(namespace="shop", name="db", uid="s1", labels={"team": "a"}, headless=True)


def endpoint(number: int, **more: Any) -> Endpoint:
    said: dict[str, Any] = {"ready": True, "serving": True, "terminating": False} | more
    address = ip_address(f"10.9.{number >> 8}.{number & 255}")
    return Endpoint(address=address, target=Target("Pod", "shop", f"db-{number}", "u"), **said)


def these(numbers: Iterable[int], group: Group = HTTP) -> dict[Group, dict[Address, Endpoint]]:
    return {group: {e.address: e for e in map(endpoint, numbers)}}


class Server:
    """The slices of one service, as JSON; does what it is told and counts."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.revision = 0

    @property
    def slices(self) -> list[Slice]:
        raw = msgspec.json.encode(list(self.objects.values()))
        return [wire.slice_of(s) for s in msgspec.json.decode(raw, type=list[wire.RawSlice])]

    def bring(
        self,
        wanted: Mapping[Group, Mapping[Address, Endpoint]],
        service: Service = DB,
        taken: Iterable[str] = (),
    ) -> list[str]:
        """What was written, as verbs and numbers of slices that it concerns."""
        done = list(pack.changes(service, wanted, self.slices, set(taken)))
        for change in done:
            self.revision += 1
            match change:
                case pack.Create(name, made):
                    assert name not in self.objects
                    self.objects[name] = msgspec.json.decode(msgspec.json.encode(made))
                case pack.Patch(name, steps):
                    self.objects[name] = json_patch(self.objects[name], steps)
                case pack.Delete(name, version):
                    assert self.objects.pop(name)["metadata"]["resourceVersion"] == version
                    continue
            self.objects[name]["metadata"]["resourceVersion"] = str(self.revision)
        assert list(pack.changes(service, wanted, self.slices, set(taken))) == []
        return sorted(type(change).__name__.lower() for change in done)

    @property
    def sizes(self) -> list[int]:
        return sorted(len(s["endpoints"]) for s in self.objects.values())


def test_slices_are_full_and_the_last_is_not() -> None:
    server = Server()
    assert server.bring(these(range(250))) == ["create"] * 3
    assert server.sizes == [50, 100, 100]
    assert server.bring({}) == ["delete"] * 3


def test_a_slice_says_whose_it_is() -> None:
    server = Server()
    server.bring(these([1]))
    ((name, made),) = server.objects.items()
    assert name.startswith("db-muslin-")
    assert made["metadata"]["labels"] == {
        "team": "a",
        "service.kubernetes.io/headless": "",
        "kubernetes.io/service-name": "db",
        "endpointslice.kubernetes.io/managed-by": "muslin.io",
    }
    owner = {"apiVersion": "v1", "kind": "Service", "name": "db", "uid": "s1", "controller": True}
    assert made["metadata"]["ownerReferences"] == [owner]
    assert (made["addressType"], made["ports"]) == (
        "IPv4",
        [{"name": "http", "protocol": "TCP", "port": 80}],
    )


def test_one_pod_that_turns_is_one_step_in_one_slice() -> None:
    server = Server()
    server.bring(these(range(250)))
    wanted = these(range(250))
    turned = endpoint(120, ready=False, serving=False)
    wanted[HTTP][turned.address] = turned
    (change,) = pack.changes(DB, wanted, server.slices)
    assert isinstance(change, pack.Patch)
    assert [(s["op"], s["path"]) for s in change.steps] == [
        ("test", "/metadata/resourceVersion"),
        ("replace", "/endpoints/20"),
    ]


def test_a_pod_that_is_replaced_takes_the_place() -> None:
    server = Server()
    server.bring(these(range(250)))
    assert server.bring(these([*range(120), 999, *range(121, 250)])) == ["patch"]
    assert server.sizes == [50, 100, 100]


def test_new_ones_go_into_the_fullest_slice_with_room_for_all() -> None:
    server = Server()
    server.bring(these(range(250)))
    assert server.bring(these(range(300))) == ["patch"]
    assert server.sizes == [100, 100, 100]
    assert server.bring(these([*range(20, 150), *range(160, 300)])) == ["patch", "patch"]
    assert server.sizes == [80, 90, 100]
    assert server.bring(these([*range(20, 150), *range(160, 310)])) == ["patch"]
    assert server.sizes == [80, 100, 100]
    assert server.bring(these([*range(20, 150), *range(160, 335)])) == ["create"]


def test_an_empty_slice_goes() -> None:
    server = Server()
    server.bring(these(range(150)))
    assert server.bring(these(range(100))) == ["delete"]


def test_ports_and_families_have_slices_of_their_own() -> None:
    server = Server()
    six = Group(6, HTTP.ports)
    sixth = replace(endpoint(1), address=ip_address("fd09::1"))
    other = Group(4, (Port("http", "TCP", 8080),))
    wanted = these([1]) | {six: {sixth.address: sixth}} | these([2], other)
    assert server.bring(wanted) == ["create"] * 3
    assert server.bring(these([1, 2])) == ["delete", "delete", "patch"]


def test_labels_follow_the_service() -> None:
    server = Server()
    server.bring(these(range(5)))
    taken = replace(
        DB, labels={"service.kubernetes.io/service-proxy-name": "x", pack.MANAGED_BY: "y"}
    )
    assert server.bring(these(range(5)), taken) == ["patch"]
    (made,) = server.objects.values()
    assert made["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] == "x"
    assert made["metadata"]["labels"][pack.MANAGED_BY] == pack.OURS
    assert "team" not in made["metadata"]["labels"]


def test_a_service_that_was_made_anew_gets_new_slices() -> None:
    server = Server()
    server.bring(these(range(5)))
    (before,) = server.objects
    assert server.bring(these(range(5)), replace(DB, uid="s2")) == ["create", "delete"]
    assert before not in server.objects


def test_what_somebody_changed_in_our_slices_is_put_back() -> None:
    server = Server()
    server.bring(these(range(150)))
    first, second = (server.objects[s.name] for s in sorted(server.slices, key=lambda s: s.name))
    first["endpoints"][3]["addresses"] = ["10.66.0.1"]
    first["endpoints"][4]["addresses"] = ["10.9.0.7", "10.9.0.8"]
    first["endpoints"][5]["conditions"] = {}
    second["endpoints"].append(first["endpoints"][9])
    assert server.bring(these(range(150))) == ["patch", "patch"]
    found = [e["addresses"] for s in server.objects.values() for e in s["endpoints"]]
    assert sorted(found) == sorted([str(a)] for a in these(range(150))[HTTP])
    for made in server.objects.values():
        made["endpoints"] = None
    assert server.bring(these(range(150))) == ["patch", "patch"]
    assert sum(server.sizes) == 150


def test_a_name_that_is_taken_is_passed_over() -> None:
    server = Server()
    (change,) = pack.changes(DB, these([1]), [])
    assert server.bring(these([1]), taken=[change.name]) == ["create"]
    assert change.name not in server.objects


def test_a_slice_that_is_being_deleted_counts_for_nothing_but_its_name() -> None:
    server = Server()
    server.bring(these([1]))
    going = replace(server.slices[0], going=True)
    (change,) = pack.changes(DB, these([1]), [going])
    assert isinstance(change, pack.Create)
    assert change.name != going.name
    assert list(pack.changes(DB, {}, [going])) == []
