"""Log lines: levels, quoting, and nothing that a name could forge."""

from __future__ import annotations

from muslin.log import Log, line


def lines(level: str = "info") -> tuple[Log, list[str]]:
    written: list[str] = []
    return Log(lambda *event: written.append(line(*event, now=1.5)), level), written


def test_an_event_is_one_line_with_time_level_and_fields() -> None:
    log, written = lines()
    log.info("cni.add", container="web", ms=3.5)
    assert written == ["1970-01-01T00:00:01.500Z info    cni.add container=web ms=3.5\n"]


def test_what_is_below_the_level_is_dropped() -> None:
    log, written = lines("warning")
    log.info("a.b")
    log.warning("c.d")
    assert len(written) == 1


def test_a_hostile_value_cannot_forge_a_field_or_a_line() -> None:
    log, written = lines()
    log.info("cni.add", container='x\n2026 info agent.stopped "y" a=b')
    assert written[0].count("\n") == 1
    assert r'container="x\n2026 info agent.stopped \"y\" a=b"' in written[0]


def test_an_exception_brings_its_traceback_on_the_same_line() -> None:
    log, written = lines()
    try:
        raise ValueError("inside")
    except ValueError:
        log.exception("cni.fault", container="c")
    assert len(written) == 1
    assert "ValueError: inside" in written[0]
