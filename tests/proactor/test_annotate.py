"""Quality gates for annotations."""

from __future__ import annotations

from proactor.annotate import acausal_values
from proactor.dialogue import Reference
from tests.proactor.scoring_helpers import users


def test_a_value_uttered_after_the_window_opens_fails_the_causality_gate() -> None:
    """T1.5."""
    late = Reference(
        id="r",
        name="book",
        params={"day": "Mon", "time": "9"},
        coverage=(1, 8),
        ready=(4, 8),
        value_turns={"day": 4, "time": 7},
    )
    assert acausal_values(users(8, late)) == [("r", "time", 7)]
    assert acausal_values(users(8, late.model_copy(update={"ready": (7, 8)}))) == []
    assert acausal_values(users(8, late.model_copy(update={"ready": None}))) == []
