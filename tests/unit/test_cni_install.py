"""Two files appear whole, in order, and only when they have to."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from muslin.cni import install
from muslin.errors import ConfigError

SOCKET = Path("/run/muslin/cni.sock")


def put(tmp_path: Path, **options: object) -> install.Installed:
    arguments = {"bin_dir": tmp_path / "bin", "conf_dir": tmp_path / "net.d", "socket": SOCKET}
    return install.install(**(arguments | options))  # type: ignore[arg-type]


def test_both_files_are_where_runtimes_look(tmp_path: Path) -> None:
    done = put(tmp_path)
    assert done.plugin == tmp_path / "bin/muslin-cni"
    assert done.conflist == tmp_path / "net.d/10-muslin.conflist"
    assert done.written == (done.plugin, done.conflist)
    assert stat.S_IMODE(done.plugin.stat().st_mode) == 0o755
    assert stat.S_IMODE(done.conflist.stat().st_mode) == 0o644
    assert sorted(tmp_path.rglob("*")) == sorted(
        [tmp_path / "bin", tmp_path / "net.d", done.plugin, done.conflist]
    )


def test_an_old_runtime_can_read_the_configuration_and_a_new_one_gets_gc(tmp_path: Path) -> None:
    assert json.loads(put(tmp_path, network="blue").conflist.read_bytes()) == {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "muslin",
        "plugins": [{"type": "muslin-cni", "network": "blue"}],
    }


def test_the_default_network_is_the_agents_to_choose(tmp_path: Path) -> None:
    plugins = json.loads(put(tmp_path).conflist.read_bytes())["plugins"]
    assert plugins == [{"type": "muslin-cni"}]


def test_the_executable_starts_a_bare_interpreter_and_knows_its_socket(tmp_path: Path) -> None:
    lines = put(tmp_path, python="/usr/bin/python3", deadline=5.0).plugin.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/python3 -ISE"
    assert "SOCKET = '/run/muslin/cni.sock'" in lines
    assert "DEADLINE = 5.0" in lines


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
    assert list(tmp_path.rglob("*")) == [tmp_path / "bin"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("socket", Path("run/cni.sock")),
        ("socket", Path("/run/it's/cni.sock")),
        ("socket", Path("/run/" + "x" * 110)),
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
