"""Opportunity windows for any dialogue: an oracle that sees all of it marks each turn; marks become windows.

Methods 1.3. Confirmed by the reading notes [NOTES]: the tools are one catalog; the oracle has hindsight; for
every turn it lists the open actions with their status; the result are windows, not points; logged triggers
filter where there are any; and the result is guidance, not ground truth. The procedure, its thresholds and
everything in `merge` and `gates` are ours [INFERRED].
"""

from __future__ import annotations

from proactor.annotation.driver import annotate
from proactor.annotation.gates import acausal_values
from proactor.annotation.mark_reader import MarkReader, MarkReading
from proactor.annotation.marks import Mark, MarkStatus, answer_schema
from proactor.annotation.merge import MergedMarks, marks_of, merge
from proactor.annotation.oracle import Oracle, OracleAnswer, OracleRequest
from proactor.annotation.record import AnnotationOptions
from proactor.annotation.store import AnnotationError
from proactor.annotation.window_agreement import WindowAgreement, compare_windows

__all__ = [
    "AnnotationError",
    "AnnotationOptions",
    "Mark",
    "MarkReader",
    "MarkStatus",
    "MergedMarks",
    "Oracle",
    "OracleAnswer",
    "OracleRequest",
    "MarkReading",
    "WindowAgreement",
    "acausal_values",
    "annotate",
    "answer_schema",
    "compare_windows",
    "marks_of",
    "merge",
]
