"""Which plugin an agent puts in place: one that the runtime can start."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from muslin import config
from muslin.agent import doctor, installing
from muslin.cni import build
from muslin.errors import ConfigError

POD = 'store = "kubernetes:"\n'
HOST = 'store = "sqlite:/nowhere"\n'
ADMIN = 'store = "kubernetes:/etc/kubernetes/agent.conf"\n'  # on a host, by a kubeconfig

Make = Callable[[str], config.Config]


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """An agent's settings, and no containerd to look for."""
    monkeypatch.setattr(doctor, "containerd", lambda _: [])

    def make(text: str) -> config.Config:
        file = tmp_path / "agent.toml"
        file.write_text(
            f'{text}node = "n1"\nstate_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n'
            f'cni_bin_dir = "{tmp_path}/bin"\ncni_conf_dir = "{tmp_path}/conf"\n'
        )
        return config.load(file, {})

    return make


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a wheel that was built where there is a compiler."""
    if why := build.build(tmp_path):
        pytest.skip(why)
    there = build.place(tmp_path)
    monkeypatch.setattr(build, "place", lambda *_: there)


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in one that was not."""
    monkeypatch.setattr(build, "place", lambda *_: tmp_path / "muslin-cni.none")


def first_bytes(tmp_path: Path) -> bytes:
    return (tmp_path / "bin" / "muslin-cni").read_bytes()[:4]


@pytest.mark.parametrize("store", [POD, HOST, ADMIN])
@pytest.mark.usefixtures("compiled")
def test_the_compiled_one_is_taken_wherever_there_is_one(
    agent: Make, tmp_path: Path, store: str
) -> None:
    assert installing.put(agent(store)) == ()
    assert first_bytes(tmp_path) == b"\x7fELF"
    version = {"CNI_COMMAND": "VERSION"}
    plugin = tmp_path / "bin" / "muslin-cni"
    assert b"1.1.0" in subprocess.run([plugin], env=version, capture_output=True, check=True).stdout


@pytest.mark.parametrize("store", [HOST, ADMIN])
@pytest.mark.usefixtures("without")
def test_on_a_host_python_serves_without_it(agent: Make, tmp_path: Path, store: str) -> None:
    installing.put(agent(store))
    assert first_bytes(tmp_path)[:2] == b"#!"


@pytest.mark.usefixtures("without")
def test_in_a_pod_nothing_is_installed_that_the_host_cannot_start(
    agent: Make, tmp_path: Path
) -> None:
    """Its interpreter is in the image: the node would be ready, and every ADD fail."""
    with pytest.raises(ConfigError, match=r"no C twin: .*was not compiled here") as caught:
        installing.put(agent(POD))
    assert "deploy/image" in caught.value.hint
    assert not (tmp_path / "bin").exists()
    assert not (tmp_path / "conf").exists()
