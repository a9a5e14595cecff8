"""How a server is found: in a pod, by a kubeconfig, through a proxy."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from muslin.errors import ConfigError
from muslin.kube import Access, in_cluster, kubeconfig
from muslin.kube.proxies import proxy_for

PEM = "-----BEGIN X-----\n-----END X-----\n"
DATA = base64.b64encode(PEM.encode()).decode()
POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture
def account(tmp_path: Path) -> Path:
    for name, text in (("token", "t\n"), ("ca.crt", PEM), ("namespace", "kube-system\n")):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_pod_has_all_it_needs(account: Path) -> None:
    at = in_cluster(account, POD | {"HTTPS_PROXY": "http://proxy:3128"})
    assert at == Access(
        server="https://10.96.0.1:443",
        source="in-cluster",
        namespace="kube-system",
        ca_file=str(account / "ca.crt"),
        token_file=str(account / "token"),
    )


def test_an_ipv6_address_is_bracketed(account: Path) -> None:
    environ = POD | {"KUBERNETES_SERVICE_HOST": "fd00::1"}
    assert in_cluster(account, environ).server == "https://[fd00::1]:443"


def test_what_a_pod_lacks_is_named_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        in_cluster(tmp_path, {})
    assert raised.value.faults == (
        "KUBERNETES_SERVICE_HOST is not set",
        "KUBERNETES_SERVICE_PORT is not set",
        f"{tmp_path}/token is missing",
        f"{tmp_path}/ca.crt is missing",
    )


def config(tmp_path: Path, *, cluster: object = None, user: object = None, **more: Any) -> Path:
    """A kubeconfig of one context; JSON is YAML."""
    path = tmp_path / "config"
    file: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster or {"server": "https://k:6443"}}],
        "users": [{"name": "u", "user": user or {}}],
    }
    path.write_text(json.dumps(file | more))
    return path


def test_the_current_context_is_used(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(f"""
apiVersion: v1
current-context: two
contexts:
- name: one
  context: {{cluster: c1}}
- name: two
  context: {{cluster: c2, user: u2, namespace: shop}}
clusters:
- name: c1
  cluster: {{server: "http://one:8080"}}
- name: c2
  cluster:
    server: https://two:6443
    certificate-authority-data: {DATA}
    tls-server-name: kubernetes
    proxy-url: http://u:p@proxy:3128
users:
- name: u2
  user: {{client-certificate: pki/me.crt, client-key: /pki/me.key, tokenFile: token}}
