"""The action board: the actions already triggered, shown to the agent at a decision point.

In evaluation the board holds the agent's own earlier fires. In training it is drawn: empty, *logged* (what
the logged agent had triggered), or *acted* (what an agent had triggered that acts as soon as it may). A
reference that is not on the board counts as unfired (methods 1.5, cautions).

The acted board is [INFERRED]. The logged agent often acts at the end of a window, so its board never shows an
action whose window is still open: a model that trains on empty and logged boards alone never sees that acting
again would be a repeat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from proactor.dialogue.dialogue import Action, Dialogue, Reference, Status
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


@dataclass(frozen=True, slots=True)
class BoardShares:
    """How often training shows which board: ``logged`` with that probability; of the rest, ``acted`` is the
    share of acted boards, and the others are empty.
    """

    logged: float = 0.5
    acted: float = 0.5


def logged_board(dialogue: Dialogue, turn: int) -> Board:
    """The actions that the logged agent had triggered before it saw ``turn``."""
    return _board_of(dialogue, turn, lambda r: r.observed_trigger)


def acted_board(dialogue: Dialogue, turn: int) -> Board:
    """The actions of an agent that acts at the first turn of each ready window, before it saw ``turn``. Where
    a window is not known: the logged agent's.
    """
    return _board_of(dialogue, turn, lambda r: r.ready[0] if r.ready else r.observed_trigger)


def _board_of(dialogue: Dialogue, turn: int, triggered: Callable[[Reference], int | None]) -> Board:
    triggers = [(at, r) for r in dialogue.references if (at := triggered(r)) is not None and at < turn]
    earlier = [r for _, r in sorted(triggers, key=lambda trigger: trigger[0])]
    entries = [Action(name=r.name, params=r.params, status=Status.TRIGGERED) for r in earlier]
    return Board(collapse(entries), {r.id: Timing.ON_TIME for r in earlier})


def earlier_board(dialogue: Dialogue, turn: int, board: Board, before: int) -> Board:
    """The board at turn ``before`` of the agent whose drawn board at ``turn`` is ``board``."""
    if not board.entries:
        return EMPTY
    acted = board == acted_board(dialogue, turn)
    return acted_board(dialogue, before) if acted else logged_board(dialogue, before)


def draw_board(
    dialogue: Dialogue, turn: int, *, seed: int, epoch: int = 0, shares: BoardShares | None = None
) -> Board:
    """The logged, the acted or the empty board, by ``shares``.

    A function of (seed, epoch, dialogue, turn), so independent of order and rank.
    """
    shares = shares or BoardShares()
    digest = hashlib.blake2b(f"board/{seed}/{epoch}/{dialogue.id}/{turn}".encode(), digest_size=8).digest()
    draw = int.from_bytes(digest) / 2**64
    if draw < shares.logged:
        return logged_board(dialogue, turn)
    acted = draw < shares.logged + (1 - shares.logged) * shares.acted
    return acted_board(dialogue, turn) if acted else EMPTY
