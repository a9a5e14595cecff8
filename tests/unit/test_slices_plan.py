"""Who is behind a service, from objects as an API server has them; and what cannot be had."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from muslin.controller.slices import plan, wire
from muslin.controller.slices.model import Endpoint, Member, Service

ZONES = {"n1": "z1", "n2": ""}
BLUE = {plan.NETWORK: "blue", plan.SELECTOR: "app=db"}


def service(asks: dict[str, str] | None = None, **spec: Any) -> Service:
    meta = {
        "name": "db",
        "namespace": "shop",
        "uid": "s1",
        "annotations": BLUE if asks is None else asks,
    }
    found = wire.service_of(msgspec.convert({"metadata": meta, "spec": spec}, wire.RawService))
    assert found is not None
    return found


def pod(
    name: str = "db-0",
    status: object = None,
    *,
    labels: dict[str, str] | None = None,
    phase: str = "Running",
    ready: str = "True",
    deleted: bool = False,
    ip: str = "10.1.0.5",
    **spec: Any,
) -> Member | None:
    status = {"network": "blue", "addresses": ["10.9.0.5"]} if status is None else status
    told = status if isinstance(status, str) else msgspec.json.encode(status).decode()
    meta: dict[str, Any] = {"name": name, "namespace": "shop", "uid": f"u-{name}"}
    meta |= {"labels": labels or {"app": "db"}, "annotations": {wire.STATUS: told}}
    meta |= {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleted else {}
    said = {"phase": phase, "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}
    raw = {"metadata": meta, "spec": {"nodeName": "n1", **spec}, "status": said}
    return wire.pod_of(msgspec.convert(raw, wire.RawPod))


def workload(name: str = "vm-1", **spec: Any) -> Member:
    meta = {"name": name, "namespace": "shop", "uid": f"w-{name}", "labels": {"app": "db"}}
    raw = msgspec.json.encode({"metadata": meta, "spec": {"addresses": ["192.0.2.7"], **spec}})
    found = wire.workload_of(msgspec.json.decode(raw, type=wire.RawWorkload))
    assert found is not None
    return found


def behind(service: Service, *members: Member | None) -> list[Endpoint]:
    wanted, fault = plan.endpoints(
        service, plan.wish(service), plan.Index(m for m in members if m), ZONES
    )
    assert fault == ""
    return [e for group in wanted.values() for e in group.values()]


def told(service: Service, *members: Member) -> str:
    return plan.endpoints(service, plan.wish(service), plan.Index(members), ZONES)[1]


def shown(endpoints: list[Endpoint]) -> list[str]:
    """Address and conditions, as `kubectl` would."""
    return sorted(
        f"{e.address} {'ready' if e.ready else '-'} {'serving' if e.serving else '-'}"
        f"{' terminating' if e.terminating else ''}"
        for e in endpoints
    )


def test_an_endpoint_is_the_address_on_that_network() -> None:
    (found,) = behind(service(), pod(hostname="db-0", subdomain="db"))
    assert wire.endpoint(found) == {
        "addresses": ["10.9.0.5"],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "hostname": "db-0",
        "nodeName": "n1",
        "zone": "z1",
        "targetRef": {"kind": "Pod", "namespace": "shop", "name": "db-0", "uid": "u-db-0"},
    }
    nics = [{"network": "default", "addresses": ["10.1.0.5"]}]
    nics += [{"network": "blue", "addresses": ["10.9.0.6", "fd09::6"], "interface": "net1"}]
    assert shown(behind(service(), pod("db-1", nics))) == [
        "10.9.0.6 ready serving",
        "fd09::6 ready serving",
    ]


def test_the_hostname_is_for_the_service_that_the_pod_names() -> None:
    (found,) = behind(service(), pod(hostname="db-0", subdomain="other"))
    assert found.hostname == ""


def test_conditions_follow_the_pod() -> None:
    pods = [
        pod("a", {"network": "blue", "addresses": ["10.9.0.1"]}),
        pod("b", {"network": "blue", "addresses": ["10.9.0.2"]}, ready="False"),
        pod("c", {"network": "blue", "addresses": ["10.9.0.3"]}, deleted=True),
        pod("d", {"network": "blue", "addresses": ["10.9.0.4"]}, ready="Unknown", deleted=True),
        pod("e", {"network": "blue", "addresses": ["10.9.0.5"]}, phase="Succeeded"),
    ]
    assert shown(behind(service(), *pods)) == [
        "10.9.0.1 ready serving",
        "10.9.0.2 - -",
        "10.9.0.3 - serving terminating",
        "10.9.0.4 - - terminating",
    ]
    all_ready = behind(service(publishNotReadyAddresses=True), *pods)
    assert [e.ready for e in all_ready] == [True] * 4


def test_a_pod_counts_once_its_kubelet_knows_an_address() -> None:
    assert pod(ip="") is None


@pytest.mark.parametrize(
    "status",
    ["", "null", "[]", "7", "{", "\ud83d", '{"network":"blue"}', '{"addresses":["10.9.0.5"]}',
     '{"network":"blue","addresses":["10.9.0.5","x"]}', '{"network":"blue","addresses":null}',
     "[" * 5000, '{"network":"","addresses":["10.9.0.5"]}', '[{"network":7}]'],
)  # fmt: skip
def test_a_status_that_cannot_be_read_is_none(status: str) -> None:
    assert pod(status=status) is None


def test_no_pod_fills_everybodys_slices() -> None:
    many = {"network": "blue", "addresses": [f"10.9.{i}.1" for i in range(200)]}
    assert len(behind(service(), pod(status=many))) == wire.MOST_ADDRESSES


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "::1", "fe80::1", "ff02::1",
     "fd00::1%eth0", "::ffff:a00:1"],
)  # fmt: skip
def test_an_address_that_a_server_refuses_spoils_no_slice(address: str) -> None:
    member = pod(status={"network": "blue", "addresses": [address]})
    assert member is not None
    assert told(service(), member) == f"Pod db-0: {address} is no address for a service"


def test_families_are_the_services() -> None:
    both = {"network": "blue", "addresses": ["10.9.0.6", "fd09::6"]}
    (found,) = behind(service(ipFamilies=["IPv6"]), pod(status=both))
    assert str(found.address) == "fd09::6"


def test_an_address_with_two_owners_is_whoevers_is_ready() -> None:
    for pods in ([pod("old", deleted=True), pod("new")], [pod("new"), pod("old", deleted=True)]):
        (found,) = behind(service(), *pods)
        assert found.target.name == "new"


def test_named_ports_are_each_pods_own() -> None:
    ports = [
        {"name": "http", "port": 80, "targetPort": "web", "appProtocol": "h2c"},
        {"name": "admin", "port": 81},
        {"name": "dns", "port": 53, "targetPort": "web", "protocol": "UDP"},
    ]
    side = {"restartPolicy": "Always", "ports": [{"name": "web", "containerPort": 8443}]}
    init = {"ports": [{"name": "web", "containerPort": 9}]}
    pods = [
        pod("a", {"network": "blue", "addresses": ["10.9.0.1"]},
            containers=[{"ports": [{"name": "web", "containerPort": 8080},
                                   {"name": "web", "containerPort": 8081}]}]),
        pod("b", {"network": "blue", "addresses": ["10.9.0.2"]}, initContainers=[init, side]),
        pod("c", {"network": "blue", "addresses": ["10.9.0.3"]}, initContainers=[init]),
    ]  # fmt: skip
    found = service(ports=ports)
    wanted, _ = plan.endpoints(found, plan.wish(found), plan.Index(p for p in pods if p), ZONES)
    shown = {str(e.address): g.ports for g, group in wanted.items() for e in group.values()}
    admin = ("admin", "TCP", 81, "")
    assert shown == {
        "10.9.0.1": (admin, ("http", "TCP", 8080, "h2c")),
        "10.9.0.2": (admin, ("http", "TCP", 8443, "h2c")),
        "10.9.0.3": (admin,),
    }


def test_machines_stand_beside_pods() -> None:
    wanted = service(BLUE, ports=[{"port": 5432}])
    assert shown(behind(wanted, pod(), workload(), workload("vm-2", ready=False))) == [
        "10.9.0.5 ready serving",
        "192.0.2.7 ready serving",
    ]
    (found,) = behind(service(BLUE | {plan.WORKLOADS: "false"}), pod(), workload())
    assert found.target.kind == "Pod"


def test_a_normal_service_gets_its_machines_from_us_and_no_pods() -> None:
    asks = {plan.WORKLOADS: "true"}
    given = workload(addresses=["192.0.2.7", "fd02::7"], node="n1")
    found = behind(service(asks, selector={"app": "db"}), pod(), given)
    assert shown(found) == ["192.0.2.7 ready serving", "fd02::7 ready serving"]
    assert wire.endpoint(found[0]) == {
        "addresses": ["192.0.2.7"],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "hostname": "vm-1",
        "nodeName": "n1",
        "zone": "z1",
        "targetRef": {
            "apiVersion": "muslin.io/v1alpha1",
            "kind": "Workload",
            "namespace": "shop",
            "name": "vm-1",
            "uid": "w-vm-1",
        },
    }
    assert behind(service(asks, selector={"app": "web"}), given) == []
    assert len(behind(service(asks | {plan.SELECTOR: "app in (db, web)"}), given)) == 2


def test_a_machines_names_are_used_only_where_they_are_valid() -> None:
    found = behind(service(), workload("a.b", node="no such node!"))
    assert [(e.hostname, e.node, e.zone) for e in found] == [("", "", "")]


def test_a_named_port_of_a_machine_is_told() -> None:
    ports = [{"name": "http", "port": 80, "targetPort": "web"}]
    words = "port http: targetPort web is a name, and a Workload has no named ports: write a number"
    assert told(service(ports=ports), workload(), workload("vm-2")) == words


@pytest.mark.parametrize(
    ("asks", "spec", "fault"),
    [
        (
            {plan.NETWORK: "blue"},
            {"selector": {"tier": "x", "app": "db"}},
            "with spec.selector Kubernetes adds the pods' primary addresses to those on network "
            "blue: delete this Service and make it anew, without spec.selector and with annotation "
            'muslin.io/selector: "app=db,tier=x"',
        ),
        (
            {plan.NETWORK: "blue"},
            {},
            'selects nothing: add annotation muslin.io/selector, such as "app=db"',
        ),
        (
            {plan.SELECTOR: "app=db"},
            {},
            "annotation muslin.io/selector alone asks for nothing: add muslin.io/network or "
            "muslin.io/workloads",
        ),
        (
            {plan.WORKLOADS: "true", plan.SELECTOR: "app=db"},
            {"selector": {"app": "db"}},
            "spec.selector and annotation muslin.io/selector both select: remove one",
        ),
        (
            BLUE | {plan.SELECTOR: ""},
            {},
            "annotation muslin.io/selector: is empty, which would be everything",
        ),
        (
            BLUE | {plan.NETWORK: "Blue"},
            {},
            "annotation muslin.io/network: 'Blue' is no network's name",
        ),
        (
            BLUE | {plan.WORKLOADS: "yes"},
            {},
            'annotation muslin.io/workloads: write "true" or "false"',
        ),
        (
            BLUE,
            {"type": "ExternalName"},
            "type ExternalName has no endpoints: remove muslin.io/network, muslin.io/selector",
        ),
    ],
)
def test_what_cannot_be_had_is_said_with_the_mend(
    asks: dict[str, str], spec: dict[str, Any], fault: str
) -> None:
    found = service(asks, **spec)
    member = pod()
    assert member is not None
    assert plan.endpoints(found, plan.wish(found), plan.Index([member]), ZONES) == ({}, fault)


def test_a_service_that_asks_for_nothing_is_not_ours() -> None:
    for others in (None, {}, {"muslin.io/other": "x"}):
        raw = {"metadata": {"name": "db", "annotations": others}}
        assert wire.service_of(msgspec.convert(raw, wire.RawService)) is None
    assert told(service({plan.WORKLOADS: "false"}), workload()) == ""


def test_a_workload_that_cannot_be_read_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    raw = b'{"metadata":{"name":"vm","namespace":"shop"},"spec":{"addresses":["x"]}}'
    assert wire.workload_of(msgspec.json.decode(raw, type=wire.RawWorkload)) is None
    assert "workload.skipped namespace=shop name=vm" in capsys.readouterr().err
