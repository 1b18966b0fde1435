"""A trained agent beside logged humans: what it would have done, turn by turn, and where the two differ.

The agent hears each dialogue as it was logged; nothing that it does changes what is said. Its fires are
classified by the windows of the dialogues (`dialogue.matching`, the exact rule), and the figures are those of
`calibration.points`. Dialogues without windows get those of the log oracle.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import BaseModel, ConfigDict

from proactor.agent.agent import Agent
from proactor.agent.errors import AgentError
from proactor.annotation import annotate
from proactor.annotation.log_oracle import LogOracle
from proactor.calibration.tradeoff import TradeOffs, collect_trade_offs, single_point
from proactor.dialogue import Action, Dialogue, Reference, Status
from proactor.dialogue.agent_log import Decision
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.matching import MatchRule, Timing, exact_rule, first_fires
from proactor.dialogue.windows import decision_of
from proactor.evaluation.policies import human, logs_triggers
from proactor.event_loop import run_to_end
from proactor.progress import Progress, Quiet
from proactor.scoring.utility import is_false, needs_assent
from proactor.sources import Corpus, load

AT_ONCE = 64
"""Dialogues heard at once."""

What = Literal["earlier", "same turn", "later", "before assent", "wrong values", "not called for", "missed"]


class Difference(BaseModel):
    """One action of the agent's, or of the human's that the agent missed. ``turn``: the agent's, None where
    it missed. ``human``: the turn after which the human acted, None where no one did; ``wanted``: with these
    values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialogue: str
    what: What
    name: str
    turn: int | None = None
    params: dict[str, str] = {}
    human: int | None = None
    wanted: dict[str, str] = {}


class Shadowed(BaseModel):
    """``figures``: what agent and human win in turns, and how often they are wrong. ``found``: all actions
    that can be compared, agreements among them. ``asks``: how often the agent would have asked for assent.
    ``windows``: of the dialogues, or from the log's oracle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decisions: int
    asks: int
    calibrated: bool
    windows: Literal["given", "log"]
    figures: TradeOffs
    counts: dict[str, int]
    found: tuple[Difference, ...]


def shadow(
    agent: Agent, dialogues: Sequence[Dialogue], *, resamples: int = 2000, ui: Progress | None = None
) -> Shadowed:
    """Play ``agent`` beside the dialogues of a log. Raises AgentError where no action of theirs is known."""
    ui = ui or Quiet()
    if not any(d.references for d in dialogues):
        raise AgentError("shadow: the log has no actions to compare with")
    for dialogue in dialogues:
        if unknown := [r.name for r in dialogue.references if r.name not in agent.catalog]:
            raise AgentError(
                f"shadow: dialogue {dialogue.id!r} uses {unknown[0]!r}, which is none of the run's tools "
                f"({', '.join(agent.catalog.names)})"
            )
    known = any(r.ready is not None for d in dialogues for r in d.references)
    if not known:
        dialogues = with_log_windows(dialogues, agent.catalog)
    ui.phase("hearing the log", len(dialogues))
    decided = run_to_end(_hear_all(agent, dialogues, ui))
    outputs = {name: {d.turn: _fires(d) for d in decisions} for name, decisions in decided.items()}
    assent, rule = needs_assent(agent.catalog), exact_rule(agent.catalog)
    humans = {d.id: human(d) for d in dialogues}
    found = [f for d in dialogues for f in differences(d, outputs[d.id], assent, rule)]
    played = {"agent": outputs, **({"human": humans} if logs_triggers(dialogues) else {})}
    systems = [
        single_point(name, dialogues, fires, assent, rule=rule, resamples=resamples)
        for name, fires in played.items()
    ]
    budget = agent.run.config.eval.budget if agent.thresholds is None else agent.thresholds.budget
    every = [decision for decisions in decided.values() for decision in decisions]
    return Shadowed(
        decisions=len(every),
        asks=sum(len(decision.asks) for decision in every),
        calibrated=agent.thresholds is not None,
        windows="given" if known else "log",
        figures=collect_trade_offs("log", dialogues, budget, systems),
        counts=dict(Counter(f.what for f in found)),
        found=tuple(found),
    )


def with_log_windows(dialogues: Sequence[Dialogue], catalog: Catalog) -> tuple[Dialogue, ...]:
    """The dialogues with the windows that `annotate` finds in their log. None is left out by a gate: one
    without stays without windows, so its actions are masked.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "windows"
        annotate(dialogues, catalog, LogOracle(), out)
        corpus: Corpus = load("jsonl", out)
    found = {d.id: d for d in corpus.dialogues}
    return tuple(found.get(d.id, d) for d in dialogues)


async def _hear_all(agent: Agent, dialogues: Sequence[Dialogue], ui: Progress) -> dict[str, list[Decision]]:
    room = asyncio.Semaphore(AT_ONCE)

    async def hear(dialogue: Dialogue) -> list[Decision]:
        async with room:
            agent.open(dialogue.id, dialogue.tools)
            decisions = [await agent.observe_async(dialogue.id, turn) for turn in dialogue.turns]
            agent.close(dialogue.id)
        ui.step(dialogue.id)
        return [decision for decision in decisions if decision.decided]

    heard = await asyncio.gather(*map(hear, dialogues))
    return dict(zip([d.id for d in dialogues], heard, strict=True))


def _fires(decision: Decision) -> tuple[Action, ...]:
    return tuple(Action(name=a.name, params=a.params, status=Status.READY) for a in decision.fires)


def differences(
    dialogue: Dialogue,
    outputs: dict[int, tuple[Action, ...]],
    assent: frozenset[str],
    rule: MatchRule,
) -> list[Difference]:
    """The agent's fires beside the human's, and what the human ran and the agent did not. Fires on actions
    of unknown windows are left out, as in all figures.
    """
    found: list[Difference] = []
    hit: set[str] = set()
    for turn, fire in first_fires(dialogue, outputs, rule):
        reference = fire.reference or fire.meant
        logged = None if fire.reference is None else decision_of(dialogue, fire.reference)
        what = _what(fire.timing, turn, logged, fire.reference, fire.meant, fire.action.name in assent)
        if fire.reference is not None:
            hit.add(fire.reference.id)
        found.append(
            Difference(
                dialogue=dialogue.id,
                what=what,
                name=fire.action.name,
                turn=turn,
                params=fire.action.params,
                human=None if reference is None else reference.observed_trigger,
                wanted={} if reference is None else reference.params,
            )
        )
    missed = [r for r in dialogue.references if r.id not in hit and r.ready is not None]
    found += [
        Difference(
            dialogue=dialogue.id, what="missed", name=r.name, human=r.observed_trigger, wanted=r.params
        )
        for r in missed
        if r.observed_trigger is not None
    ]
    return found


def _what(
    timing: Timing | None,
    turn: int,
    logged: int | None,
    reference: Reference | None,
    meant: Reference | None,
    assent: bool,
) -> What:
    if reference is None or timing is None or timing is Timing.REPEAT:
        return "not called for" if meant is None else "wrong values"
    if is_false(timing, assent):
        return "before assent"
    if logged is None or turn == logged:
        return "same turn"
    return "earlier" if turn < logged else "later"
