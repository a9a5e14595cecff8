"""nft's listings, read; and what is said when the library is missing."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from muslin.errors import ConfigError
from muslin.kernel import nft
from muslin.plan.node import RULES


@pytest.mark.parametrize(
    ("listed", "text"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ({"prefix": {"addr": "10.0.0.0", "len": 16}}, "10.0.0.0/16"),
        ({"range": ["10.0.0.1", "10.0.0.9"]}, "10.0.0.1-10.0.0.9"),
        ({"concat": ["10.0.0.1", "tcp", 80]}, "10.0.0.1 . tcp . 80"),
        ({"elem": {"val": "10.0.0.1", "comment": "x"}}, "10.0.0.1"),
        ({"concat": [{"prefix": {"addr": "fd00::", "len": 64}}, 80]}, "fd00::/64 . 80"),
    ],
)
def test_an_element_is_named_as_nft_prints_it(listed: object, text: str) -> None:
    assert nft._item(listed) == text


@pytest.mark.parametrize(
    ("name", "item", "text"),
    [
        ("ports4", [{"concat": [17, 53]}, {"concat": ["10.0.0.1", 53]}], "udp . 53"),
        ("ports4", [{"concat": ["tcp", 6]}, {"concat": ["10.0.0.1", 6]}], "tcp . 6"),
        (
            "ipports6",
            [{"concat": ["fd00::1", 6, 17]}, {"concat": ["fd00::2", 1]}],
            "fd00::1 . tcp . 17",
        ),
        ("others", [{"concat": [17, 53]}, "10.0.0.1"], "17 . 53"),
    ],
)
def test_a_protocol_has_its_name_where_etc_protocols_is_missing(
    name: str, item: object, text: str
) -> None:
    assert nft._listed("map", name, item, None).item == text


def test_rules_are_counted_by_chain_and_nothing_else_is() -> None:
    assert nft.count_rules(RULES) == {
        "guard": 5,
        "arriving": 2,
        "answering": 2,
        "starting": 2,
        "mapped": 4,
        "leaving": 5,
    }


def test_comments_and_empty_lines_are_no_rules() -> None:
    body = (
        "chain c {\n\ttype filter hook input priority 0;\n\tpolicy accept;\n\n\t# no\n\taccept\n}\n"
    )
    assert nft.count_rules(body) == {"c": 1}


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("libnftables.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(ConfigError, match=r"install the package libnftables1"):
        nft._load()
