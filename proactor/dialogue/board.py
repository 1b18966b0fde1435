"""The action board: the actions already triggered, shown to the agent at a decision point.

In training the board is drawn from {empty, logged}; in evaluation it holds the agent's own earlier fires. A
reference that is not on the board counts as unfired (methods 1.5, cautions).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from proactor.dialogue.dialogue import Action, Dialogue, Status
from proactor.dialogue.matching import THETA, MatchRule, Timing, classify
from proactor.dialogue.parse import collapse, render


@dataclass(frozen=True, slots=True)
class Board:
    """``entries``: the TRIGGERED actions that the agent sees, oldest first. ``fired``, for the scorer:
    reference id -> class of its first fire.
    """

    entries: tuple[Action, ...] = ()
    fired: Mapping[str, Timing] = field(default_factory=dict)

    def render(self) -> str:
        """The board message, in the format of the agent's output."""
        return f"Board: {render(self.entries)}"

    def after(self, dialogue: Dialogue, turn: int, actions: Iterable[Action], theta: float = THETA) -> Board:
        """The board after ``turn``: the READY actions among ``actions`` are triggered, right or wrong.

        ``fired`` is by similarity, as in the rewards.
        """
        actions = tuple(actions)
        ready = [
            a.model_copy(update={"status": Status.TRIGGERED}) for a in actions if a.status is Status.READY
        ]
        if not ready:
            return self
        fired = dict(self.fired)
        for action in classify(dialogue, turn, actions, fired=self.fired, rule=MatchRule(theta)):
            if action.reference is not None and action.timing is not None:
                fired.setdefault(action.reference.id, action.timing)
        return Board(collapse((*self.entries, *ready)), fired)


EMPTY = Board()


def logged_board(dialogue: Dialogue, turn: int) -> Board:
    """The actions that the logged agent had triggered before it saw ``turn``."""
    triggers = [(r.observed_trigger, r) for r in dialogue.references if r.observed_trigger is not None]
    earlier = [r for at, r in sorted(triggers, key=lambda trigger: trigger[0]) if at < turn]
    entries = [Action(name=r.name, params=r.params, status=Status.TRIGGERED) for r in earlier]
    return Board(collapse(entries), {r.id: Timing.ON_TIME for r in earlier})


def draw_board(dialogue: Dialogue, turn: int, *, seed: int, epoch: int = 0, logged: float = 0.5) -> Board:
    """The logged board with probability ``logged``, else the empty one. A function of (seed, epoch, dialogue,
    turn), so independent of order and rank.
    """
    digest = hashlib.blake2b(f"board/{seed}/{epoch}/{dialogue.id}/{turn}".encode(), digest_size=8).digest()
    return logged_board(dialogue, turn) if int.from_bytes(digest) < logged * 2**64 else EMPTY
