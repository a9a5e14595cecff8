"""What is in the image, and what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from muslin import __version__

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 250  # MB, unpacked; 195 in November 2026
BUILDERS = ("gcc", "cc", "as", "ld", "make", "pip", "pip3")


def run(image: Path, *words: str, user: str = "0:0", **environment: str) -> str:
    path = "/opt/muslin/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    argv = ["chroot", f"--userspec={user}", str(image), *words]
    env = {"PATH": f"{path}:{os.environ['PATH']}", "HOME": "/", **environment}
    done = subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_small(image: Path) -> None:
    size = sum(p.lstat().st_blocks for p in image.rglob("*")) * 512 / 1e6
    print(f"\nthe image: {size:.0f} MB")
    assert size < LARGEST


def test_muslin_runs_as_both_users(image: Path) -> None:
    for user in ("0:0", "65532:65532"):
        assert run(image, "muslin", "version", user=user).strip() == f"muslin {__version__}"


def test_the_plugin_is_in_it_and_answers(image: Path) -> None:
    [plugin] = image.glob("opt/muslin/lib/python3*/site-packages/muslin/cni/muslin-cni.*")
    within = f"/{plugin.relative_to(image)}"
    answer = json.loads(run(image, within, CNI_COMMAND="VERSION"))
    assert "1.1.0" in answer["supportedVersions"]
    linked = subprocess.run(["readelf", "-d", plugin], capture_output=True, text=True, check=False)
    assert "NEEDED" not in linked.stdout, "it runs on hosts of any libc"


def test_what_the_programs_load_is_there(image: Path) -> None:
    """Everything that is imported late, and the library that is loaded by name."""
    words = (
        "import ctypes, sqlite3, ssl, asyncio, httpcore2, yaml;"
        " ctypes.CDLL('libnftables.so.1');"
        " from muslin.kube import Api;"
        " import muslin.agent.following, muslin.controller.main;"
        " from muslin.controller.manifests import targets; print(len(targets('vxlan')))"
    )
    assert int(run(image, "python", "-c", words)) > 20
    assert run(image, "sh", "-c", "command -v mount").strip()


def test_nothing_is_left_to_build_with(image: Path) -> None:
    for directory in ("usr/bin", "usr/local/bin", "opt/muslin/bin"):
        there = {p.name for p in (image / directory).glob("*")}
        assert not there & set(BUILDERS), directory
    assert not list(image.glob("opt/muslin/lib/python3*/site-packages/pip"))
    assert not list((image / "var/lib/apt/lists").glob("*"))
    assert not (image / "lent").exists() or not list((image / "lent").iterdir())
    assert not (image / "etc" / "pip.conf").exists() or not (image / "etc/pip.conf").read_text()


def test_the_mount_points_of_the_manifest_are_there(image: Path) -> None:
    """The root filesystem is read-only: what is bound over must exist."""
    for place in ("host/proc/sys/net", "etc/muslin", "var/lib/muslin", "opt/cni/bin", "tmp", "run"):
        assert (image / place).is_dir(), place


def test_its_parts_can_be_listed(image: Path) -> None:
    argv = [sys.executable, str(ROOT / "scripts" / "sbom.py"), "--path", str(image / "opt/muslin")]
    made = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert made["metadata"]["component"]["version"] == __version__
    names = {c["name"] for c in made["components"]}
    assert {"msgspec", "httpcore2", "pyyaml"} <= names
    assert not {"pip", "setuptools", "pytest"} & names
    assert not {"aetcd", "grpcio", "protobuf"} & names, "Kubernetes is the store of this image"


def test_a_store_that_is_not_for_it_is_refused_with_the_extra(image: Path) -> None:
    asked = "from muslin.store.open import open_store; open_store('etcd://h')"
    with pytest.raises(AssertionError, match="store etcd: needs the extra 'etcd'"):
        run(image, "python", "-c", asked)
