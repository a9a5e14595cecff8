"""What each process of an agent loads: memory per node is mostly imports."""

from __future__ import annotations

import subprocess
import sys

# Each is half a MiB to 12 that the part would pay for and never use.
NEVER = {"typer", "rich", "prometheus_client", "cryptography", "lightkube", "pyroute2"}
CNI_NEVER = NEVER | {"asyncio", "ssl", "httpcore2", "anyio", "logging", "subprocess", "muslin.kube"}
SYNC_NEVER = NEVER | {"grpc", "aetcd", "yaml", "email", "csv", "zipfile", "importlib.metadata"}

# `serve_cni` imports late, and blocks signals right after.
CNI = """
from muslin.agent import main
class Stop(Exception): pass
def stop(*_): raise Stop
main.signal.pthread_sigmask = stop
try: main.serve_cni(None, None)
except Stop: print(*sys.modules)
"""

SYNC = """
import asyncio
from muslin.agent import following, main
class Stop(Exception): pass
def stop(*_, **__): raise Stop
following.open_store = stop
class Config: kubernetes, node, pods, store, store_options = True, "n1", True, "", None
try: asyncio.run(following._open(Config, None, None))
except Stop: print(*sys.modules)
"""


def loaded(code: str) -> set[str]:
    argv = [sys.executable, "-c", f"import sys\n{code}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_cni_server_loads_neither_asyncio_nor_an_http_client() -> None:
    found = loaded(CNI)
    assert "muslin.agent.server" in found
    assert not found & CNI_NEVER


def test_the_sync_loop_loads_one_store_and_nothing_to_read_a_kubeconfig() -> None:
    found = loaded(SYNC)
    assert {"muslin.store.kubernetes", "httpcore2"} <= found
    assert not found & SYNC_NEVER
