"""Put the plugin and its network configuration where runtimes look for them.

Two files, each written beside its place and renamed into it, so that a
runtime never reads half of one: the executable first, because a node counts
as ready as soon as a configuration is there.  A file that is already right
is left alone, since runtimes reload at every change in the directory.

The configuration says 1.0.0, and 1.1.0 under `cniVersions`.  A libcni before
1.2 (containerd 1.6, podman 4) refuses a higher `cniVersion` than it knows,
and ignores the other key; a newer one takes the highest of both and so
calls GC and STATUS too (libcni, NetworkConfFromBytes).
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from muslin.cni.environment import name_fault
from muslin.errors import ConfigError

PLUGIN = "muslin-cni"  # the configuration's `type`, hence the executable's name
CONFLIST = "10-muslin.conflist"  # runtimes take the first by name
BIN_DIR = Path("/opt/cni/bin")
CONF_DIR = Path("/etc/cni/net.d")
DEADLINE = 60.0  # seconds; the reason stands in cni.plugin

_SHEBANG_MAX = 127  # linux/binfmts.h: BINPRM_BUF_SIZE was 128 before 5.1
_SUN_PATH_MAX = 107  # unix(7): 108 with the closing NUL
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._+@-]*")  # stands in a shebang and in a Python string


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """Where the two files are, and which of them had to be written."""

    plugin: Path
    conflist: Path
    written: tuple[Path, ...]


def install(
    *,
    bin_dir: Path = BIN_DIR,
    conf_dir: Path = CONF_DIR,
    socket: Path,
    python: str = sys.executable,
    network: str = "",
    deadline: float = DEADLINE,
) -> Installed:
    """Write what is not yet as it should be (idempotent); touch nothing else.

    `network` names the Muslin network of the pods; "" leaves it to the
    agent.  Both directories are made if need be.  ConfigError lists every
    argument that cannot work; OSError is the file system's.
    """
    if faults := _faults(str(socket), python, network, deadline):
        raise ConfigError("CNI plugin", faults)
    plugin, conflist = bin_dir / PLUGIN, conf_dir / CONFLIST
    files = (
        (plugin, executable(socket=str(socket), python=python, deadline=deadline), 0o755),
        (conflist, configuration(network), 0o644),
    )
    written = tuple(path for path, content, mode in files if _settle(path, content, mode))
    return Installed(plugin=plugin, conflist=conflist, written=written)


def executable(*, socket: str, python: str, deadline: float) -> bytes:
    """The text of the plugin with its first line and its two settings."""
    source = Path(__file__).with_name("plugin.py").read_text()
    settings = {"SOCKET": socket, "DEADLINE": deadline}

    def line(match: re.Match[str]) -> str:
        return f"{match[1]} = {settings[match[1]]!r}"

    source, found = re.subn(rf"^({'|'.join(settings)}) = .*$", line, source, flags=re.MULTILINE)
    assert found == len(settings)
    return f"#!{python} -ISE\n{source}".encode()


def configuration(network: str) -> bytes:
    """The network configuration list, as text a person may edit."""
    plugin = {"type": PLUGIN} | ({"network": network} if network else {})
    conflist = {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "muslin",
        "plugins": [plugin],
    }
    return json.dumps(conflist, indent=2).encode() + b"\n"


def _faults(socket: str, python: str, network: str, deadline: float) -> list[str]:
    faults = [
        f"{name} {path!r}: an absolute path of letters, digits and '._+@-'"
        for name, path in (("socket", socket), ("python", python))
        if not _PLAIN_PATH.fullmatch(path)
    ]
    if len(socket) > _SUN_PATH_MAX:
        faults.append(f"socket {socket!r}: longer than {_SUN_PATH_MAX} bytes")
    if len(f"#!{python} -ISE\n") > _SHEBANG_MAX:
        faults.append(f"python {python!r}: too long for a script's first line")
    if network and (fault := name_fault(network)):
        faults.append(f"network {network!r}: {fault}")
    if not 0 < deadline < 3600:
        faults.append(f"deadline {deadline}: more than 0 and less than 3600 seconds")
    return faults


def _settle(path: Path, content: bytes, mode: int) -> bool:
    """Make `path` a regular file with this content and mode; whether it had to be written."""
    try:
        now = path.lstat()
        if now.st_mode == stat.S_IFREG | mode and path.read_bytes() == content:
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Runtimes load *.conf, *.conflist and *.json: not this name.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())  # else a power loss may leave the name with no content
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return True
