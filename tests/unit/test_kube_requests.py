"""What requests send, and what each answer means; errors as a real 1.36 words them."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from muslin.errors import ConfigError, Conflict, MuslinError, NotReady
from muslin.kube import Access, Api
from muslin.kube.kinds import CONFIG_MAPS, NODES, PODS, muslin
from muslin.kube.slim import ConfigMap
from scripted import Reply, Request, Script, Scripted, config_map, silent, status, text

POOLS = muslin("pools", "Pool")


def answer(code: int, body: object) -> Script:
    async def script(_: Request, reply: Reply) -> None:
        await reply.json(code, body)

    return script


def not_found(name: str) -> Script:
    message = f'pools.muslin.io "{name}" not found'
    details = {"name": name, "group": "muslin.io", "kind": "pools"}
    return status(404, message, reason="NotFound", details=details)


UNSERVED = text(404, b"404 page not found\n", Content_Type="text/plain")


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with Scripted() as server:
        yield server


@pytest.fixture
async def api(server: Scripted) -> AsyncIterator[Api]:
    async with Api(server.access, timeout=2.0) as api:
        yield api


async def test_get_gives_the_object_as_what_was_asked_for(server: Scripted, api: Api) -> None:
    server.others = [answer(200, config_map("a", 3, x="1"))] * 2
    typed = await api.get(CONFIG_MAPS, "a", namespace="ns", type=ConfigMap)
    assert typed is not None
    assert (typed.metadata.resource_version, typed.data) == ("3", {"x": "1"})
    plain = await api.get(CONFIG_MAPS, "a", namespace="ns")
    assert plain == config_map("a", 3, x="1")
    assert server.requests[0].target == "/api/v1/namespaces/ns/configmaps/a"


async def test_get_of_what_is_absent_is_none(server: Scripted, api: Api) -> None:
    server.others = [not_found("a")]
    assert await api.get(POOLS, "a") is None


@pytest.mark.parametrize("how", ["text", "status"])
async def test_a_kind_that_is_not_served_is_not_an_absent_object(
    server: Scripted, api: Api, how: str
) -> None:
    status_404 = status(404, "the server could not find the requested resource", reason="NotFound")
    server.others = [UNSERVED if how == "text" else status_404] * 2
    with pytest.raises(ConfigError, match=r"pools.muslin.io: the CRDs are not installed") as raised:
        await api.get(POOLS, "a")
    assert "custom resource definitions" in raised.value.hint
    with pytest.raises(ConfigError, match="does not serve v1"):
        await api.delete(NODES, "a")


async def test_an_object_that_does_not_fit_is_a_configuration_error(
    server: Scripted, api: Api
) -> None:
    server.others = [answer(200, config_map("a", 3, x=1))]
    with pytest.raises(ConfigError, match=r"configmaps ns/a: Expected `str`.*\$\.data"):
        await api.get(CONFIG_MAPS, "a", namespace="ns", type=ConfigMap)


async def test_a_list_leaves_out_what_does_not_fit(server: Scripted, api: Api) -> None:
    server.put("bad", 1, x=1)
    server.put("good", 2)
    listed = await api.list(CONFIG_MAPS, type=ConfigMap, labels="a=b")
    assert [o.metadata.name for o in listed.items] == ["good"]
    assert listed.version == "2"
    assert server.requests[0].query == {"labelSelector": "a=b", "limit": "500"}


async def test_a_list_starts_over_when_its_version_is_gone(server: Scripted, api: Api) -> None:
    async def first(_: Request, reply: Reply) -> None:
        meta = {"resourceVersion": "1", "continue": "token"}
        await reply.json(200, {"metadata": meta, "items": [config_map("ghost", 1)]})

    server.put("a", 5)
    server.lists = [first, status(410, "expired"), first, status(400, "continue key is not valid")]
    listed = await api.list(CONFIG_MAPS, type=ConfigMap)
    assert [o.metadata.name for o in listed.items] == ["a"]
    server.lists = [first, status(410, "expired")] * 10
    with pytest.raises(NotReady, match="expired"):
        await api.list(CONFIG_MAPS, type=ConfigMap)


async def test_create_names_kind_version_and_manager(server: Scripted, api: Api) -> None:
    server.others = [answer(201, {"made": True})]
    given = {"metadata": {"name": "a"}, "spec": {}}
    assert await api.create(POOLS, given) == {"made": True}
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/apis/muslin.io/v1alpha1/pools")
    assert request.query == {"fieldManager": "muslin"}
    assert request.headers["content-type"] == "application/json"
    assert request.json == {"apiVersion": "muslin.io/v1alpha1", "kind": "Pool"} | given
    assert given == {"metadata": {"name": "a"}, "spec": {}}


async def test_create_takes_the_namespace_of_the_body(server: Scripted, api: Api) -> None:
    server.others = [answer(201, {})]
    await api.create(CONFIG_MAPS, config_map("a", 1))
    assert server.requests[0].path == "/api/v1/namespaces/ns/configmaps"
    with pytest.raises(ValueError, match="need a namespace"):
        await api.create(CONFIG_MAPS, {"metadata": {"name": "a"}})


async def test_create_of_what_exists_is_a_conflict(server: Scripted, api: Api) -> None:
    server.others = [status(409, 'pools.muslin.io "a" already exists', reason="AlreadyExists")]
    with pytest.raises(Conflict, match="already exists") as raised:
        await api.create(POOLS, {"metadata": {"name": "a"}})
    assert raised.value.key == "pools.muslin.io a"


async def test_each_patch_says_what_it_is(server: Scripted, api: Api) -> None:
    server.others = [answer(200, {})] * 4
    await api.patch(POOLS, "a", {"spec": {"x": None}})
    await api.patch(POOLS, "a", [{"op": "test"}], how="json", subresource="status")
    await api.patch(NODES, "n1", {"status": {}}, how="strategic", subresource="status")
    await api.apply(POOLS, "a", {"spec": {}}, force=True)
    assert [r.headers["content-type"] for r in server.requests] == [
        "application/merge-patch+json",
        "application/json-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
    ]
    assert server.requests[0].body == b'{"spec":{"x":null}}'
    assert server.requests[1].path == "/apis/muslin.io/v1alpha1/pools/a/status"
    assert server.requests[3].query == {"fieldManager": "muslin", "force": "true"}
    assert server.requests[3].json == {
        "apiVersion": "muslin.io/v1alpha1",
        "kind": "Pool",
        "metadata": {"name": "a"},
        "spec": {},
    }


async def test_a_json_patch_whose_test_fails_is_a_conflict(server: Scripted, api: Api) -> None:
    """1.36: 422, Invalid, and not a word of what failed."""
    message = "the server rejected our request due to an error in our request"
    failed = status(422, message, reason="Invalid", details={})
    server.others = [failed, failed]
    with pytest.raises(Conflict):
        await api.patch(POOLS, "a", [], how="json")
    with pytest.raises(ConfigError):
        await api.patch(POOLS, "a", {})


async def test_an_invalid_object_names_its_fields(server: Scripted, api: Api) -> None:
    causes = [
        {"reason": "FieldValueInvalid", "message": "cidr needs a prefix length", "field": "spec"},
        {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.x"},
    ]
    invalid = status(422, "Pool is invalid", reason="Invalid", details={"causes": causes})
    server.others = [invalid, invalid]
    with pytest.raises(ConfigError) as raised:
        await api.create(POOLS, {"metadata": {"name": "a"}})
    assert raised.value.faults == ("spec: cidr needs a prefix length", "spec.x: Required value")
    with pytest.raises(ConfigError):
        await api.patch(POOLS, "a", [], how="json")


async def test_an_apply_conflict_names_the_manager_and_the_fields(
    server: Scripted, api: Api
) -> None:
    cause = {
        "reason": "FieldManagerConflict",
        "message": 'conflict with "one" using muslin.io/v1alpha1',
        "field": ".spec.cidr",
    }
    server.others = [status(409, "Apply failed", reason="Conflict", details={"causes": [cause]})]
    with pytest.raises(Conflict, match=r'.spec.cidr: conflict with "one"'):
        await api.apply(POOLS, "a", {})


async def test_a_patch_of_what_is_gone_is_a_conflict(server: Scripted, api: Api) -> None:
    server.others = [not_found("a"), UNSERVED]
    with pytest.raises(Conflict, match="gone"):
        await api.patch(POOLS, "a", {})
    with pytest.raises(ConfigError, match="not installed"):
        await api.patch(POOLS, "a", {})


async def test_delete_sends_its_conditions(server: Scripted, api: Api) -> None:
    failed = "Precondition failed: UID in precondition: x, UID in object meta: y"
    server.others = [answer(200, {}), not_found("a"), status(409, failed, reason="Conflict")]
    assert await api.delete(PODS, "a", namespace="ns", version="7", uid="u", grace=0)
    assert not await api.delete(POOLS, "a")
    with pytest.raises(Conflict, match="Precondition failed"):
        await api.delete(POOLS, "a", uid="x")
    assert server.requests[0].json == {
        "kind": "DeleteOptions",
        "apiVersion": "v1",
        "preconditions": {"resourceVersion": "7", "uid": "u"},
        "gracePeriodSeconds": 0,
    }
    assert server.requests[1].json == {"kind": "DeleteOptions", "apiVersion": "v1"}


async def test_missing_rights_are_named(server: Scripted, api: Api) -> None:
    message = 'pods "a" is forbidden: User "u" cannot patch resource "pods/status" in API group ""'
    server.others = [status(403, message, reason="Forbidden")]
    with pytest.raises(ConfigError, match='User "u" cannot patch') as raised:
        await api.patch(PODS, "a", {}, namespace="ns", subresource="status")
    assert raised.value.hint == (
        'grant the verb patch on pods/status (API group "") in namespace ns by a role'
    )


async def test_a_refusal_by_a_webhook_has_no_hint_about_rights(server: Scripted, api: Api) -> None:
    server.others = [status(403, 'admission webhook "w" denied the request: no')]
    with pytest.raises(ConfigError, match="denied the request: no") as raised:
        await api.create(POOLS, {"metadata": {"name": "a"}})
    assert raised.value.hint == ""


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        (status(500, "boom"), NotReady, "boom"),
        (text(503, b"<html>no\nbackend</html>"), NotReady, "<html>no backend</html>"),
        (text(502, b""), NotReady, "HTTP status 502"),
        (text(302, b"", Location="/"), NotReady, "HTTP status 302"),
        (status(408, "timeout"), NotReady, "timeout"),
        (status(400, "bad"), ConfigError, "bad"),
        (status(415, "unsupported"), ConfigError, "unsupported"),
        (status(405, "not allowed"), ConfigError, "not allowed"),
        (text(200, b"<html>Please log in</html>"), NotReady, "no object"),
        (text(200, b"\xff\xfe"), NotReady, "no object"),
    ],
)
async def test_errors_mean_the_same_whoever_makes_them(
    server: Scripted, api: Api, script: Script, error: type[MuslinError], words: str
) -> None:
    """Neither a Content-Type nor a Status is counted on (lightkube: KeyError)."""
    server.others = [script]
    with pytest.raises(error, match=words):
        await api.get(POOLS, "a")


async def test_429_is_waited_for_within_the_deadline(server: Scripted) -> None:
    server.others = [status(429, "slow down", "0.3"), answer(200, {"ok": 1})]
    async with Api(server.access, timeout=2.0, uniform=random.uniform) as api:
        assert await api.create(POOLS, {}) == {"ok": 1}
        assert server.requests[1].at - server.requests[0].at >= 0.3
        server.others = [status(429, "slow down", "30")]
        with pytest.raises(NotReady, match="slow down"):
            await api.create(POOLS, {})
    assert len(server.requests) == 3


async def test_a_server_that_does_not_answer_is_left_at_the_deadline(server: Scripted) -> None:
    server.others = [silent]
    async with Api(server.access, timeout=0.2) as api:
        with pytest.raises(NotReady, match="no answer in time"):
            await api.get(POOLS, "a")


async def test_a_body_that_trickles_is_left_at_the_deadline(server: Scripted) -> None:
    """A timeout for each read would wait for ever."""

    async def trickle(_: Request, reply: Reply) -> None:
        await reply.begin()
        while True:
            await reply.send(b" ")
            await asyncio.sleep(0.02)

    server.others = [trickle]
    async with Api(server.access, timeout=0.3) as api:
        with pytest.raises(NotReady, match="no answer in time"):
            await api.get(POOLS, "a")


async def test_a_server_that_is_away_is_named_with_the_reason() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    async with Api(Access(server=f"http://127.0.0.1:{port}")) as api:
        with pytest.raises(NotReady, match=f"kubernetes 127.0.0.1:{port}: .*refused"):
            await api.get(POOLS, "a")


async def test_a_connection_that_breaks_is_not_ready(server: Scripted, api: Api) -> None:
    async def drop(_: Request, reply: Reply) -> None:
        await reply.drop()

    async def garbage(_: Request, reply: Reply) -> None:
        await reply.raw(b"SSH-2.0-OpenSSH\r\n\r\n")
        await reply.drop()

    async def short(_: Request, reply: Reply) -> None:
        await reply.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{")
        await reply.drop()

    for script in (drop, garbage, short):
        server.others = [script]
        with pytest.raises(NotReady):
            await api.get(POOLS, "a")


async def test_connections_are_kept_and_the_closed_ones_found(server: Scripted, api: Api) -> None:
    server.others = [answer(200, {})] * 4
    await api.create(POOLS, {})
    await api.create(POOLS, {})
    assert server.connections == 1
    port = server.port
    await server.kill()
    await server.start(port)
    assert await api.create(POOLS, {}) == {}
    assert server.connections == 2


async def test_many_requests_at_once_are_all_answered(server: Scripted, api: Api) -> None:
    async def later(_: Request, reply: Reply) -> None:
        await asyncio.sleep(0.05)
        await reply.json(200, {})

    server.always = later
    assert await asyncio.gather(*(api.get(POOLS, f"p{n}") for n in range(50))) == [{}] * 50


async def test_closing_ends_what_waits(server: Scripted) -> None:
    server.others = [silent]
    api = Api(server.access, timeout=30.0)
    waiting = asyncio.ensure_future(api.get(POOLS, "a"))
    await server.asked_times(1)
    await api.close()
    async with asyncio.timeout(1):
        with pytest.raises(NotReady, match="closed"):
            await waiting
    with pytest.raises(NotReady, match="closed"):
        await api.get(POOLS, "a")


@pytest.mark.parametrize("how", ["deadline", "closed", "cancelled"])
async def test_a_handshake_that_hangs_is_ended_and_its_socket_closed(how: str) -> None:
    """httpcore2 leaves it open when it is cancelled: a descriptor lost for every request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        at = Access(server=f"https://127.0.0.1:{listener.getsockname()[1]}", insecure=True)
        api = Api(at, timeout=0.3 if how == "deadline" else 30.0)
        waiting = asyncio.ensure_future(api.get(POOLS, "a"))
        await asyncio.sleep(0.1)
        if how == "closed":
            await api.close()
        elif how == "cancelled":
            waiting.cancel()
        async with asyncio.timeout(2):
            with pytest.raises(asyncio.CancelledError if how == "cancelled" else NotReady):
                await waiting
        await asyncio.sleep(0.01)
        other, _ = listener.accept()
        with other:
            other.settimeout(0.0)
            while other.recv(1 << 16):  # BlockingIOError: still open
                pass
        await api.close()


