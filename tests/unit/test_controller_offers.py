"""What an upgrade adds to settings that are somebody's."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from muslin.controller import manifests
from muslin.controller.offers import OFFERED, keys, offer
from muslin.errors import ConfigError

BASE = {
    "metadata": {"name": "muslin"},
    "data": {
        "agent.toml": 'store = "kubernetes:"\n# Why.\n# And how.\ncni_install = true\n# x = 1\n',
        "controller.toml": 'store = "kubernetes:"\n# Where.\nwebhook = "h:1"\nlease = 9.0\n',
    },
}


def live(agent: str = "", controller: str = "", offered: str | None = None) -> dict[str, Any]:
    annotations = {} if offered is None else {"annotations": {OFFERED: offered}}
    data = {"agent.toml": agent, "controller.toml": controller}
    return {"metadata": {"name": "muslin", **annotations}, "data": data}


def test_new_lines_come_first_with_their_comments_and_the_rest_stays() -> None:
    mine = 'log_level = "debug"  # mine\n[store_options]\ncontext = """\n[x]"""'
    made = offer(BASE, live(controller=mine))
    assert made.files["controller.toml"] == '# Where.\nwebhook = "h:1"\nlease = 9.0\n' + mine
    assert tomllib.loads(made.files["controller.toml"])["webhook"] == "h:1"
    assert made.lines == ('controller.toml: webhook = "h:1"', "controller.toml: lease = 9.0")


def test_what_is_set_is_not_offered_whatever_it_says() -> None:
    made = offer(BASE, live(controller='webhook = ""\nlease = 15.0\n'))
    assert made.lines == ()
    assert made.files["controller.toml"] == 'webhook = ""\nlease = 15.0\n'


def test_what_was_offered_before_is_not_offered_again() -> None:
    first = offer(BASE, live())
    again = offer(BASE, live(offered=first.offered))
    assert again.lines == ()
    assert again.offered == first.offered
    assert "agent.toml/cni_install" in first.offered.split()
    assert "cni_install" not in first.files["agent.toml"], "there before anything was offered"
    one = offer(BASE, live(offered="controller.toml/webhook old/one"))
    assert 'controller.toml: webhook = "h:1"' not in one.lines
    assert one.offered.split()[:2] == ["controller.toml/webhook", "old/one"]


def test_a_file_that_is_not_there_comes_whole() -> None:
    older = live()
    del older["data"]["controller.toml"]
    made = offer(BASE, older)
    assert tomllib.loads(made.files["controller.toml"]) == tomllib.loads(
        BASE["data"]["controller.toml"]
    )
    assert len(made.lines) == 3


def test_settings_that_cannot_be_read_are_named_before_anything_is_done() -> None:
    with pytest.raises(ConfigError, match=r"ConfigMap muslin: agent\.toml: "):
        offer(BASE, live(agent="store = \n"))


def test_the_manifests_say_what_they_offer() -> None:
    """Every setting of deploy/base stands in its annotation, or `upgrade` would add it twice."""
    [settings] = [t.body for t in manifests.targets("vxlan") if t.stage == "settings"]
    said = settings["metadata"]["annotations"][OFFERED].split()
    texts = settings["data"]
    assert said == [f"{name}/{key}" for name, text in texts.items() for key in keys(text)]
    assert {name: keys(text) for name, text in texts.items()} == {
        name: list(tomllib.loads(text)) for name, text in texts.items()
    }
