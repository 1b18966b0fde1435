"""Annotates dialogues: asks the oracle about every decision turn, merges the answers, applies the gates.

Writes windows.jsonl, catalog.json and report.json. Finished dialogues are in windows.jsonl.partial until the
end: the same command resumes from it, and gives the same output as one that was never stopped. A dialogue
with unanswered requests (a server went away) is left out, counted, and tried again by the same command; where
too many are unanswered the annotation fails. `folder` says what in OUT is never replaced.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proactor.annotation.folder import open_store, write_annotation
from proactor.annotation.oracle import Oracle, OracleAnswer, OracleRequest
from proactor.annotation.record import AnnotatedDialogue, AnnotationOptions, dialogue_digest
from proactor.annotation.report_json import LeftOut, report_json
from proactor.annotation.store import AnnotationError, RecordStore
from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog
from proactor.event_loop import run_to_end
from proactor.progress import Progress, Quiet
from proactor.sole_writer import sole_writer
from proactor.sources.corpus import Corpus, sample

VERSION = 3
COMPLAINT = (
    "An earlier answer let an action go back from a later status to an earlier one between turns {turns}; "
    "PENDING, READY and TRIGGERED come in this order only."
)
LASTING = ("too_long",)
"""Failures that another try would not mend: the dialogue is dropped, with gates or without."""
MAX_FAILED_SHARE, FAILED_WINDOW = 0.5, 20
"""The annotation stops where more than this share of the last so many dialogues was not answered."""


def annotate(
    dialogues: Sequence[Dialogue],
    catalog: Catalog,
    oracle: Oracle,
    out: Path,
    options: AnnotationOptions | None = None,
    ui: Progress | None = None,
    *,
    reader: Corpus | None = None,
    fresh: bool = False,
    max_failed_share: float = MAX_FAILED_SHARE,
) -> dict[str, Any]:
    """Write OUT/windows.jsonl, OUT/catalog.json and OUT/report.json; return the report.

    ``reader``: the corpus of the dialogues, for what its reader counted, dropped and left out. ``fresh``:
    replace what is in OUT. ``max_failed_share``: share of dialogues that may stay unanswered, of all of them
    and of the last `FAILED_WINDOW`.

    Raises AnnotationError for two dialogues of one id, for a tool that the catalog does not have, for an OUT
    that is finished, was begun with other settings or holds what a person made (`open_store`), where more
    dialogues than that share, or all, were not answered (those that were are kept for the next call);
    WriterError while another process writes into OUT.
    """
    options, ui = options or AnnotationOptions(), ui or Quiet()
    tools = {d.id: tools_on_offer(d, catalog) for d in dialogues}
    if len(tools) < len(dialogues):
        twice = next(name for name, count in Counter(d.id for d in dialogues).items() if count > 1)
        raise AnnotationError(f"dialogue {twice!r} appears twice")
    with sole_writer(out):
        store = open_store(out, fingerprint(oracle, catalog, options), catalog, fresh)
        run = _Run(dialogues, tools, oracle, options, store, ui, max_failed_share)
        run_to_end(run.all())
        run.check_answered(len(run.unanswered), len(dialogues))
        finished = [store.records[d.id] for d in dialogues if d.id in store.records]
        kept = [
            r.dialogue for r in finished if not r.failed or (r.failed not in LASTING and not options.gates)
        ]
        left_out = [
            LeftOut(id=d.id, reason=run.unanswered[d.id][0], detail=run.unanswered[d.id][1])
            for d in dialogues
            if d.id in run.unanswered
        ]
        unanswered = Counter(kind for kind, _ in run.unanswered.values())
        report = report_json(finished, kept, oracle, options, unanswered, reader, left_out)
        write_annotation(out, catalog, report, kept, store)
        if not run.unanswered:
            store.path.unlink()
    return report


def tools_on_offer(dialogue: Dialogue, catalog: Catalog) -> Catalog:
    """The tools of a dialogue. Raises AnnotationError for one that the catalog does not have."""
    if missing := [name for name in dialogue.tools if name not in catalog]:
        raise AnnotationError(
            f"dialogue {dialogue.id!r} offers {missing[0]!r}, which the catalog does not have"
        )
    return catalog.offered_in(dialogue)


def fingerprint(oracle: Oracle, catalog: Catalog, options: AnnotationOptions) -> str:
    """Hash of everything that a dialogue's record depends on, 16 hex digits."""
    settings = f"{VERSION}\n{oracle.identity}\n{catalog.model_dump_json()}\n{options.model_dump_json()}"
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


