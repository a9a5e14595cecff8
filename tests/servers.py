"""The API server that a test goes by: the one in memory, or with `--cluster` a real one.

    async def test_it(serve: Serve) -> None:
        async with serve(rbac=True) as server:  # settings are of the one in memory
            async with Api(server.access()) as admin: ...
            token = await server.account("shop", "db", node="n1")

Both are without Muslin at the start, and without what a test made at the end, also after
a failure.  What only the one in memory can do (die, fail, be looked into) the other has no
words for: a test that needs it takes `ApiServer` itself and is marked `steers`.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeAlias

import pytest
import yaml

from apiserver import ApiError, ApiServer, Certificate, Settings
from apiserver.auth import ADMIN_TOKEN as ADMIN
from apiserver.call import Answer
from apiserver.client import Client
from apiserver.encode import decode, encode
from muslin.kube import Access, crd, kubeconfig
from muslin.kube.credentials import Tls
from muslin.kube.kinds import CRDS, NODES, PODS

Json = dict[str, Any]
AGENT = "muslin-test"
STRATEGIC = "application/strategic-merge-patch+json"
OURS = "muslin"  # how the names of all our field managers begin
PATIENCE = 90.0  # seconds; a namespace takes ten to go, and a definition that is in use
# Kept by servers and their controllers by themselves, for a while.
PASSING = ("events", "componentstatuses", "endpoints")


class Fake(ApiServer):
    """The one in memory."""

    real = False

    def access(self, token: str = ADMIN) -> Access:
        """As the administrator, or whose token it is."""
        authority = str(self.tls.authority) if self.tls else ""
        return Access(server=self.url, token=token, ca_file=authority)

    async def account(self, namespace: str, name: str, *, node: str = "") -> str:
        """A service account's token as a pod on that node has it; without one, made by hand."""
        pod = f"{name}-{node}" if node else ""
        return self.accounts.service_account(namespace, name, pod=pod, node=node)

    async def define(self) -> None:
        """Serve the kinds of muslin.io."""
        await _define(self)


class Real:
    """One that is there already, and whose administrator the kubeconfig is."""

    real = True

    def __init__(self, file: Path) -> None:
        self._file, self._admin = file, kubeconfig(file)
        self.url = self._admin.server
        self._clients: dict[str, Client] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            await client.__aexit__(None, None, None)

    def access(self, token: str = ADMIN) -> Access:
        if token == ADMIN:
            return self._admin
        return replace(
            self._admin, token=token, cert_file="", cert_data="", key_file="", key_data=""
        )

    def kubeconfig(self, path: Path | str, *, token: str = ADMIN) -> Path:
        """Write a kubeconfig for one of the accounts, in one file."""
        at = self.access(token)
        texts = {
            "certificate-authority-data": _pem(at.ca_data, at.ca_file),
            "client-certificate-data": _pem(at.cert_data, at.cert_file),
            "client-key-data": _pem(at.key_data, at.key_file),
        }
        data = {k: base64.b64encode(t.encode()).decode() for k, t in texts.items() if t}
        cluster = {"server": self.url, "certificate-authority-data": data.pop(next(iter(texts)))}
        user = data | ({"token": at.token} if at.token else {})
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "x",
            "clusters": [{"name": "x", "cluster": cluster}],
            "users": [{"name": "x", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        }
        path = Path(path)
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        return path

    async def send(
        self,
        method: str,
        url: str,
        body: Json | bytes | None = None,
        *,
        content_type: str = "application/json",
        agent: str = "",  # whoever is played: what tests make is the tests'
        token: str = ADMIN,
    ) -> Answer:
        """As `ApiServer.send`; raises ApiError."""
        if token not in self._clients:
            at = self.access(token)
            made = Client(self.url, token=at.token, context=Tls(at).context, agent=AGENT)
            self._clients[token] = await made.__aenter__()
        given = decode(body) if isinstance(body, bytes) else body
        code, said = await self._clients[token].ask(method, url, given, content_type=content_type)
        if code < 400:
            return Answer(code, encode(said))
        status = said if isinstance(said, dict) else {"message": said, "code": code}
        error = ApiError(code, status.get("reason", ""), status["message"])
        error.body = status
        raise error

    async def account(self, namespace: str, name: str, *, node: str = "") -> str:
        """The API server puts a pod's node into a token that is bound to the pod."""
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        with suppress(ApiError):  # it is there already
            await self.send("POST", accounts, {"metadata": {"name": name}})
        spec: Json = {"expirationSeconds": 3600}
        if node:
            pod = {"metadata": {"name": f"{name}-{secrets.token_hex(3)}"}}
            container = {"name": "c", "image": "none.invalid/none"}
            pod["spec"] = {"serviceAccountName": name, "nodeName": node, "containers": [container]}
            made = (await self.send("POST", PODS.path(namespace), pod)).json["metadata"]
            bound = {"kind": "Pod", "apiVersion": "v1", "name": made["name"], "uid": made["uid"]}
            spec["boundObjectRef"] = bound
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await self.send("POST", f"{accounts}/{name}/token", body)
        return str(answer.json["status"]["token"])

    async def define(self) -> None:
        await _define(self)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*map(self._defined, crd.definitions()))

    async def _defined(self, definition: Json) -> None:
        name, spec = definition["metadata"]["name"], definition["spec"]
        while not await self._established(name):  # noqa: ASYNC110 - of a server
            await asyncio.sleep(0.05)
        # The first write of a new kind takes this server two seconds, whoever makes it.
        within = "/namespaces/default" if spec["scope"] == "Namespaced" else ""
        kind = {"apiVersion": "muslin.io/v1alpha1", "kind": spec["names"]["kind"]}
        nothing = kind | {"metadata": {"name": "nothing"}}
        url = f"/apis/muslin.io/v1alpha1{within}/{spec['names']['plural']}?dryRun=All"
        with suppress(ApiError):  # 422: an object needs more than a name
            await self.send("POST", url, nothing)

    async def _established(self, name: str) -> bool:
        found = (await self.send("GET", CRDS.path("", name))).json
        said = {c["type"]: c["status"] for c in found.get("status", {}).get("conditions") or ()}
        return said.get("Established") == "True"

    async def clear(self, before: set[str]) -> None:
        """Remove what was made since, as far as it is Muslin's, a test's, or in their namespaces.

        Others may work in the same cluster: what is theirs stays.
        """
        end = time.monotonic() + PATIENCE
        while left := _ours(await everything(self), before):
            assert time.monotonic() < end, f"does not go: {', '.join(left)}"
            for path in left:
                options = {"kind": "DeleteOptions", "apiVersion": "v1"}
                if "/pods/" in path:
                    options["gracePeriodSeconds"] = 0
                with suppress(ApiError):  # it went, or is going, or cannot be deleted alone
                    await self.send("DELETE", path, options)
            await asyncio.sleep(0.3)


