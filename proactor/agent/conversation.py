"""`Conversation`: the turns, the board and the actions of one live conversation. It knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum

from proactor.agent.errors import AgentError
from proactor.dialogue import Action, Dialogue, Speaker, Status, Turn
from proactor.dialogue.agent_log import Act, Decision
from proactor.dialogue.board import Board
from proactor.dialogue.parse import collapse, key
from proactor.evaluation.own_board import OwnBoard

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A tool with its values (`parse.key`)."""


class Fate(StrEnum):
    """What became of an action. ``REPLACED``: asked about, and then fired as an action of a later turn."""

    ASKED = "asked"
    REPLACED = "replaced"
    FIRED = "fired"
    REJECTED = "rejected"
    DONE = "done"
    FAILED = "failed"


GONE = (Fate.FAILED, Fate.REPLACED)
"""Fates of actions that keep the same one from nothing."""


@dataclass(slots=True)
class Conversation:
    """``first``: how many of the oldest turns are no longer read. ``too_long``: numbers of turns that alone
    exceed the context; none is read. ``decisions``: by turn. ``fates``: of each action, by its id. ``used``:
    when something came last, in seconds.
    """

    id: str
    tools: tuple[str, ...] = ()
    turns: list[Turn] = field(default_factory=list)
    first: int = 0
    too_long: set[int] = field(default_factory=set)
    decisions: dict[int, Decision] = field(default_factory=dict)
    own: OwnBoard = field(default_factory=OwnBoard)
    acts: dict[str, Act] = field(default_factory=dict)
    fates: dict[str, Fate] = field(default_factory=dict)
    used: float = 0.0
    _last: Future[None] | None = None

    def say(self, speaker: Speaker, text: str) -> Turn:
        """Add a turn."""
        turn = Turn(index=len(self.turns) + 1, speaker=speaker, text=text)
        self.turns.append(turn)
        return turn

    def dialogue(self, upto: int) -> Dialogue:
        """The turns that are still read, up to number ``upto``; they count from 1."""
        read = [turn for turn in self.turns[self.first : upto] if turn.index not in self.too_long]
        if len(read) < upto:
            read = [turn.model_copy(update={"index": i}) for i, turn in enumerate(read, start=1)]
        return Dialogue(id=self.id, turns=tuple(read), tools=self.tools)

    @property
    def dropped(self) -> int:
        """How many turns are no longer read."""
        return self.first + sum(number > self.first for number in self.too_long)

    def drop(self, upto: int) -> bool:
        """Leave the older half of the turns that are read out; False where only the last one is left."""
        read = upto - self.first
        if read < 2:
            return False
        self.first += (read + 1) // 2
        return True

    # -- one decision after the other ---

    def take_number(self) -> tuple[Future[None] | None, Future[None]]:
        """(what the next decision waits for, what it resolves when it has ended)."""
        before, mine = self._last, Future[None]()
        self._last = mine
        return before, mine

    @property
    def deciding(self) -> bool:
        """Whether a decision is under way."""
        return self._last is not None and not self._last.done()

    # -- actions ---

    def standing(self, action: Action) -> Act | None:
        """The latest of the same action with the same values: asked about or fired before, and not failed."""
        same = self._same(key(action))
        return next((act for act in reversed(same) if self.fates[act.id] not in GONE), None)

    def _same(self, wanted: Key) -> list[Act]:
        return [act for act in self.acts.values() if _key_of(act) == wanted]

    def add(self, decision: Decision) -> None:
        """Remember a decision with its actions. One that fires replaces what was asked of it."""
        self.decisions[decision.turn] = decision
        for act in decision.actions:
            for earlier in self._same(_key_of(act)):
                if act.kind == "fire" and self.fates[earlier.id] is Fate.ASKED:
                    self.fates[earlier.id] = Fate.REPLACED
            self.acts[act.id] = act
            self.fates[act.id] = Fate.FIRED if act.kind == "fire" else Fate.ASKED

    def find(self, act_id: str | None, call: str, fates: Sequence[Fate]) -> Act:
        """The action ``act_id``, or the latest, of one of ``fates``. AgentError where there is none."""
        words = " or ".join(fates)
        if act_id is None:
            found = [act for act in self.acts.values() if self.fates[act.id] in fates]
            if not found:
                raise AgentError(f"conversation {self.id!r}: {call}: no action was {words}")
            return found[-1]
        act = self.acts.get(act_id) if isinstance(act_id, str) else None  # of JSON it may be anything
        if act is None:
            known = ", ".join(self.acts) or "none"
            raise AgentError(f"conversation {self.id!r}: {call}: no action {act_id!r} (its actions: {known})")
        if self.fates[act_id] not in fates:
            raise AgentError(
                f"conversation {self.id!r}: {call}: {act.name} ({act_id}) was {self.fates[act_id]}, "
                f"not {words}"
            )
        return act

    def trigger(self, act: Act) -> None:
        """An action that was asked about fires."""
        self.fates[act.id] = Fate.FIRED
        entry = Action(name=act.name, params=act.params, status=Status.TRIGGERED)
        self.own.board = Board(collapse((*self.own.board.entries, entry)), self.own.board.fired)

    def fail(self, act: Act) -> None:
        """A fired action failed: it leaves the board, so that it may fire again."""
        self.fates[act.id] = Fate.FAILED
        board = self.own.board
        left = tuple(entry for entry in board.entries if key(entry) != _key_of(act))
        self.own.board = Board(left, board.fired)


def _key_of(act: Act) -> Key:
    return key(Action(name=act.name, params=act.params, status=Status.READY))
