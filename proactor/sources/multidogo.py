"""MultiDoGO: transcripts of human service chats (TSV), for annotation: the corpus logs no actions.

Two kinds of file, told apart by their columns:

- The paper's splits (turn or sentence level) hold the customer's side only. Each line is a user turn; the
  sentences of one turn are joined. A dialogue without agent turns is counted (``customer_only``), and so are
  its missing turns (``turns_missing``, from the gaps in the turn numbers). It still has decision points, one
  after each user turn.
- The unannotated files have both sides (``authorRole``). They were not at hand: their columns are taken from
  the release's notes [CODE]. "customer" (any case) is the user, any other the agent [INFERRED].

There is no catalog and there are no references: `tools` stays empty until a catalog is given. Consecutive
lines of one speaker stay separate turns. The domain is the last word of the folder's name (`finance`,
`multidogo_finance`) or, for an unannotated file, the file's name. Intents and slot tags are not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proactor.dialogue import Dialogue, Turn
from proactor.dialogue.catalog import Catalog
from proactor.files import SourceError, decoded, find_files, text_lines
from proactor.sources import base
from proactor.sources.base import Malformed, NoOptions, Record, Subset
from proactor.sources.corpus import Corpus

_COLUMNS = ("conversationId", "turnNumber", "utterance")
_PARTS = frozenset({"train", "dev", "test"})


OPTIONS = NoOptions


def load(path: Path, subset: Subset, _options: NoOptions) -> Corpus:
    """Reads a folder of TSV files or one of them; see `sources.load`."""
    files = find_files(path, "*.tsv.gz", "*.tsv", "*/*.tsv")
    counters: Counter[str] = Counter()
    return base.convert_all(subset.choose(_conversations(files)), _dialogue, Catalog(tools=()), counters)


def _conversations(files: list[Path]) -> Iterator[Record]:
    """One record per conversation; its lines follow each other in the file."""
    for file in files:
        stem = file.name.split(".")[0]
        domain = (file.resolve().parent.name if stem in _PARTS else stem).rsplit("_", 1)[-1]
        current: Record | None = None
        for number, row in _rows(file):
            name = f"multidogo/{row['conversationId']}"
            if current is None or current.id != name:
                if current is not None:
                    yield current
                current = Record(
                    f"{file}:{number}", name, {"dialogue_id": name, "domain": domain, "rows": []}
                )
            current.value["rows"].append(row)
        if current is not None:
            yield current


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row by column) of a TSV file; quotes have no meaning."""
    head: list[str] = []
    for number, line in text_lines(file):
        cells = decoded(line, file, number).split("\t")
        if not head:
            head = cells
            if missing := [column for column in _COLUMNS if column not in head]:
                raise SourceError(f"{file}:{number}: no column {missing[0]!r}")
        elif len(cells) != len(head):
            raise SourceError(f"{file}:{number}: {len(cells)} columns, the first line has {len(head)}")
        else:
            yield number, dict(zip(head, cells, strict=True))


def _dialogue(record: dict[str, Any], counters: Counter[str]) -> Dialogue:
    turns: list[Turn] = []
    last = ("", "")
    numbers: list[int] = []
    for row in record["rows"]:
        if not row["utterance"].strip():
            counters["empty_utterance"] += 1
            continue
        user = row.get("authorRole", "customer").strip().lower() == "customer"
        this = (row["turnNumber"], str(user))
        if turns and this == last and "sentenceNumber" in row:
            turns[-1] = turns[-1].model_copy(update={"text": f"{turns[-1].text} {row['utterance'].strip()}"})
            counters["sentences_joined"] += 1
            continue
        last = this
        try:
            numbers.append(int(float(row["turnNumber"])))
        except (ValueError, OverflowError):
            raise Malformed(f"turnNumber {row['turnNumber']!r} is not a number") from None
        text = base.turn_text(row["utterance"])
        turns.append(Turn(index=len(turns) + 1, speaker="user" if user else "agent", text=text))
    counters["turns_missing"] += max(numbers, default=-1) + 1 - len(set(numbers))
    counters["customer_only"] += all(turn.speaker == "user" for turn in turns)
    return Dialogue(id=record["dialogue_id"], turns=tuple(turns), domain=record["domain"], source="multidogo")
