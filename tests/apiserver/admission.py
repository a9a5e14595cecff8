"""Who else has a say in a write: policies in CEL, then webhooks."""

from __future__ import annotations

from . import policies
from .call import Call
from .core import Core
from .encode import Json
from .matching import Write
from .webhooks import Resolver, Webhooks


class Admission:
    """Asked before every write, after everything the server itself checks."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._webhooks = Webhooks()

    def resolve(self, resolver: Resolver) -> None:
        """Say where webhook services are: (namespace, name, port) to https://host:port."""
        self._webhooks.resolve = resolver

    async def check(self, call: Call, new: Json | None, old: Json | None) -> None:
        """Raise if a policy or a webhook refuses this write."""
        write = Write(self._core, call, new, old)
        policies.check(write)
        await self._webhooks.check(write)

    async def close(self) -> None:
        """Let go of connections."""
        await self._webhooks.close()

    def adopt(self, former: Admission) -> None:
        """Take over what tests have set on a former one."""
        self._webhooks.resolve = former._webhooks.resolve
