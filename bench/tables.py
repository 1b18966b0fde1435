"""Results tables in Markdown: each cell is a number from a JSON record, found by key path.

An HTML comment directly above a table declares where its cells come from, in YAML:

    <!-- table: bench/results/amd-epyc-2-cores/learning-demo.json
    rows: {turn reward: reward, recall: recall}
    columns:
      start: "{before.KEY:.3f}"
      change [95%]: "{difference.KEY:+.3f}"
    -->

``rows`` maps the label in the first column to the key path that stands for KEY, or to several such names
(``{AT: systems.start, REWARD: rac}``); ``record`` among them names a record for that row alone. ``columns``
maps headers to format strings: a key path, a colon, a Python format. A path may begin at ``within``. In a
list, a step is an index or ``key=value``, the item with that value. An interval (``estimate``, ``low``,
``high``) becomes ``estimate [low, high]``, a list ``[a, b]``, null a dash. A cell whose format needs a name
that its row lacks is empty. Columns that are not declared hold text. A table without numbers needs no
declaration; one whose numbers are not results says ``<!-- table: none: reason -->``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.markdown import CODE_SPAN, FENCE, blank, line_of

SEPARATOR = re.compile(r"^\|(?: *:?-+:? *\|)+ *$")
DECLARATION = re.compile(r"<!-- table:((?:(?!-->).)*)-->\s*", re.DOTALL)
NUMBER = re.compile(r"[-+−]?\d[\d.,]* ?(?:x|s|ms|%|GB|MiB)?(?: ?[\[(][-+\d., –x%]*[\])])?")
PLACEHOLDER = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")


class TableError(Exception):
    """A declaration that cannot be followed; the message says why."""


@dataclass
class Table:
    """A table of a file. ``start``, ``end``: offsets of its text; ``line``: of its header, from 1;
    ``declaration``: the text after ``table:`` in the comment above it.
    """

    start: int
    end: int
    line: int
    header: list[str]
    rows: list[list[str]]
    declaration: str | None


def tables(text: str) -> Iterator[Table]:
    """The tables of a Markdown text, those inside code blocks left out."""
    lines = blank(text, FENCE).splitlines(keepends=True)
    offset, at = 0, 0
    while at < len(lines):
        end = at
        while end < len(lines) and lines[end].lstrip().startswith("|"):
            end += 1
        size = sum(map(len, lines[at:end]))
        if end - at >= 2 and SEPARATOR.match(lines[at + 1].strip()):
            rows = [split_row(line) for line in text[offset : offset + size].splitlines()]
            above = re.search(DECLARATION.pattern + r"\Z", text[:offset], re.DOTALL)
            declaration = above.group(1).strip() if above else None
            yield Table(offset, offset + size, line_of(text, offset), rows[0], rows[2:], declaration)
        end = max(end, at + 1)
        offset += sum(map(len, lines[at:end]))
        at = end


def split_row(line: str) -> list[str]:
    """The cells of a table's line, stripped."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def is_number(cell: str) -> bool:
    """Whether a cell is a number, with or without unit and interval. Emphasis does not matter."""
    return NUMBER.fullmatch(blank(cell, CODE_SPAN).strip("* ")) is not None


def look_up(record: Any, path: str) -> Any:
    """The value at a key path, whose keys may hold dots. Raises `TableError` where a step leads nowhere."""
    value, steps = record, path.split(".")
    while steps:
        dotted = (n for n in range(1, len(steps) + 1) if isinstance(value, dict))
        taken = next((n for n in dotted if ".".join(steps[:n]) in value), 1)
        step, steps = ".".join(steps[:taken]), steps[taken:]
        try:
            if isinstance(value, list) and "=" in step:
                key, _, wanted = step.partition("=")
                (value,) = (item for item in value if str(item[key]) == wanted)
            else:
                value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise TableError(f"no {step!r} in {path!r}") from None
    return value


def format_value(value: Any, spec: str) -> str:
    """A number, an interval or a list as a cell shows it."""
    if value is None:
        return "–"
    if isinstance(value, dict) and {"estimate", "low", "high"} <= value.keys():
        if None in value.values():
            return "–"
        return f"{value['estimate']:{spec}} [{value['low']:{spec}}, {value['high']:{spec}}]"
    if isinstance(value, list):
        return f"[{', '.join(format(item, spec) for item in value)}]"
    if not isinstance(value, int | float | str):
        raise TableError(f"neither a number nor an interval: {str(value)[:60]}")
    return format(value, spec)