Server: TypeAlias = "Fake | Real"
Serve: TypeAlias = "Callable[..., AbstractAsyncContextManager[Any]]"


async def everything(server: Server) -> dict[str, Json]:
    """All objects of an API server by their paths, but for those that pass by themselves."""
    found: dict[str, Json] = {}
    groups = (await server.send("GET", "/apis", token=ADMIN)).json["groups"]
    versions = [f"/apis/{g['preferredVersion']['groupVersion']}" for g in groups]
    for version in ("/api/v1", *versions):
        try:
            resources = (await server.send("GET", version, token=ADMIN)).json["resources"]
        except ApiError:  # it went meanwhile
            continue
        group = version.removeprefix("/api/v1").removeprefix("/apis/").rpartition("/")[0]
        for resource in resources:
            name = ".".join(filter(None, (resource["name"], group)))
            if "list" in resource["verbs"] and name not in PASSING:
                found |= await _listed(server, version, resource["name"])
    return found


async def _listed(server: Server, version: str, plural: str) -> dict[str, Json]:
    try:
        items = (await server.send("GET", f"{version}/{plural}", token=ADMIN)).json["items"]
    except ApiError:
        return {}
    found = {}
    for obj in items:
        at = obj["metadata"].get("namespace")
        within = f"/namespaces/{at}" if at else ""
        found[f"{version}{within}/{plural}/{obj['metadata']['name']}"] = obj
    return found


def _ours(now: dict[str, Json], before: set[str]) -> list[str]:
    """The paths of what is there and was not, and is ours; what watches over others first."""
    new = {path: obj for path, obj in now.items() if path not in before}
    spaces = {path for path, obj in new.items() if path.startswith("/api/v1/namespaces/")
              and path.count("/") == 4 and _is_ours(path, obj)}  # fmt: skip
    mine = [p for p, o in new.items() if _is_ours(p, o) or "/".join(p.split("/")[:-2]) in spaces]
    return sorted(mine, key=lambda path: "admissionregistration" not in path)


def _is_ours(path: str, obj: Json) -> bool:
    managers = {m.get("manager", "") for m in obj["metadata"].get("managedFields") or ()}
    if path.startswith("/api/v1/nodes/"):  # a bare name has no manager
        return "kubelet" not in managers
    return "muslin.io" in path or any(m.startswith(OURS) for m in managers)


async def _define(server: Server) -> None:
    for definition in crd.definitions():
        await server.send("POST", CRDS.path(), definition, token=ADMIN)


def _pem(data: str, file: str) -> str:
    return data or (Path(file).read_text() if file else "")


@asynccontextmanager
async def alive(server: Server, *nodes: str) -> AsyncIterator[None]:
    """Play the heart of nodes that nobody runs: who watches over them takes their pods else."""

    async def beat() -> None:
        while True:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            said = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
            body = {"status": {"conditions": [said | {"lastHeartbeatTime": now}]}}
            for node in nodes:
                with suppress(ApiError):  # not there yet, or no more
                    path = NODES.path("", node, "status")
                    await server.send("PATCH", path, body, content_type=STRATEGIC)
            await asyncio.sleep(2.0)

    beating = asyncio.create_task(beat()) if server.real else None
    try:
        yield
    finally:
        if beating:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Serve:
    """What gives a test its API server; see above."""
    given = request.config.getoption("--cluster")

    @asynccontextmanager
    async def serving(*, tls: Certificate | None = None, **settings: Any) -> AsyncIterator[Server]:
        if not given:
            async with Fake(settings=Settings(**settings), tls=tls) as fake:
                yield fake
            return
        async with Real(Path(given)) as real:
            before = set(await everything(real))
            if any(CRDS.path("", d["metadata"]["name"]) in before for d in crd.definitions()):
                pytest.skip("Muslin is installed in this cluster; this needs one without it")
            try:
                yield real
            finally:
                await real.clear(before)

    return serving
