"""The record of one annotated dialogue: its windows, counts of what was dropped, and the gates it passed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from pydantic import BaseModel, ConfigDict, Field

from proactor.annotation.blocked import MaskedWindow, masked_window
from proactor.annotation.gates import (
    SECOND_READING,
    SELF_AGREEMENT,
    TRIGGER_RECALL,
    VALIDITY,
    drop_acausal,
    is_valid,
    logged_triggers,
    match_triggers,
    repeated_triggers,
    uncovered_triggers,
)
from proactor.annotation.inferred import InferredValue
from proactor.annotation.logged import logged_action
from proactor.annotation.mark_reader import MarkReader
from proactor.annotation.merge import MAX_GAP, MergedMarks, merge
from proactor.annotation.oracle import OracleAnswer
from proactor.annotation.window_agreement import WindowAgreement, compare_windows
from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog


class AnnotationOptions(BaseModel):
    """How answers become windows. ``validity``, ``trigger_recall``, ``self_agreement``: thresholds of the
    quality gates [INFERRED].

    ``gates``: drop dialogues that fail G1 or G2; failures are counted either way, and one that does not fit
    an oracle's context is dropped either way. ``causality``: apply G4 to each mark and each reference.
    ``second_reading``: share of the dialogues that are annotated twice for G3, at least one, sampled by
    ``seed``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gates: bool = True
    causality: bool = True
    max_gap: int = Field(default=MAX_GAP, ge=0)
    validity: float = Field(default=VALIDITY, ge=0, le=1)
    trigger_recall: float = Field(default=TRIGGER_RECALL, ge=0, le=1)
    self_agreement: float = Field(default=SELF_AGREEMENT, ge=0, le=1)
    second_reading: float = Field(default=SECOND_READING, ge=0, le=1)
    seed: int = 0


class AgreementSums(BaseModel):
    """A `WindowAgreement` on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    references: int = 0
    judged: int = 0
    ready: float = 0.0
    coverage: float = 0.0
    exact: int = 0

    @classmethod
    def of(cls, agreement: WindowAgreement) -> AgreementSums:
        """The form on disk of ``agreement``."""
        return cls(**asdict(agreement))

    def agreement(self) -> WindowAgreement:
        """The agreement itself."""
        return WindowAgreement(**self.model_dump())


class InferredWindow(BaseModel):
    """A reference whose window rests on inferred values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialogue: str
    reference: str
    values: tuple[InferredValue, ...]

    def __str__(self) -> str:
        return f"{self.dialogue} {'; '.join(map(str, self.values))}"


class DialogueRecord(BaseModel):
    """A finished dialogue.

    ``digest``: `dialogue_digest` before annotation. ``dialogue``: the dialogue with its new windows.
    ``failed``: the gate that it failed, or the kind of a lasting failure, else ""; ``detail`` says what of it
    failed. ``masked``: the windows that stayed unknown. ``inferred``: the windows that rest on values whose
    turn was inferred. ``repeated``: logged actions that share a window with one before. ``counters``: counts
    by "kind/name". ``known``: agreement with the windows it came with. ``own``: agreement with a second
    reading.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    digest: str
    dialogue: Dialogue
    failed: str = ""
    detail: str = ""
    masked: tuple[MaskedWindow, ...] = ()
    inferred: tuple[InferredWindow, ...] = ()
    repeated: tuple[str, ...] = ()
    counters: dict[str, int] = Field(default_factory=dict)
    known: AgreementSums | None = None
    own: AgreementSums | None = None


def dialogue_digest(dialogue: Dialogue) -> str:
    """Hash of a dialogue's content, 16 hex digits."""
    return hashlib.sha256(dialogue.model_dump_json().encode()).hexdigest()[:16]


