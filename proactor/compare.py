"""Where a run began against where it came, on dialogues it never saw, beside the trivial policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proactor.bootstrap import KEYS, Interval, paired_difference
from proactor.evaluate import Evaluation, trivial
from proactor.runs import Run
from proactor.session import Session


def compare(session: Session, run: Run, initial: Mapping[str, Any], seconds: float = 0.0) -> dict[str, Any]:
    """Play the test dialogues with the adapter that GRPO began with (the initial state where there was no such stage) and with the best one.

    Writes `evaluations.json` and `summary.json`, and returns the summary: for each of before, after, never, always, values_seen the metrics in
    `bootstrap.KEYS`; `difference`: after - before with its paired bootstrap interval; `parsed`; `seconds`. The engine is left with the best adapter.
    """
    engine = session.engine
    engine.parallel.barrier()
    if session.config.grpo is not None:
        engine.load_adapter(run.start)
    else:
        engine.load_state_dict(initial)
    before = session.play(session.test, "before, on test")
    engine.load_adapter(run.best)
    after = session.play(session.test, "after, on test")
    named = {"before": before, "after": after, **trivial(session.test, session.turn_reward)}
    summary = summarise(named, session.config.eval.resamples) | {"seconds": seconds}
    run.write_evaluations(session.test, named)
    run.write_summary(summary)
    return summary


def summarise(named: Mapping[str, Evaluation], resamples: int) -> dict[str, Any]:
    """The numbers of `summary.json`, `seconds` aside."""
    before, after = named["before"], named["after"]
    difference = paired_difference([before.contributions], [after.contributions], resamples=resamples)
    return {
        **{name: {key: evaluation.metrics[key] for key in KEYS} for name, evaluation in named.items()},
        "difference": {key: _interval(interval) for key, interval in difference.items()},
        "parsed": {"before": 1 - before.unparsed_share, "after": 1 - after.unparsed_share},
        "dialogues": len(after.contributions),
    }


def _interval(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
