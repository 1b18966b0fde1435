"""`TradeOffPoint`: what one setting of a system wins in turns, and how often it is wrong.

The main figure is the turns saved against the logged human trigger at no more than 1 wrong fire in 100
dialogues, and the recall there. All definitions are [INFERRED]. They are sums over the dialogues played (see
`thresholds.OUTCOME`); turns are those of both speakers. What matches a reference is a `MatchRule`, by default
exact: all required values right.

- `wrong_per_100`: wrong fires in 100 dialogues: unmatched, repeats, and fires on a tool that needs assent
  before the assent.
- `turns_saved`: turns won in 100 dialogues: the sum of tau - u over references whose first fire, at turn u,
  was on time and no later than the logged human trigger tau. An early fire wins nothing: a value or the
  assent was missing then, and the human could not have acted either.
- `saved_each`: the mean of tau - u over those references.
- `early_turns`: the turns that early fires without need of assent would add, for readers who disagree.
- `recall`: right first fires among references with a known window. Right: on time, or early with no assent.
- `lead`: the mean of s - u over right fires, for a window that opens at turn s; positive when early, None
  without a right fire.

Where every known window is a single turn (`width_0_share` 1), nothing can be won: `turns_saved` is 0 for
every system, and recall decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from proactor.calibration.thresholds import OUTCOME, outcome
from proactor.dialogue import Action, Dialogue
from proactor.dialogue.matching import EXACT, MatchRule
from proactor.scoring.arrays import Array
from proactor.scoring.bootstrap import bootstrap_sums

Outputs = Mapping[int, Iterable[Action]]
KEYS = (
    "wrong_per_100",
    "before_assent_per_100",
    "late_per_100",
    "turns_saved",
    "saved_each",
    "early_turns",
    "recall",
    "lead",
)


class TradeOffPoint(BaseModel):
    """One setting. ``threshold``: None for a system without a common one.

    ``intervals``: (low, high) at 95%, resampled by dialogue, where they were computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float | None
    wrong_per_100: float
    turns_saved: float
    recall: float
    lead: float | None
    fires: int
    before_assent_per_100: float = 0.0
    late_per_100: float = 0.0
    saved_each: float | None = None
    early_turns: float = 0.0
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)


def point(
    dialogues: Sequence[Dialogue],
    outputs: Mapping[str, Outputs],
    assent: frozenset[str] = frozenset(),
    *,
    threshold: float | None = None,
    rule: MatchRule = EXACT,
    resamples: int = 0,
) -> TradeOffPoint:
    """The point of any system; ``outputs``: dialogue id -> its fires. ``resamples`` 0: without intervals."""
    rows = np.array(
        [[*outcome(d, outputs.get(d.id, {}), assent, rule), known_references(d), 1.0] for d in dialogues]
    )
    whole = point_of_sums(rows.sum(axis=0), threshold)
    if not resamples:
        return whole
    bounds = bootstrap_sums(rows, _rates, KEYS, resamples=resamples)
    finite = {k: (b.low, b.high) for k, b in bounds.items() if np.isfinite((b.low, b.high)).all()}
    return whole.model_copy(update={"intervals": finite})


def known_references(dialogue: Dialogue) -> float:
    """The number of references with a known window."""
    return float(sum(r.ready is not None for r in dialogue.references))


def point_of_sums(sums: Array, threshold: float | None) -> TradeOffPoint:
    """The point of sums [len(OUTCOME) + 2]: outcomes, known references, dialogues."""
    rates = {key: float(value) for key, value in _rates(sums).items()}
    defined = {
        key: None if np.isnan(rates.pop(key)) else float(_rates(sums)[key]) for key in ("saved_each", "lead")
    }
    return TradeOffPoint(threshold=threshold, fires=int(sums[OUTCOME.index("fires")]), **rates, **defined)


def _rates(sums: Array) -> dict[str, Array]:
    """KEYS of sums [..., OUTCOME, references, dialogues]; undefined ones are NaN."""
    v = {name: sums[..., i] for i, name in enumerate((*OUTCOME, "references", "dialogues"))}

    def ratio(a: Array, b: Array, empty: float = np.nan) -> Array:
        out = np.full(np.shape(a), empty)
        np.divide(a, b, out=out, where=b != 0)
        return out

    return {
        "wrong_per_100": ratio(100 * (v["false"] + v["before_assent"]), v["dialogues"]),
        "before_assent_per_100": ratio(100 * v["before_assent"], v["dialogues"]),
        "late_per_100": ratio(100 * v["late"], v["dialogues"]),
        "turns_saved": ratio(100 * v["saved_turns"], v["dialogues"]),
        "saved_each": ratio(v["saved_turns"], v["saved"]),
        "early_turns": ratio(100 * v["early_turns"], v["dialogues"]),
        "recall": ratio(v["right"], v["references"], 0.0),
        "lead": ratio(v["lead"], v["right"]),
    }
