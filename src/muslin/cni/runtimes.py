"""Where this machine's containerd looks for plugins: a setting of its own, which packages change.

The CNI specification names no directory.  /opt/cni/bin is the usual one, and
Debian's containerd says /usr/lib/cni (read from `containerd config dump`,
which knows the defaults and what the file imports).
"""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muslin.cni.install import BIN_DIR
from muslin.errors import ConfigError

CRI = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")  # containerd 1 and 2
PATIENCE = 5.0  # seconds; `containerd config dump` takes 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Containerd:
    """What concerns us of its settings."""

    bin_dirs: tuple[Path, ...]
    internal_loopback: bool  # from 2.0, when told: it needs no `loopback` plugin then


def containerd() -> Containerd | None:
    """The settings of the containerd in PATH; None without one, or where it runs no pods.

    ConfigError if it does not tell them.
    """
    program = shutil.which("containerd")
    if program is None:
        return None
    dump = [program, "config", "dump"]
    try:
        done = subprocess.run(dump, capture_output=True, text=True, timeout=PATIENCE, check=True)
        return _read(tomllib.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as e:
        hint = "see what `containerd config dump` says"
        raise ConfigError("containerd", [f"its settings cannot be read: {e}"], hint=hint) from e


def bin_dir() -> Path:
    """Where the plugin belongs on this machine."""
    try:
        found = containerd()
    except ConfigError:
        found = None
    places = found.bin_dirs if found else (BIN_DIR,)
    return BIN_DIR if BIN_DIR in places else places[0]


def _read(said: Mapping[str, Any]) -> Containerd | None:
    off = {"cri", *CRI} & set(said.get("disabled_plugins", ()))
    settings = [p["cni"] for n, p in said.get("plugins", {}).items() if n in CRI and p.get("cni")]
    if off or not settings:
        return None  # as Docker has it
    names = [*settings[0].get("bin_dirs", ()), settings[0].get("bin_dir")]
    return Containerd(
        bin_dirs=tuple(Path(n) for n in names if n) or (BIN_DIR,),
        internal_loopback=bool(settings[0].get("use_internal_loopback")),
    )
