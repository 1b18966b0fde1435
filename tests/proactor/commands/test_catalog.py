"""`proactor catalog`, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from proactor.catalogs import CatalogError, read_catalog
from proactor.commands.catalog import REMARKS, catalog
from proactor.commands.common import UsageError

APP = typer.Typer()
APP.command()(catalog)

TOOLS = [
    {
        "name": "book_table",
        "description": "[bold]x",
        "parameters": {"properties": {"day": {"type": "string"}, "tags": {"type": "array"}}},
    },
    {"name": "frob", "x-effect": "read", "x-confirm": True},
    {"name": "zork"},
]


def call(*arguments: object, error: type[Exception] | None = None) -> str:
    """What it prints; the message of the error that it ends with."""
    result = CliRunner().invoke(APP, [*map(str, arguments)], catch_exceptions=True)
    if error is None:
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output
    assert isinstance(result.exception, error), (result.output, result.exception)
    return str(result.exception)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS))
    return file


def row(said: str, name: str) -> list[str]:
    return next(
        [cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if f"│ {name} " in line
    )


def test_a_table_with_reasons(tools: Path) -> None:
    said = call(tools)
    assert row(said, "book_table") == ["book_table", "day?, tags?", "write*", "yes*", "'book' in the name"]
    assert row(said, "frob") == ["frob", "", "read", "yes", "given"]
    assert row(said, "zork")[2:] == ["write?", "no?", "no rule speaks: a guess"]
    assert "1 x lists are text, e.g. 'tags' of 'book_table'" in said
    assert (
        "3 tools; 2 with a proposal (*), 1 of them a guess (?). Nothing was written: -o catalog.json" in said
    )


def test_it_writes_what_a_person_edits(tools: Path, tmp_path: Path) -> None:
    said = call(tools, "-o", tmp_path)
    file = tmp_path / "catalog.json"
    assert f"Written: {file}" in said and "Read it through" in said and f"--catalog {file}" in said
    written = json.loads(file.read_text())
    assert (written["tools"][0]["effect"], written["tools"][0]["confirm"]) == ("write", True)
    written["tools"][0]["confirm"] = False
    file.write_text(json.dumps(written))
    assert not read_catalog(file)["book_table"].confirm
    assert "exists already, perhaps with edits of yours; --force replaces it" in call(
        tools, "-o", tmp_path, error=UsageError
    )
    assert not read_catalog(file)["book_table"].confirm
    again = call(file, "-o", tmp_path / "new" / "c.json")
    assert "nothing is proposed" in again and "Read it through" not in again
    assert not read_catalog(tmp_path / "new" / "c.json")["book_table"].confirm
    call(tools, "-o", tmp_path, "--force")
    assert read_catalog(file)["book_table"].confirm


def test_a_catalog_that_cannot_be_read_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('[{"name": "a"}, {"name": "a"}]')
    assert "tool 'a' is defined twice" in call(
        tmp_path / "bad.json", "-o", tmp_path / "out.json", error=CatalogError
    )
    assert not (tmp_path / "out.json").exists()


def test_rendering(tools: Path, tmp_path: Path) -> None:
    assert call(tools, "--render", "compact") == "book_table(day?, tags?) ask\nfrob() ask\nzork()\n"
    assert "- book_table: [bold]x [write, ask first]\n" in call(tools, "--render", "full")
    template = tmp_path / "own.j2"
    template.write_text("{% for t in tools %}<{{ t.name }}>{% endfor %}")
    assert call(tools, "--render", template) == "<book_table><frob><zork>\n"
    template.write_text("fine\n{% for t %}")
    assert f"{template}: line 2: " in call(tools, "--render", template, error=UsageError)
    template.write_text("{{ nothing.name }}")
    assert "'nothing' is undefined" in call(tools, "--render", template, error=UsageError)
    assert "neither full, compact nor a template" in call(tools, "--render", "nice", error=UsageError)


def test_formats(tools: Path) -> None:
    assert "3 tools" in call(tools, "--format", "openai")
    assert "--format xml: not one of auto, proactor, openai" in call(
        tools, "--format", "xml", error=UsageError
    )
    assert "service_name" in call(tools, "--format", "sgd", error=CatalogError)


def test_every_remark_has_words() -> None:
    """The kinds that readers use, as they stand in their code."""
    import re

    import proactor.catalogs as package

    code = "".join(file.read_text() for file in Path(package.__file__).parent.glob("*.py"))
    used = set(re.findall(r'"(\w+_as_text|flattened|\w+_joined|\w+_left_out)"', code))
    assert used == set(REMARKS)


def test_a_module_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    file = tmp_path / "tools.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef book_table(day: str): ...\n")
    for source in (file, f"module:{file}"):
        assert "--trust-code" in call(source, error=CatalogError)
        assert not (tmp_path / "ran").exists()
    assert row(call(file, "--trust-code"), "book_table")[1] == "day"


@pytest.mark.parametrize(
    "template",
    [
        "{{ tools[0].__class__.__mro__ }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_stays_in_its_sandbox_and_ends(tools: Path, tmp_path: Path, template: str) -> None:
    (tmp_path / "x.j2").write_text(template)
    assert "x.j2: " in call(tools, "--render", tmp_path / "x.j2", error=UsageError)
