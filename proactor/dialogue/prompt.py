"""A dialogue as a prompt that only grows at its end, and what the agent should have answered.

One dialogue is one trunk: a system message (instructions and the tools on offer), then one message a turn,
user and agent as they spoke. At a decision point, after a user turn, the action board hangs off the trunk as
one more message, and the answer follows:

    system | turn 1 | turn 2 | … | turn u | board | {answer}

so that all decision points of a dialogue share the trunk's pages and rows whatever their boards say. Each
message is encoded once, by itself. Where a chat template forbids that (it rewrites earlier turns, or refuses
two messages of one role in a row), every decision point is encoded whole and becomes its own tree;
`PromptEncoder.separate` counts them.

Three modes, after the baselines of the paper [NOTES, methods 1.9; texts and formats INFERRED]. "plain"
(Non-Reasoning): the answer alone. "reasoning": `<think>…</think>`, then the answer. "graph": after thinking,
an action state graph that the agent keeps for itself (`proactor.dialogue.state_graph`), shown again below the board at
its next decision. Thoughts are not kept: no later prompt holds them. What supervised training shows before
the answer follows from the dialogue's windows up to that turn, in fixed words (`target_text`): an empty block
would teach not to think, and the dialogues hold no thoughts. A model that thinks already is better left
without the sft stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from proactor.dialogue.board import EMPTY, Board, logged_board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.dialogue import Action, Dialogue, Reference, Status
from proactor.dialogue.parse import render
from proactor.dialogue.state_graph import NO_GRAPH, StateGraph, graph_of
from proactor.dialogue.windows import params_at, status_at

if TYPE_CHECKING:
    from proactor.engine import ChatFormat

Message = dict[str, str]
Mode = Literal["plain", "reasoning", "graph"]

INSTRUCTIONS = """\
Each user message is followed by the board of actions already triggered. Answer with a JSON list of the actions to take now: \
[] to wait, [{"READY":"tool","parameter":"value"}] to act, PENDING for READY while something is missing. \
Take values from the conversation only. Tools marked ask need the user's consent first. Never repeat what is on the board.
Tools:"""

THINK = (
    "Think before each answer: <think>what is open, what is missing, is it time</think>, then the answer.\n"
)
GRAPH = """\
Between the two keep a graph of what is open: <graph>[{"PENDING":"tool","parameter":"value","other":null}]</graph>, null for what is \
missing. It is shown to you again below the next board.
"""
OPENINGS: dict[Mode, str] = {
    "plain": INSTRUCTIONS,
    "reasoning": THINK + INSTRUCTIONS,
    "graph": THINK + GRAPH + INSTRUCTIONS,
}
"""The instructions of each mode, where a style brings none of its own."""


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """`instructions`: text before the tools (may be empty); None: the mode's own. `catalog`: template of
    `Catalog.render`. `board_role`: role of the board message; "user" is accepted by the most templates.
    `mode`: what the agent writes before its answer.
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
    offered = catalog.subset(dialogue.tools) if dialogue.tools else catalog
    return {"role": "system", "content": f"{style.opening}\n{offered.render(style.catalog)}".strip()}


def messages(
    dialogue: Dialogue,
    turn: int,
    board: Board,
    catalog: Catalog,
    style: PromptStyle | None = None,
    graph: StateGraph = NO_GRAPH,
) -> list[Message]:
    """The prompt of the decision after `turn`, in full. `graph`: what the agent wrote last; shown in that
    mode alone.
    """
    style = style or PromptStyle()
    spoken = [_turn_message(t.speaker, t.text) for t in dialogue.turns[:turn]]
    return [system_message(dialogue, catalog, style), *spoken, board_message(board, graph, style)]


def board_message(board: Board, graph: StateGraph, style: PromptStyle) -> Message:
    """The last message of a prompt: the board and, in graph mode, the agent's own graph below it."""
    content = f"{board.render()}\nGraph: {graph.render()}" if style.mode == "graph" else board.render()
    return {"role": style.board_role, "content": content}


def _turn_message(speaker: str, text: str) -> Message:
    return {"role": "user" if speaker == "user" else "assistant", "content": text}


def decisions(
    dialogue: Dialogue,
    catalog: Catalog,
    boards: Callable[[int], Board] = lambda turn: EMPTY,
    style: PromptStyle | None = None,
) -> list[tuple[list[Message], int]]:
    """(messages, turn) of every decision point; `boards` gives the board shown after a turn."""
    return [(messages(dialogue, u, boards(u), catalog, style), u) for u in dialogue.decision_turns]


@dataclass(frozen=True, slots=True)
class Trunk:
    """Ids of system and turns, and where each turn ends: the prompt after turn u starts with `ids[:ends[u]]`;
    ends[0] is the system's.
    """

    ids: list[int]
    ends: list[int]