class Declaration:
    """What a comment says of the table below it. Raises `TableError` if it cannot be understood."""

    def __init__(self, text: str, root: Path) -> None:
        self.root = root
        self.record, _, body = text.partition("\n")
        try:
            content = yaml.safe_load(body)
            self.columns: dict[str, str] = content["columns"]
            self.rows: dict[str, dict[str, str]] = {
                str(label): names if isinstance(names, dict) else {"KEY": str(names)}
                for label, names in content["rows"].items()
            }
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise TableError(f"declaration without readable rows and columns: {error!r}") from None
        self.within = f"{content['within']}." if "within" in content else ""
        self.names = {name for row in self.rows.values() for name in row} - {"record"}

    def cell(self, label: str, column: str) -> str:
        """The text of a cell, from the record."""
        row, template = self.rows[label], self.columns[column]
        steps = {step for path, _ in PLACEHOLDER.findall(template) for step in path.split(".")}
        if steps & self.names - row.keys():
            return ""
        record = self.load(row.get("record", self.record))

        def value(match: re.Match[str]) -> str:
            path = ".".join(str(row.get(step, step)) for step in match.group(1).split("."))
            return format_value(look_up(record, self.within + path), match.group(2) or "")

        return PLACEHOLDER.sub(value, template)

    def load(self, name: str) -> Any:
        """The record at a path from the root of the repository."""
        try:
            return json.loads((self.root / name.strip()).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise TableError(f"no record {name.strip()!r}") from None

    def fill(self, table: Table) -> list[list[str]]:
        """The rows that the table should have: declared cells from the record, others as they are."""
        if missing := self.columns.keys() - set(table.header[1:]):
            raise TableError(f"no column {sorted(missing)}")
        text: Mapping[str, list[str]] = {row[0].strip("* "): row for row in table.rows}
        filled = []
        for label in self.rows:
            present = text.get(label, [])
            cells = [present[0] if present else label]
            for at, column in enumerate(table.header[1:], 1):
                written = present[at] if at < len(present) else ""
                if column not in self.columns and is_number(written):
                    raise TableError(f"{label!r}: numbers in the undeclared column {column!r}")
                cells.append(self.cell(label, column) if column in self.columns else written)
            filled.append(cells)
        return filled


def check_tables(text: str, root: Path) -> tuple[list[tuple[int, str]], str]:
    """Problems of a file's tables as (line, message), and the text with its cells filled from the records.
    Where a declaration cannot be followed the table stays as it is.
    """
    starts = {table.start for table in tables(text)}
    problems = [
        (line_of(text, declared.start()), "a declaration without a table below it")
        for declared in DECLARATION.finditer(blank(text, FENCE))
        if declared.end() not in starts
    ]
    filled_text, shift = text, 0
    for table in tables(text):
        if table.declaration is None:
            if any(is_number(cell) for row in table.rows for cell in row[1:]):
                problems.append((table.line, "a table of numbers without a declaration: <!-- table: … -->"))
            continue
        if table.declaration.startswith("none:"):
            if not table.declaration.removeprefix("none:").strip():
                problems.append((table.line, "'table: none:' without a reason"))
            continue
        try:
            filled = Declaration(table.declaration, root).fill(table)
        except TableError as error:
            problems.append((table.line, str(error)))
            continue
        problems += [(table.line, message) for message in differences(table, filled)]
        if filled != table.rows:
            head = text[table.start : table.end].splitlines()[:2]
            new = "\n".join([*head, *(f"| {' | '.join(row)} |" for row in filled)]) + "\n"
            filled_text = filled_text[: table.start + shift] + new + filled_text[table.end + shift :]
            shift += len(new) - (table.end - table.start)
    return problems, filled_text


def differences(table: Table, filled: list[list[str]]) -> Iterator[str]:
    """One message for each cell that is not what its record says, or one if the rows differ."""
    written, declared = ([row[0].strip("* ") for row in rows] for rows in (table.rows, filled))
    if written != declared:
        yield f"rows {written}, declared {declared}"
        return
    for row, right in zip(table.rows, filled, strict=True):
        if len(row) != len(right):
            yield f"{row[0]!r} has {len(row)} cells, its header {len(right)}"
            continue
        for column, cell, value in zip(table.header, row, right, strict=True):
            if cell != value:
                yield f"{row[0]!r}, {column!r}: {cell!r}, the record says {value!r}"
