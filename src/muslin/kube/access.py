"""How to reach one API server and be let in: settings, from a pod's own files or a kubeconfig.

Read here and not by lightkube, whose reader was measured and read (1.0.1): it
answers a faulty file with KeyError or AssertionError, knows neither
`proxy-url` nor `tls-server-name`, and refuses exec plugins of the version
that all now speak, client.authentication.k8s.io/v1.

Only settings: nothing is opened but the kubeconfig itself.  `credentials`
reads tokens and certificates, each time they change.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from muslin.errors import ConfigError
from muslin.kube.proxies import proxy_for

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """A program that prints a token (client-go's credential plugins)."""

    command: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    api_version: str = "client.authentication.k8s.io/v1"
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One API server and how to be let in.

    `server` may have a path of its own.  Files are paths, data is PEM text
    and goes before the file.  `proxy` is a URL, or empty for none: which one
    is decided when an Access is made, never by the library that connects.
    """

    server: str
    source: str = ""  # where this was read, for messages
    namespace: str = "default"
    ca_file: str = ""
    ca_data: str = ""
    cert_file: str = ""
    cert_data: str = ""
    key_file: str = ""
    key_data: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    token_file: str = ""
    exec: Exec | None = field(default=None, repr=False)
    insecure: bool = False
    server_name: str = ""  # to verify instead of the URL's host
    proxy: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            raise ConfigError(self.source or "kubernetes", faults)


def in_cluster(account: Path = SERVICE_ACCOUNT, environ: Mapping[str, str] = os.environ) -> Access:
    """The access that every pod has: its service account; ConfigError if this is not a pod.

    Proxies of the environment are ignored: the API server is inside.  The
    address is the `kubernetes` service's, which needs a service proxy on the
    node; an agent that must come up before one sets KUBERNETES_SERVICE_HOST
    and _PORT in its manifest to the server's real address.
    """
    names = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
    faults = [f"{name} is not set" for name in names if not environ.get(name)]
    faults += [
        f"{account / f} is missing" for f in ("token", "ca.crt") if not (account / f).exists()
    ]
    if faults:
        hint = "run in a pod that has a service account, or name a kubeconfig"
        raise ConfigError("kubernetes in-cluster", faults, hint=hint)
    host, port = (environ[name] for name in names)
    namespace = account / "namespace"
    return Access(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        source="in-cluster",
        namespace=(namespace.read_text().strip() if namespace.exists() else "") or "default",
        ca_file=str(account / "ca.crt"),
        token_file=str(account / "token"),
    )


def kubeconfig(
    path: str | Path, context: str = "", environ: Mapping[str, str] = os.environ
) -> Access:
    """The access that a kubeconfig grants by `context`, or by its current one.

    ConfigError names the file, the context and everything that is wrong.
    `proxy-url` is used, and without it HTTPS_PROXY, HTTP_PROXY and NO_PROXY of
    the environment, as kubectl does; SOCKS is not supported.
    """
    path = Path(path).expanduser()
    file = _read(path)
    context = context or file.current or ""
    subject = f"kubeconfig {path}" + (f", context {context!r}" if context else "")
    chosen = next((c.context for c in file.contexts or () if c.name == context), None)
    if chosen is None:
        known = ", ".join(repr(c.name) for c in file.contexts or ()) or "none"
        fault = "there is no such context" if context else "no context is named, nor current"
        raise ConfigError(subject, [f"{fault}; there are: {known}"])
    cluster = next((c.cluster for c in file.clusters or () if c.name == chosen.cluster), None)
    user = next((u.user for u in file.users or () if u.name == chosen.user), None)
    faults = []
    if cluster is None:
        faults.append(f"there is no cluster {chosen.cluster!r}")
    if user is None and chosen.user:
        faults.append(f"there is no user {chosen.user!r}")
    if cluster is None or faults:
        raise ConfigError(subject, faults)
    access = _access(subject, path.parent, cluster, user or _User())
    return replace(
        access,
        namespace=chosen.namespace or "default",
        proxy=access.proxy or proxy_for(access.server, environ),
    )


def _access(subject: str, directory: Path, cluster: _Cluster, user: _User) -> Access:
    """Put together what cluster and user say; every fault of theirs in one ConfigError."""
    faults: list[str] = []

    def text(name: str, data: str | None) -> str:
        try:
            return base64.b64decode(data or "", validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            faults.append(f"{name}: not a PEM text in base64")
            return ""

    def near(file: str | None) -> str:
        return str(directory / Path(file).expanduser()) if file else ""

    if user.auth_provider is not None:
        faults.append("auth-provider: removed from Kubernetes in 1.26; use exec")
    if user.username or user.password:
        faults.append("username, password: removed from Kubernetes in 1.19")
    if cluster.insecure and (cluster.ca or cluster.ca_data):
        faults.append("insecure-skip-tls-verify and a certificate-authority exclude each other")
    values: dict[str, Any] = {
        "ca_data": text("certificate-authority-data", cluster.ca_data),
        "cert_data": text("client-certificate-data", user.cert_data),
        "key_data": text("client-key-data", user.key_data),
    }
    try:
        access = Access(
            server=cluster.server,
            source=subject,
            ca_file=near(cluster.ca),
            cert_file=near(user.cert),
            key_file=near(user.key),
            token=user.token or "",
            token_file=near(user.token_file),
            exec=_exec(user.exec, directory),
            insecure=cluster.insecure,
            server_name=cluster.server_name or "",
            proxy=cluster.proxy or "",
            **values,
        )
    except ConfigError as e:
        raise ConfigError(subject, [*faults, *e.faults]) from e
    if faults:
        raise ConfigError(subject, faults)
    return access


def _exec(given: _Exec | None, directory: Path) -> Exec | None:
    if given is None:
        return None
    command = given.command
    if "/" in command and not command.startswith("/"):  # else it is searched in PATH
        command = str(directory / command)
    return Exec(
        command=command,
        args=tuple(given.args or ()),
        env=tuple((e.name, e.value) for e in given.env or ()),
        api_version=given.version,
        hint=given.hint or "",
    )


def _faults(at: Access) -> list[str]:
    """What is wrong with an Access, without opening a file."""
    faults = []
    try:
        url = urlsplit(at.server)
        sane = url.scheme in ("http", "https") and url.hostname and (url.port or 1) > 0
    except ValueError:
        sane = False
    if (
        not sane
        or not at.server.isascii()
        or not at.server.isprintable()
        or set("@?# ") & {*at.server}
    ):
        faults.append(f"server {at.server!r}: expected https://host:port")
    if bool(at.cert_file or at.cert_data) != bool(at.key_file or at.key_data):
        faults.append("a client certificate and its key go together")
    if at.proxy and urlsplit(at.proxy).scheme not in ("http", "https"):
        faults.append("proxy: expected http://host:port or https://host:port")
    if at.exec and not at.exec.api_version.startswith("client.authentication.k8s.io/v1"):
        faults.append(f"exec: unknown apiVersion {at.exec.api_version!r}")
    if not at.token.isprintable():
        faults.append("token: holds characters that no token has")
    return faults


class _Section(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A part of a kubeconfig; whatever else it holds is not ours to judge."""


class _Cluster(_Section, frozen=True):
    server: str = ""
    ca: str | None = msgspec.field(name="certificate-authority", default=None)
    ca_data: str | None = msgspec.field(name="certificate-authority-data", default=None)
    insecure: bool = msgspec.field(name="insecure-skip-tls-verify", default=False)
    server_name: str | None = msgspec.field(name="tls-server-name", default=None)
    proxy: str | None = msgspec.field(name="proxy-url", default=None)


class _Variable(_Section, frozen=True):
    name: str
    value: str


class _Exec(_Section, frozen=True):
    command: str
    version: str = msgspec.field(name="apiVersion", default="")
    args: tuple[str, ...] | None = None
    env: tuple[_Variable, ...] | None = None
    hint: str | None = msgspec.field(name="installHint", default=None)


class _User(_Section, frozen=True):
    token: str | None = None
    token_file: str | None = msgspec.field(name="tokenFile", default=None)
    cert: str | None = msgspec.field(name="client-certificate", default=None)
    cert_data: str | None = msgspec.field(name="client-certificate-data", default=None)
    key: str | None = msgspec.field(name="client-key", default=None)
    key_data: str | None = msgspec.field(name="client-key-data", default=None)
    exec: _Exec | None = None
    auth_provider: dict[str, Any] | None = None
    username: str | None = None
    password: str | None = None


class _Context(_Section, frozen=True):
    cluster: str = ""
    user: str = ""
    namespace: str | None = None


class _NamedCluster(_Section, frozen=True):
    name: str
    cluster: _Cluster


class _NamedUser(_Section, frozen=True):
    name: str
    user: _User | None = None


class _NamedContext(_Section, frozen=True):
    name: str
    context: _Context


class _File(_Section, frozen=True):
    current: str | None = msgspec.field(name="current-context", default=None)
    clusters: tuple[_NamedCluster, ...] | None = None
    users: tuple[_NamedUser, ...] | None = None
    contexts: tuple[_NamedContext, ...] | None = None


def _read(path: Path) -> _File:
    subject = f"kubeconfig {path}"
    try:
        text = path.read_bytes()
    except OSError as e:
        raise ConfigError(subject, [e.strerror or str(e)]) from e
    try:
        # Imports PyYAML, which only a kubeconfig needs.
        return msgspec.yaml.decode(text, type=_File)
    except msgspec.MsgspecError as e:
        raise ConfigError(subject, [str(e)]) from e