@dataclass(slots=True)
class PromptEncoder:
    """Prompts as token ids; a trunk is encoded once and kept (the `keep` latest dialogues).

    `shared`: do all decision points of a dialogue extend one trunk? `separate`: decision points encoded as
    their own tree.
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
        """Decision points with the same value belong to one token tree."""
        return dialogue.id if self.shared else f"{dialogue.id}/{turn}"

    def prompt(
        self, dialogue: Dialogue, turn: int, board: Board = EMPTY, graph: StateGraph = NO_GRAPH
    ) -> list[int]:
        """Ids of the prompt of the decision after `turn`, generation prompt included."""
        if not self.shared:
            self.separate += 1
            whole = messages(dialogue, turn, board, self.catalog, self.style, graph)
            return self.chat.encode(
                _merged(whole, "system" in self.chat.report.roles), add_generation_prompt=True
            )
        trunk = self.trunk(dialogue)
        leaf = self.chat.encode_message(board_message(board, graph, self.style))
        return [*trunk.ids[: trunk.ends[turn]], *leaf, *self.chat.generation_prompt_ids]

    def prompts(
        self, dialogue: Dialogue, boards: Callable[[int], Board] = lambda turn: EMPTY
    ) -> list[tuple[int, list[int]]]:
        """(turn, prompt ids) of every decision point."""
        return [(u, self.prompt(dialogue, u, boards(u))) for u in dialogue.decision_turns]

    def answer(self, actions: tuple[Action, ...]) -> list[int]:
        """Ids of an answer as the model would sample it, end token included."""
        return self.chat.encode_answer(render(actions))

    def target_ids(
        self, dialogue: Dialogue, turn: int, board: Board = EMPTY, *, pending: bool = True
    ) -> list[int]:
        """Ids of the output that supervised training shows after `turn`, end token included."""
        return self.chat.encode_answer(
            target_text(dialogue, turn, board, self.catalog, self.style.mode, pending=pending)
        )

    def earlier_graph(self, dialogue: Dialogue, turn: int, board: Board = EMPTY) -> StateGraph:
        """In graph mode what an agent that answered as wanted had written at the decision before `turn`, else
        no graph.
        """
        return earlier_graph(dialogue, turn, board, self.catalog) if self.style.mode == "graph" else NO_GRAPH

    def trunk(self, dialogue: Dialogue) -> Trunk:
        """The dialogue's trunk, encoded on first use."""
        known = self._trunks.get(dialogue.id)
        if known is not None and (known[0] is dialogue or known[0] == dialogue):
            return known[1]
        system = self._systems.get(dialogue.tools)
        if system is None:
            system = self.chat.encode_message(system_message(dialogue, self.catalog, self.style), first=True)
            self._systems[dialogue.tools] = system
        ids, ends = list(system), [len(system)]
        for turn in dialogue.turns:
            ids += self.chat.encode_message(_turn_message(turn.speaker, turn.text))
            ends.append(len(ids))
        if len(self._trunks) >= self.keep:
            del self._trunks[next(iter(self._trunks))]
        trunk = Trunk(ids, ends)
        self._trunks[dialogue.id] = dialogue, trunk
        return trunk


def _merged(whole: list[Message], system: bool) -> list[Message]:
    """Neighbours of one role joined by an empty line, and the system text put into the first user message
    where there is no such role.
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
    """The answer that supervised training shows: READY for each reference whose ready window contains `turn`
    and that is not on the board; with `pending`, PENDING for one that is covered but not ready, with the
    values said so far, once there is one.

    An action that the user will withdraw is PENDING like any other until then, and a value that is first said
    after `turn` is in no answer: the agent has no hindsight. Empty: wait.
    """
    ready = [r for r in dialogue.references if r.id not in board.fired and status_at(r, turn) is Status.READY]
    actions = [Action(name=r.name, params=params_at(r, turn), status=Status.READY) for r in ready]
    if pending:
        known = (r for r in dialogue.references if r.ready is not None)
        for reference in (*known, *dialogue.withdrawn):
            params = params_at(reference, turn)
            if _begun(reference, turn, board) and (params or not reference.params):
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
    """The output that supervised training shows: `target` as text, in the other modes after a thought and a
    graph.

    Both say what is open, ready and missing by `turn` (also where `pending` leaves PENDING actions out of the
    answer), and nothing that only later turns tell.
    """
    answer = render(target(dialogue, turn, board, pending=pending))
    if mode == "plain":
        return answer
    graph = graph_of(target(dialogue, turn, board), catalog)
    kept = f"<graph>{graph.render()}</graph>" if mode == "graph" else ""
    return f"<think>{graph.thought()}</think>{kept}{answer}"


def earlier_graph(dialogue: Dialogue, turn: int, board: Board, catalog: Catalog) -> StateGraph:
    """The wanted graph of the decision before `turn`, as the agent behind `board` saw it: on the logged board
    of that time, or on an empty one.
    """
    before = max((u for u in dialogue.decision_turns if u < turn), default=None)
    if before is None:
        return NO_GRAPH
    return graph_of(
        target(dialogue, before, logged_board(dialogue, before) if board.entries else EMPTY), catalog
    )


def _begun(reference: Reference, turn: int, board: Board) -> bool:
    if reference.coverage is None or reference.id in board.fired:
        return False
    start = reference.ready[0] if reference.ready else reference.coverage[1] + 1
    return reference.coverage[0] <= turn < start


def unknowable(dialogue: Dialogue, turn: int, board: Board = EMPTY) -> bool:
    """Might an action with an unknown window be right here? Supervised training leaves such decision points
    out, and counts them.
    """
    for reference in dialogue.references:
        if reference.ready is None and reference.id not in board.fired:
            covered = (
                reference.coverage is not None and reference.coverage[0] <= turn <= reference.coverage[1]
            )
            if covered or reference.observed_trigger == turn:
                return True
    return False
