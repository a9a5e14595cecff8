"""What the doctor says of containerd; a script that answers as containerd does takes its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from muslin.agent import doctor
from muslin.agent.doctor import Finding
from muslin.cni import runtimes
from muslin.config import Config

Say = Callable[[str], list[Finding]]
FIRST = """
version = 2
disabled_plugins = []
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "pause"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin}"
    conf_dir = "/etc/cni/net.d"
"""
SECOND = """
version = 3
[plugins.'io.containerd.grpc.v1.cri']
  disable_tcp_service = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dir = ''
  bin_dirs = ['/nowhere', '{bin}']
  use_internal_loopback = {internal}
"""


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Examine a machine whose containerd is this shell script."""
    monkeypatch.setattr(doctor, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setattr(doctor, "BIN_DIR", tmp_path / "bin")
    monkeypatch.setattr(runtimes, "BIN_DIR", tmp_path / "bin")

    def examine(script: str) -> list[Finding]:
        (tmp_path / "path").mkdir()
        program = tmp_path / "path" / "containerd"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/path:/usr/bin:/bin")
        return list(doctor.containerd(Config()))

    return examine


def dump(text: str) -> str:
    return f"[ \"$*\" = 'config dump' ] || exit 9\ncat <<'END'\n{text}\nEND"


def plugin(directory: Path, name: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / name).touch(mode=0o755)
    return directory


def test_a_machine_without_containerd_is_not_spoken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(doctor.containerd(Config())) == []


def test_without_its_loopback_plugin_the_package_and_the_link_are_named(
    says: Say, tmp_path: Path
) -> None:
    where = tmp_path / "bin"
    (found,) = says(dump(FIRST.format(bin=where)))
    assert (found.what, found.verdict) == ("containerd", "note")
    assert found.detail == f"it needs the plugin `loopback` for every pod, and has none in {where}"
    assert found.mend == (
        "apt-get install containernetworking-plugins &&"
        f" mkdir -p {where} && ln -s {tmp_path}/packaged/loopback {where}/"
    )


def test_where_the_package_is_there_the_link_is_enough(says: Say, tmp_path: Path) -> None:
    plugin(tmp_path / "packaged", "loopback")
    (found,) = says(dump(FIRST.format(bin=tmp_path / "bin")))
    assert found.mend.startswith("mkdir -p")


def test_what_is_there_is_good(says: Say, tmp_path: Path) -> None:
    where = plugin(tmp_path / "bin", "loopback")
    (found,) = says(dump(FIRST.format(bin=where)))
    assert (found.verdict, found.detail) == ("good", f"it looks for plugins in {where}")


def test_a_directory_of_the_distributions_own_needs_both_plugins_there(
    says: Say, tmp_path: Path
) -> None:
    """Debian's containerd looks in /usr/lib/cni, and `muslin cni install` writes elsewhere."""
    where = tmp_path / "packaged"
    loopback, ours = says(dump(FIRST.format(bin=where)))
    assert loopback.mend == "apt-get install containernetworking-plugins"
    assert ours.verdict == "note"
    assert ours.mend == "muslin cni install"


def test_the_mend_helps(says: Say, tmp_path: Path) -> None:
    where = plugin(plugin(tmp_path / "packaged", "loopback"), "muslin-cni")
    assert [f.verdict for f in says(dump(FIRST.format(bin=where)))] == ["good"]


@pytest.mark.parametrize(("internal", "verdict"), [("true", "good"), ("false", "note")])
def test_containerd_2_needs_it_unless_told_otherwise(
    says: Say, tmp_path: Path, internal: str, verdict: str
) -> None:
    found = says(dump(SECOND.format(bin=tmp_path / "bin", internal=internal)))
    assert [f.verdict for f in found] == [verdict]


@pytest.mark.parametrize("name", ["cri", "io.containerd.grpc.v1.cri"])
def test_a_containerd_that_runs_no_pods_is_not_spoken_of(says: Say, name: str) -> None:
    """Docker's own package has CRI off."""
    settings = FIRST.format(bin="/nowhere").replace("= []", f'= ["{name}"]')
    assert says(dump(settings)) == []


@pytest.mark.parametrize("script", ["exec sleep 60", "exit 1", "echo 'not = toml = at all'"])
def test_a_containerd_that_does_not_say_is_a_note(
    says: Say, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(runtimes, "PATIENCE", 0.3)
    (found,) = says(script)
    assert found.verdict == "note"
    assert "settings cannot be read" in found.detail


def test_the_plugin_is_installed_where_containerd_looks(says: Say, tmp_path: Path) -> None:
    says(dump(FIRST.format(bin="/usr/lib/cni")))
    assert runtimes.bin_dir() == Path("/usr/lib/cni")


@pytest.mark.parametrize("said", [FIRST.format(bin="{usual}"), SECOND, "no TOML", ""])
def test_it_is_the_usual_place_if_containerd_looks_there_too_or_says_nothing(
    says: Say, tmp_path: Path, said: str
) -> None:
    usual = str(tmp_path / "bin")
    text = said.replace("{usual}", usual).replace("{bin}", usual).replace("{internal}", "true")
    says(dump(text) if text else "exit 1")
    assert runtimes.bin_dir() == Path(usual)
