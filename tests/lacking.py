"""The checks that need what is not here: one line at the end of a run, and a run of just those (``--lacking``).

tests/conftest.py takes these hooks. A run leaves the names of the checks it left out in pytest's cache, where they stay
until they have passed. CI installs what was not there and runs these with SOE_CI set, where a lack is a failure: each
check runs once.
"""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest

from tests import extras

CACHE = "soe/lacking"
CATEGORY = "need more"
"""What pytest's last line calls them: "1625 passed, 47 need more"."""


def pytest_addoption(parser):
    parser.addoption(
        "--lacking",
        action="store_true",
        help="run the checks that earlier runs left out for what was not here",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(package, extra): left out where the package is not installed")


def pytest_runtest_setup(item):
    for mark in item.iter_markers("needs"):
        extras.needs(*mark.args, **mark.kwargs)


def pytest_collection_modifyitems(config, items):
    if config.getoption("lacking"):
        names = _left_out(config)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in names])
        items[:] = [item for item in items if item.nodeid in names]


def _left_out(config) -> list[str]:
    names = _noted(config)
    if names is None:
        raise pytest.UsageError(
            "--lacking: no run has left its notes in .pytest_cache. Run the tests first, with pytest's cache on."
        )
    return names


def _noted(config) -> list[str] | None:
    """The names that earlier runs noted; None without a note, or without the cache (``-p no:cacheprovider``)."""
    return config.cache.get(CACHE, None) if hasattr(config, "cache") else None


def pytest_report_teststatus(report):
    if report.skipped and isinstance(report.longrepr, tuple) and what_it_lacks(report):
        return CATEGORY, "s", "LACKING"
    return None


def what_it_lacks(report) -> tuple[str, str] | None:
    """What a skipped check needs, and how to have it; None if it was skipped for something else."""
    found = re.search(f"{extras.LACKING}(.*?): (.*)", report.longrepr[2])
    return (found[1], found[2]) if found else None


def pytest_terminal_summary(terminalreporter, config):
    reports = terminalreporter.stats.get(CATEGORY, [])
    ended = {
        report.nodeid for name in ("passed", CATEGORY) for report in terminalreporter.stats.get(name, [])
    }
    if hasattr(config, "cache"):
        before = [name for name in _noted(config) or [] if name not in ended]
        config.cache.set(CACHE, before + [report.nodeid for report in reports])
    if reports:
        terminalreporter.write_line(summary([what_it_lacks(report) for report in reports]), yellow=True)


def summary(lacks: list[tuple[str, str]]) -> str:
    """ "3 checks need what is not here: git-lfs (2: Debian's package git-lfs), ..."."""
    parts = [f"{what} ({count}: {how})" for (what, how), count in Counter(lacks).most_common()]
    checks = "1 check needs" if len(lacks) == 1 else f"{len(lacks)} checks need"
    return f"{checks} what is not here: {', '.join(parts)}"


def pytest_sessionfinish(session, exitstatus):
    nothing = session.config.getoption("lacking") and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
    if nothing and "PYTEST_XDIST_WORKER" not in os.environ and not _left_out(session.config):
        session.exitstatus = pytest.ExitCode.OK  # the run before had everything
