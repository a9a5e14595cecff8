"""Who may: tokens, roles, admission policies and webhooks of the fake API server."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from apiserver import ApiError, ApiServer, Certificate, Settings
from apiserver.client import Client
from apiserver.encode import Json

MAPS = "/api/v1/namespaces/default/configmaps"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    async with ApiServer(settings=Settings(rbac=True)) as api:
        yield api


async def admin(api: ApiServer, method: str, path: str, body: Any = None) -> Json:
    found: Json = (await api.send(method, path, body, token="admin")).json
    return found


async def refusal(api: ApiServer, method: str, path: str, body: Any = None, **who: Any) -> ApiError:
    with pytest.raises(ApiError) as refused:
        await api.send(method, path, body, **who)
    return refused.value


async def grant(api: ApiServer, subject: Json, *rules: Json, namespace: str = "") -> None:
    """A role and its binding, cluster-wide or of one namespace."""
    home = f"{RBAC}/namespaces/{namespace}" if namespace else RBAC
    word = "role" if namespace else "clusterrole"
    kind = "Role" if namespace else "ClusterRole"
    await admin(api, "POST", f"{home}/{word}s", {"metadata": {"name": "r"}, "rules": rules})
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "r"}
    body = {"metadata": {"name": "r"}, "roleRef": ref, "subjects": [subject]}
    await admin(api, "POST", f"{home}/{word}bindings", body)


def config(name: str = "a") -> Json:
    return {"metadata": {"name": name}, "data": {"x": "1"}}


AGENT = {"kind": "ServiceAccount", "name": "agent", "namespace": "kube-system"}


async def test_a_user_without_a_role_is_refused_in_the_standard_words(api: ApiServer) -> None:
    token = api.accounts.service_account("kube-system", "agent")
    refused = await refusal(api, "GET", MAPS, token=token)
    assert refused.code == 403
    assert refused.body["message"] == (
        'configmaps is forbidden: User "system:serviceaccount:kube-system:agent" cannot list '
        'resource "configmaps" in API group "" in the namespace "default"'
    )
    refused = await refusal(api, "GET", "/api/v1/nodes/n1", token=token)
    assert refused.body["message"] == (
        'nodes "n1" is forbidden: User "system:serviceaccount:kube-system:agent" cannot get '
        'resource "nodes" in API group "" at the cluster scope'
    )
    assert refused.body["details"] == {"name": "n1", "kind": "nodes"}


async def test_a_role_gives_verbs_names_and_subresources_and_no_more(api: ApiServer) -> None:
    token = api.accounts.service_account("kube-system", "agent")
    named = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}
    await grant(
        api,
        AGENT,
        {**named, "resourceNames": ["a"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    )
    for name in ("a", "b"):
        await admin(api, "POST", MAPS, config(name))
    await admin(api, "POST", "/api/v1/nodes", {"metadata": {"name": "n1"}})
    assert (await api.send("GET", f"{MAPS}/a", token=token)).status == 200
    assert (await refusal(api, "GET", f"{MAPS}/b", token=token)).code == 403
    assert (await refusal(api, "GET", MAPS, token=token)).code == 403
    patch: dict[str, Any] = {"content_type": "application/merge-patch+json", "token": token}
    status = await api.send("PATCH", "/api/v1/nodes/n1/status", {"status": {}}, **patch)
    assert status.status == 200
    refused = await refusal(api, "PATCH", "/api/v1/nodes/n1", {}, **patch)
    assert 'cannot patch resource "nodes"' in refused.body["message"]


async def test_a_role_of_a_namespace_ends_there(api: ApiServer) -> None:
    token = api.accounts.add("jane", "team")
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}
    await grant(api, {"kind": "Group", "name": "team"}, rule, namespace="default")
    assert (await api.send("POST", MAPS, config(), token=token)).status == 201
    elsewhere = MAPS.replace("default", "kube-system")
    assert (await refusal(api, "POST", elsewhere, config(), token=token)).code == 403
    assert (await refusal(api, "GET", "/api/v1/configmaps", token=token)).code == 403


async def test_paths_that_are_no_resource_need_a_role_too(api: ApiServer) -> None:
    token = api.accounts.add("jane")
    assert (await api.send("GET", "/version", token=token)).status == 200
    assert (await refusal(api, "GET", "/version")).code == 403  # system:anonymous


async def test_a_token_can_be_rotated_and_revoked(api: ApiServer) -> None:
    old = api.accounts.service_account("kube-system", "agent")
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}
    await grant(api, AGENT, rule)
    fresh = api.accounts.rotate(old)
    assert (await refusal(api, "GET", MAPS, token=old)).code == 401
    assert (await api.send("GET", MAPS, token=fresh)).status == 200
    api.accounts.revoke(fresh)
    assert (await refusal(api, "GET", MAPS, token=fresh)).body["reason"] == "Unauthorized"


async def test_access_reviews_answer_as_the_authorizer_does(api: ApiServer) -> None:
    token = api.accounts.add("jane")
    attributes = {"verb": "list", "resource": "configmaps", "namespace": "default"}
    body = {"spec": {"resourceAttributes": attributes}}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert (await api.send("POST", path, body, token=token)).json["status"] == {"allowed": False}
    assert (await api.send("POST", path, body, token="admin")).json["status"] == {"allowed": True}


async def policy(api: ApiServer, *validations: Json, **spec: Any) -> None:
    rules = [
        {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE", "UPDATE", "DELETE"],
            "resources": ["configmaps"],
        }
    ]
    body = {
        "metadata": {"name": "p"},
        "spec": {"matchConstraints": {"resourceRules": rules}, "validations": validations, **spec},
    }
    await admin(api, "POST", f"{ADMISSION}/validatingadmissionpolicies", body)
    binding = {"policyName": "p", "validationActions": ["Deny"]}
    body = {"metadata": {"name": "b"}, "spec": binding}
    await admin(api, "POST", f"{ADMISSION}/validatingadmissionpolicybindings", body)


async def test_a_policy_denies_with_its_message(api: ApiServer) -> None:
    await policy(
        api,
        {"expression": "variables.who != 'x' || object.data.x == '2'", "message": "two it is"},
        variables=[{"name": "who", "expression": "object.metadata.name"}],
        matchConditions=[{"name": "m", "expression": "request.operation != 'DELETE'"}],
    )
    await admin(api, "POST", MAPS, config("y"))
    refused = await refusal(api, "POST", MAPS, config("x"), token="admin")
    assert (refused.code, refused.body["reason"]) == (422, "Invalid")
    assert refused.body["message"] == (
        "configmaps \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied "
        "request: two it is"
    )
    await admin(api, "DELETE", f"{MAPS}/y")


async def test_a_policy_sees_both_objects_and_the_user(api: ApiServer) -> None:
    node = '"authentication.kubernetes.io/node-name"'
    await policy(
        api,
        {"expression": f"request.userInfo.extra[{node}][0] == 'n1'"},
        {"expression": "oldObject == null || oldObject.data.x == object.data.x"},
        matchConditions=[
            {"name": "agents", "expression": "request.userInfo.username.endsWith(':agent')"}
        ],
    )
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}
    await grant(api, AGENT, rule)
    right = api.accounts.service_account("kube-system", "agent", node="n1")
    wrong = api.accounts.service_account("kube-system", "agent")
    assert (await api.send("POST", MAPS, config(), token=right)).status == 201
    # No such key: an expression that fails refuses, it is not passed over.
    refused = await refusal(api, "POST", MAPS, config("b"), token=wrong)
    assert "resulted in error" in refused.body["message"]
    changed = {**config(), "data": {"x": "2"}}
    assert (await refusal(api, "PUT", f"{MAPS}/a", changed, token=right)).code == 422
    assert (await admin(api, "PUT", f"{MAPS}/a", changed))["data"] == {"x": "2"}


async def test_a_policy_that_does_not_compile_is_refused(api: ApiServer) -> None:
    with pytest.raises(ApiError, match=r"spec.validations\[0\].expression") as refused:
        await policy(api, {"expression": "object.nosuch("})
    assert refused.value.code == 422


@pytest.fixture
async def hook(tmp_path: Path) -> AsyncIterator[tuple[str, Certificate, list[Json]]]:
    """A webhook that denies names that start with 'bad', and what it was asked."""
    names = "subjectAltName=DNS:hook.muslin-system.svc,IP:127.0.0.1"
    certificate = Certificate.make(tmp_path, names=names)
    asked: list[Json] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        review = await request.json()
        asked.append(review["request"])
        name = review["request"]["object"]["metadata"]["name"]
        response = {"uid": review["request"]["uid"], "allowed": not name.startswith("bad")}
        if not response["allowed"]:
            response["status"] = {"message": "a bad name", "code": 403}
        return web.json_response({**review, "response": response})

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context())
    await site.start()
    address = runner.addresses[0]
    yield f"https://127.0.0.1:{address[1]}", certificate, asked
    await runner.cleanup()


async def configure(api: ApiServer, certificate: Certificate, failure: str) -> None:
    bundle = base64.b64encode(certificate.authority.read_bytes()).decode()
    service = {"namespace": "muslin-system", "name": "hook", "path": "/validate"}
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["configmaps"],
    }
    one = {
        "name": "hook.muslin.io",
        "clientConfig": {"service": service, "caBundle": bundle},
        "rules": [rule],
        "failurePolicy": failure,
        "timeoutSeconds": 1,
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    body = {"metadata": {"name": "h"}, "webhooks": [one]}
    await admin(api, "POST", f"{ADMISSION}/validatingwebhookconfigurations", body)


async def test_a_webhook_is_asked_over_https(
    api: ApiServer, hook: tuple[str, Certificate, list[Json]]
) -> None:
    url, certificate, asked = hook
    api.router.admission.resolve(lambda namespace, name, port: url)
    await configure(api, certificate, "Fail")
    await admin(api, "POST", MAPS, config("good"))
    refused = await refusal(api, "POST", MAPS, config("bad"), token="admin")
    assert refused.body["message"] == (
        'admission webhook "hook.muslin.io" denied the request: a bad name'
    )
    assert [one["operation"] for one in asked] == ["CREATE", "CREATE"]
    assert asked[0]["userInfo"]["username"] == "kubernetes-admin"


async def test_a_webhook_that_is_not_there_counts_by_its_failure_policy(
    api: ApiServer, hook: tuple[str, Certificate, list[Json]]
) -> None:
    _, certificate, _ = hook
    api.router.admission.resolve(lambda namespace, name, port: "https://127.0.0.1:1")
    await configure(api, certificate, "Fail")
    refused = await refusal(api, "POST", MAPS, config(), token="admin")
    assert refused.code == 500
    assert 'failed calling webhook "hook.muslin.io"' in refused.body["message"]
    await admin(api, "DELETE", f"{ADMISSION}/validatingwebhookconfigurations/h")
    await configure(api, certificate, "Ignore")
    await admin(api, "POST", MAPS, config())


async def test_https_and_a_token_over_http(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path)
    context = ssl.create_default_context(cafile=certificate.authority)
    async with ApiServer(tls=certificate, settings=Settings(rbac=True)) as api:
        async with Client(api.url, token="admin", context=context) as client:
            assert (await client.ask("GET", MAPS))[0] == 200
        async with Client(api.url, token="wrong", context=context) as client:
            assert (await client.ask("GET", MAPS))[0] == 401
