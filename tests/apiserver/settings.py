"""How this API server behaves where real ones differ; the defaults are what was recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network


@dataclass(kw_only=True)
class Settings:
    """All of them may be changed while the server runs."""

    progress: bool = False
    """Whether etcd reports progress.  Recorded without: a watch with bookmarks but without a
    resourceVersion is refused by an ERROR event, and a bookmark carries the version of the
    resource's own last change and comes only where there was one."""

    bookmark_interval: float = 60.0
    establish_delay: float = 0.0
    """Seconds until a new kind's path is served; 404 before."""

    cache_delay: float = 0.0
    """Seconds from the first request for a custom kind (after its creation or a restart) in
    which its watch answers 429."""

    plain_gone: bool = False
    """Answer a compacted watch with HTTP 410 instead of 200 and an ERROR event."""

    managed_fields: bool = True
    """Whether to track field managers; a simulation may save the third of a write they cost."""

    rbac: bool = False
    """Whether to ask the stored roles; without it every known user may do everything, and a
    request without a token is an administrator's."""

    collect: bool = False
    """Whether to empty terminating namespaces and delete orphans in the background."""

    collect_interval: float = 0.2
    services: IPv4Network | IPv6Network = field(default_factory=lambda: IPv4Network("10.96.0.0/12"))
    watch_timeout: tuple[float, float] = (1800.0, 3600.0)
    watch_buffer: int = 64 << 20
    """Unsent bytes at which a watcher that does not read is cut off."""
