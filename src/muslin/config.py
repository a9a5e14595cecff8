"""Settings of the agent and of the controller: defaults, then the file, then the environment.

Every default stands here once, with its reason.  The file is TOML; a variable
`MUSLIN_<NAME>` overrides the setting of that name (`MUSLIN_STORE`,
`MUSLIN_UPLINK`, …).  A wrong setting is never guessed at: all faults are
reported at once, each by its name.

Both programs may be given one environment: a variable that is the other's
setting is not for us, and no fault.  Nor are those that a kubelet sets for
every service of the namespace (`MUSLIN_WEBHOOK_SERVICE_HOST`, for a service
called muslin-webhook).
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin

import msgspec

from muslin.errors import ConfigError
from muslin.model import Interface, convert

DEFAULT_FILE = Path("/etc/muslin/muslin.toml")
CONTROLLER_FILE = Path("/etc/muslin/controller.toml")
PREFIX = "MUSLIN_"
LEVELS = ("debug", "info", "warning", "error")
OTHERS = {"MUSLIN_LAB_DIR"}  # not a setting of an agent: where `muslin lab` keeps its labs
# What a kubelet tells a pod of services (pkg/kubelet/envvars): NAME_SERVICE_HOST, NAME_PORT...
_LINK = re.compile(
    r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
# RFC 1123 label, as Kubernetes uses for node names' parts and we for keys and file names.
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one agent is told.  Field comments are the reference (docs/config.md)."""

    # This node's name in the estate; the host name unless set.
    node: str = ""
    # Where networks, nodes and blocks are remembered: `sqlite:PATH`, `etcd://HOST:PORT,…`,
    # `kubernetes:` (within a pod) or `kubernetes:KUBECONFIG`.
    store: str = "sqlite:/var/lib/muslin/store.db"
    # For etcd: ca, cert, key (paths), user, password.  For kubernetes: context, namespace.
    store_options: dict[str, str] = {}
    # What must survive a reboot: the ledger of addresses (node.db), the journal of DELs (journal/).
    state_dir: str = "/var/lib/muslin"
    # Sockets, root only: cni.sock, api.sock.
    run_dir: str = "/run/muslin"
    # The interface with the underlay addresses; that of the default route unless set.
    uplink: str = ""
    # Underlay addresses with their prefix; the uplink's own global ones unless set.
    addresses: tuple[Interface, ...] = ()
    # Whether this machine runs pods; false for a member that only reaches them.
    pods: bool = True
    # Seconds a block outlives its node's last word: a day, so that a repair fits in it.
    block_ttl: float = 86400.0
    # A new block is claimed when fewer addresses than this are free: a burst of pods fits in it.
    spare: int = 16
    # Where blocks come from: `claim` takes them from the pools as they are needed; `podcidr` takes
    # the ranges that Kubernetes gave the node (spec.podCIDRs), and no others.
    blocks: Literal["claim", "podcidr"] = "claim"
    # flannel's ConfigMap, `NAMESPACE/NAME`, in whose network this node is a peer of nodes that run
    # flanneld; "": there is no flannel.  Blocks are podCIDRs then.
    flannel: str = ""
    # Does the agent put the CNI plugin and its configuration in place, once the node is ready?
    cni_install: bool = False
    # Where runtimes look for plugins.
    cni_bin_dir: str = "/opt/cni/bin"
    # Where runtimes look for configurations.
    cni_conf_dir: str = "/etc/cni/net.d"
    # May the agent set net.ipv6.conf.all.forwarding where the kernel has nothing finer?
    global_forwarding: bool = False
    # debug, info, warning or error.
    log_level: str = "info"

    @property
    def kubernetes(self) -> bool:
        """Whether the store is a cluster's API server, which then knows this node's pods too."""
        return self.store.startswith("kubernetes:")

    @property
    def cni_socket(self) -> Path:
        """Where the CNI plugin finds the agent."""
        return Path(self.run_dir) / "cni.sock"

    @property
    def api_socket(self) -> Path:
        """Where the command line finds the agent."""
        return Path(self.run_dir) / "api.sock"

    @property
    def ledger(self) -> Path:
        """The node's own database."""
        return Path(self.state_dir) / "node.db"

    @property
    def journal_dir(self) -> Path:
        """Where the CNI plugin leaves what the agent was not there for."""
        return Path(self.state_dir) / "journal"