""")
    at = kubeconfig(path, environ={"HTTPS_PROXY": "http://other"})
    assert at == Access(
        server="https://two:6443",
        source=f"kubeconfig {path}, context 'two'",
        namespace="shop",
        ca_data=PEM,
        cert_file=str(tmp_path / "pki/me.crt"),
        key_file="/pki/me.key",
        token_file=str(tmp_path / "token"),
        server_name="kubernetes",
        proxy="http://u:p@proxy:3128",
    )
    assert kubeconfig(path, "one", environ={}).server == "http://one:8080"


def test_a_user_is_not_needed(tmp_path: Path) -> None:
    contexts = [{"name": "here", "context": {"cluster": "c"}}]
    at = kubeconfig(config(tmp_path, contexts=contexts, users=None), environ={})
    assert (at.token, at.namespace) == ("", "default")


def test_proxies_of_the_environment_count_for_a_kubeconfig(tmp_path: Path) -> None:
    environ = {"HTTPS_PROXY": "proxy:3128", "NO_PROXY": "10.0.0.0/8"}
    assert kubeconfig(config(tmp_path), environ=environ).proxy == "http://proxy:3128"
    inside = config(tmp_path, cluster={"server": "https://10.1.2.3:6443"})
    assert kubeconfig(inside, environ=environ).proxy == ""


@pytest.mark.parametrize("version", ["v1alpha1", "v1beta1", "v1"])
def test_credential_plugins_of_every_version_are_known(tmp_path: Path, version: str) -> None:
    """lightkube refuses v1, which is what all print now."""
    plugin = {
        "apiVersion": f"client.authentication.k8s.io/{version}",
        "command": "bin/login",
        "args": None,
        "env": [{"name": "A", "value": "b"}],
        "installHint": "get it",
        "interactiveMode": "IfAvailable",
        "provideClusterInfo": False,
    }
    at = kubeconfig(config(tmp_path, user={"exec": plugin}), environ={})
    assert at.exec is not None
    assert at.exec.command == str(tmp_path / "bin/login")
    assert (at.exec.args, at.exec.env, at.exec.hint) == ((), (("A", "b"),), "get it")


@pytest.mark.parametrize(
    ("change", "context", "fault"),
    [
        ({"current-context": ""}, "", "no context is named, nor current; there are: 'here'"),
        ({}, "there", "there is no such context; there are: 'here'"),
        ({"clusters": []}, "", "there is no cluster 'c'"),
        ({"users": None}, "", "there is no user 'u'"),
        ({"contexts": None}, "", "there are: none"),
        ({"contexts": {"name": "x"}}, "", "Expected `array"),
        ({"contexts": [{"name": "here"}]}, "", "required field `context`"),
        ({"cluster": {"server": "k:6443"}}, "", "server 'k:6443': expected https://host:port"),
        ({"cluster": {"server": "https://u@k"}}, "", "expected https://host:port"),
        ({"cluster": {"server": "https://k:99999"}}, "", "expected https://host:port"),
        ({"cluster": {"server": "https://k\x7f"}}, "", "expected https://host:port"),
        (
            {"cluster": {"server": "https://k", "certificate-authority-data": "%"}},
            "",
            "certificate-authority-data: not a PEM text in base64",
        ),
        (
            {
                "cluster": {
                    "server": "https://k",
                    "certificate-authority": "ca",
                    "insecure-skip-tls-verify": True,
                }
            },
            "",
            "exclude each other",
        ),
        (
            {"cluster": {"server": "https://k", "proxy-url": "socks5://p:1"}},
            "",
            "proxy: expected http://host:port or https://host:port",
        ),
        ({"user": {"client-certificate": "x"}}, "", "go together"),
        ({"user": {"auth-provider": {"name": "gcp"}}}, "", "auth-provider"),
        ({"user": {"username": "u", "password": "p"}}, "", "username, password"),
        ({"user": {"token": 5}}, "", "Expected `str | null`, got `int`"),
        ({"user": {"token": "a\nb"}}, "", "token: holds characters"),
        ({"user": {"exec": {"command": "x", "apiVersion": "v9"}}}, "", "unknown apiVersion 'v9'"),
    ],
)
def test_a_faulty_kubeconfig_is_named_with_what_is_wrong(
    tmp_path: Path, change: dict[str, Any], context: str, fault: str
) -> None:
    """lightkube: KeyError, AttributeError, AssertionError."""
    path = config(tmp_path, **change)
    with pytest.raises(ConfigError) as raised:
        kubeconfig(path, context, environ={})
    assert str(path) in str(raised.value)
    assert fault in str(raised.value)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    user = {"username": "u", "client-key": "x", "client-key-data": "%"}
    path = config(tmp_path, cluster={"server": "k"}, user=user)
    with pytest.raises(ConfigError) as raised:
        kubeconfig(path, environ={})
    assert len(raised.value.faults) == 4


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        kubeconfig(tmp_path / "nowhere")
    (tmp_path / "config").write_text("{[")
    with pytest.raises(ConfigError, match=str(tmp_path / "config")):
        kubeconfig(tmp_path / "config")
    (tmp_path / "config").write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match=str(tmp_path / "config")):
        kubeconfig(tmp_path / "config")


def test_secrets_are_not_shown() -> None:
    at = Access(
        server="https://k",
        token="SECRET",
        cert_data="c",
        key_data="SECRET",
        proxy="http://u:SECRET@p",
    )
    assert "SECRET" not in repr(at)


@pytest.mark.parametrize(
    ("environ", "server", "proxy"),
    [
        ({}, "https://k", ""),
        ({"HTTPS_PROXY": "http://p:1"}, "https://k", "http://p:1"),
        ({"https_proxy": "p:1"}, "https://k", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "http://k", ""),
        ({"HTTP_PROXY": "http://p:1"}, "http://k", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "https://localhost:6443", ""),
        ({"HTTPS_PROXY": "http://p:1"}, "https://127.0.0.1:6443", ""),
        ({"HTTPS_PROXY": "http://p:1"}, "https://[::1]:6443", ""),
    ],
)
def test_the_environment_names_a_proxy(environ: dict[str, str], server: str, proxy: str) -> None:
    assert proxy_for(server, environ) == proxy


@pytest.mark.parametrize(
    ("rules", "server", "direct"),
    [
        ("*", "https://k.example", True),
        ("k.example", "https://k.example", True),
        ("example", "https://k.example", True),
        ("ample", "https://k.example", False),
        (".example", "https://k.example", True),
        (".example", "https://example", False),
        ("*.example", "https://k.example", True),
        ("K.Example", "https://k.example", True),
        ("k.example:6443", "https://k.example:6443", True),
        ("k.example:443", "https://k.example", True),
        ("k.example:443", "https://k.example:6443", False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3", "https://10.1.2.3:6443", True),
        ("fd00::/8", "https://[fd00::1]:6443", True),
        ("[fd00::1]:6443", "https://[fd00::1]:6443", True),
        (" , x, k.example", "https://k.example", True),
        ("", "https://k.example", False),
    ],
)
def test_no_proxy_names_exceptions(rules: str, server: str, direct: bool) -> None:
    environ = {"HTTPS_PROXY": "http://p:1", "NO_PROXY": rules}
    assert (proxy_for(server, environ) == "") == direct
