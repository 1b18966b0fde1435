"""Commands called in the process of the test."""

from __future__ import annotations

import sys

import pytest

from proactor import cli


def call(*arguments: object) -> None:
    """Run a command; SystemExit carries an exit code other than 0."""
    old = sys.argv
    sys.argv = ["proactor", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as end:
        if end.code not in (0, None):
            raise
    finally:
        sys.argv = old


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """The one line of a command that is refused."""
    with pytest.raises(SystemExit) as end:
        call(*arguments)
    said = capsys.readouterr().err.strip()
    assert end.value.code == code and said.startswith("proactor: ") and "\n" not in said, said
    return said
