"""A dialogue as a prompt that only grows at its end, and the target answers of supervised training.

One dialogue is one trunk: a system message (instructions and the tools on offer), then one message per turn.
At a decision point, after a user turn, the action board is one more message, and the answer follows:

    system | turn 1 | turn 2 | … | turn u | board | {answer}

All decision points of a dialogue thus share the trunk's KV pages and rows, whatever their boards say. Each
message is encoded once, by itself. Where a chat template forbids that (it rewrites earlier turns, or refuses
two messages of one role in a row), every decision point is encoded whole and is a token tree of its own;
`PromptEncoder.separate` counts them.

Three modes, after the baselines of the paper [NOTES, methods 1.9; texts and formats INFERRED]:

- "plain" (Non-Reasoning): the answer alone.
- "reasoning": ``<think>…</think>``, then the answer. No later prompt holds the thought.
- "graph": after the thought, an action state graph that the agent keeps for itself
  (`proactor.dialogue.state_graph`), shown again below the board at its next decision.

In the last two, supervised training shows a thought in fixed words, derived from the dialogue's windows up to
that turn (`target_text`): an empty block would teach not to think, and the dialogues hold no thoughts. A
model that already thinks is better off without the sft stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from proactor.dialogue.board import EMPTY, Board, earlier_board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.dialogue import Action, Dialogue, Reference, Status
from proactor.dialogue.parse import render
from proactor.dialogue.state_graph import NO_GRAPH, StateGraph, graph_of
from proactor.dialogue.windows import last_decision, params_at, status_at, unknown_at

if TYPE_CHECKING:
    from proactor.engine import ChatFormat

Message = dict[str, str]
Mode = Literal["plain", "reasoning", "graph"]

INSTRUCTIONS = """\
Each user message is followed by the board of actions already triggered. \
Answer with a JSON list of the actions to take now: \
[] to wait, [{"READY":"tool","parameter":"value"}] to act, PENDING for READY while something is missing. \
Take values from the conversation only. Tools marked ask need the user's consent first. \
Never repeat what is on the board.
Tools:"""

THINK = """\
Think before each answer: <think>what is open, what is missing, is it time</think>, then the answer.
"""
GRAPH = """\
Between the two keep a graph of what is open: \
<graph>[{"PENDING":"tool","parameter":"value","other":null}]</graph>, null for what is missing. \
It is shown to you again below the next board.
"""
OPENINGS: dict[Mode, str] = {
    "plain": INSTRUCTIONS,
    "reasoning": THINK + INSTRUCTIONS,
    "graph": THINK + GRAPH + INSTRUCTIONS,
}
"""The instructions of each mode, used where a style has none of its own."""


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """``instructions``: text before the tools, None for the mode's own. ``catalog``: template of
    `Catalog.render`. ``board_role``: role of the board message; most templates accept "user". ``mode``: what
    the agent writes before its answer.
    """

    instructions: str | None = None
    catalog: str = "compact"
    board_role: str = "user"
    mode: Mode = "plain"

    @property
    def opening(self) -> str:
        """The text before the tools."""
        return OPENINGS[self.mode] if self.instructions is None else self.instructions


def system_message(dialogue: Dialogue, catalog: Catalog, style: PromptStyle) -> Message:
    """Instructions and the dialogue's tools (the whole catalog when the dialogue names none)."""
    offered = catalog.offered_in(dialogue)
    return {"role": "system", "content": f"{style.opening}\n{offered.render(style.catalog)}".strip()}


def messages(
    dialogue: Dialogue,
    turn: int,
    board: Board,
    catalog: Catalog,
    style: PromptStyle | None = None,
    graph: StateGraph = NO_GRAPH,
) -> list[Message]:
    """The whole prompt of the decision after ``turn``. ``graph``: the agent's last graph (graph mode)."""
    style = style or PromptStyle()
    turns = [_turn_message(t.speaker, t.text) for t in dialogue.turns[:turn]]
    return [system_message(dialogue, catalog, style), *turns, board_message(board, graph, style)]


def board_message(board: Board, graph: StateGraph, style: PromptStyle) -> Message:
    """The last message of a prompt: the board and, in graph mode, the agent's own graph below it."""
    content = f"{board.render()}\nGraph: {graph.render()}" if style.mode == "graph" else board.render()
    return {"role": style.board_role, "content": content}