class Controller(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the controller of a Kubernetes cluster is told."""

    # The API server: `kubernetes:` within a pod, `kubernetes:/path/kubeconfig` elsewhere.
    store: str = "kubernetes:"
    # For kubernetes: context, namespace (where the lease objects are).
    store_options: dict[str, str] = {}
    # This replica's name in the Lease and in events; the host name, which is the pod's, unless set.
    identity: str = ""
    # Where /metrics, /healthz and /readyz are served, host:port; a kubelet needs `0.0.0.0:9808`.
    listen: str = "127.0.0.1:9808"
    # Where the admission webhook is served over HTTPS, host:port (docs/kubernetes.md); "": nowhere.
    webhook: str = ""
    # Seconds without a word of the leader after which another leads (client-go's default).
    lease: float = 15.0
    # Seconds between two looks for nodes that no longer keep their blocks.
    sweep: float = 30.0
    # Seconds a vanished node's blocks are still its own: a node deleted by mistake is back by then.
    grace: float = 60.0
    # debug, info, warning or error.
    log_level: str = "info"

    @property
    def address(self) -> tuple[str, int]:
        """`listen` as host and port."""
        return _split(self.listen)

    @property
    def webhook_address(self) -> tuple[str, int] | None:
        """`webhook` as host and port, if it is to be served."""
        return _split(self.webhook) if self.webhook else None


Settings = TypeVar("Settings", Config, Controller)


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """An agent's settings in force; ConfigError lists every fault of file and environment.

    A `path` that was named must exist; the default file need not.
    """
    config, subject = _settings(Config, path, DEFAULT_FILE, environ)
    if not config.node:
        config = msgspec.structs.replace(config, node=_hostname())
    if faults := list(_faults(config)):
        raise ConfigError(subject, faults)
    return config


def controller(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Controller:
    """The controller's settings in force, by the same rules."""
    settings, subject = _settings(Controller, path, CONTROLLER_FILE, environ)
    if not settings.identity:
        settings = msgspec.structs.replace(settings, identity=_hostname())
    if faults := list(_controller_faults(settings)):
        raise ConfigError(subject, faults)
    return settings


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _hostname() -> str:
    return socket.gethostname().lower()


def _settings(
    kind: type[Settings], path: Path | None, default: Path, environ: Mapping[str, str]
) -> tuple[Settings, str]:
    """File and environment as values, not judged yet; and how to call them in an error."""
    file = path or default
    raw: dict[str, Any] = {}
    if path is not None or file.exists():
        raw = _read(file)
    subject = f"settings ({file} and {PREFIX}* variables)"
    faults = _unknown(kind, raw, environ)
    raw |= _from_environment(kind, environ)
    if faults:
        raise ConfigError(subject, faults)
    return convert(kind, raw, subject=subject), subject


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as e:
        hint = "name an existing file with --config"
        raise ConfigError(str(file), [e.strerror or str(e)], hint=hint) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(str(file), [f"not TOML: {e}"]) from e


def _unknown(kind: type[Settings], raw: Mapping[str, Any], environ: Mapping[str, str]) -> list[str]:
    faults = [f"unknown setting {name!r}" for name in raw if name not in kind.__struct_fields__]
    known = {*Config.__struct_fields__, *Controller.__struct_fields__}
    for variable in environ:
        name = variable.removeprefix(PREFIX).lower()
        if variable in OTHERS or not variable.startswith(PREFIX) or _LINK.fullmatch(variable):
            continue
        if name not in known:
            faults.append(f"unknown variable {variable}")
    return faults


def _from_environment(kind: type[Settings], environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        text = environ.get(PREFIX + field.name.upper())
        if text is None:
            continue
        # Text fields are taken as they stand; the others are read as TOML values.
        if field.type is str or get_origin(field.type) is Literal:
            found[field.name] = text
            continue
        try:
            found[field.name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError as e:
            raise ConfigError(f"{PREFIX}{field.name.upper()}", [f"{text!r}: {e}"]) from e
    return found


def _faults(config: Config) -> list[str]:
    faults = []
    if not LABEL.fullmatch(config.node) or len(config.node) > 63:
        faults.append(f"node {config.node!r}: lower-case letters, digits, '-' and '.', at most 63")
    if config.uplink and not re.fullmatch(r"[^\s/:]{1,15}", config.uplink):
        faults.append(f"uplink {config.uplink!r}: not an interface name (1 to 15 characters)")
    faults += [
        f"{name} {value!r}: must be an absolute path"
        for name, value in (
            ("state_dir", config.state_dir),
            ("run_dir", config.run_dir),
            ("cni_bin_dir", config.cni_bin_dir),
            ("cni_conf_dir", config.cni_conf_dir),
        )
        if not value.startswith("/")
    ]
    if config.block_ttl < 5:
        faults.append(f"block_ttl {config.block_ttl}: at least 5 seconds")
    if not 0 <= config.spare <= 65536:
        faults.append(f"spare {config.spare}: from 0 to 65536")
    if config.blocks == "podcidr" and not config.kubernetes:
        faults.append("blocks 'podcidr': only Kubernetes gives nodes podCIDRs; store is another")
    if config.flannel and not re.fullmatch(rf"[a-z0-9-]{{1,63}}/{LABEL.pattern}", config.flannel):
        faults.append(f"flannel {config.flannel!r}: NAMESPACE/NAME of flannel's ConfigMap")
    if config.flannel and config.blocks != "podcidr":
        faults.append("flannel: its nodes' ranges are their podCIDRs; set blocks to 'podcidr'")
    faults += _log_level(config.log_level)
    # sun_path holds 108 bytes with its NUL (unix(7)).
    if len(str(config.api_socket)) > 107:
        faults.append(f"run_dir {config.run_dir!r}: too long for a socket path (107 bytes)")
    return faults


def _controller_faults(settings: Controller) -> list[str]:
    faults = []
    if not settings.store.startswith("kubernetes:"):
        # What stands before an @ may be a password.
        shown = settings.store.rpartition("@")[2]
        faults.append(f"store {shown!r}: a controller is for Kubernetes, `kubernetes:`")
    if not re.fullmatch(r"[\x21-\x7e]{1,100}", settings.identity):
        faults.append(f"identity {settings.identity!r}: 1 to 100 printable characters")
    for name, value in (("listen", settings.listen), ("webhook", settings.webhook)):
        if name == "webhook" and not value:
            continue
        if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}", value):
            faults.append(f"{name} {value!r}: expected host:port")
        elif _split(value)[1] > 65535:
            faults.append(f"{name} {value!r}: no such port")
    faults += [
        f"{name} {value}: at least {least} seconds"
        for name, value, least in (
            ("lease", settings.lease, 1),
            ("sweep", settings.sweep, 0.1),
            ("grace", settings.grace, 0),
        )
        if not value >= least
    ]
    return faults + _log_level(settings.log_level)


def _log_level(given: str) -> list[str]:
    return [] if given in LEVELS else [f"log_level {given!r}: debug, info, warning or error"]
