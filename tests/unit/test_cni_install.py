"""Two files appear whole, in order, and only when they have to."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from muslin.cni import build, install
from muslin.errors import ConfigError

CAPABILITIES = dict.fromkeys(("portMappings", "bandwidth", "ips", "mac", "dns", "aliases"), True)
SOCKET = Path("/run/muslin/cni.sock")


def put(tmp_path: Path, **options: object) -> install.Installed:
    arguments = {
        "bin_dir": tmp_path / "bin",
        "conf_dir": tmp_path / "net.d",
        "socket": SOCKET,
        "journal": tmp_path / "journal",
        "twin": "python",
    }
    return install.install(**(arguments | options))  # type: ignore[arg-type]


def test_both_files_are_where_runtimes_look(tmp_path: Path) -> None:
    done = put(tmp_path)
    assert done.plugin == tmp_path / "bin/muslin-cni"
    assert done.conflist == tmp_path / "net.d/05-muslin.conflist"
    assert done.written == (done.plugin, done.conflist)
    assert stat.S_IMODE(done.plugin.stat().st_mode) == 0o755
    assert stat.S_IMODE(done.conflist.stat().st_mode) == 0o644
    made = [tmp_path / "bin", tmp_path / "net.d", tmp_path / "journal", done.plugin, done.conflist]
    assert sorted(tmp_path.rglob("*")) == sorted(made)
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o700


def test_an_old_runtime_can_read_the_configuration_and_a_new_one_gets_gc(tmp_path: Path) -> None:
    assert json.loads(put(tmp_path, network="blue").conflist.read_bytes()) == {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "muslin",
        "plugins": [{"type": "muslin-cni", "network": "blue", "capabilities": CAPABILITIES}],
    }


def test_the_default_network_is_the_agents_to_choose(tmp_path: Path) -> None:
    plugins = json.loads(put(tmp_path).conflist.read_bytes())["plugins"]
    assert plugins == [{"type": "muslin-cni", "capabilities": CAPABILITIES}]


def test_the_executable_starts_a_bare_interpreter_and_knows_its_socket(tmp_path: Path) -> None:
    lines = put(tmp_path, python="/usr/bin/python3", deadline=5.0).plugin.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/python3 -ISE"
    assert "SOCKET = '/run/muslin/cni.sock'" in lines
    assert "DEADLINE = 5.0" in lines
    assert f"JOURNAL = '{tmp_path}/journal'" in lines


def test_the_executable_runs(tmp_path: Path) -> None:
    plugin = put(tmp_path, socket=tmp_path / "none").plugin
    done = subprocess.run(
        [plugin], env={"CNI_COMMAND": "VERSION"}, input=b"", capture_output=True, check=True
    )
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]


def test_a_second_time_nothing_is_written(tmp_path: Path) -> None:
    first = put(tmp_path)
    before = [path.stat().st_mtime_ns for path in (first.plugin, first.conflist)]
    assert put(tmp_path).written == ()
    assert [path.stat().st_mtime_ns for path in (first.plugin, first.conflist)] == before


def test_what_was_changed_is_put_right(tmp_path: Path) -> None:
    first = put(tmp_path)
    first.plugin.chmod(0o644)
    first.conflist.write_text("{")
    assert put(tmp_path).written == (first.plugin, first.conflist)
    assert put(tmp_path, network="blue").written == (first.conflist,)


def test_neighbours_and_the_target_of_a_link_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bridge").write_text("mine")
    (tmp_path / "bin/muslin-cni").symlink_to("bridge")
    put(tmp_path)
    assert (tmp_path / "bin/bridge").read_text() == "mine"
    assert not (tmp_path / "bin/muslin-cni").is_symlink()


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is renamed into place is complete and has its mode; until then the old one stands."""
    first = put(tmp_path)
    old = first.conflist.read_bytes()
    seen = []

    def rename(source: str, target: Path) -> None:
        seen.append((Path(source).read_bytes(), stat.S_IMODE(os.stat(source).st_mode)))
        assert Path(source).suffix not in (".conf", ".conflist", ".json")
        assert target.read_bytes() == old
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", rename)
    put(tmp_path, network="blue")
    assert seen == [(first.conflist.read_bytes(), 0o644)]


def test_a_failure_leaves_no_scraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        put(tmp_path)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "bin", tmp_path / "journal"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("socket", Path("run/cni.sock")),
        ("socket", Path("/run/it's/cni.sock")),
        ("socket", Path("/run/" + "x" * 110)),
        ("journal", Path("/var/lib/my journal")),
        ("journal", Path("/" + "x" * 260)),
        ("python", "python3"),
        ("python", "/opt/my python/bin/python3"),
        ("python", "/usr/bin/python3\n"),
        ("python", "/" + "x" * 130),
        ("network", "a/b"),
        ("deadline", 0.0),
        ("deadline", float("nan")),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, option: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=option):
        put(tmp_path, **{option: value})
    assert list(tmp_path.iterdir()) == []


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        put(tmp_path, python="python3", network="a b", deadline=-1.0)
    assert len(caught.value.faults) == 3


