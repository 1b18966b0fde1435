"""The documentation checks: each kind of failure is found, and cells are filled from records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import docs
from bench.markdown import anchors
from bench.tables import TableError, check_tables, look_up

RECORD = {
    "before": {"f1": 0.5, "recall": 0.25},
    "after": {"f1": 0.625, "recall": 0.5},
    "change": {"f1": {"estimate": 0.125, "low": -0.0625, "high": 0.25}},
    "systems": [
        {"name": "never ever", "wrong": 0},
        {"name": "greedy", "wrong": 27.5, "range": [22.25, 32.75]},
    ],
    "undefined": None,
}
HEAD = """<!-- table: record.json
rows: {F1: f1, recall: recall}
columns:
  before: "{before.KEY:.3f}"
  after: "{after.KEY:.1%}"
-->
| metric | before | after |
|---|---|---|
"""
RIGHT = "| F1 | 0.500 | 62.5% |\n| recall | 0.250 | 50.0% |\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for folder in ("docs", "bench", "engine"):
        (tmp_path / folder).mkdir()
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    (tmp_path / "engine" / "kv.py").touch()
    (tmp_path / "bench" / "step.py").touch()
    (tmp_path / "README.md").write_text("# Front\n\nSee [the guide](docs/guide.md#two-words).\n")
    (tmp_path / "docs" / "guide.md").write_text("# Guide\n\n## Two `words`\n\n[back](../README.md)\n")
    return tmp_path


def run(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """Lines that the command prints; the last one holds the counts. Its exit code must fit them."""
    with pytest.raises(SystemExit) as ended:
        docs.main(["--root", str(root), *options])
    lines = capsys.readouterr().out.splitlines()
    assert (ended.value.code == 0) == lines[-1].endswith(" 0 problems")
    return lines


def problems(root: Path, capsys: pytest.CaptureFixture[str], text: str) -> list[str]:
    """What is wrong with ``text`` as ``docs/page.md``."""
    (root / "docs" / "page.md").write_text(text)
    return [line.removeprefix("docs/page.md:") for line in run(root, capsys)[:-1]]


def table_problems(text: str, root: Path) -> list[str]:
    return [message for _, message in check_tables(text, root)[0]]


def test_a_sound_repository_passes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = run(repository, capsys)
    assert line == "2 files; README: 3 of 110 lines, 5 of 900 words, 0 of 2 tables; 0 problems"


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("[a](gone.md)", "3: no file for the link 'gone.md'"),
        ("![a](gone.png)", "3: no file for the link 'gone.png'"),
        ("[`code`](../engine/gone.py)", "3: no file for the link '../engine/gone.py'"),
        ("[a](guide.md#two)", "3: no heading for the anchor 'guide.md#two'"),
        ("[a](#nowhere)", "3: no heading for the anchor '#nowhere'"),
    ],
)
def test_dead_links(repository: Path, capsys: pytest.CaptureFixture[str], link: str, problem: str) -> None:
    assert problems(repository, capsys, f"# Page\n\n{link}\n") == [problem]


def test_links_that_are_right(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "# Page\n\n[a](#page) [b](guide.md#two-words) [c](../engine) [d](https://x.org/y#z) `[e](gone.md)`\n"
    )
    assert problems(repository, capsys, f"{text}\n```\n[f](gone.md)\n```\n") == []


def test_anchors_follow_github(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(
        "# A: `b_c` & [d](e.md)!\n\n## Twice\n\n## Twice\n\n```\n# no heading\n```\n### 1.5 Metrics\n"
    )
    assert anchors(file) == {"a-b_c--d", "twice", "twice-1", "15-metrics"}


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("`engine/gone.py`", "no file or folder 'engine/gone.py'"),
        ("`engine/gone/`", "no file or folder 'engine/gone/'"),
        ("`python engine/gone.py MODEL`", "no file or folder 'engine/gone.py'"),
        ("`gone.py`", "no file or folder 'gone.py'"),
        ("`other/gone.yaml`", "no file or folder 'other/gone.yaml'"),
        ("`python -m bench.gone`", "no module 'bench.gone'"),
        ("```sh\ncat engine/gone.py\n```", "no file or folder 'engine/gone.py'"),
    ],
)
def test_missing_paths(repository: Path, capsys: pytest.CaptureFixture[str], code: str, missing: str) -> None:
    (problem,) = problems(repository, capsys, f"# Page\n\n{code}\n")
    assert problem.endswith(missing)


@pytest.mark.parametrize(
    "code",
    "engine/kv.py kv.py engine/ engine/kv.py, runs/demo/report.html bench/<machine>/x.json bench/*.md "
    "/tmp/gone.py Qwen/Qwen2.5-0.5B summary.json a/b bench.step".split(),
)
def test_words_that_are_no_missing_path(
    repository: Path, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    assert problems(repository, capsys, f"# Page\n\n`{code}`\n") == []


def test_cells_equal_their_record(repository: Path) -> None:
    assert table_problems(HEAD + RIGHT, repository) == []


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("0.500", "0.501", "'F1', 'before': '0.501', the record says '0.500'"),
        ("0.250", "0.500", "'recall', 'before': '0.500', the record says '0.250'"),  # a number of another key
        ("| recall |", "| precision |", "rows ['F1', 'precision'], declared ['F1', 'recall']"),
        ("| recall | 0.250 | 50.0% |\n", "", "rows ['F1'], declared ['F1', 'recall']"),
        ("| 62.5% |", "|", "'F1' has 2 cells, its header 3"),
        ("after |", "later |", "no column ['after']"),
        ("record.json", "gone.json", "no record 'gone.json'"),
        ("{before.KEY", "{earlier.KEY", "no 'earlier' in 'earlier.f1'"),
        ("{before.KEY:.3f}", "{before}", "neither a number nor an interval: {'f1': 0.5, 'recall': 0.25}"),
    ],
)
def test_wrong_tables(repository: Path, right: str, wrong: str, problem: str) -> None:
    assert right in HEAD + RIGHT
    assert table_problems((HEAD + RIGHT).replace(right, wrong), repository) == [problem]


def test_unreadable_declaration(repository: Path) -> None:
    (problem,) = table_problems(HEAD.replace("columns:", "colums:") + RIGHT, repository)
    assert problem.startswith("declaration without readable rows and columns")


def test_a_declaration_without_a_table(repository: Path) -> None:
    declaration = HEAD.partition("| metric")[0]
    text = f"{declaration}\nProse.\n\n{HEAD}{RIGHT}\n```\n{declaration}```\n"
    assert check_tables(text, repository)[0] == [(1, "a declaration without a table below it")]


def test_numbers_in_an_undeclared_column(repository: Path) -> None:
    text = HEAD.replace('  after: "{after.KEY:.1%}"\n', "") + RIGHT
    assert table_problems(text, repository) == ["'F1': numbers in the undeclared column 'after'"]


@pytest.mark.parametrize(
    "cell", ["0.5", "**67.0 [55.0, 79.5]**", "-4%", "1.33 s", "2.58x (2.27-2.96)", "4,208"]
)
def test_undeclared_table_of_numbers(repository: Path, cell: str) -> None:
    table = f"| a | b |\n|---|---|\n| c | {cell} |\n"
    (problem,) = table_problems(table, repository)
    assert "without a declaration" in problem
    assert table_problems(f"<!-- table: none: settings, not results -->\n{table}", repository) == []
    assert table_problems(f"<!-- table: none: -->\n{table}", repository) == [
        "'table: none:' without a reason"
    ]
    assert table_problems(f"```\n{table}```\n", repository) == []


def test_a_table_of_words_needs_no_declaration(repository: Path) -> None:
    assert table_problems("| a | b |\n|---|---|\n| 1 | two 2 |\n| c | |\n", repository) == []


def test_rows_of_several_records_names_lists_and_empty_cells(repository: Path) -> None:
    (repository / "other.json").write_text(json.dumps({"systems": [{"name": "greedy", "wrong": 3}]}))
    text = """<!-- table: record.json
