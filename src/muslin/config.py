"""One agent's settings: defaults, then the file, then the environment.

Every default stands here once, with its reason.  The file is TOML; a variable
`MUSLIN_<NAME>` overrides the setting of that name (`MUSLIN_STORE`,
`MUSLIN_UPLINK`, …).  A wrong setting is never guessed at: all faults are
reported at once, each by its name.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from muslin.errors import ConfigError
from muslin.model import Interface, convert

DEFAULT_FILE = Path("/etc/muslin/muslin.toml")
PREFIX = "MUSLIN_"
OTHERS = {"MUSLIN_LAB_DIR"}  # not a setting of an agent: where `muslin lab` keeps its labs
# RFC 1123 label, as Kubernetes uses for node names' parts and we for keys and file names.
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one agent is told.  Field comments are the reference (docs/config.md)."""

    # This node's name in the estate; the host name unless set.
    node: str = ""
    # Where networks, nodes and blocks are remembered: `sqlite:PATH` or `etcd://HOST:PORT,…`.
    store: str = "sqlite:/var/lib/muslin/store.db"
    # For etcd: ca, cert, key (paths), user, password.
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
    # May the agent set net.ipv6.conf.all.forwarding where the kernel has nothing finer?
    global_forwarding: bool = False
    # debug, info, warning or error.
    log_level: str = "info"

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


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The settings in force; ConfigError lists every fault of file and environment.

    A `path` that was named must exist; the default file need not.
    """
    file = path or DEFAULT_FILE
    raw: dict[str, Any] = {}
    if path is not None or file.exists():
        raw = _read(file)
    subject = f"settings ({file} and {PREFIX}* variables)"
    faults = _unknown(raw, environ)
    raw |= _from_environment(environ)
    if faults:
        raise ConfigError(subject, faults)
    config = convert(Config, raw, subject=subject)
    if not config.node:
        config = msgspec.structs.replace(config, node=socket.gethostname().lower())
    if faults := list(_faults(config)):
        raise ConfigError(subject, faults)
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as e:
        hint = "name an existing file with --config"
        raise ConfigError(str(file), [e.strerror or str(e)], hint=hint) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(str(file), [f"not TOML: {e}"]) from e


def _unknown(raw: Mapping[str, Any], environ: Mapping[str, str]) -> list[str]:
    known = Config.__struct_fields__
    faults = [f"unknown setting {name!r}" for name in raw if name not in known]
    for variable in environ:
        name = variable.removeprefix(PREFIX).lower()
        if variable in OTHERS or not variable.startswith(PREFIX):
            continue
        if name not in known:
            faults.append(f"unknown variable {variable}")
    return faults


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(Config):
        text = environ.get(PREFIX + field.name.upper())
        if text is None:
            continue
        # Text fields are taken as they stand; the others are read as TOML values.
        if field.type is str:
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
        for name, value in (("state_dir", config.state_dir), ("run_dir", config.run_dir))
        if not value.startswith("/")
    ]
    if config.block_ttl < 5:
        faults.append(f"block_ttl {config.block_ttl}: at least 5 seconds")
    if not 0 <= config.spare <= 65536:
        faults.append(f"spare {config.spare}: from 0 to 65536")
    if config.log_level not in ("debug", "info", "warning", "error"):
        faults.append(f"log_level {config.log_level!r}: debug, info, warning or error")
    # sun_path holds 108 bytes with its NUL (unix(7)).
    if len(str(config.api_socket)) > 107:
        faults.append(f"run_dir {config.run_dir!r}: too long for a socket path (107 bytes)")
    return faults
