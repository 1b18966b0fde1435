"""Opportunity windows for any dialogue: an oracle that sees the whole of it marks each turn, and the marks
become windows (methods 1.3).

Confirmed by the reading notes [NOTES]: tools in one catalog, an oracle with hindsight, for every turn the
actions that are open with their status, windows rather than points, logged triggers as a filter where there
are any, and the result is guidance, not ground truth. The procedure, its thresholds and everything in `merge`
and `gates` are ours [INFERRED].
"""

from __future__ import annotations

from proactor.annotation.driver import annotate
from proactor.annotation.gates import acausal_values
from proactor.annotation.marks import Mark, MarkReader, MarkStatus, Reading, schema
from proactor.annotation.merge import Merged, marks_of, merge
from proactor.annotation.oracle import Oracle, OracleAnswer, OracleRequest
from proactor.annotation.record import AnnotationOptions
from proactor.annotation.store import AnnotationError
from proactor.annotation.window_agreement import WindowAgreement, compare_windows

__all__ = [
    "WindowAgreement",
    "AnnotationError",
    "OracleAnswer",
    "Mark",
    "MarkReader",
    "MarkStatus",
    "Merged",
    "AnnotationOptions",
    "Oracle",
    "OracleRequest",
    "Reading",
    "acausal_values",
    "compare_windows",
    "annotate",
    "marks_of",
    "merge",
    "schema",
]
