"""Label selectors as text: what is read, what is refused, and the same answers as a server's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.selectors import parse_labels
from muslin.controller.slices.selectors import LONGEST, Term, equal, parse

KEYS, VALUES = ("app", "tier", "x.io/role"), ("db", "web", "1.2_a-b", "")
key, value = st.sampled_from(KEYS), st.sampled_from(VALUES)
spaces = st.sampled_from(["", " "])


@st.composite
def terms(draw: st.DrawFn) -> str:
    name, gap = draw(key), draw(spaces)
    match draw(st.integers(0, 4)):
        case 0:
            return f"{name}{gap}{draw(st.sampled_from(['=', '==', '!=']))}{gap}{draw(value)}"
        case 1:
            values = f"{gap},{gap}".join(draw(st.lists(value, min_size=1, max_size=3)))
            return f"{name} {draw(st.sampled_from(['in', 'notin']))}{gap}({values})"
        case 2:
            return f"!{gap}{name}"
        case _:
            return name


@given(
    st.lists(terms(), min_size=1, max_size=3).map(",".join), st.dictionaries(key, value, max_size=3)
)
def test_it_selects_what_a_server_would(text: str, labels: dict[str, str]) -> None:
    mine = all(term.matches(labels) for term in parse(text))
    assert mine == all(need.met_by(labels) for need in parse_labels(text))


def test_a_services_own_selector_is_the_same_as_text() -> None:
    assert equal({"app": "db", "tier": ""}) == parse("app=db,tier=")
    assert parse(" app in (db) , !old ") == (
        Term("app", frozenset({"db"})),
        Term("old", wanted=False),
    )


@pytest.mark.parametrize(
    "text",
    ["", "  ", ",", "app=db,", "a b", "a>1", "a=b=c", "a in b", "a in (b", "=b", "a=b!",
     "a in (b!)", "A/b=c", "a/b/c", "a=" + "x" * 64, "x" * 64, "a notin", "!a=b", "app in (a,b),,x",
     "a," * LONGEST],
)  # fmt: skip
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is none of|is empty|no value|longer"):
        parse(text)


def test_a_hostile_text_is_refused_at_once() -> None:
    for text in ("a" + "-" * 1000 + "!", "a in (" + "(" * 1000, "a." * 500 + "!", "," * LONGEST):
        with pytest.raises(ValueError, match=r"is none of|is empty|no value|longer"):
            parse(text)
