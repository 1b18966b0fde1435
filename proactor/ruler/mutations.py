"""Answers that go wrong in one known way, to train a judge on [INFERRED].

They are made from the reference windows. A policy seldom gives them itself; the teacher scores them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from proactor.dialogue import Action, Dialogue, Reference, Status
from proactor.dialogue.board import Board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.parse import render
from proactor.dialogue.prompt import target
from proactor.dialogue.windows import open_at, params_at, ready_at


def mutations(
    dialogue: Dialogue, turn: int, board: Board, tools: Catalog, draw: random.Random
) -> dict[str, str]:
    """Answers by kind, without the kinds that are impossible at this decision.

    ``wait``, ``right`` (the target of supervised training), ``early``, ``late``, ``repeat``, ``wrong_value``,
    ``less`` (a value left out), ``wrong_tool``, ``more`` (another action beside the right ones).
    """
    answers = {"wait": (), "right": target(dialogue, turn, board)}
    live = [r for r in open_at(dialogue, turn) if r.ready is not None and r.id not in board.fired]
    ready = {r.id for r in ready_at(dialogue, turn)}
    if coming := [r for r in live if r.id not in ready]:
        answers["early"] = (_fire(draw.choice(coming), turn),)
    if past := [
        r
        for r in dialogue.references
        if r.ready is not None and r.ready[1] < turn and r.id not in board.fired
    ]:
        answers["late"] = (_fire(draw.choice(past)),)
    if board.entries:
        answers["repeat"] = (draw.choice(board.entries).model_copy(update={"status": Status.READY}),)
    base = [a for a in answers["right"] if a.status is Status.READY] or list(answers.get("early", ()))
    if base:
        chosen = draw.choice(base)
        answers |= {kind: (action,) for kind, action in _mutate(chosen, dialogue, tools, draw)}
    if other := [t for t in tools.names if all(a.name != t for a in answers["right"])]:
        extra = Action(name=draw.choice(other), status=Status.READY)
        answers["more"] = (*answers["right"], extra)
    return {kind: render(actions) for kind, actions in answers.items()}


def _fire(reference: Reference, turn: int | None = None) -> Action:
    """READY for ``reference``, with the values said by ``turn`` (None: all values)."""
    params = reference.params if turn is None else params_at(reference, turn)
    return Action(name=reference.name, params=params, status=Status.READY)


def _mutate(
    action: Action, dialogue: Dialogue, tools: Catalog, draw: random.Random
) -> Iterable[tuple[str, Action]]:
    """(kind, ``action`` changed in that way), for every kind that is possible."""
    if action.params:
        name = draw.choice(sorted(action.params))
        others = sorted(
            {v for r in dialogue.references for v in r.params.values()}
            | _allowed_values(tools, action.name, name) - {action.params[name]}
        )
        if others := [v for v in others if v != action.params[name]]:
            yield (
                "wrong_value",
                action.model_copy(update={"params": {**action.params, name: draw.choice(others)}}),
            )
        yield (
            "less",
            action.model_copy(update={"params": {k: v for k, v in action.params.items() if k != name}}),
        )
    if names := [t for t in tools.names if t != action.name]:
        yield "wrong_tool", action.model_copy(update={"name": draw.choice(names)})


def _allowed_values(tools: Catalog, tool: str, parameter: str) -> set[str]:
    """The values that the catalog lists for a parameter."""
    known = tools.get(tool)
    return {v for p in (known.parameters if known else ()) if p.name == parameter for v in p.values}
