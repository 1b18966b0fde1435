"""Prints the table of how the cases ended."""

from __future__ import annotations

import pytest

from tests.fuzz import harness


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if harness.ENDS and harness.COUNT:
        terminalreporter.write_line("\n".join(["", *harness.table()]))
