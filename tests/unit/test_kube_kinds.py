"""Paths, times and the parts of objects that we read."""

from __future__ import annotations

import json
from urllib.parse import unquote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.errors import ConfigError
from muslin.kube import micro_time, parse_time
from muslin.kube.kinds import ENDPOINT_SLICES, NODES, PODS, muslin
from muslin.kube.slim import EndpointSlice, Lease, Node, Pod, Service


def test_paths_are_those_of_the_api() -> None:
    assert PODS.path() == "/api/v1/pods"
    assert PODS.path("shop") == "/api/v1/namespaces/shop/pods"
    assert PODS.path("shop", "db-0", "status") == "/api/v1/namespaces/shop/pods/db-0/status"
    assert NODES.path(name="n1") == "/api/v1/nodes/n1"
    assert muslin("pools", "Pool").path(name="a") == "/apis/muslin.io/v1alpha1/pools/a"
    assert ENDPOINT_SLICES.path("x").startswith("/apis/discovery.k8s.io/v1/namespaces/x/")


@given(st.text(min_size=1, max_size=20))
def test_no_name_leaves_its_segment(name: str) -> None:
    try:
        path = PODS.path("ns", name)
    except ConfigError:
        return
    head, _, last = path.rpartition("/")
    assert head == "/api/v1/namespaces/ns/pods"
    assert unquote(last) == name
    assert last.isascii()
    assert last not in (".", "..")
    assert not set(last) & set("?# \t\r\n")


@pytest.mark.parametrize("name", [".", "..", "a/b", "../nodes", "a%2fb", "a\nb", "a\0b", "\x85"])
def test_a_name_that_would_leave_its_segment_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not a name"):
        PODS.path("ns", name)
    with pytest.raises(ConfigError, match="not a name"):
        PODS.path(name)


def test_a_path_that_makes_no_sense_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="needs a namespace"):
        PODS.path(name="a")
    with pytest.raises(ValueError, match="have no namespace"):
        NODES.path("ns")
    with pytest.raises(ValueError, match="of no object"):
        NODES.path(subresource="status")


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (1795398563.0, "2026-11-23T01:49:23.000000Z"),
        (1795398563.000001, "2026-11-23T01:49:23.000001Z"),
        (1795398563.9999999, "2026-11-23T01:49:24.000000Z"),
    ],
)
def test_a_micro_time_always_has_six_digits(now: float, text: str) -> None:
    """A fraction that is left out, as isoformat() does, is refused with 400."""
    assert micro_time(now) == text


@given(st.floats(min_value=0, max_value=4e9))
def test_a_micro_time_is_read_back(now: float) -> None:
    assert abs(parse_time(micro_time(now)) - now) < 2e-6


def test_times_of_any_precision_are_read() -> None:
    assert parse_time("2026-11-23T01:49:23Z") == 1795398563.0
    assert parse_time("2026-11-23T02:49:23.5+01:00") == 1795398563.5
    assert parse_time("2026-11-23T01:49:23.123456789Z") == 1795398563.123456
    assert parse_time("2026-11-23T01:49:23") == 1795398563.0
    with pytest.raises(ValueError, match="soon"):
        parse_time("soon")


def decode(kind: type, obj: object) -> object:
    return msgspec.json.decode(json.dumps(obj), type=kind)


def test_a_pod_is_read_as_a_server_sends_it() -> None:
    pod = decode(
        Pod,
        {
            "kind": "Pod",
            "metadata": {
                "name": "db-0",
                "resourceVersion": "396",
                "creationTimestamp": None,
                "deletionTimestamp": "2026-11-23T01:49:21Z",
                "ownerReferences": [{"kind": "StatefulSet", "name": "db", "controller": True}],
                "managedFields": [{"manager": "x"}],
            },
            "spec": {
                "nodeName": "n1",
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}],
            },
            "status": {
                "podIP": "10.0.0.4",
                "podIPs": [{"ip": "10.0.0.4"}, {"ip": "fd00::4"}],
                "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": None}],
            },
        },
    )
    assert isinstance(pod, Pod)
    assert pod.metadata.deletion_timestamp == "2026-11-23T01:49:21Z"
    assert pod.metadata.owner_references is not None
    assert pod.metadata.owner_references[0].controller
    assert pod.spec.node_name == "n1"
    assert pod.spec.containers is not None
    assert pod.spec.containers[0].ports is not None
    assert pod.spec.containers[0].ports[0].container_port == 8080
    assert [i.ip for i in pod.status.pod_ips or ()] == ["10.0.0.4", "fd00::4"]


def test_lists_that_go_encodes_as_null_are_read() -> None:
    assert decode(Pod, {"spec": {"containers": None}}) == Pod()
    empty = decode(EndpointSlice, {"endpoints": None, "ports": None, "addressType": "IPv4"})
    assert empty == EndpointSlice(address_type="IPv4")
    one = {"addresses": None, "conditions": {}, "targetRef": None, "nodeName": None}
    slices = decode(EndpointSlice, {"endpoints": [one]})
    assert isinstance(slices, EndpointSlice)
    assert [e.addresses or () for e in slices.endpoints or ()] == [()]


def test_what_is_left_out_has_a_default() -> None:
    for kind in (Pod, Node, Service, EndpointSlice, Lease):
        assert decode(kind, {}) == kind()


def test_a_target_port_is_a_number_or_a_name() -> None:
    ports = [{"port": 80, "targetPort": 8080}, {"port": 81, "targetPort": "http"}]
    service = decode(Service, {"spec": {"ports": ports, "clusterIPs": ["None"]}})
    assert isinstance(service, Service)
    assert [p.target_port for p in service.spec.ports or ()] == [8080, "http"]
