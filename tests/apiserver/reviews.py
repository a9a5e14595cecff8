"""Questions about users: SubjectAccessReview and its kin, TokenReview.  Nothing is stored."""

from __future__ import annotations

from . import rbac
from .call import Answer, User
from .core import Core
from .encode import Json, decode, encode

_ACCESS = "/apis/authorization.k8s.io/v1/"
_TOKEN = "/apis/authentication.k8s.io/v1/tokenreviews"


class Reviews:
    """Answers of the authorizer and of the authenticator."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def serves(self, path: str) -> bool:
        kinds = ("selfsubjectaccessreviews", "subjectaccessreviews")
        return path == _TOKEN or path in [f"{_ACCESS}{kind}" for kind in kinds]

    async def answer(self, path: str, body: bytes, user: User) -> Answer:
        review: Json = decode(body)
        spec = review.get("spec") or {}
        if path == _TOKEN:
            review["status"] = self._token(spec)
        else:
            if "self" not in path:
                user = User(spec.get("user", ""), tuple(spec.get("groups") or ()))
            review["status"] = {"allowed": self._access(spec, user)}
        review.setdefault("metadata", {})
        return Answer(201, encode(review), obj=review)

    def _token(self, spec: Json) -> Json:
        user = self._core.accounts.of_token(spec.get("token", ""))
        if user is None:
            return {"user": {}, "error": "invalid bearer token"}
        return {"authenticated": True, "user": _told(user)}

    def _access(self, spec: Json, user: User) -> bool:
        if not self._core.settings.rbac:
            return True
        if path := spec.get("nonResourceAttributes"):
            return rbac.allowed(self._core, user, path["verb"], path=path["path"])
        asked = spec.get("resourceAttributes") or {}
        resource = asked.get("resource", "")
        if asked.get("subresource"):
            resource = f"{resource}/{asked['subresource']}"
        return rbac.allowed(
            self._core,
            user,
            asked.get("verb", ""),
            group=asked.get("group", ""),
            resource=resource,
            name=asked.get("name", ""),
            namespace=asked.get("namespace", ""),
        )


def _told(user: User) -> Json:
    found: Json = {"username": user.name, "groups": user.groups}
    return {**found, "extra": user.extra} if user.extra else found
