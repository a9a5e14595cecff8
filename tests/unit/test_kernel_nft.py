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


def test_rules_are_counted_by_chain_and_nothing_else_is() -> None:
    assert nft.count_rules(RULES) == {"guard": 2, "leaving": 2}


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
