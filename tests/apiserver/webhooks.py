"""Validating webhooks: asked over HTTPS, one AdmissionReview each.

A clientConfig with a service is asked where `Admission.resolve` says that service is;
its certificate must be for `name.namespace.svc`, as in a real cluster.
"""

from __future__ import annotations

import base64
import io
import ssl
import uuid
from collections.abc import Callable

import aiohttp

from . import cel
from .encode import Json, decode, encode
from .matching import Write
from .status import ApiError, internal

_RESOURCE = ("admissionregistration.k8s.io", "validatingwebhookconfigurations")
Resolver = Callable[[str, str, int], str]  # namespace, name, port -> https://host:port


def nowhere(namespace: str, name: str, port: int) -> str:
    raise LookupError(f"no resolver for service {namespace}/{name}:{port}")


class Webhooks:
    """Asks the configured webhooks; keeps one HTTP session."""

    def __init__(self) -> None:
        self.resolve: Resolver = nowhere
        self._session: aiohttp.ClientSession | None = None

    async def check(self, write: Write) -> None:
        """Raise what the first webhook that refuses says."""
        if write.call.kind.storage == _RESOURCE:
            return
        for entry in list(write.core.storage.table(_RESOURCE).entries.values()):
            for hook in decode(entry.raw).get("webhooks") or ():
                if self._wants(write, hook):
                    await self._ask(write, hook)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _wants(self, write: Write, hook: Json) -> bool:
        if not write.concerns(hook.get("rules"), hook):
            return False
        data = {"object": write.new, "oldObject": write.old, "request": write.request()}
        try:
            conditions = hook.get("matchConditions") or ()
            return all(cel.evaluate(one["expression"], data) is True for one in conditions)
        except cel.CelError as error:
            if hook.get("failurePolicy", "Fail") == "Ignore":
                return False
            raise internal(f"failed to evaluate matchConditions: {error}") from error

    async def _ask(self, write: Write, hook: Json) -> None:
        review = {
            "kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": str(uuid.uuid4()),
                **write.request(),
                "object": write.new,
                "oldObject": write.old,
            },
        }
        try:
            answer = await self._post(hook, review)
            if answer.get("response", {}).get("uid") != review["request"]["uid"]:
                raise ValueError("expected response.uid of the request")
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, OSError) as error:
            if hook.get("failurePolicy", "Fail") == "Ignore":
                return
            why = str(error) or "context deadline exceeded"
            raise internal(
                f'Internal error occurred: failed calling webhook "{hook["name"]}": '
                f"failed to call webhook: {why}"
            ) from error
        if not answer["response"].get("allowed"):
            raise _denied(hook["name"], answer["response"].get("status") or {})

    async def _post(self, hook: Json, review: Json) -> Json:
        config = hook["clientConfig"]
        url, server = config.get("url", ""), None
        if service := config.get("service"):
            where = (service["namespace"], service["name"], service.get("port", 443))
            url = self.resolve(*where) + service.get("path", "")
            server = f"{service['name']}.{service['namespace']}.svc"
        authority = (
            base64.b64decode(config["caBundle"]).decode() if config.get("caBundle") else None
        )
        context = ssl.create_default_context(cadata=authority)
        if self._session is None:
            self._session = aiohttp.ClientSession()
        seconds = hook.get("timeoutSeconds", 10)
        async with self._session.post(
            f"{url}?timeout={seconds}s",
            data=io.BytesIO(encode(review)),
            headers={"Content-Type": "application/json"},
            ssl=context,
            server_hostname=server,
            timeout=aiohttp.ClientTimeout(total=seconds),
        ) as response:
            if response.status != 200:
                raise ValueError(f"the server returned HTTP {response.status}")
            answer: Json = decode(await response.read())
            return answer


def _denied(name: str, status: Json) -> ApiError:
    code = status.get("code") or 403
    reason = status.get("reason") or ("Forbidden" if code == 403 else "")
    word = status.get("message") or status.get("reason")
    text = f'admission webhook "{name}" denied the request'
    text += f": {word}" if word else " without explanation"
    return ApiError(code, reason, text, status.get("details"))
