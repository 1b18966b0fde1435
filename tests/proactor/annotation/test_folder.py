"""What people made in the folder of an annotation is not replaced; what an annotation wrote there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proactor.annotation import AnnotationError, AnnotationOptions, OracleAnswer, OracleRequest, annotate
from proactor.annotation.folder import CATALOG, PARTIAL, REPORT, WINDOWS
from proactor.catalogs import write_catalog
from proactor.dialogue.catalog import Catalog
from tests.proactor.annotation.scripted import BOOKING, TOOLS, Scripted, mark, says

OTHER = BOOKING.model_copy(update={"id": "other"})
LISTED = says({1: [mark("note", "READY", text="book")]})


def run(out: Path, *, away: bool = False, tools: Catalog = TOOLS, fresh: bool = False) -> dict[str, Any]:
    """Annotate two dialogues; ``away``: nobody answers about the second."""

    def say(request: OracleRequest) -> str | OracleAnswer:
        return OracleAnswer(failure="timeout") if away and request.dialogue is OTHER else LISTED(request)

    options = AnnotationOptions(second_reading=0)
    return annotate([BOOKING, OTHER], tools, Scripted(say), out, options, fresh=fresh)


def edit(file: Path) -> str:
    text = file.read_text().replace('"ready":[1,1]', '"ready":null', 1)
    file.write_text(text)
    return text


def as_it_is(file: Path, refused: Callable[[], object], *words: str) -> None:
    """That ``refused`` says ``words``, in one line that names the file, and leaves all of its folder."""
    before = {f.name: f.read_bytes() for f in file.parent.iterdir()}
    with pytest.raises(AnnotationError) as caught:
        refused()
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)
    assert {f.name: f.read_bytes() for f in file.parent.iterdir()} == before


def test_windows_edited_before_the_rest_was_answered_are_kept(tmp_path: Path) -> None:
    run(tmp_path, away=True)
    windows = tmp_path / WINDOWS
    text = edit(windows)
    as_it_is(windows, lambda: run(tmp_path), "edited since it was written", "move it elsewhere", "--fresh")
    windows.rename(tmp_path / "mine.jsonl")
    assert run(tmp_path)["dialogues"]["kept"] == 2 and not (tmp_path / PARTIAL).exists()
    assert (tmp_path / "mine.jsonl").read_text() == text


def test_fresh_replaces_edited_windows(tmp_path: Path) -> None:
    run(tmp_path, away=True)
    edit(tmp_path / WINDOWS)
    assert run(tmp_path, fresh=True)["dialogues"]["kept"] == 2


@pytest.mark.parametrize("fresh", [False, True])
def test_windows_that_the_annotation_wrote_are_replaced_as_often_as_it_goes_on(
    fresh: bool, tmp_path: Path
) -> None:
    run(tmp_path, away=True, fresh=fresh)
    run(tmp_path, away=True)
    assert run(tmp_path)["dialogues"]["kept"] == 2


def test_a_fresh_annotation_that_was_stopped_goes_on_unless_the_old_windows_were_edited(
    tmp_path: Path,
) -> None:
    run(tmp_path)
    windows = tmp_path / WINDOWS

    def stopped() -> None:
        def dies(request: OracleRequest) -> str:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            annotate(
                [BOOKING, OTHER],
                TOOLS,
                Scripted(dies),
                tmp_path,
                AnnotationOptions(second_reading=0),
                fresh=True,
            )

    stopped()
    assert run(tmp_path)["dialogues"]["kept"] == 2
    stopped()
    edit(windows)
    as_it_is(windows, lambda: run(tmp_path), "edited since it was written")


def test_windows_of_which_only_the_hash_was_written_are_the_old_ones(tmp_path: Path) -> None:
    """Killed between the two: the partial knows both."""
    run(tmp_path, away=True)
    old, partial = (tmp_path / WINDOWS).read_bytes(), (tmp_path / PARTIAL).read_bytes()
    assert partial.endswith(b'"}\n') and b'{"windows":"' in partial.splitlines()[-1]
    (tmp_path / PARTIAL).write_bytes(partial + b'{"windows":"another"}\n')
    assert (tmp_path / WINDOWS).read_bytes() == old
    assert run(tmp_path)["dialogues"]["kept"] == 2


CONFIRMED = Catalog(tools=tuple(tool.model_copy(update={"confirm": True}) for tool in TOOLS.tools))


@pytest.mark.parametrize("fresh", [False, True])
def test_a_catalog_of_other_tools_is_kept(fresh: bool, tmp_path: Path) -> None:
    """As an import left it, with edits: nothing of an annotation is in its folder."""
    catalog = tmp_path / CATALOG
    for text in (CONFIRMED.model_dump_json(), '{"tools": [', '[{"type": "function"}]', ""):
        catalog.write_text(text)
        words = "--out", f"--catalog {catalog}"
        as_it_is(catalog, lambda: run(tmp_path, fresh=fresh), *words)
    write_catalog(TOOLS, catalog)
    assert run(tmp_path)["dialogues"]["kept"] == 2


def test_a_catalog_of_the_same_tools_in_another_form_is_replaced(tmp_path: Path) -> None:
    (tmp_path / CATALOG).write_text(TOOLS.model_dump_json(exclude_defaults=True, indent=8))
    assert run(tmp_path)["dialogues"]["kept"] == 2


def test_the_catalog_of_an_annotation_is_kept_where_it_was_edited_and_replaced_by_a_fresh_one(
    tmp_path: Path,
) -> None:
    catalog = tmp_path / CATALOG
    run(tmp_path, away=True)
    write_catalog(CONFIRMED, catalog)
    as_it_is(catalog, lambda: run(tmp_path), "differs from the tools")
    with pytest.raises(AnnotationError, match="begun with another oracle, catalog"):
        run(tmp_path, tools=CONFIRMED)
    write_catalog(TOOLS, catalog)
    with pytest.raises(AnnotationError, match="begun with another oracle, catalog"):
        run(tmp_path, tools=CONFIRMED)
    assert run(tmp_path, tools=CONFIRMED, fresh=True)["dialogues"]["kept"] == 2
    assert Catalog.model_validate_json(catalog.read_bytes()) == CONFIRMED
    assert {f.name for f in tmp_path.iterdir()} >= {WINDOWS, CATALOG, REPORT}
