"""Which kinds of objects there are, and under which path the API server keeps them."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

from muslin.errors import ConfigError

MUSLIN_GROUP = "muslin.io"
MUSLIN_VERSION = "v1alpha1"


class Kind(NamedTuple):
    """One kind: `pools` of group `muslin.io` are objects of kind `Pool`; the core group is ""."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """What an object of this kind carries as `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As RBAC rules, `kubectl` and the server's own messages name it: `pools.muslin.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of one object, or of all (of one namespace) without a `name`.

        Whatever the names hold, each stays within its own segment: what
        quoting cannot keep there is a ConfigError.  A name without the
        namespace that it needs, or with one too many, is a ValueError.
        """
        if not self.namespaced and namespace:
            raise ValueError(f"{self.resource} have no namespace, got {namespace!r}")
        if self.namespaced and name and not namespace:
            raise ValueError(f"{self.resource} {name!r} needs a namespace")
        if subresource and not name:
            raise ValueError(f"{self.resource}: {subresource!r} of no object")
        root = ["apis", self.group] if self.group else ["api"]
        words = [*root, self.version]
        if namespace:
            words += ["namespaces", self._segment(namespace)]
        words.append(self.plural)
        words += [self._segment(word) for word in (name, subresource) if word]
        return "/" + "/".join(words)

    def title(self, namespace: str = "", name: str = "") -> str:
        """One object, or all, as errors and logs name it: `pods shop/db-0`."""
        return " ".join(filter(None, (self.resource, f"{namespace}/{name}".strip("/"))))

    def _segment(self, name: str) -> str:
        # The rule of the API server itself (apimachinery pkg/api/validation/path): no name is a dot
        # segment, none holds / or %, encoded or not.  Control characters would split the request.
        if name in (".", "..") or set(name) & set("/%") or not name.isprintable():
            raise ConfigError(f"{self.resource} {name!r}", ["not a name in Kubernetes"])
        return quote(name, safe="")


def muslin(plural: str, kind: str) -> Kind:
    """A kind of Muslin's own; all of them are cluster-scoped."""
    return Kind(MUSLIN_GROUP, MUSLIN_VERSION, plural, kind, False)


PODS = Kind("", "v1", "pods", "Pod", True)
NODES = Kind("", "v1", "nodes", "Node", False)
NAMESPACES = Kind("", "v1", "namespaces", "Namespace", False)
SERVICES = Kind("", "v1", "services", "Service", True)
CONFIG_MAPS = Kind("", "v1", "configmaps", "ConfigMap", True)
ENDPOINT_SLICES = Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", True)
NETWORK_POLICIES = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True)
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease", True)
EVENTS = Kind("events.k8s.io", "v1", "events", "Event", True)
DAEMON_SETS = Kind("apps", "v1", "daemonsets", "DaemonSet", True)
DEPLOYMENTS = Kind("apps", "v1", "deployments", "Deployment", True)
CRDS = Kind(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False
)
VALIDATING_WEBHOOKS = Kind(
    "admissionregistration.k8s.io",
    "v1",
    "validatingwebhookconfigurations",
    "ValidatingWebhookConfiguration",
    False,
)
