"""Store URLs: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from muslin.errors import ConfigError
from muslin.store.memory import MemoryStore
from muslin.store.open import open_store
from muslin.store.sqlite import SqliteStore
from muslin.store.url import EtcdAt, KubernetesAt, MemoryAt, SqliteAt, parse


@pytest.mark.parametrize(
    ("url", "means"),
    [
        ("memory:", MemoryAt()),
        ("sqlite:/var/lib/muslin/store.db", SqliteAt(Path("/var/lib/muslin/store.db"))),
        ("sqlite:///var/lib/store.db", SqliteAt(Path("/var/lib/store.db"))),
        ("etcd://n1:2379", EtcdAt(members=("n1:2379",))),
        ("etcd://n1", EtcdAt(members=("n1:2379",))),
        ("etcd://n1:1,n2.lan:2/", EtcdAt(members=("n1:1", "n2.lan:2"))),
        ("etcd://192.0.2.1,[2001:db8::1]:2", EtcdAt(members=("192.0.2.1:2379", "[2001:db8::1]:2"))),
        ("etcd://n1/a/b", EtcdAt(members=("n1:2379",), prefix="/a/b/")),
        ("etcd://n1/a/b/", EtcdAt(members=("n1:2379",), prefix="/a/b/")),
        ("kubernetes:", KubernetesAt()),
        ("kubernetes:/etc/k.conf", KubernetesAt(kubeconfig=Path("/etc/k.conf"))),
    ],
)
def test_a_url_means_a_place(url: str, means: object) -> None:
    assert parse(url) == means


@pytest.mark.parametrize(
    "url",
    [
        *("", "memory", "memory:x", "mysql://n1", "sqlite:", "sqlite:relative.db", "sqlite:/dir/"),
        *("sqlite:/a\0b", "etcd:", "etcd://", "etcd:n1:2379", "etcd://n1:", "etcd://n1:0"),
        *("etcd://n1:99999", "etcd://n1,", "etcd://n 1", "etcd://n1//a", "etcd://n1/a b"),
        *("etcd://::1:2379", "/var/lib/store.db", "ETCD://n1", "kubernetes:k.conf", "kubernetes"),
    ],
)
def test_a_malformed_url_is_named_with_the_valid_forms(url: str) -> None:
    with pytest.raises(ConfigError) as fault:
        open_store(url)
    assert repr(url) in str(fault.value)
    etcd = "etcd://host:port[,host2:port2][/prefix]"
    for form in ("memory:", "sqlite:/path/file.db", etcd, "kubernetes:[/path/kubeconfig]"):
        assert form in str(fault.value)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as fault:
        parse("etcd://root:s3cret@n1:2379")
    assert "user and password are options" in str(fault.value)
    assert "s3cret" not in str(fault.value)


def test_a_password_is_not_shown_with_its_place() -> None:
    at = parse("etcd://n1", {"user": "root", "password": "s3cret"})
    assert isinstance(at, EtcdAt)
    assert at.password == "s3cret"
    assert "s3cret" not in repr(at)


def test_all_faults_are_told_at_once() -> None:
    options = {"cert": "/c.pem", "user": "", "colour": "red"}
    with pytest.raises(ConfigError) as fault:
        parse("etcd://n1:x", options)
    assert fault.value.faults == (
        "unknown option colour; known: ca, cert, key, user, password",
        "option user: expected a text",
        "not host:port: 'n1:x'",
        "options cert and key go together",
    )


def test_only_etcd_has_options() -> None:
    with pytest.raises(ConfigError, match="unknown option ca; known: none for this store"):
        parse("memory:", {"ca": "/ca.pem"})


def test_missing_certificates_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("not one\n")
    options = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")}
    with pytest.raises(ConfigError) as fault:
        open_store("etcd://n1", options)
    assert fault.value.faults == (
        f"option ca: {tmp_path}/ca.pem: No such file or directory",
        f"option cert: {tmp_path}/cert.pem: No such file or directory",
        f"option key: {tmp_path}/key.pem: not a PEM file",
    )


async def test_each_scheme_opens_its_store(tmp_path: Path) -> None:
    async with open_store("memory:") as memory:
        assert isinstance(memory, MemoryStore)
    async with open_store(f"sqlite:{tmp_path}/store.db") as sqlite:
        assert isinstance(sqlite, SqliteStore)


def test_only_an_etcd_url_loads_grpc() -> None:
    """Its memory is not paid by an agent on another store."""
    program = """
import sys
from muslin.store.open import open_store
open_store("memory:"); open_store("sqlite:/nowhere/store.db")
assert "grpc" not in sys.modules and "aetcd" not in sys.modules
open_store("etcd://192.0.2.1")
assert "grpc" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_a_context_belongs_to_a_kubeconfig() -> None:
    at = parse("kubernetes:/k.conf", {"context": "prod", "namespace": "net"})
    assert at == KubernetesAt(kubeconfig=Path("/k.conf"), context="prod", namespace="net")
    with pytest.raises(ConfigError, match="context: belongs to a kubeconfig"):
        parse("kubernetes:", {"context": "prod"})
