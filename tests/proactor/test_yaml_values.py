"""YAML is read within bounds, and what is wrong in it is one line with its place."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from proactor.files import SourceError
from proactor.yaml_values import parse_yaml, read_yaml

NAMES = "abcdefghijklmnopqrstuvw"
LISTS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise(NAMES))
MERGES = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in pairwise(NAMES))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LISTS, ":1: not YAML (more than 100000 keys and values, aliases unfolded)"),
        (MERGES, ":1: not YAML (more than 100000 keys and values, aliases unfolded)"),
        ("x: 1\na: &a [*a]\n", ":2: not YAML (an alias stands inside what it stands for)"),
        ("a: &a {b: {c: *a}}\n", ":1: not YAML (an alias stands inside what it stands for)"),
        ("a: 1\n? [x]\n: 2\n", ":2: not YAML (found unhashable key)"),
        ("a: 1\n? {x: y}\n: 2\n", ":2: not YAML (found unhashable key)"),
        ("a: 1\nb: 2\na: 3\n", ":3: not YAML (key 'a' is given twice)"),
        ("a: 2026-02-30\n", ":1: not YAML ('2026-02-30' is no timestamp)"),
        ("a: !!int x\n", ":1: not YAML ('x' is no int)"),
        ("a: !!int ''\n", ":1: not YAML ('' is no int)"),
        ("a: !!float x\n", ":1: not YAML ('x' is no float)"),
        ("a: !!bool x\n", ":1: not YAML ('x' is no bool)"),
        ("a: !!timestamp x\n", ":1: not YAML ('x' is no timestamp)"),
        (f"a: {'9' * 5000}\n", ":1: not YAML (a number of 5000 characters)"),
        (f"a: 0x{'f' * 5000}\n", ":1: not YAML (a number of 5002 characters)"),
        (f"a: {'1' * 500_000}\n", ":1: not YAML (a number of 500000 characters)"),
        ("a: !!python/object/apply:os.system [ls]\n", ":1: not YAML (could not determine a constructor"),
        ('a: "\\U00110000"', ": not YAML (chr() arg not in range"),
        ('a: "\\UFFFFFFFF"', ": not YAML (Python int too large"),
        (f"a: {'[' * 5000}", ": not YAML (nested too deeply)"),
        ("- " * 5000, ": not YAML (nested too deeply)"),
        ("a: {", ":1: not YAML (expected the node content, but found '<stream end>'"),
        ("a: \x07", ": not YAML (unacceptable character #x0007: special characters are not allowed)"),
        ("x" * 2**21, ": not YAML (more than 1048576 characters)"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_wrong_is_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_yaml(text, "run.yaml")
    assert str(caught.value).startswith(f"run.yaml{message}")
    assert str(caught.value).isprintable()


def test_aliases_and_merges_that_are_meant() -> None:
    text = "a: &a {x: 1, y: 1e-5}\nb: {<<: *a, x: 2}\nc: [*a, *a]\nd: 2026-02-28\n"
    value = parse_yaml(text, "run.yaml")
    assert value["b"] == {"x": 2, "y": 1e-5} and value["c"] == [value["a"]] * 2
    assert [parse_yaml(t, "x") for t in ("1e5", "1.e5", "-.5E-3", "1.5e+3")] == [1e5, 1e5, -5e-4, 1500.0]


def test_a_file_holds_keys_and_values(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for text in ("", "- a\n", "5\n"):
        file.write_text(text)
        with pytest.raises(SourceError, match=r"a\.yaml: expected keys and values, found"):
            read_yaml(file)
