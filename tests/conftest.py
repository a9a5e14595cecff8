"""For all suites: the `spaces` fixture, and what the marker `root` means."""

from __future__ import annotations

import pytest

from namespaces import left_over, reason_not_to_run, spaces

__all__ = ["spaces"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("muslin")
    group.addoption("--cluster", metavar="KUBECONFIG", help="test this cluster (tests/cluster)")
    image = "docker.io/library/busybox:1.36"
    group.addoption("--cluster-image", default=image, help=f"what pods run there; {image}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and (reason := reason_not_to_run()):
        pytest.skip(reason)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if found := left_over():
        print(f"\nnamespaces left behind: {', '.join(found)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
