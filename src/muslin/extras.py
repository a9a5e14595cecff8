"""What only some installations need: the extras of pyproject.toml, and the words when one is away.

A node on SQLite needs neither, a Kubernetes node no gRPC (23 MB), an etcd
estate no HTTP client.  Whoever imports a part of an extra requires it first,
so a person reads which to install and not that a module is not there.
"""

from __future__ import annotations

from importlib.util import find_spec

from muslin.errors import ConfigError

# Extra → the modules of its packages; tests/unit/test_extras.py holds it to pyproject.toml.
MODULES = {
    "etcd": ("aetcd",),
    "kubernetes": ("httpcore2", "yaml", "prometheus_client", "cryptography", "h11"),
}


def require(extra: str, what: str) -> None:
    """Return if `extra` is installed; else ConfigError says that `what` needs it.

    Looks for the modules without importing any.
    """
    missing = [name for name in MODULES[extra] if find_spec(name) is None]
    if missing:
        fault = f"needs the extra {extra!r}; not installed: {', '.join(missing)}"
        raise ConfigError(what, [fault], hint=f"pip install 'muslin[{extra}]'")
