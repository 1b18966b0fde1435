"""The action board: what was already triggered, shown to the agent at a decision point.

In training the board is drawn from {empty, logged}; in evaluation it holds the agent's own earlier fires.
Every reference counts as unfired unless it stands on the board (methods 1.5, cautions).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from proactor.dialogue.dialogue import Action, Dialogue, Status
from proactor.dialogue.matching import THETA, Timing, judge
from proactor.dialogue.parse import collapse, render


@dataclass(frozen=True, slots=True)
class Board:
    """`entries`: what the agent is shown, TRIGGERED, oldest first. `fired`: reference id -> class of its
    first fire, for the scorer.
    """

    entries: tuple[Action, ...] = ()
    fired: Mapping[str, Timing] = field(default_factory=dict)

    def render(self) -> str:
        """The board message, in the format of the agent's own output."""
        return f"Board: {render(self.entries)}"

    def after(self, dialogue: Dialogue, turn: int, actions: Iterable[Action], theta: float = THETA) -> Board:
        """The board once the READY actions among `actions` were triggered at `turn`, right or wrong."""
        actions = tuple(actions)
        ready = [
            a.model_copy(update={"status": Status.TRIGGERED}) for a in actions if a.status is Status.READY
        ]
        if not ready:
            return self
        fired = dict(self.fired)
        for judged in judge(dialogue, turn, actions, fired=self.fired, theta=theta):
            if judged.reference is not None and judged.timing is not None:
                fired.setdefault(judged.reference.id, judged.timing)
        return Board(collapse((*self.entries, *ready)), fired)


EMPTY = Board()


def logged_board(dialogue: Dialogue, turn: int) -> Board:
    """What the logged agent had triggered before it saw `turn` (its last visible turn at the fire lies
    before).
    """
    done = [r for r in dialogue.references if r.observed_trigger is not None and r.observed_trigger < turn]
    done.sort(key=lambda r: r.observed_trigger or 0)
    entries = [Action(name=r.name, params=r.params, status=Status.TRIGGERED) for r in done]
    return Board(collapse(entries), {r.id: Timing.ON_TIME for r in done})


def draw_board(dialogue: Dialogue, turn: int, *, seed: int, epoch: int = 0, logged: float = 0.5) -> Board:
    """Logged with probability `logged`, else empty; a function of (seed, epoch, dialogue, turn), never of
    order or rank.
    """
    digest = hashlib.blake2b(f"board/{seed}/{epoch}/{dialogue.id}/{turn}".encode(), digest_size=8).digest()
    return logged_board(dialogue, turn) if int.from_bytes(digest) < logged * 2**64 else EMPTY