def _turn_message(speaker: str, text: str) -> Message:
    return {"role": "user" if speaker == "user" else "assistant", "content": text}


@dataclass(frozen=True, slots=True)
class Trunk:
    """Ids of the system message and all turns. The prompt after turn u begins with ``ids[:ends[u]]``;
    ``ends[0]`` ends the system message.
    """

    ids: list[int]
    ends: list[int]


@dataclass(slots=True)
class PromptEncoder:
    """Prompts as token ids. The trunks of the ``keep`` latest dialogues are cached.

    ``shared``: all decision points of a dialogue extend one trunk. ``separate``: number of decision points
    encoded as trees of their own.
    """

    chat: ChatFormat
    catalog: Catalog
    style: PromptStyle = field(default_factory=PromptStyle)
    keep: int = 4096
    separate: int = 0
    shared: bool = field(init=False)
    _trunks: dict[str, tuple[Dialogue, Trunk]] = field(init=False, default_factory=dict)
    _systems: dict[tuple[str, ...], list[int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        report = self.chat.report
        self.shared = report.appendable and not report.alternating and "system" in report.roles

    def tree(self, dialogue: Dialogue, turn: int) -> str:
        """Name of the token tree that the decision point belongs to."""
        return dialogue.id if self.shared else f"{dialogue.id}/{turn}"

    def prompt(
        self, dialogue: Dialogue, turn: int, board: Board = EMPTY, graph: StateGraph = NO_GRAPH
    ) -> list[int]:
        """Ids of the prompt of the decision after ``turn``, generation prompt included."""
        if not self.shared:
            self.separate += 1
            whole = messages(dialogue, turn, board, self.catalog, self.style, graph)
            merged = _merge_roles(whole, "system" in self.chat.report.roles)
            return self.chat.encode(merged, add_generation_prompt=True)
        trunk = self.trunk(dialogue)
        leaf = self.chat.encode_message(board_message(board, graph, self.style))
        return [*trunk.ids[: trunk.ends[turn]], *leaf, *self.chat.generation_prompt_ids]

    def prompts(
        self, dialogue: Dialogue, boards: Callable[[int], Board] = lambda turn: EMPTY
    ) -> list[tuple[int, list[int]]]:
        """(turn, prompt ids) of every decision point."""
        return [(u, self.prompt(dialogue, u, boards(u))) for u in dialogue.decision_turns]

    def answer(self, actions: tuple[Action, ...]) -> list[int]:
        """Ids of an answer as the model samples it, end token included."""
        return self.chat.encode_answer(render(actions))

    def target_ids(
        self, dialogue: Dialogue, turn: int, board: Board = EMPTY, *, pending: bool = True
    ) -> list[int]:
        """Ids of `target_text` after ``turn``, end token included."""
        return self.chat.encode_answer(
            target_text(dialogue, turn, board, self.catalog, self.style.mode, pending=pending)
        )

    def earlier_graph(self, dialogue: Dialogue, turn: int, board: Board = EMPTY) -> StateGraph:
        """In graph mode the target graph of the decision before ``turn`` (`earlier_graph`), else no graph."""
        return earlier_graph(dialogue, turn, board, self.catalog) if self.style.mode == "graph" else NO_GRAPH

    def trunk(self, dialogue: Dialogue) -> Trunk:
        """The dialogue's trunk, each turn encoded on first use: a dialogue under way may grow."""
        known = self._trunks.get(dialogue.id)
        if known is not None and (known[0] is dialogue or known[0] == dialogue):
            return known[1]
        if known is not None and _begins(known[0], dialogue):
            trunk = Trunk(list(known[1].ids), list(known[1].ends))
        else:
            system = self._system(dialogue)
            trunk = Trunk(list(system), [len(system)])
        for turn in dialogue.turns[len(trunk.ends) - 1 :]:
            trunk.ids.extend(self.chat.encode_message(_turn_message(turn.speaker, turn.text)))
            trunk.ends.append(len(trunk.ids))
        if dialogue.id not in self._trunks and len(self._trunks) >= self.keep:
            del self._trunks[next(iter(self._trunks))]
        self._trunks[dialogue.id] = dialogue, trunk
        return trunk

    def _system(self, dialogue: Dialogue) -> list[int]:
        """Ids of the system message, the same for all dialogues with these tools."""
        system = self._systems.get(dialogue.tools)
        if system is None:
            system = self.chat.encode_message(system_message(dialogue, self.catalog, self.style), first=True)
            self._systems[dialogue.tools] = system
        return system

    def forget(self, dialogue_id: str) -> None:
        """Let go of a dialogue's trunk."""
        self._trunks.pop(dialogue_id, None)


def _begins(known: Dialogue, dialogue: Dialogue) -> bool:
    """Whether the turns of ``known`` are the first ones of ``dialogue``, with the same tools on offer."""
    return known.tools == dialogue.tools and known.turns == dialogue.turns[: len(known.turns)]


def _merge_roles(whole: list[Message], system: bool) -> list[Message]:
    """Messages of one role in a row joined by an empty line. Without a ``system`` role its text opens the
    first user message.
    """
    result: list[Message] = []
    for message in whole:
        role = "user" if message["role"] == "system" and not system else message["role"]
        if result and result[-1]["role"] == role:
            result[-1] = {"role": role, "content": f"{result[-1]['content']}\n\n{message['content']}"}
        else:
            result.append({"role": role, "content": message["content"]})
    return result


def target(
    dialogue: Dialogue, turn: int, board: Board = EMPTY, *, pending: bool = True
) -> tuple[Action, ...]:
    """The target answer after ``turn``; empty: wait.

    READY for each reference whose ready window contains ``turn`` and that is not on the board. With
    ``pending``, PENDING for each that is covered but not ready yet, with the values said so far, as soon as
    there is one. The agent has no hindsight: an action that the user will withdraw is PENDING until then, and
    a value that is first said after ``turn`` is in no answer.
    """
    ready = [r for r in dialogue.references if r.id not in board.fired and status_at(r, turn) is Status.READY]
    actions = [Action(name=r.name, params=params_at(r, turn), status=Status.READY) for r in ready]
    if pending:
        known = (r for r in dialogue.references if r.ready is not None)
        for reference in (*known, *dialogue.withdrawn):
            params = params_at(reference, turn)
            if _is_pending(reference, turn, board) and (params or not reference.params):
                actions.append(Action(name=reference.name, params=params, status=Status.PENDING))
    return tuple(actions)


def target_text(
    dialogue: Dialogue,
    turn: int,
    board: Board,
    catalog: Catalog,
    mode: Mode = "plain",
    *,
    pending: bool = True,
) -> str:
    """The output shown in supervised training: the mode's thought and graph, if any, then `target`.

    Thought and graph state what is open, ready and missing by ``turn``, also where ``pending`` leaves PENDING
    actions out of the answer, and nothing that only later turns tell.
    """
    answer = render(target(dialogue, turn, board, pending=pending))
    if mode == "plain":
        return answer
    graph = graph_of(target(dialogue, turn, board), catalog)
    kept = f"<graph>{graph.render()}</graph>" if mode == "graph" else ""
    return f"<think>{graph.thought()}</think>{kept}{answer}"


def earlier_graph(dialogue: Dialogue, turn: int, board: Board, catalog: Catalog) -> StateGraph:
    """The target graph of the decision before ``turn``, on the `earlier_board` of that turn."""
    before = last_decision(dialogue, turn - 1)
    if before is None:
        return NO_GRAPH
    return graph_of(target(dialogue, before, earlier_board(dialogue, turn, board, before)), catalog)


def _is_pending(reference: Reference, turn: int, board: Board) -> bool:
    if reference.coverage is None or reference.id in board.fired:
        return False
    start = reference.ready[0] if reference.ready else reference.coverage[1] + 1
    return reference.coverage[0] <= turn < start


def unknowable(dialogue: Dialogue, turn: int, board: Board = EMPTY) -> bool:
    """Whether an action with an unknown window could be right after ``turn``. Supervised training leaves such
    decision points out and counts them.
    """
    return any(unknown_at(dialogue, r, turn) for r in dialogue.references if r.id not in board.fired)
