"""Who asks: bearer tokens to users and groups.  What they may: `rbac.py`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from .call import ADMIN, ANONYMOUS, User
from .status import unauthorized

_EXTRA = "authentication.kubernetes.io"
ADMIN_TOKEN = "admin"  # in every kubeconfig that this server writes, unless another is asked for


class Accounts:
    """Tokens and whose they are; a token may be rotated or revoked at any time."""

    def __init__(self) -> None:
        self._users: dict[str, User] = {ADMIN_TOKEN: ADMIN}

    def add(
        self,
        name: str,
        *groups: str,
        token: str | None = None,
        extra: Mapping[str, tuple[str, ...]] | None = None,
    ) -> str:
        """Issue a token for a user."""
        token = token or secrets.token_urlsafe(24)
        self._users[token] = User(name, (*groups, "system:authenticated"), extra=extra or {})
        return token

    def service_account(
        self,
        namespace: str,
        name: str,
        *,
        token: str | None = None,
        pod: str = "",
        node: str = "",
    ) -> str:
        """Issue a token for a service account; one made for a pod says which, and its node."""
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
        said = {"pod-name": pod, "node-name": node}
        extra = {f"{_EXTRA}/{word}": (value,) for word, value in said.items() if value}
        user = f"system:serviceaccount:{namespace}:{name}"
        return self.add(user, *groups, token=token, extra=extra)

    def revoke(self, token: str) -> None:
        """From now on this token gets 401."""
        self._users.pop(token, None)

    def rotate(self, token: str) -> str:
        """Replace a token by a new one of the same user."""
        user = self._users.pop(token)
        fresh = secrets.token_urlsafe(24)
        self._users[fresh] = user
        return fresh

    def of_token(self, token: str) -> User | None:
        return self._users.get(token)

    def who(self, authorization: str | None, *, open_door: bool) -> User:
        """The user of a request; with `open_door`, an administrator where no token is."""
        if authorization is None:
            return ADMIN if open_door else ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        user = self._users.get(token.strip()) if scheme.lower() == "bearer" else None
        if user is None:
            raise unauthorized()
        return user
