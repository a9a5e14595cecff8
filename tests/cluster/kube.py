"""A cluster as kubectl shows it: nothing here knows what is behind the API server."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def until(what: Callable[[], object], seconds: float, why: str | Callable[[], str]) -> None:
    """Wait for a condition, and say what is the matter if it never comes."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise AssertionError(why if isinstance(why, str) else why())
        time.sleep(0.2)


class Kube:
    """kubectl with one kubeconfig."""

    def __init__(self, kubeconfig: Path, namespace: str, image: str) -> None:
        self.namespace, self.image = namespace, image
        self._argv = ["kubectl", f"--kubeconfig={kubeconfig}", "--request-timeout=30s"]

    def __call__(self, *words: str, given: str | None = None, check: bool = True) -> str:
        done = subprocess.run(
            [*self._argv, *words], input=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def get(self, *words: str, namespace: str | None = None) -> Json:
        """`kubectl get … -o json` in the tests' namespace, or another."""
        at = ("-n", namespace or self.namespace)
        found: Json = json.loads(self("get", *at, *words, "-o", "json"))
        return found

    def items(self, *words: str, namespace: str | None = None) -> list[Json]:
        return list(self.get(*words, namespace=namespace)["items"])

    def apply(self, *objects: Json) -> None:
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self("-n", self.namespace, "apply", "-f", "-", given=given)

    def delete(self, kind: str, *names: str, wait: bool = True) -> None:
        self("-n", self.namespace, "delete", kind, *names, f"--wait={str(wait).lower()}",
             "--ignore-not-found", "--timeout=60s")  # fmt: skip

    # ── pods ────────────────────────────────────────────────────────────────────────────────

    def pod(self, name: str, *, node: str = "", command: str = "sleep 3600", **more: Any) -> Json:
        """A pod that runs one shell line.

        `more`: annotations, labels, ports, host, grace, and `ready`, a path on port 8080 which
        the kubelet has to get before the pod is ready.
        """
        container: Json = {
            "name": "main",
            "image": self.image,
            "command": ["sh", "-c", command],
            "ports": more.get("ports", []),
        }
        if "ready" in more:
            get = {"path": more["ready"], "port": 8080}
            container["readinessProbe"] = {"httpGet": get, "periodSeconds": 1}
        spec: Json = {
            "containers": [container],
            "terminationGracePeriodSeconds": more.get("grace", 0),
            "hostNetwork": more.get("host", False),
            "tolerations": [{"operator": "Exists"}],
        }
        if node:
            spec["nodeName"] = node
        metadata = {
            "name": name,
            "annotations": more.get("annotations", {}),
            "labels": {"app": name, **more.get("labels", {})},
        }
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    def run(self, *pods: Json, seconds: float = 60) -> list[Json]:
        """Apply them, and give them back as they are when all are ready."""
        self.apply(*pods)
        names = [p["metadata"]["name"] for p in pods]
        until(lambda: self._ready(names), seconds, lambda: self._trouble(names))
        return [self.get("pod", name) for name in names]

    def _ready(self, names: list[str]) -> bool:
        ready = {p["metadata"]["name"] for p in self.items("pods") if is_ready(p)}
        return ready >= set(names)

    def _trouble(self, names: list[str]) -> str:
        waiting = [p for p in self.items("pods") if not is_ready(p)]
        lines = [f"{p['metadata']['name']}: {p['status']}" for p in waiting]
        return "\n".join([f"not ready of {names}:", *lines, self.events()])

    def events(self, *words: str) -> str:
        return self("-n", self.namespace, "get", "events", "--sort-by=.lastTimestamp", *words)

    def exec(self, pod: str, line: str, *, check: bool = True) -> str:
        return self("-n", self.namespace, "exec", pod, "--", "sh", "-c", line, check=check)

    def logs(self, pod: str) -> str:
        return self("-n", self.namespace, "logs", pod)

    # ── the network ─────────────────────────────────────────────────────────────────────────

    def blocks(self) -> list[Json]:
        return self.items("blocks.muslin.io")

    def agents(self) -> dict[str, str]:
        """The agent's pod on every node."""
        found = self.items(
            "pods", "-l", "app.kubernetes.io/component=agent", namespace="muslin-system"
        )
        return {p["spec"]["nodeName"]: p["metadata"]["name"] for p in found if is_ready(p)}

    def on_node(self, node: str, *words: str) -> str:
        """`muslin …` in the agent of that node."""
        return self("-n", "muslin-system", "exec", self.agents()[node], "--", "muslin", *words,
                    "--config", "/etc/muslin/agent.toml")  # fmt: skip

    def held(self) -> dict[str, int]:
        """How many attachments each node's agent knows."""
        return {
            node: len(json.loads(self.on_node(node, "status", "--json"))["attachments"])
            for node in self.agents()
        }


def is_ready(pod: Json) -> bool:
    conditions = pod["status"].get("conditions", ())
    return {c["type"]: c["status"] for c in conditions}.get("Ready") == "True"


def addresses(pod: Json) -> Iterator[str]:
    """The pod's addresses, first family first."""
    for entry in pod["status"]["podIPs"]:
        yield entry["ip"]
