"""The few subresources beside status: a pod's binding and eviction, a token, a namespace's end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from .call import Answer, Call
from .core import Core
from .deletes import Deletes
from .encode import Json, decode, encode
from .kinds import NAMESPACE, POD
from .status import conflict, page_not_found
from .writes import Writes, parse


class Subresources:
    """What hangs under an object."""

    def __init__(self, core: Core, writes: Writes, deletes: Deletes) -> None:
        self._core, self._writes, self._deletes = core, writes, deletes

    async def answer(self, call: Call) -> Answer:
        match (call.kind.kind, call.subresource, call.verb):
            case ("Pod", "binding", "create"):
                return self._bind(call)
            case ("Pod", "eviction", "create"):
                return await self._evict(call)
            case ("ServiceAccount", "token", "create"):
                return self._token(call)
            case ("Namespace", "finalize", "update"):
                return self._finalize(call)
        raise page_not_found()

    def _bind(self, call: Call) -> Answer:
        """Give a pod its node, as the scheduler does: one change, owned by nobody."""
        core, body = self._core, parse(call)
        entry = core.get(POD, call.namespace, call.name)
        old = decode(entry.raw)
        if old["spec"].get("nodeName"):
            why = f"pod {call.name} is already assigned to node {quoted(old)}"
            raise conflict("", "pods", call.name, why)
        node = body["target"]["name"]

        def change(obj: Json) -> None:
            obj["spec"]["nodeName"] = node
            scheduled = {
                "type": "PodScheduled",
                "status": "True",
                "lastProbeTime": None,
                "lastTransitionTime": core.time(),
            }
            others = [
                one
                for one in obj["status"].get("conditions") or []
                if one["type"] != "PodScheduled"
            ]
            obj["status"]["conditions"] = [*others, scheduled]

        core.rewrite(POD, entry.key, change)
        return _done(201)

    async def _evict(self, call: Call) -> Answer:
        """Delete a pod; disruption budgets are not asked."""
        options = parse(call).get("deleteOptions") or {}
        call.body, call.subresource, call.verb = encode(options), "", "delete"
        await self._deletes.delete(call)
        return _done(201)

    def _token(self, call: Call) -> Answer:
        request: Json = parse(call) or {}
        spec = request.get("spec") or {}
        seconds = spec.get("expirationSeconds", 3600)
        pod, node = self._bound(call.namespace, spec.get("boundObjectRef") or {})
        accounts = self._core.accounts
        token = accounts.service_account(call.namespace, call.name, pod=pod, node=node)
        ends = datetime.now(UTC) + timedelta(seconds=seconds)
        status = {"token": token, "expirationTimestamp": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}
        body = {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": call.name, "namespace": call.namespace},
            "spec": {"expirationSeconds": seconds},
            "status": status,
        }
        return Answer(201, encode(body), obj=body)

    def _bound(self, namespace: str, ref: Json) -> tuple[str, str]:
        """The pod that a token is for, and its node."""
        if ref.get("kind") != "Pod":
            return "", ""
        obj = decode(self._core.get(POD, namespace, ref["name"]).raw)
        return ref["name"], obj["spec"].get("nodeName", "")

    def _finalize(self, call: Call) -> Answer:
        """Change a namespace's own finalizers; with the last one it goes."""
        core, body = self._core, parse(call)
        entry = core.get(NAMESPACE, "", call.name)
        obj: Json = decode(entry.raw)
        obj["spec"] = {"finalizers": (body.get("spec") or {}).get("finalizers") or []}
        if obj["metadata"].get("deletionTimestamp") and not obj["spec"]["finalizers"]:
            core.remove(NAMESPACE, entry)
        else:
            obj = core.commit(NAMESPACE, obj)
        return Answer(200, core.raw(NAMESPACE, obj), obj=obj)


def quoted(pod: Json) -> str:
    return f'"{pod["spec"]["nodeName"]}"'


def _done(code: int) -> Answer:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "code": code,
    }
    return Answer(code, encode(body), obj=body)
