"""Why an agent acts or waits, in one line."""

from __future__ import annotations

from proactor.agent.draft import Settled
from proactor.dialogue.agent_log import Act, Near

GREEDY = "by the model's own answer, without thresholds (`proactor calibrate` chooses them)"


def reason_of(settled: Settled, budget: float | None) -> str:
    """The reason of a decision. ``budget`` None: without thresholds, which it says."""
    words = [_done(act) for act in settled.acts] + [_left(near) for near in settled.near]
    told = "; ".join(words) or "no tool is near"
    return told if budget is not None else f"{told} ({GREEDY})"


def _done(act: Act) -> str:
    doing = "fires" if act.kind == "fire" else "asks for assent, all values known"
    return f"{act.name} {doing}{_figures(act)}"


def _left(near: Near) -> str:
    return f"{near.name} near{_figures(near)}: {near.why}"


def _figures(of: Act | Near) -> str:
    if of.probability is None or of.threshold is None:
        return ""
    threshold = "never" if of.threshold > 1 else f"{of.threshold:.3f}"
    return f" (probability {of.probability:.3f}, threshold {threshold})"
