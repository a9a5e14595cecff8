"""Put the plugin and its network configuration where runtimes look for them.

Two files, each written beside its place and renamed into it, so that a
runtime never reads half of one: the executable first, because a node counts
as ready as soon as a configuration is there.  A file that is already right
is left alone, since runtimes reload at every change in the directory.

The configuration says 1.0.0, and 1.1.0 under `cniVersions`.  A libcni before
1.2 (containerd 1.6, podman 4) refuses a higher `cniVersion` than it knows,
and ignores the other key; a newer one takes the highest of both and so
calls GC and STATUS too (libcni, NetworkConfFromBytes).

The executable is one of two twins: `shim.c`, where it was compiled for this
machine (`cni.build`) and answers when started here, else `plugin.py`.  Both
get their settings written into them, so a call reads one file.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from muslin.cni import build
from muslin.cni.capabilities import DECLARED
from muslin.cni.environment import name_fault
from muslin.errors import ConfigError

PLUGIN = "muslin-cni"  # the configuration's `type`, hence the executable's name
# Runtimes take the first by name, and others' are called 10-flannel and 10-calico.
CONFLIST = "05-muslin.conflist"
FORMER = "10-muslin.conflist"  # as it was called before; ours goes, or there would be two
BIN_DIR = Path("/opt/cni/bin")
CONF_DIR = Path("/etc/cni/net.d")
DEADLINE = 60.0  # seconds; the reason stands in cni.plugin

Twin = Literal["auto", "c", "python"]

# As in shim.c: mark, deadline in microseconds and as text, socket, journal.
_SETTINGS = struct.Struct("=24sQ32s108s256s")
_MARK = b"muslin-cni settings 1\0\0\0"
_PROBE_DEADLINE = 10.0  # seconds; it answers within a millisecond
_SHEBANG_MAX = 127  # linux/binfmts.h: BINPRM_BUF_SIZE was 128 before 5.1
_SUN_PATH_MAX = 107  # unix(7): 108 with the closing NUL
_JOURNAL_MAX = 255  # its place in shim.c, without the closing NUL
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._+@-]*")  # stands in a shebang and in a Python string


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """Where the two files are, which had to be written, and which twin was chosen and why."""

    plugin: Path
    conflist: Path
    written: tuple[Path, ...]
    twin: Literal["c", "python"]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is written into the executable."""

    socket: str
    journal: str
    deadline: float


def install(
    *,
    bin_dir: Path = BIN_DIR,
    conf_dir: Path = CONF_DIR,
    socket: Path,
    journal: Path,
    python: str = sys.executable,
    network: str = "",
    deadline: float = DEADLINE,
    twin: Twin = "auto",
) -> Installed:
    """Write what is not yet as it should be (idempotent); touch nothing else.

    `network` names the Muslin network of the pods; "" leaves it to the
    agent.  All directories are made if need be, the journal's for root alone.
    `twin` "auto" takes the C one if it runs here.  ConfigError lists every
    argument that cannot work; OSError is the file system's.
    """
    if faults := _faults(str(socket), str(journal), python, network, deadline):
        raise ConfigError("CNI plugin", faults)
    chosen, why = choose(twin)
    settings = Settings(socket=str(socket), journal=str(journal), deadline=deadline)
    program = compiled(settings) if chosen == "c" else script(settings, python)
    plugin, conflist = bin_dir / PLUGIN, conf_dir / CONFLIST
    for directory in (journal.parent, journal):  # as the agent makes them
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = ((plugin, program, 0o755), (conflist, configuration(network), 0o644))
    written = tuple(path for path, content, mode in files if _settle(path, content, mode))
    _retire(conf_dir / FORMER)
    return Installed(plugin=plugin, conflist=conflist, written=written, twin=chosen, why=why)


def _retire(former: Path) -> None:
    """Remove a configuration that names our plugin and no other."""
    try:
        plugins = json.loads(former.read_bytes())["plugins"]
        ours = {plugin["type"] for plugin in plugins} == {PLUGIN}
    except (OSError, ValueError, LookupError, TypeError):
        return  # there is none, or not one that we wrote
    if ours:
        former.unlink(missing_ok=True)


def choose(twin: Twin = "auto") -> tuple[Literal["c", "python"], str]:
    """Which twin to install, and why; ConfigError for the C one where it does not run."""
    if twin == "python":
        return "python", "as told"
    fault = _probe(build.place())
    if not fault:
        return "c", f"{build.place().name} runs here"
    if twin == "c":
        raise ConfigError("CNI plugin", [f"no C twin: {fault}"], hint=build.MEND)
    return "python", f"{fault}; for the faster one {build.MEND}"


def _probe(program: Path) -> str:
    """Why this executable does not serve here; "" if it does.  It asks no agent unpatched."""
    try:
        done = subprocess.run(
            [program], env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=_PROBE_DEADLINE, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return f"{program.name} was not compiled here"
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{program.name}: {e}"
    if done.returncode or b'"supportedVersions"' not in done.stdout:
        return f"{program.name} ends with {done.returncode}"
    places = program.read_bytes().count(_MARK)
    return "" if places == 1 else f"{program.name} has {places} places for settings instead of one"


def compiled(settings: Settings) -> bytes:
    """The compiled plugin with its settings written over those it was compiled with."""
    program = build.place().read_bytes()
    where = program.index(_MARK)
    microseconds = max(1, round(settings.deadline * 1e6))  # 0 would be no timer at all
    texts = (str(settings.deadline), settings.socket, settings.journal)
    packed = _SETTINGS.pack(_MARK, microseconds, *(text.encode() for text in texts))
    return program[:where] + packed + program[where + len(packed) :]


def script(settings: Settings, python: str) -> bytes:
    """The text of the plugin with its first line and its settings."""
    source = Path(__file__).with_name("plugin.py").read_text()
    values = {name.upper(): value for name, value in asdict(settings).items()}

    def line(match: re.Match[str]) -> str:
        return f"{match[1]} = {values[match[1]]!r}"

    source, found = re.subn(rf"^({'|'.join(values)}) = .*$", line, source, flags=re.MULTILINE)
    assert found == len(values)
    return f"#!{python} -ISE\n{source}".encode()


def configuration(network: str) -> bytes:
    """The network configuration list, as text a person may edit."""
    plugin: dict[str, object] = {"type": PLUGIN}
    if network:
        plugin["network"] = network
    # What a runtime may send for one pod; it sends nothing that is not declared.
    plugin["capabilities"] = dict.fromkeys(DECLARED, True)
    conflist = {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "muslin",
        "plugins": [plugin],
    }
    return json.dumps(conflist, indent=2).encode() + b"\n"


def _faults(socket: str, journal: str, python: str, network: str, deadline: float) -> list[str]:
    faults = [
        f"{name} {path!r}: an absolute path of letters, digits and '._+@-'"
        for name, path in (("socket", socket), ("journal", journal), ("python", python))
        if not _PLAIN_PATH.fullmatch(path)
    ]
    if len(socket) > _SUN_PATH_MAX:
        faults.append(f"socket {socket!r}: longer than {_SUN_PATH_MAX} bytes")
    if len(journal) > _JOURNAL_MAX:
        faults.append(f"journal {journal!r}: longer than {_JOURNAL_MAX} bytes")
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
