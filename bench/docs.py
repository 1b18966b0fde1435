"""Check the documentation: links, anchors, named files, numbers in tables, and the README's length.

    python -m bench.docs [--write]

- Every relative link and anchor leads somewhere.
- Every repository path in code spans and code blocks exists: a word with a slash whose first part is a folder
  of the repository, or that ends like a source file. It may leave out its first folders (`catalogs/base.py`).
  A bare `name.py` must be the name of some file, and `python -m` must name a module. Not checked: `runs/…`
  (made by a user's run), absolute paths, and words with a placeholder (`<`, `>`, `*`, `…`, `$`, `=`, `{`).
- Every cell of a results table is what its record says (`bench.tables`); ``--write`` fills the cells in.
- Prose keeps to the width of the code. Tables, code blocks, comments and lines of one word may be wider.
- The README keeps to its length; its lines count with comments, its words without.

Exit code 1 with one line a problem.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from bench.markdown import CODE_SPAN, COMMENT, FENCE, anchors, blank, line_of
from bench.tables import check_tables, tables

FILES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "bench/*.md", "examples/*.md")
WIDTH = 110
README_LIMITS = {"lines": 110, "words": 900, "tables": 2}
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
EXTERNAL = re.compile(r"[a-z][a-z+.-]*:|//")
WORD = re.compile(r"[\w./~-]+")
SOURCE = re.compile(r".*\.(?:py|md|ya?ml|json|jsonl|toml|j2|css)")
PLACEHOLDERS = "<>*…$={"
MODULE = re.compile(r"python3? -m ((?:bench|proactor|tests)[\w.]*)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.docs", description="Check the documentation")
    parser.add_argument(
        "--write", action="store_true", help="fill the cells of results tables from the records"
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    options = parser.parse_args(arguments)
    root: Path = options.root
    problems: list[str] = []
    files = [file for pattern in FILES for file in sorted(root.glob(pattern))]
    for file in files:
        text = file.read_text(encoding="utf-8")
        in_tables, filled = check_tables(text, root)
        if options.write and filled != text:
            file.write_text(filled, encoding="utf-8")
            print(f"{file.relative_to(root)}: cells filled from the records")
            text, in_tables = filled, check_tables(filled, root)[0]
        remarks = [*in_tables, *check_links(file, text), *check_paths(text, root), *check_width(text)]
        problems += [f"{file.relative_to(root)}:{line}: {message}" for line, message in sorted(remarks)]
    readme = count((root / "README.md").read_text(encoding="utf-8"))
    problems += [
        f"README.md: {readme[what]} {what}, at most {limit}"
        for what, limit in README_LIMITS.items()
        if readme[what] > limit
    ]
    counts = ", ".join(f"{readme[what]} of {limit} {what}" for what, limit in README_LIMITS.items())
    print("\n".join([*problems, f"{len(files)} files; README: {counts}; {len(problems)} problems"]))
    raise SystemExit(1 if problems else 0)


def check_links(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """Relative links of a file that lead nowhere, as (line, message)."""
    visible = blank(blank(blank(text, FENCE), COMMENT), CODE_SPAN)
    for match in LINK.finditer(visible):
        target = match.group(1)
        if EXTERNAL.match(target):
            continue
        path, _, anchor = target.partition("#")
        place = file.parent / path if path else file
        if not place.exists():
            yield line_of(text, match.start()), f"no file for the link {target!r}"
        elif anchor and place.suffix == ".md" and anchor not in anchors(place):
            yield line_of(text, match.start()), f"no heading for the anchor {target!r}"


def check_paths(text: str, root: Path) -> Iterator[tuple[int, str]]:
    """Repository paths and modules in code that do not exist, as (line, message); rule: the module."""
    text = blank(text, COMMENT)
    spans = [*FENCE.finditer(text), *CODE_SPAN.finditer(blank(text, FENCE))]
    for span in spans:
        for match in re.finditer(r"\S+", span.group().replace("`", " ")):
            word = match.group().strip(",;:.()[]'\"")
            if is_path(word, root) and not exists(word, root):
                yield line_of(text, span.start() + match.start()), f"no file or folder {word!r}"
        for match in MODULE.finditer(span.group()):
            module = root / match.group(1).replace(".", "/")
            if not (module.with_suffix(".py").exists() or (module / "__main__.py").exists()):
                yield line_of(text, span.start() + match.start()), f"no module {match.group(1)!r}"


def check_width(text: str) -> Iterator[tuple[int, str]]:
    """Lines of prose that are too wide, as (line, message)."""
    for number, line in enumerate(blank(blank(text, FENCE), COMMENT).splitlines(), start=1):
        if len(line) > WIDTH and not line.startswith("|") and " " in line.strip():
            yield number, f"{len(line)} columns, at most {WIDTH}"


def is_path(word: str, root: Path) -> bool:
    """Whether a word of code is a path in the repository."""
    if any(sign in word for sign in PLACEHOLDERS) or not WORD.fullmatch(word) or word[0] in "/~":
        return False
    first, slash, _ = word.removeprefix("./").removeprefix("../").partition("/")
    if first in ("runs", ".."):
        return False
    return bool((slash and ((root / first).is_dir() or SOURCE.fullmatch(word))) or word.endswith(".py"))


def exists(word: str, root: Path) -> bool:
    """Whether a path is there, from the root or with its first folders left out."""
    path = word.removeprefix("./").removeprefix("../").rstrip("/")
    return (root / path).exists() or any(entry.endswith(f"/{path}") for entry in entries(root))


@cache
def entries(root: Path) -> frozenset[str]:
    """Files and folders of the repository, hidden ones and a user's runs left out."""
    return frozenset(
        f"/{path.relative_to(root).as_posix()}"
        for top in root.iterdir()
        if not top.name.startswith(".") and top.name not in ("runs", "build", "dist")
        for path in [top, *top.rglob("*")]
    )


def count(text: str) -> dict[str, int]:
    """Lines of a file, and its words and tables as a reader sees them: without comments."""
    shown = blank(text, COMMENT)
    return {
        "lines": len(text.splitlines()),
        "words": len(shown.split()),
        "tables": sum(1 for _ in tables(shown)),
    }


if __name__ == "__main__":
    main()
