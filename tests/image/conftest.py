"""The image, built once for all tests of it: by debootstrap and buildah, with nothing pulled.

Two minutes and 1 GB of disk, so only with IMAGE=1 (`make image`).  The base is kept in a cache
directory for the next run; everything else is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "muslin-image"


def reason_not_to_run() -> str:
    if not os.environ.get("IMAGE"):
        return "takes two minutes: IMAGE=1, or `make image`"
    missing = [t for t in ("buildah", "debootstrap") if not shutil.which(t)]
    return f"not installed: {', '.join(missing)}" if missing else ""


class Builder:
    """buildah with a storage of its own, by the plainest means: no overlay, no runtime."""

    def __init__(self, directory: Path) -> None:
        self._storage = [
            "--root", str(directory / "root"), "--runroot", str(directory / "run"),
            "--storage-driver", "vfs",
        ]  # fmt: skip

    def __call__(self, *words: str) -> str:
        argv = ["buildah", *self._storage, *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()


@pytest.fixture(scope="session")
def base() -> Path:
    """A root filesystem as small as debootstrap makes it."""
    if reason := reason_not_to_run():
        pytest.skip(reason)
    place = CACHE / f"{SUITE}.tar"
    if not place.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        tree = CACHE / f"{SUITE}-{os.getpid()}"
        try:
            argv = ["debootstrap", "--variant=minbase", SUITE, str(tree)]
            subprocess.run(argv, check=True, capture_output=True, timeout=600)
            for path in tree.glob("var/cache/apt/archives/*.deb"):
                path.unlink()
            partial = place.with_suffix(f".{os.getpid()}")
            subprocess.run(["tar", "-C", str(tree), "-cf", str(partial), "."], check=True)
            partial.rename(place)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
    return place


@pytest.fixture(scope="session")
def image(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image's root filesystem, mounted."""
    directory = tmp_path_factory.mktemp("image")
    buildah = Builder(directory)
    try:
        empty = buildah("from", "scratch")
        buildah("add", "--quiet", empty, str(base), "/")
        buildah("commit", "--quiet", "--rm", empty, "localhost/base")
        buildah(
            "build", "--isolation", "chroot", "--pull=never", "--tag", "localhost/muslin",
            "--build-arg", "BASE=localhost/base", *as_here(directory),
            "--file", str(ROOT / "deploy" / "image" / "Containerfile"), str(source(directory)),
        )  # fmt: skip
        yield Path(buildah("mount", buildah("from", "localhost/muslin")))
    finally:
        with contextlib.suppress(AssertionError):
            buildah("rm", "--all")
        shutil.rmtree(directory, ignore_errors=True)


def as_here(directory: Path) -> list[str]:
    """What this machine needs to reach its package registry: lent to the build, not kept in it."""
    asked = [sys.executable, "-m", "pip", "config", "list"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    settings = [ln.split(".", 1)[1] for ln in told.splitlines() if ".index-url=" in ln]
    lent = ["cert = /lent/ca.pem", *(s.replace("=", " = ", 1).replace("'", "") for s in settings)]
    (directory / "lent").mkdir(exist_ok=True)
    (directory / "lent" / "pip.conf").write_text("\n".join(["[global]", *lent, ""]))
    authority = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    shutil.copy(os.environ.get("PIP_CERT", authority), directory / "lent" / "ca.pem")
    volumes = {
        directory / "lent" / "pip.conf": "/etc/pip.conf",
        directory / "lent": "/lent",
    }
    return [w for here, there in volumes.items() for w in ("--volume", f"{here}:{there}:ro")]


def source(directory: Path) -> Path:
    """What the Containerfile copies, and nothing else of a working tree."""
    made = directory / "source"
    shutil.copytree(
        ROOT / "src", made / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, made / name)
    return made