class AnnotatedDialogue:
    """The answers about one dialogue and the references they merge into."""

    def __init__(
        self,
        dialogue: Dialogue,
        tools: Catalog,
        options: AnnotationOptions,
        answers: Mapping[int, OracleAnswer],
    ) -> None:
        self.dialogue, self.tools, self.options = dialogue, tools, options
        self.reader = MarkReader(dialogue, tools, options.causality)
        self.answers = dict(answers)
        self.reasked = 0
        self.merged = self._merge()

    def replace_answers(self, answers: Mapping[int, OracleAnswer]) -> None:
        """Replace the answers about some turns, except by failed ones, and merge again."""
        self.reasked += len(answers)
        self.answers |= {turn: answer for turn, answer in answers.items() if not answer.failure}
        self.merged = self._merge()

    def _merge(self) -> MergedMarks:
        self.readings = {
            turn: self.reader.read(turn, a.text) for turn, a in self.answers.items() if not a.failure
        }
        marks = {turn: reading.marks for turn, reading in self.readings.items()}
        return merge(self.dialogue, marks, self.tools, max_gap=self.options.max_gap)

    @property
    def failures(self) -> Counter[str]:
        """Counts of the requests without an answer, by kind."""
        return Counter(answer.failure for answer in self.answers.values() if answer.failure)

    def record(self, known: bool, second: AnnotatedDialogue | None = None) -> DialogueRecord:
        """The record of the dialogue, compared with its old windows (``known``) and a ``second`` reading."""
        counters = self._counters()
        source, merged, points = self.dialogue, self.merged, self.dialogue.decision_turns
        logged = logged_triggers(source)
        references, recall = match_triggers(merged.references, logged)
        failed = detail = ""
        if not is_valid(counters["entries/all"], counters["entries/valid"], self.options.validity):
            failed = "G1"
            drops = [
                f"{count} {name.removeprefix('drop/')}" for name, count in counters.items() if "drop/" in name
            ]
            faults = dict.fromkeys(fault for reading in self.readings.values() for fault in reading.faults)
            detail = (
                f"{counters['entries/valid']} of {counters['entries/all']} entries valid "
                f"({'; '.join([', '.join(drops), *faults])})"
            )
        elif recall is not None and recall < self.options.trigger_recall:
            failed = "G2"
            missed = uncovered_triggers(merged.references, logged)
            detail = "not covered: " + ", ".join(
                f"{trigger.name} at turn {trigger.turn}" for trigger in missed
            )
        counters["logged/triggers"] = len(logged)
        counters["logged/covered"] = round((recall or 0.0) * len(logged))
        repeated = repeated_triggers(references, logged)
        counters["logged/repeated"] = len(repeated)
        result = source.model_copy(update={"references": references, "withdrawn": merged.withdrawn})
        if self.options.causality:
            kept, lost = drop_acausal(result)
            counters["gate/G4"] = lost
            result = result.model_copy(update={"references": kept})
        inferred = self._inferred(result)
        counters["inferred/values_inferred"] = sum(len(window.values) for window in inferred)
        counters[f"gate/{failed}"] += bool(failed)
        own = (
            compare_windows(merged.references, second.merged.references, points)
            if second is not None
            else None
        )
        old = compare_windows(result.references, source.references, points) if known else None
        return DialogueRecord(
            id=source.id,
            digest=dialogue_digest(source),
            dialogue=result,
            failed=failed,
            detail=detail,
            masked=tuple(
                masked_window(r, source, self.tools[r.name]) for r in result.references if r.ready is None
            ),
            inferred=inferred,
            repeated=tuple(f"{t.name} at turn {t.turn}" for t in repeated),
            counters={k: v for k, v in counters.items() if v},
            known=AgreementSums.of(old) if old is not None else None,
            own=AgreementSums.of(own) if own is not None else None,
        )

    def _inferred(self, annotated: Dialogue) -> tuple[InferredWindow, ...]:
        """The windows of ``annotated`` that hold a value whose turn the oracle inferred."""
        values = [value for answer in self.answers.values() for value in answer.inferred]
        windows = []
        for reference in annotated.references:
            if reference.ready is not None and reference.coverage is not None:
                source = logged_action(reference, self.dialogue)
                resting = tuple(v for v in values if source is not None and v.reference == source.id)
                if resting:
                    windows.append(
                        InferredWindow(dialogue=annotated.id, reference=reference.id, values=resting)
                    )
        return tuple(windows)

    def _counters(self) -> Counter[str]:
        counters: Counter[str] = Counter(
            {"questions/asked": len(self.answers), "questions/asked_again": self.reasked}
        )
        for reading in self.readings.values():
            counters["entries/all"] += reading.entries
            counters["entries/valid"] += reading.valid
            counters["entries/marks"] += len(reading.marks)
            counters.update({f"drop/{reason}": count for reason, count in reading.drops.items()})
            counters.update({f"repair/{reason}": count for reason, count in reading.repairs.items()})
        for answer in self.answers.values():
            counters.update({f"drop/{reason}": count for reason, count in answer.dropped.items()})
        counters.update({f"merge/{name}": count for name, count in self.merged.counters.items()})
        counters["dialogue/no_decision_turns"] = not self.dialogue.decision_turns
        return counters
