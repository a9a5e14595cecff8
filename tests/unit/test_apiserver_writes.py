"""Writes of the fake API server: what the recording of a real one does not show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from apiserver import ApiError, ApiServer
from apiserver.client import Client
from apiserver.encode import Json
from apiserver.kubelet import Kubelet, pod

MAPS = "/api/v1/namespaces/default/configmaps"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    async with ApiServer() as api:
        yield api


def config(name: str = "a", **meta: Any) -> Json:
    return {"metadata": {"name": name, **meta}, "data": {"x": "1"}}


async def ask(api: ApiServer, method: str, path: str, body: Any = None, **more: Any) -> Json:
    found: Json = (await api.send(method, path, body, **more)).json
    return found


async def refusal(
    api: ApiServer, method: str, path: str, body: Any = None, **more: Any
) -> ApiError:
    with pytest.raises(ApiError) as refused:
        await api.send(method, path, body, **more)
    return refused.value


async def test_a_write_that_changes_nothing_is_no_event(api: ApiServer) -> None:
    made = await ask(api, "POST", MAPS, config())
    same = await ask(api, "PATCH", f"{MAPS}/a", {"data": {"x": "1"}}, content_type=MERGE)
    assert same == made
    assert str(api.storage.revision) == made["metadata"]["resourceVersion"]


async def test_an_update_without_a_version_is_unconditional(api: ApiServer) -> None:
    await api.send("POST", MAPS, config())
    changed = await ask(api, "PUT", f"{MAPS}/a", {**config(), "data": {"x": "2"}})
    assert changed["data"] == {"x": "2"}


async def test_a_version_in_a_merge_patch_is_a_precondition(api: ApiServer) -> None:
    made = await ask(api, "POST", MAPS, config())
    version = made["metadata"]["resourceVersion"]
    patch = {"metadata": {"resourceVersion": version, "labels": {"a": "1"}}}
    await api.send("PATCH", f"{MAPS}/a", patch, content_type=MERGE)
    refused = await refusal(api, "PATCH", f"{MAPS}/a", patch, content_type=MERGE)
    assert refused.body["reason"] == "Conflict"


async def test_what_only_the_server_writes_stays(api: ApiServer) -> None:
    made = await ask(api, "POST", MAPS, config())
    forged = {
        "creationTimestamp": None,
        "generation": 7,
        "deletionTimestamp": "2030-01-01T00:00:00Z",
    }
    changed = await ask(
        api, "PATCH", f"{MAPS}/a", {"metadata": forged, "data": {"y": "2"}}, content_type=MERGE
    )
    for name in ("uid", "creationTimestamp", "name", "namespace"):
        assert changed["metadata"][name] == made["metadata"][name]
    assert "generation" not in changed["metadata"]
    assert "deletionTimestamp" not in changed["metadata"]


async def test_a_dry_run_answers_and_stores_nothing(api: ApiServer) -> None:
    before = api.storage.revision
    made = await ask(api, "POST", f"{MAPS}?dryRun=All", config())
    assert made["metadata"]["uid"]
    assert api.storage.revision == before
    assert (await refusal(api, "GET", f"{MAPS}/a")).code == 404


async def test_generate_name_makes_names(api: ApiServer) -> None:
    body = {"metadata": {"generateName": "x-"}, "data": {}}
    made = [await ask(api, "POST", MAPS, body) for _ in range(2)]
    first, second = (one["metadata"]["name"] for one in made)
    assert first != second
    assert first.startswith("x-")
    assert len(first) == 7


async def test_deletion_has_preconditions(api: ApiServer) -> None:
    made = await ask(api, "POST", MAPS, config())
    for wrong in ({"uid": "other"}, {"resourceVersion": "1"}):
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": wrong}
        assert (await refusal(api, "DELETE", f"{MAPS}/a", options)).code == 409
    right = {"uid": made["metadata"]["uid"]}
    done = await ask(api, "DELETE", f"{MAPS}/a", {"preconditions": right})
    assert done["status"] == "Success"
    assert done["details"]["uid"] == right["uid"]


async def test_a_finalizer_holds_an_object_and_no_new_one_can_be_added(api: ApiServer) -> None:
    await api.send("POST", MAPS, config(finalizers=["muslin.io/a", "muslin.io/b"]))
    held = await ask(api, "DELETE", f"{MAPS}/a")
    assert held["metadata"]["deletionTimestamp"]
    path, meta = f"{MAPS}/a", "metadata"
    more = {meta: {"finalizers": ["muslin.io/a", "muslin.io/b", "muslin.io/c"]}}
    refused = await refusal(api, "PATCH", path, more, content_type=MERGE)
    assert "no new finalizers can be added" in refused.body["message"]
    await api.send("PATCH", path, {meta: {"finalizers": ["muslin.io/b"]}}, content_type=MERGE)
    await api.send("PATCH", path, {meta: {"finalizers": None}}, content_type=MERGE)
    assert (await refusal(api, "GET", path)).code == 404


async def test_a_second_deletion_of_a_held_object_changes_nothing(api: ApiServer) -> None:
    await api.send("POST", MAPS, config(finalizers=["muslin.io/a"]))
    first = await ask(api, "DELETE", f"{MAPS}/a")
    assert await ask(api, "DELETE", f"{MAPS}/a") == first


async def test_a_grace_period_can_only_get_shorter(api: ApiServer) -> None:
    kubelet, path = Kubelet(api.send), "/api/v1/namespaces/default/pods/p"
    await kubelet.bring_up(pod("p", terminationGracePeriodSeconds=30), "n1", ["10.0.0.1"])
    await kubelet.delete("default", "p")
    assert (await ask(api, "GET", path))["metadata"]["deletionGracePeriodSeconds"] == 30
    await kubelet.delete("default", "p", grace=60)
    assert (await ask(api, "GET", path))["metadata"]["deletionGracePeriodSeconds"] == 30
    await kubelet.delete("default", "p", grace=5)
    assert (await ask(api, "GET", path))["metadata"]["deletionGracePeriodSeconds"] == 5
    await kubelet.delete("default", "p", grace=0)
    assert (await refusal(api, "GET", path)).code == 404


async def test_a_pod_that_no_node_has_is_deleted_at_once(api: ApiServer) -> None:
    await Kubelet(api.send).create(pod("p", terminationGracePeriodSeconds=30))
    await api.send("DELETE", "/api/v1/namespaces/default/pods/p")
    assert (await refusal(api, "GET", "/api/v1/namespaces/default/pods/p")).code == 404


async def test_a_terminating_namespace_takes_nothing_new_and_ends_when_empty(
    api: ApiServer,
) -> None:
    await api.send("POST", "/api/v1/namespaces", {"metadata": {"name": "shop"}})
    await api.send("POST", "/api/v1/namespaces/shop/configmaps", config())
    await api.send("DELETE", "/api/v1/namespaces/shop")
    refused = await refusal(api, "POST", "/api/v1/namespaces/shop/configmaps", config("b"))
    assert refused.code == 403
    assert refused.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    await api.collector.sweep()
    assert (await refusal(api, "GET", "/api/v1/namespaces/shop")).code == 404


async def test_orphans_go_and_what_has_another_owner_stays(api: ApiServer) -> None:
    owners = [await ask(api, "POST", MAPS, config(name)) for name in ("o1", "o2")]

    def owned(*by: Json) -> list[Json]:
        return [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "name": one["metadata"]["name"],
                "uid": one["metadata"]["uid"],
            }
            for one in by
        ]

    await api.send("POST", MAPS, config("one", ownerReferences=owned(owners[0])))
    await api.send("POST", MAPS, config("both", ownerReferences=owned(*owners)))
    await api.send("DELETE", f"{MAPS}/o1")
    await api.collector.sweep()
    assert (await refusal(api, "GET", f"{MAPS}/one")).code == 404
    assert (await ask(api, "GET", f"{MAPS}/both"))["metadata"]["name"] == "both"


async def test_strategic_merge_knows_the_keys_of_lists(api: ApiServer) -> None:
    two = [{"name": name, "image": f"{name}:1"} for name in ("c", "d")]
    await Kubelet(api.send).create(pod("p", containers=two))
    path = "/api/v1/namespaces/default/pods/p"
    patch = {"spec": {"containers": [{"name": "d", "image": "d:2"}], "tolerations": []}}
    changed = (await ask(api, "PATCH", path, patch, content_type=STRATEGIC))["spec"]
    assert [one["image"] for one in changed["containers"]] == ["c:1", "d:2"]
    assert changed["tolerations"] == []


async def test_apply_removes_what_is_no_longer_applied(api: ApiServer) -> None:
    path = f"{MAPS}/a?fieldManager=one"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "1", "y": "2"}}
    made = await api.send("PATCH", path, body, content_type=APPLY)
    assert made.status == 201
    await api.send("PATCH", f"{MAPS}/a", {"data": {"z": "3"}}, content_type=MERGE)
    less = {**body, "data": {"x": "1"}}
    changed = await ask(api, "PATCH", path, less, content_type=APPLY)
    assert changed["data"] == {"x": "1", "z": "3"}


async def test_two_managers_may_agree_and_then_one_leaves(api: ApiServer) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "1"}}
    for manager in ("one", "two"):
        path = f"{MAPS}/a?fieldManager={manager}"
        shared = await ask(api, "PATCH", path, body, content_type=APPLY)
    assert [one["manager"] for one in shared["metadata"]["managedFields"]] == ["one", "two"]
    left = await ask(
        api, "PATCH", f"{MAPS}/a?fieldManager=one", {**body, "data": {}}, content_type=APPLY
    )
    assert left["data"] == {"x": "1"}
    refused = await refusal(
        api,
        "PATCH",
        f"{MAPS}/a?fieldManager=one",
        {**body, "data": {"x": "9"}},
        content_type=APPLY,
    )
    assert refused.body["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "two"', "field": ".data.x"}
    ]


async def test_apply_twice_is_no_event(api: ApiServer) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "1"}}
    path = f"{MAPS}/a?fieldManager=one"
    first = await ask(api, "PATCH", path, body, content_type=APPLY)
    assert await ask(api, "PATCH", path, body, content_type=APPLY) == first


async def test_apply_needs_a_manager(api: ApiServer) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap"}
    refused = await refusal(api, "PATCH", f"{MAPS}/a", body, content_type=APPLY)
    assert refused.code == 422
    assert "fieldManager: Required value" in refused.body["message"]


async def test_apply_merges_lists_by_their_keys(api: ApiServer) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}
    path = "/api/v1/namespaces/default/services/s?fieldManager="
    for manager, port in (("one", 80), ("two", 81)):
        spec = {"ports": [{"name": f"p{port}", "port": port, "protocol": "TCP"}]}
        body = {**service, "spec": spec}
        found = await ask(api, "PATCH", f"{path}{manager}", body, content_type=APPLY)
    assert [port["port"] for port in found["spec"]["ports"]] == [80, 81]
    body = {**service, "spec": {}}
    found = await ask(api, "PATCH", f"{path}one", body, content_type=APPLY)
    assert [port["port"] for port in found["spec"]["ports"]] == [81]


async def test_status_is_written_under_its_own_path_only(api: ApiServer) -> None:
    node = {"metadata": {"name": "n1"}, "spec": {}, "status": {}}
    await api.send("POST", "/api/v1/nodes", node)
    status = {"spec": {"unschedulable": True}, "status": {"phase": "x"}}
    path = "/api/v1/nodes/n1"
    changed = await ask(api, "PATCH", f"{path}/status", status, content_type=MERGE)
    assert changed["status"]["phase"] == "x"
    assert "unschedulable" not in changed["spec"]
    changed = await ask(api, "PATCH", path, {"status": {"phase": "y"}}, content_type=MERGE)
    assert changed["status"]["phase"] == "x"


async def test_a_lease_time_without_fraction_is_refused(api: ApiServer) -> None:
    lease = {"metadata": {"name": "l"}, "spec": {"renewTime": "2026-11-23T00:00:00Z"}}
    path = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
    assert (await refusal(api, "POST", path, lease)).code == 400


async def test_an_event_is_one_thing_in_both_groups(api: ApiServer) -> None:
    event = {
        "metadata": {"generateName": "p-"},
        "eventTime": "2026-11-23T00:00:00.000001Z",
        "reportingController": "muslin.io/agent",
        "reportingInstance": "n1",
        "action": "Attach",
        "reason": "NoFreeAddress",
        "type": "Warning",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "p"},
        "note": "pool a is full",
    }
    made = await ask(api, "POST", "/apis/events.k8s.io/v1/namespaces/default/events", event)
    assert made["note"] == "pool a is full"
    core = await ask(api, "GET", "/api/v1/namespaces/default/events")
    assert core["items"][0]["message"] == "pool a is full"
    assert core["items"][0]["involvedObject"]["name"] == "p"
    del event["action"]
    refused = await refusal(api, "POST", "/apis/events.k8s.io/v1/namespaces/default/events", event)
    assert refused.body["details"]["causes"][0]["field"] == "action"


async def test_services_get_addresses_and_headless_ones_do_not(api: ApiServer) -> None:
    path = "/api/v1/namespaces/default/services"
    found = []
    for name, given in (("a", {}), ("b", {}), ("c", {"clusterIP": "None"})):
        spec = {"ports": [{"port": 80}], **given}
        made = await ask(api, "POST", path, {"metadata": {"name": name}, "spec": spec})
        found.append(made["spec"]["clusterIP"])
    assert len(set(found)) == 3
    assert found[2] == "None"
    changed = await ask(
        api, "PUT", f"{path}/a", {"metadata": {"name": "a"}, "spec": {"ports": [{"port": 81}]}}
    )
    assert changed["spec"]["clusterIP"] == found[0]


async def test_a_body_may_be_as_large_as_a_real_server_takes(api: ApiServer) -> None:
    async with Client(api.url) as client:
        for size, code in ((2 << 20, 201), (4 << 20, 413)):
            body = {"metadata": {"name": f"m{size}"}, "data": {"x": "y" * size}}
            assert (await client.ask("POST", MAPS, body))[0] == code


async def test_an_events_empty_note_is_not_given_back(api: ApiServer) -> None:
    """As 1.36.2 answered: the field is left out."""
    path = "/apis/events.k8s.io/v1/namespaces/default/events"
    event = {
        "metadata": {"name": "x.1"},
        "eventTime": "2026-01-31T12:00:00.000000Z",
        "reportingController": "muslin.io/c",
        "reportingInstance": "c",
        "action": "Check",
        "reason": "R",
        "type": "Normal",
        "note": "",
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": "n"},
    }
    assert "note" not in await ask(api, "POST", path, event)
    assert "note" not in await ask(api, "GET", f"{path}/x.1")
