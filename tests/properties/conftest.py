"""The examples that the laws saw, and which planted mistakes they noticed, at the end of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples import summary
from matrix import table
from record import record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for title, lines in (("examples of each law", summary()), ("laws that noticed a planted mistake", table())):
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)
    if path := terminalreporter.config.getoption("--record"):
        record(Path(path), terminalreporter)
