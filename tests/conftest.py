"""For all suites: fixtures, and what the options and markers mean."""

from __future__ import annotations

import pytest

from namespaces import left_over, reason_not_to_run, spaces
from servers import serve

__all__ = ["serve", "spaces"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("muslin")
    group.addoption(
        "--cluster", metavar="KUBECONFIG", help="test against this cluster, and nothing else"
    )
    image = "docker.io/library/busybox:1.36"
    group.addoption("--cluster-image", default=image, help=f"what pods run there; {image}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--cluster` there are those that go by an API server, and those that would steer it."""
    if not config.getoption("--cluster"):
        return
    mine = [i for i in items if i.get_closest_marker("steers") or _needs(i) & {"serve", "kube"}]
    config.hook.pytest_deselected(items=[i for i in items if i not in mine])
    items[:] = mine


def _needs(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("steers") and item.config.getoption("--cluster"):
        pytest.skip("steers its API server")
    if item.get_closest_marker("root") and (reason := reason_not_to_run()):
        pytest.skip(reason)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if found := left_over():
        print(f"\nnamespaces left behind: {', '.join(found)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