def test_this_interpreter_is_the_default(tmp_path: Path) -> None:
    assert put(tmp_path).plugin.read_text().startswith(f"#!{sys.executable} -ISE\n")


# ── which twin ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `install` looks for the compiled twin; a script that serves as one, until changed."""
    path = tmp_path / "muslin-cni.here"
    monkeypatch.setattr(build, "place", lambda: path)
    path.write_bytes(b"#!/bin/sh\necho '{\"supportedVersions\":[]}'\nexit\n" + bare())
    path.chmod(0o755)
    return path


def bare() -> bytes:
    return b"muslin-cni settings 1".ljust(428, b"\0") + b"the rest"


def test_the_compiled_one_is_taken_if_it_runs_here(tmp_path: Path, shim: Path) -> None:
    done = put(tmp_path, twin="auto", deadline=0.25)
    assert (done.twin, done.why) == ("c", "muslin-cni.here runs here")
    before, after = shim.read_bytes(), done.plugin.read_bytes()
    assert len(after) == len(before)
    assert after.endswith(b"the rest")
    assert f"\0{SOCKET}\0".encode() in after
    assert f"\0{tmp_path}/journal\0".encode() in after
    assert (250_000).to_bytes(8, sys.byteorder) + b"0.25\0" in after


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "muslin-cni.here was not compiled here"),
        (b"\x7fELF of another machine", "Exec format error"),
        (b"#!/bin/sh\nexit 3\n", "muslin-cni.here ends with 3"),
        (b"#!/bin/sh\n", "muslin-cni.here ends with 0"),
    ],
)
def test_where_it_does_not_run_python_serves_and_the_reason_is_told(
    tmp_path: Path, shim: Path, content: bytes | None, why: str
) -> None:
    if content is None:
        shim.unlink()
    else:
        shim.write_bytes(content)
    done = put(tmp_path, twin="auto")
    assert done.twin == "python"
    assert why in done.why
    assert "musl-tools" in done.why
    assert done.plugin.read_text().startswith("#!")
    with pytest.raises(ConfigError, match=why):
        put(tmp_path, twin="c")


@pytest.mark.parametrize("times", [0, 2])
def test_one_without_exactly_one_place_for_settings_is_not_taken(
    tmp_path: Path, shim: Path, times: int
) -> None:
    shim.write_bytes(shim.read_bytes().replace(bare(), bare() * times))
    assert f"{times} places for settings" in put(tmp_path, twin="auto").why
    with pytest.raises(ConfigError, match=f"{times} places for settings"):
        put(tmp_path, twin="c")


def test_both_twins_are_settled_once_and_exchanged_when_told(tmp_path: Path) -> None:
    if fault := build.build():
        pytest.skip(f"no C twin: {fault}")
    assert put(tmp_path, twin="auto").twin == "c"
    assert put(tmp_path, twin="c").written == ()
    other = put(tmp_path, twin="python")
    assert other.written == (other.plugin,)


# ── compiling it ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only compiler: says in a file how often it was asked."""
    path = tmp_path / "tools" / "cc"
    path.parent.mkdir()
    script = f"""#!/bin/sh
        echo >>{tmp_path}/asked
        while [ "$1" != -o ]; do shift; done
        echo made >"$2"
        """
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))
    return path


def test_it_is_compiled_once(tmp_path: Path, compiler: Path) -> None:
    target = build.place(tmp_path)
    assert [build.build(tmp_path) for _ in range(3)] == [""] * 3
    assert target.read_text() == "made\n"
    assert (tmp_path / "asked").read_text() == "\n"
    os.utime(target, (0, 0))  # older than its source
    assert build.build(tmp_path) == ""
    assert (tmp_path / "asked").read_text() == "\n\n"


def test_a_compiler_that_fails_or_is_not_there_leaves_nothing_stale(
    tmp_path: Path, compiler: Path
) -> None:
    target = build.place(tmp_path)
    target.write_text("old")
    os.utime(target, (0, 0))
    compiler.write_text("#!/bin/sh\necho 'shim.c:1: error: no stdio.h' >&2\nexit 1\n")
    assert build.build(tmp_path) == "cc: shim.c:1: error: no stdio.h"
    assert not target.exists()
    compiler.unlink()
    assert build.build(tmp_path) == "no C compiler (musl-gcc, cc)"
    assert list(tmp_path.glob(".shim*")) == []


def test_our_own_configuration_of_a_former_name_goes_and_others_stay(tmp_path: Path) -> None:
    directory = tmp_path / "net.d"
    directory.mkdir()
    former, theirs = directory / "10-muslin.conflist", directory / "10-flannel.conflist"
    former.write_bytes(install.configuration(""))
    theirs.write_text('{"plugins": [{"type": "flannel"}]}')
    put(tmp_path)
    assert sorted(p.name for p in directory.iterdir()) == [
        "05-muslin.conflist",
        "10-flannel.conflist",
    ]
    chained = '{"plugins": [{"type": "muslin-cni"}, {"type": "tuning"}]}'
    former.write_text(chained)  # somebody's own work
    put(tmp_path)
    assert former.read_text() == chained
