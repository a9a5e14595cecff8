"""Settings: file, then environment; every fault at once, each by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from muslin import config
from muslin.errors import ConfigError


def load(tmp_path: Path, text: str = "", **environ: str) -> config.Config:
    file = tmp_path / "muslin.toml"
    file.write_text(text)
    return config.load(file, environ)


def test_an_empty_file_gives_the_defaults_and_the_host_name(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.store == "sqlite:/var/lib/muslin/store.db"
    assert loaded.node != ""
    assert str(loaded.cni_socket) == "/run/muslin/cni.sock"


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    text = 'node = "a"\nspare = 4'
    loaded = load(tmp_path, text, MUSLIN_NODE="b", MUSLIN_SPARE="7", MUSLIN_PODS="false")
    assert (loaded.node, loaded.spare, loaded.pods) == ("b", 7, False)
    with_addresses = load(tmp_path, 'node="a"', MUSLIN_ADDRESSES='["192.0.2.1/24"]')
    assert [str(a) for a in with_addresses.addresses] == ["192.0.2.1/24"]


def test_all_unknown_names_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "stor = 1\nnod = 2", MUSLIN_STROE="x")
    assert caught.value.faults == (
        "unknown setting 'stor'",
        "unknown setting 'nod'",
        "unknown variable MUSLIN_STROE",
    )


def test_all_bad_values_are_reported_together(tmp_path: Path) -> None:
    text = 'node = "../x"\nuplink = "a b"\nstate_dir = "rel"\nblock_ttl = 1.0\nlog_level = "loud"'
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    words = " ".join(caught.value.faults)
    for name in ("node '../x'", "uplink 'a b'", "state_dir 'rel'", "block_ttl 1.0", "log_level"):
        assert name in words


@pytest.mark.parametrize("name", ["A", "a_b", "-a", "a" * 64, "a/b", "a\x00b", ""])
def test_hostile_node_names_are_refused(tmp_path: Path, name: str) -> None:
    if name == "":
        return  # means: the host name
    with pytest.raises(ConfigError, match="node"):
        load(tmp_path, MUSLIN_NODE=name)


def test_a_value_of_the_wrong_type_names_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"spare"):
        load(tmp_path, 'spare = "many"')
    with pytest.raises(ConfigError, match="MUSLIN_SPARE"):
        load(tmp_path, MUSLIN_SPARE="[")


def test_a_file_that_is_not_there_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        config.load(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match=r"muslin\.toml: not TOML"):
        load(tmp_path, "= =")


def test_a_socket_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long for a socket path"):
        load(tmp_path, f'run_dir = "/{"x" * 100}"')


def test_what_only_kubernetes_can_say_is_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="blocks 'podcidr': only Kubernetes gives nodes podCIDRs"):
        load(tmp_path, 'blocks = "podcidr"')
    told = load(tmp_path, MUSLIN_BLOCKS="podcidr", MUSLIN_STORE="kubernetes:")
    assert (told.blocks, told.kubernetes) == ("podcidr", True)
    with pytest.raises(ConfigError, match="flannel: its nodes' ranges are their podCIDRs"):
        load(tmp_path, MUSLIN_FLANNEL="kube-flannel/cfg", MUSLIN_STORE="kubernetes:")
    beside = {"MUSLIN_BLOCKS": "podcidr", "MUSLIN_STORE": "kubernetes:"}
    with pytest.raises(ConfigError, match="flannel 'cfg': NAMESPACE/NAME"):
        load(tmp_path, MUSLIN_FLANNEL="cfg", **beside)
    assert load(tmp_path, MUSLIN_FLANNEL="kube-flannel/a.b", **beside).flannel == "kube-flannel/a.b"
    with pytest.raises(ConfigError, match="cni_bin_dir 'bin': must be an absolute path"):
        load(tmp_path, 'cni_bin_dir = "bin"')
