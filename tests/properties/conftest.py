"""The examples that the laws saw, at the end of a run."""

from __future__ import annotations

import pytest
from examples import summary


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := summary():
        terminalreporter.section("examples of each law")
        for line in lines:
            terminalreporter.write_line(line)
