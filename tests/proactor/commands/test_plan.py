"""``proactor plan``: a table by card, and one line for what cannot be planned."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from proactor.cli import app
from proactor.commands.common import UsageError


def test_a_table_by_card() -> None:
    done = CliRunner().invoke(app, ["plan", "qwen2.5-32b", "--gpu", "24", "--gpu", "80", "token_budget=2000"])
    assert done.exit_code == 0, done.output
    assert "80 GB" in done.output and "24 GB" not in done.output.split("Qwen2.5-32B", 1)[0]
    assert "by turns" in done.output and "20,896" in done.output
    assert "needs at least" in done.output, "why the smaller card is not in the table"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpt-9"], "model 'gpt-9'"),
        (["qwen2.5-72b", "--gpu", "24"], "needs at least"),
        (["qwen2.5-7b", "chunk_rows"], "'chunk_rows': options of the engine are written KEY=VALUE"),
        (["qwen2.5-7b", "chunks=3"], "unknown option 'chunks'"),
    ],
)
def test_refusals(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["plan", *arguments])
    assert done.exception is not None and words in str(done.exception)
    assert isinstance(done.exception, UsageError) or "\n" not in str(done.exception)
