"""Names what kept a window masked: the value, or the assent, that no turn of the dialogue gives in time."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from proactor.annotation.logged import logged_action
from proactor.dialogue import Dialogue, Reference
from proactor.dialogue.catalog import Tool
from proactor.dialogue.windows import first_mention
from proactor.sources.base import last_user_turn


class MaskedWindow(BaseModel):
    """A reference without a window, and what blocked it, one line each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialogue: str
    reference: str
    tool: str
    blocked_by: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.dialogue} {self.tool}: {'; '.join(self.blocked_by)}"


def masked_window(reference: Reference, source: Dialogue, tool: Tool) -> MaskedWindow:
    """The masked ``reference`` of an annotation of ``source``, with what blocked it.

    Where the log has the action, its values are searched in the turns that the agent had seen when it acted,
    else those that the annotator gave.
    """
    logged = logged_action(reference, source)
    return MaskedWindow(
        dialogue=source.id,
        reference=reference.id,
        tool=reference.name,
        blocked_by=tuple(_blockers(logged or reference, reference, source, tool)) or (_other(logged, tool),),
    )


def _blockers(action: Reference, reference: Reference, source: Dialogue, tool: Tool) -> list[str]:
    """What is missing of the values of ``action`` at its trigger, else at the end of the coverage."""
    trigger = action.observed_trigger
    acted = trigger is not None
    end = reference.coverage[1] if reference.coverage else len(source.turns)
    if trigger is not None:
        end = trigger
    moment = f"the action at turn {end}" if acted else f"turn {end}, where the action ends"
    lines = []
    for name, value in action.params.items():
        spellings = (value, *action.variants.get(name, ()))
        said = action.value_turns.get(name) or first_mention(source.turns, spellings)
        if said is None:
            lines.append(f"{name}={value}: never said literally (`variants` can list what was said for it)")
        elif said > end:
            lines.append(f"{name}={value}: first said at turn {said}, after {moment}")
        elif source.turns[said - 1].speaker == "agent" and (last_user_turn(source.turns, end) or 0) < said:
            lines.append(f"{name}={value}: said by the agent at turn {said}, not taken up before {moment}")
    if not acted:
        lines += [f"{name}: required, never given" for name in tool.required if name not in action.params]
    return lines


def _other(logged: Reference | None, tool: Tool) -> str:
    """The blocker of an action whose values were all said in time."""
    if tool.confirm:
        return (
            "assent: the tool asks first, and no turn after its values was read as the user's agreement "
            "(`confirm: false` in the catalog, where it need not ask)"
        )
    return "on hold until it was run" if logged is not None else "never READY in the annotator's answers"
