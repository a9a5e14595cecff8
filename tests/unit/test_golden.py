"""Every backend's plans, as a network engineer would type them."""

from __future__ import annotations

import pytest

from golden.cases import HERE, Case, all_cases
from muslin import backend

CASES = list(all_cases())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_plan_is_the_one_that_was_reviewed(case: Case) -> None:
    assert case.text() == case.expected(), "if this is meant: python -m tests.golden"


@pytest.mark.parametrize("name", backend.names())
def test_every_backend_has_a_golden(name: str) -> None:
    assert list((HERE / name).glob("*/in.toml"))
