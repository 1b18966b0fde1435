"""How probable each tool's fire is at every decision of a dialogue, and how probable waiting is, without
sampling.

What is summed, exactly (temperature 1, full softmax):

- `wait`: the probability of the canonical empty answer, `[]` in the ids the tokenizer gives it, with the end
  ids. A model that waits in another spelling is not counted; training shows this one only.
- `tools[name]`: the probability that the answer begins with `[{"READY":"name"`, closing quote included, so
  that a name which begins another name is decided. The quote may share a token with what follows it. So the
  canonical ways on from it are encoded whole (`"}]`, `"},{"READY":"`, `","parameter":"` for each parameter of
  the tool, and the bare quote) and cut after the first token that holds the quote; the distinct cuts are
  added up. None is the beginning of another, so the events are disjoint and all probabilities of a decision
  add up to at most 1. Other ways to cut the same text into tokens, and a second action later in the list, are
  not counted.
- `pending[name]`: the same for `[{"PENDING":"name"`.

A tool with a parameter that is named like a status writes the long form when that parameter is given
(`parse.render`); that form is not counted.

One tree a dialogue: all decisions hang off the trunk, and all answers of a decision off its board, so a row
that two answers share is computed once. Each edge of the answers' trie is asked for once, as one sequence
whose span is its last token: everything before a span merges in the tree.
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
    """Answers whose probability cannot be said: a tool's name that the tokenizer changes, or a prompt mode
    with a thought before the answer.
    """


class TurnProbabilities(BaseModel):
    """One decision: the probability of waiting, and of each tool's READY (and PENDING) as the first action of
    the answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    turn: int
    wait: float
    tools: dict[str, float]
    pending: dict[str, float] = Field(default_factory=dict)

    @property
    def other(self) -> float:
        """What is left: answers of any other form."""
        return max(0.0, 1.0 - self.wait - sum(self.tools.values()) - sum(self.pending.values()))


class DialogueProbabilities(BaseModel):
    """Every decision of a dialogue, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialogue_id: str
    turns: tuple[TurnProbabilities, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """A dialogue's probabilities, and for each (turn, tool) the most probable ids that begin the tool's
    READY: what a forced answer starts with.
    """

    probabilities: DialogueProbabilities
    openings: dict[tuple[int, str], Path]


@dataclass(frozen=True, slots=True)
class Answers:
    """The canonical answers of some tools as ids: `wait`, and for (status, tool) the disjoint beginnings;
    `edges`: their trie, (ids before, next id).
    """

    wait: Path
    beginnings: dict[tuple[Status, str], tuple[Path, ...]]
    edges: tuple[tuple[Path, int], ...]


def answers(chat: ChatFormat, tools: Catalog, *, pending: bool = True) -> Answers:
    """Encode them. ProbabilityError names a tool whose text the tokenizer does not give back."""
    wait = tuple(chat.encode_answer(render(())))
    statuses = (Status.READY, Status.PENDING) if pending else (Status.READY,)
    beginnings = {(s, tool.name): _beginnings(chat, tool, s) for s in statuses for tool in tools.tools}
    paths = [wait, *(p for several in beginnings.values() for p in several)]
    edges = dict.fromkeys((path[:k], path[k]) for path in paths for k in range(len(path)))
    return Answers(wait, beginnings, tuple(edges))


def _beginnings(chat: ChatFormat, tool: Tool, status: Status) -> tuple[Path, ...]:
    opening = f'[{{"{status.value}":{json.dumps(tool.name, ensure_ascii=False)}'
    others = (f'}},{{"{s.value}":"' for s in (Status.READY, Status.PENDING))
    ways_on = ("", "}]", *others, *(f',{json.dumps(p.name, ensure_ascii=False)}:"' for p in tool.parameters))
    found: dict[Path, None] = {}
    for way in ways_on:
        ids = chat.encode_continuation(opening + way)
        cut = next((k for k in range(1, len(ids) + 1) if chat.decode(ids[:k]).startswith(opening)), None)
        if cut is None:
            raise ProbabilityError(f"tool {tool.name!r}: the tokenizer does not give its name back")
        found[tuple(ids[:cut])] = None
    return tuple(found)


def score(
    engine: Engine,
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    boards: Boards = lambda dialogue, turn: EMPTY,
    *,
    pending: bool = True,
) -> Iterator[Scored]:
    """One `Scored` a dialogue, each by one call of the engine. ProbabilityError for a prompt mode in which a
    thought comes before the answer.
    """
    if encoder.style.mode != "plain":
        raise ProbabilityError(
            f"probabilities: in prompt mode {encoder.style.mode!r} a thought comes first, so no answer has "
            "a probability of its own"
        )
    known: dict[tuple[str, ...], Answers] = {}
    for dialogue in dialogues:
        if dialogue.tools not in known:
            offered = encoder.catalog.subset(dialogue.tools) if dialogue.tools else encoder.catalog
            known[dialogue.tools] = answers(encoder.chat, offered, pending=pending)
        yield _score(engine, encoder, dialogue, boards, known[dialogue.tools])


def _score(
    engine: Engine, encoder: PromptEncoder, dialogue: Dialogue, boards: Boards, what: Answers
) -> Scored:
    sequences, trees = [], []
    for turn in dialogue.decision_turns:
        prompt = encoder.prompt(dialogue, turn, boards(dialogue, turn))
        sequences += [[*prompt, *before, token] for before, token in what.edges]
        trees += [encoder.tree(dialogue, turn)] * len(what.edges)
    logps = engine.logprobs(sequences, [(len(s) - 1, len(s)) for s in sequences], trees=trees)
    values = [float(x) for x in logps]
    turns, openings = [], {}
    for i, turn in enumerate(dialogue.decision_turns):
        edge = dict(zip(what.edges, values[i * len(what.edges) : (i + 1) * len(what.edges)], strict=True))
        each = {
            key: {path: _probability(path, edge) for path in several}
            for key, several in what.beginnings.items()
        }
        sums = {key: min(1.0, math.fsum(paths.values())) for key, paths in each.items()}
        turns.append(
            TurnProbabilities(
                turn=turn,
                wait=_probability(what.wait, edge),
                tools={tool: p for (status, tool), p in sums.items() if status is Status.READY},
                pending={tool: p for (status, tool), p in sums.items() if status is Status.PENDING},
            )
        )
        for (status, tool), paths in each.items():
            if status is Status.READY:
                openings[turn, tool] = max(paths, key=lambda path: paths[path])
    return Scored(DialogueProbabilities(dialogue_id=dialogue.id, turns=tuple(turns)), openings)


def _probability(path: Path, edge: dict[tuple[Path, int], float]) -> float:
    return min(1.0, math.exp(math.fsum(edge[path[:k], path[k]] for k in range(len(path)))))
