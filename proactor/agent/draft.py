"""What a model proposes after a turn, and what of it is done: fired, asked about, or left with a reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proactor.agent.conversation import Conversation, Fate
from proactor.dialogue import Action, Status, normalise
from proactor.dialogue.agent_log import Act, Near
from proactor.dialogue.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Proposal:
    """An action as the model has it. ``near``: below its threshold, so only told."""

    action: Action
    probability: float | None = None
    threshold: float | None = None
    near: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """The proposals of one decision. ``wait``, ``answer``: as in `Decision`. ``tokens``: of answers, drawn or
    scored.
    """

    proposals: tuple[Proposal, ...] = ()
    wait: float | None = None
    answer: str = ""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """``fired``: the actions that the board gets."""

    acts: tuple[Act, ...]
    near: tuple[Near, ...]
    fired: tuple[Action, ...]


def settle(
    conversation: Conversation, turn: int, proposals: Iterable[Proposal], catalog: Catalog, *, guard: bool
) -> Settled:
    """What is done of ``proposals`` after ``turn``. ``guard`` False fires whatever is READY.

    A guarded agent fires no tool that is not on offer, none that lacks a required value or has one that the
    tool does not know, and none twice with the same values. It asks once about an action whose values are
    complete and whose tool needs assent.
    """
    acts: list[Act] = []
    near: list[Near] = []
    fired: list[Action] = []
    for proposal in proposals:
        action = proposal.action
        missing = _missing(action, catalog)
        why = _why_not(conversation, proposal, missing, catalog, guard)
        if why:
            near.append(
                Near(
                    name=action.name,
                    params=action.params,
                    probability=proposal.probability,
                    threshold=proposal.threshold,
                    missing=missing,
                    why=why,
                )
            )
            continue
        fires = action.status is Status.READY
        acts.append(
            Act(
                id=f"{turn}.{len(acts) + 1}",
                kind="fire" if fires else "ask",
                name=action.name,
                params=action.params,
                probability=proposal.probability,
                threshold=proposal.threshold,
            )
        )
        fired += [action] if fires else []
    return Settled(tuple(acts), tuple(near), tuple(fired))


def _why_not(
    conversation: Conversation,
    proposal: Proposal,
    missing: tuple[str, ...],
    catalog: Catalog,
    guard: bool,
) -> str:
    """Why an action is not done; empty: it is."""
    action = proposal.action
    if action.status is Status.TRIGGERED:
        return "told as already triggered"
    ready = action.status is Status.READY
    if ready and not guard and not proposal.near:
        return ""
    if (tool := catalog.get(action.name)) is None:
        return "no such tool on offer"
    before = conversation.standing(action)
    if before is not None and (conversation.fates[before.id] is not Fate.ASKED or not ready):
        return f"{conversation.fates[before.id]} before ({before.id})"
    if problem := _value_problem(action, catalog):
        return problem
    if missing:
        return f"{', '.join(missing)} missing"
    if proposal.near:
        return "below its threshold"
    if not ready and not tool.confirm:
        return "announced, not ready"
    return ""


def _missing(action: Action, catalog: Catalog) -> tuple[str, ...]:
    tool = catalog.get(action.name)
    return () if tool is None else tuple(name for name in tool.required if name not in action.params)


def _value_problem(action: Action, catalog: Catalog) -> str:
    """What is wrong with a value: of a parameter that the tool lacks, or of none of an enum's values."""
    parameters = {p.name: p for p in catalog[action.name].parameters}
    for name, value in action.params.items():
        if name not in parameters:
            return f"it has no parameter {name!r}"
        parameter = parameters[name]
        if parameter.type == "enum" and normalise(value) not in map(normalise, parameter.values):
            return f"{name}: {value!r} is none of {', '.join(parameter.values)}"
    return ""