async def test_an_ipv6_address_is_bracketed_on_the_wire() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6")
    async with Scripted(host="::1") as server:
        server.always = answer(200, {})
        async with Api(Access(server=f"http://[::1]:{server.port}")) as api:
            await api.get(POOLS, "a")
        assert server.requests[0].headers["host"] == f"[::1]:{server.port}"


@pytest.mark.parametrize(
    ("told", "version"),
    [
        ({"gitVersion": "v1.36.2"}, "v1.36.2"),
        ({"gitVersion": "v1.36.2", "major": "1", "minor": "36"}, "v1.36.2"),
        ({"gitVersion": "v1.31.4-eks-1", "major": "1", "minor": "31+"}, "v1.31.4-eks-1"),
        # Recorded: a server built from source without the build's own flags.
        (
            {"gitVersion": "v0.0.0-master+8e16b12f", "major": "1", "minor": "36"},
            "v1.36 (v0.0.0-master+8e16b12f)",
        ),
    ],
)
async def test_version_is_the_servers(
    server: Scripted, api: Api, told: dict[str, str], version: str
) -> None:
    server.others = [answer(200, told), text(200, b"hello")]
    assert await api.version() == version
    with pytest.raises(NotReady, match="not an API server"):
        await api.version()


async def test_a_server_may_have_a_path_and_names_stay_within_theirs(server: Scripted) -> None:
    server.others = [answer(200, {})]
    async with Api(Access(server=f"{server.url}/k8s/clusters/c-1/")) as api:
        await api.get(POOLS, "a b?c#d&e")
    assert server.requests[0].target == (
        "/k8s/clusters/c-1/apis/muslin.io/v1alpha1/pools/a%20b%3Fc%23d%26e"
    )


async def test_a_request_says_who_asks_and_wants_nothing_compressed(
    server: Scripted, api: Api
) -> None:
    server.others = [answer(200, {})]
    await api.get(POOLS, "a")
    headers: dict[str, Any] = server.requests[0].headers
    assert headers["user-agent"].startswith("muslin/")
    assert headers["accept-encoding"] == "identity"
    assert headers["host"] == f"127.0.0.1:{server.port}"
    assert "authorization" not in headers


def test_only_the_api_imports_the_http_library() -> None:
    """Who reads kinds, structs or CRDs needs no extra."""
    code = (
        "import sys, muslin.kube, muslin.kube.slim, muslin.kube.kinds;"
        "assert 'httpcore2' not in sys.modules; from muslin.kube import Api;"
        "assert 'httpcore2' in sys.modules; assert 'lightkube' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
