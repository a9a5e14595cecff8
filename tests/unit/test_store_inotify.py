"""Hearing that a file was touched."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from muslin.store.inotify import Touches


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file"


def heard(touches: Touches) -> bool:
    return bool(select.select([touches.fd], [], [], 0)[0])


def test_a_touch_is_heard_until_it_is_drained(path: Path) -> None:
    touches = Touches(path)
    assert not heard(touches)
    os.utime(path)
    os.utime(path)
    assert heard(touches)
    touches.drain()
    assert not heard(touches)
    touches.close()
    touches.close()


def test_reading_and_writing_a_file_are_not_touches(path: Path) -> None:
    """SQLite's own writes would wake watchers before there is something to see."""
    touches = Touches(path)
    path.write_bytes(b"x")
    path.read_bytes()
    assert not heard(touches)
    touches.close()


def test_a_missing_file_is_an_os_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        Touches(tmp_path / "none")