class _Run:
    """The annotation of the dialogues that are not finished yet, in batches."""

    def __init__(
        self,
        dialogues: Sequence[Dialogue],
        tools: Mapping[str, Catalog],
        oracle: Oracle,
        options: AnnotationOptions,
        store: RecordStore,
        ui: Progress,
        max_failed_share: float,
    ) -> None:
        self.tools, self.oracle, self.options, self.store, self.ui = tools, oracle, options, store, ui
        self.known = any(r.ready is not None for d in dialogues for r in d.references)
        self.todo = [
            d
            for d in dialogues
            if d.id not in store.records or store.records[d.id].digest != dialogue_digest(d)
        ]
        self.twice: set[str] = set()
        if not oracle.steady and options.second_reading > 0 and dialogues:
            number = max(1, round(options.second_reading * len(dialogues)))
            self.twice = {d.id for d in sample(dialogues, lambda d: d.id, number, options.seed)}
        self.unanswered: dict[str, tuple[str, str]] = {}
        """(kind, reason) of the failure of each dialogue that has one to be tried again, by id."""
        self.total = len(dialogues)
        self.max_failed_share = max_failed_share
        self.latest: deque[bool] = deque(maxlen=FAILED_WINDOW)
        """Whether each of the last dialogues stayed unanswered."""

    def check_answered(self, failed: int, asked: int, which: str = "") -> None:
        """Raise AnnotationError where ``failed`` of ``asked`` dialogues is all, or more than the share."""
        if not failed or (failed <= self.max_failed_share * asked and failed < asked):
            return
        kind, reason = next(reversed(self.unanswered.values()))
        how_many = (
            f"none of {which}{asked} dialogues was answered"
            if failed == asked
            else f"{failed} of {which}{asked} dialogues were not answered, more than the share "
            f"{self.max_failed_share:g} (--max-failed-share)"
        )
        raise AnnotationError(
            f"{how_many} ({reason or kind}); what was answered is kept, the same command tries the rest again"
        )

    async def all(self) -> None:
        """Annotate every dialogue, ``oracle.workers`` batches at a time."""
        self.ui.phase("annotating", self.total, self.total - len(self.todo))
        size = self.oracle.batch
        batches = deque(self.todo[i : i + size] for i in range(0, len(self.todo), size))

        async def worker() -> None:
            while batches:
                await self._batch(batches.popleft())

        try:
            await asyncio.gather(*(worker() for _ in range(min(self.oracle.workers, len(batches)))))
        finally:
            await self.oracle.close()

    async def _batch(self, dialogues: Sequence[Dialogue]) -> None:
        """Annotate one batch: a first reading, its broken turns once more, and a second reading of some."""
        first = await self._ask(dialogues)
        broken = {
            a.dialogue.id: dict.fromkeys(a.merged.broken, _complaint(a)) for a in first if a.merged.broken
        }
        if broken and not self.oracle.steady:
            better = await self._answers([d for d in dialogues if d.id in broken], broken)
            for annotated in first:
                if annotated.dialogue.id in broken:
                    annotated.replace_answers(better[annotated.dialogue.id])
        chosen = [d for d in dialogues if d.id in self.twice]
        second = {a.dialogue.id: a for a in await self._ask(chosen, repeat=1)}
        for annotated in first:
            self._finish(annotated, second.get(annotated.dialogue.id))

    def _finish(self, annotated: AnnotatedDialogue, second: AnnotatedDialogue | None) -> None:
        """Store the record of a dialogue, or count it as unanswered."""
        failures = annotated.failures
        self.ui.step(annotated.dialogue.id)
        self.latest.append(any(kind not in LASTING for kind in failures))
        if self.latest[-1]:
            kind = next(kind for kind in failures if kind not in LASTING)
            answers = annotated.answers.values()
            reason = next((a.reason for a in answers if a.failure == kind and a.reason), "")
            self.unanswered[annotated.dialogue.id] = kind, reason
            if len(self.latest) == FAILED_WINDOW and sum(self.latest) > self.max_failed_share * FAILED_WINDOW:
                self.check_answered(sum(self.latest), FAILED_WINDOW, "the last ")
            return
        record = annotated.record(self.known, second)
        if failures:
            kind = next(iter(failures))
            record = record.model_copy(
                update={
                    "failed": kind,
                    "detail": f"{failures[kind]} of {len(annotated.answers)} questions",
                    "counters": {**record.counters, f"failed/{kind}": failures[kind]},
                }
            )
        self.store.add(record)

    async def _ask(self, dialogues: Sequence[Dialogue], repeat: int = 0) -> list[AnnotatedDialogue]:
        answers = await self._answers(dialogues, {}, repeat)
        return [AnnotatedDialogue(d, self.tools[d.id], self.options, answers[d.id]) for d in dialogues]

    async def _answers(
        self, dialogues: Sequence[Dialogue], complaints: Mapping[str, Mapping[int, str]], repeat: int = 0
    ) -> dict[str, dict[int, OracleAnswer]]:
        """Answers by dialogue and turn.

        ``complaints``: the turns to ask about, by dialogue; for a dialogue without any, all decision turns.
        """
        requests = [
            OracleRequest(d, turn, self.tools[d.id], repeat, complaint)
            for d in dialogues
            for turn, complaint in complaints.get(d.id, dict.fromkeys(d.decision_turns, "")).items()
        ]
        answers = await self.oracle.answer(requests) if requests else []
        by_dialogue: dict[str, dict[int, OracleAnswer]] = {d.id: {} for d in dialogues}
        for request, answer in zip(requests, answers, strict=True):
            by_dialogue[request.dialogue.id][request.turn] = answer
        return by_dialogue


def _complaint(annotated: AnnotatedDialogue) -> str:
    turns = annotated.merged.broken or (0,)
    return COMPLAINT.format(turns=f"{turns[0]} and {turns[-1]}")