within: systems
rows:
  start: {AT: name=never ever}
  greedy: {AT: name=greedy, RANGE: name=greedy.range}
  other: {AT: 0, record: other.json}
columns:
  wrong [95%]: "{AT.wrong:.1f} {RANGE:.1f}"
  wrong: "{AT.wrong:.0f}"
-->
| agent | wrong [95%] | wrong | note |
|---|---|---|---|
| greedy | | | said *once* |
"""
    filled = check_tables(text, repository)[1].partition("|---|---|---|---|\n")[2]
    assert filled.splitlines() == [
        "| start |  | 0 |  |",
        "| greedy | 27.5 [22.2, 32.8] | 28 | said *once* |",
        "| other |  | 3 |  |",
    ]


def test_intervals_and_undefined_values(repository: Path) -> None:
    text = """<!-- table: record.json
rows: {F1: change.f1, nothing: undefined}
columns: {change: "{KEY:+.3f}"}
-->
| metric | change |
|---|---|
| F1 | +0.125 [-0.062, +0.250] |
| nothing | – |
"""
    assert table_problems(text, repository) == []


def test_write_fills_the_cells(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = repository / "docs" / "page.md"
    wrong = RIGHT.replace("0.500", "0.7")
    text = f"# Page\n\n{HEAD}{wrong}\nBetween.\n\n{HEAD}\nAfter.\n"
    page.write_text(text)
    assert len(run(repository, capsys)) == 3
    assert page.read_text() == text
    assert len(run(repository, capsys, "--write")) == 2
    assert page.read_text() == f"# Page\n\n{HEAD}{RIGHT}\nBetween.\n\n{HEAD}{RIGHT}\nAfter.\n"


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("line\n" * 107, "README.md: 111 lines, at most 110"),
        ((9 * "word " + "\n") * 100, "README.md: 905 words, at most 900"),
        ("\n| a |\n|---|\n" * 3, "README.md: 3 tables, at most 2"),
    ],
)
def test_readme_too_long(
    repository: Path, capsys: pytest.CaptureFixture[str], more: str, problem: str
) -> None:
    readme = repository / "README.md"
    readme.write_text(readme.read_text() + f"<!-- {'hidden ' * 900} -->\n" + more)
    assert run(repository, capsys)[:-1] == [problem]


def test_prose_wider_than_the_code(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = "word " * 22 + "w"
    allowed = f"| {wide} |\n|---|\n\n```text\n{wide}\n```\n\n<!-- {wide} -->\n\n{'w' * 111}\n"
    assert problems(repository, capsys, allowed) == []
    assert problems(repository, capsys, f"{wide}\n\n{wide}d\n") == [
        "1: 111 columns, at most 110",
        "3: 112 columns, at most 110",
    ]


def test_keys_with_dots() -> None:
    record = {"arms": {"w0.02": {"score": 1.5}, "w": {"0": 2.0}}}
    assert look_up(record, "arms.w0.02.score") == 1.5 and look_up(record, "arms.w.0") == 2.0
    with pytest.raises(TableError, match=r"no 'w0' in 'arms.w0.03.score'"):
        look_up(record, "arms.w0.03.score")
