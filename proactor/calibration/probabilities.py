"""Exact probabilities of each tool's fire, and of waiting, at every decision of a dialogue, without sampling.

At temperature 1, with the full softmax:

- `wait`: the probability of the canonical empty answer, ``[]`` as the tokenizer encodes it, with the end ids.
  Other spellings are not counted; training shows this one only.
- ``tools[name]``: the probability that the answer begins with ``[{"READY":"name"``. The closing quote is
  included, because one name may be a prefix of another. The quote may share a token with the text after it.
  So each canonical continuation (``"}]``, ``"},{"READY":"``, ``","parameter":"`` for each parameter of the
  tool, and the bare quote) is encoded and cut after the first token that contains the quote. The
  probabilities of the distinct cuts are added up. No cut is a prefix of another, so the events are disjoint,
  and all probabilities of a decision add up to at most 1. Other tokenizations of the same text, and a second
  action later in the list, are not counted.
- ``pending[name]``: the same for ``[{"PENDING":"name"``.

A tool with a parameter named like a status is written in the long form when that parameter is given
(`parse.render`); that form is not counted.

Each dialogue is one tree: decisions branch off the trunk, answers off a decision's board, and shared rows are
computed once. Each edge of the answers' trie is one sequence whose span is its last token; everything before
a span merges in the tree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from proactor.dialogue import Dialogue, Status
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.catalog import Catalog, Tool
from proactor.dialogue.parse import render
from proactor.dialogue.prompt import PromptEncoder
from proactor.engine import ChatFormat, Engine, ProactorError

Path = tuple[int, ...]
Boards = Callable[[Dialogue, int], Board]


class ProbabilityError(ProactorError):
    """No probability of an answer: the tokenizer changes a tool's name, or a thought comes first."""


class TurnProbabilities(BaseModel):
    """One decision: probabilities of waiting, and of each tool's READY (PENDING) as the first action."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    turn: int
    wait: float
    tools: dict[str, float]
    pending: dict[str, float] = Field(default_factory=dict)

    @property
    def other(self) -> float:
        """The remaining probability: answers of any other form."""
        return max(0.0, 1.0 - self.wait - sum(self.tools.values()) - sum(self.pending.values()))


class DialogueProbabilities(BaseModel):
    """Every decision of a dialogue, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialogue_id: str
    turns: tuple[TurnProbabilities, ...]


@dataclass(frozen=True, slots=True)
class DialogueScores:
    """A dialogue's probabilities, and for each (turn, tool) the most probable ids that begin its READY.

    A forced answer starts with those ids.
    """

    probabilities: DialogueProbabilities
    openings: dict[tuple[int, str], Path]


@dataclass(frozen=True, slots=True)
class Answers:
    """The canonical answers of some tools as ids.

    ``beginnings``: the disjoint beginnings by (status, tool). ``edges``: the trie of all paths, as (ids
    before, next id).
    """

    wait: Path
    beginnings: dict[tuple[Status, str], tuple[Path, ...]]
    edges: tuple[tuple[Path, int], ...]


def answers(chat: ChatFormat, tools: Catalog, *, pending: bool = True) -> Answers:
    """The canonical answers of ``tools``. Raises ProbabilityError where a text does not round-trip."""
    wait = tuple(chat.encode_answer(render(())))
    statuses = (Status.READY, Status.PENDING) if pending else (Status.READY,)
    beginnings = {(s, tool.name): _beginnings(chat, tool, s) for s in statuses for tool in tools.tools}
    paths = [wait, *(path for paths in beginnings.values() for path in paths)]
    edges = dict.fromkeys((path[:k], path[k]) for path in paths for k in range(len(path)))
    return Answers(wait, beginnings, tuple(edges))


def _beginnings(chat: ChatFormat, tool: Tool, status: Status) -> tuple[Path, ...]:
    """The distinct cuts, each after the first token that contains the closing quote of the tool's name."""
    opening = f'[{{"{status.value}":{json.dumps(tool.name, ensure_ascii=False)}'
    next_actions = (f'}},{{"{s.value}":"' for s in (Status.READY, Status.PENDING))
    parameters = (f',{json.dumps(p.name, ensure_ascii=False)}:"' for p in tool.parameters)
    cuts: dict[Path, None] = {}
    for continuation in ("", "}]", *next_actions, *parameters):
        ids = chat.encode_continuation(opening + continuation)
        cut = next((k for k in range(1, len(ids) + 1) if chat.decode(ids[:k]).startswith(opening)), None)
        if cut is None:
            raise ProbabilityError(f"tool {tool.name!r}: the tokenizer does not give its name back")
        cuts[tuple(ids[:cut])] = None
    return tuple(cuts)


def score(
    engine: Engine,
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    boards: Boards = lambda dialogue, turn: EMPTY,
    *,
    pending: bool = True,
) -> Iterator[DialogueScores]:
    """The scores of each dialogue, from one call of the engine.

    Raises ProbabilityError for a prompt mode in which a thought comes before the answer.
    """
    if encoder.style.mode != "plain":
        raise ProbabilityError(
            f"probabilities: in prompt mode {encoder.style.mode!r} a thought comes first, so no answer has "
            "a probability of its own"
        )
    known: dict[tuple[str, ...], Answers] = {}
    for dialogue in dialogues:
        if dialogue.tools not in known:
            offered = encoder.catalog.offered_in(dialogue)
            known[dialogue.tools] = answers(encoder.chat, offered, pending=pending)
        yield _score(engine, encoder, dialogue, boards, known[dialogue.tools])


def _score(
    engine: Engine, encoder: PromptEncoder, dialogue: Dialogue, boards: Boards, known: Answers
) -> DialogueScores:
    sequences, trees = [], []
    for turn in dialogue.decision_turns:
        prompt = encoder.prompt(dialogue, turn, boards(dialogue, turn))
        sequences += [[*prompt, *before, token] for before, token in known.edges]
        trees += [encoder.tree(dialogue, turn)] * len(known.edges)
    logps = engine.logprobs(sequences, [(len(s) - 1, len(s)) for s in sequences], trees=trees)
    values = [float(x) for x in logps]
    turns, openings = [], {}
    for i, turn in enumerate(dialogue.decision_turns):
        of_turn = values[i * len(known.edges) : (i + 1) * len(known.edges)]
        edge = dict(zip(known.edges, of_turn, strict=True))
        beginnings = {
            key: {path: _probability(path, edge) for path in paths} for key, paths in known.beginnings.items()
        }
        sums = {key: min(1.0, math.fsum(paths.values())) for key, paths in beginnings.items()}
        turns.append(
            TurnProbabilities(
                turn=turn,
                wait=_probability(known.wait, edge),
                tools={tool: p for (status, tool), p in sums.items() if status is Status.READY},
                pending={tool: p for (status, tool), p in sums.items() if status is Status.PENDING},
            )
        )
        for (status, tool), paths in beginnings.items():
            if status is Status.READY:
                openings[turn, tool] = max(paths, key=paths.__getitem__)
    return DialogueScores(DialogueProbabilities(dialogue_id=dialogue.id, turns=tuple(turns)), openings)


def _probability(path: Path, edge: dict[tuple[Path, int], float]) -> float:
    """The probability of a path, from the log-probabilities of its edges."""
    return min(1.0, math.exp(math.fsum(edge[path[:k], path[k]] for k in range(len(path)))))
