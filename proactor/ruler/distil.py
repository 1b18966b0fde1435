"""A small model taught to imitate the rule judge, so that a judge in process has something to say.

A model of a million parameters, asked cold, fills the digits of a verdict with noise. Here an adapter learns
them by supervised training on what `RuleJudge` says about answers of the policy's own and about spoilt ones
(`proactor.ruler.mutations`). What comes out is an imitation of rules that know the references, on dialogues
where it does not see them: no second opinion, and no evidence of what a judge model would say. All choices
here are ours [INFERRED].

    asked = Asked()                                            # a short question, so that it fits a small context
    drawn = draw(engine, encoder, train, Sampling(n=8), seed=0) teach(engine, asked, drawn, seconds=300)
    engine.save_adapter("runs/NAME/judge") # reward_options: {judge: {kind: engine, adapter: runs/NAME/judge},
    rubric: …, grading: …}, as `Asked.options` gives them
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from proactor.dialogue import Dialogue
from proactor.dialogue.candidates import Candidates
from proactor.dialogue.decisions import decisions, noise_key
from proactor.dialogue.prompt import PromptEncoder
from proactor.engine import SFT, Engine, Group, Sample, Sampling
from proactor.ruler.judges import EngineJudge, Judge, longest
from proactor.ruler.mutations import mutations
from proactor.ruler.question import JudgeRequest, Question
from proactor.ruler.rubric import RulerError, find_rubric
from proactor.ruler.ruler import Ruler
from proactor.ruler.rules import RuleJudge
from proactor.ruler.verdict import Score, Unusable, read_verdict

RUBRIC = "Score each answer: right time, right values, nothing superfluous."
"""The student's rubric: no sub-scores, so that a verdict has a quarter of the numbers."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How the student is asked: ``rubric`` and ``grading`` of its `Ruler`, in training as in use.
    ``teacher``: the rubric the rules grade by; sub-scores that the student is asked for must be among the
    teacher's.
    """

    rubric: str = RUBRIC
    grading: str = "{rubric}"
    teacher: str = "custom"

    def __post_init__(self) -> None:
        student, teacher = find_rubric(self.rubric), find_rubric(self.teacher)
        if missing := [part for part in student.parts if part not in teacher.parts]:
            raise RulerError(f"distil: the rubric {teacher.name} gives no {missing[0]}")

    def ruler(self, judge: Judge) -> Ruler:
        """A ruler that asks so."""
        return Ruler(judge, self.rubric, grading=self.grading)

    def request(self, candidates: Candidates, seed: int = 0) -> JudgeRequest:
        """The question that such a ruler puts for ``candidates``, the order of candidates by ``seed``."""
        return Question.of(candidates, self.grading).ask(find_rubric(self.rubric), seed)

    def options(self, adapter: str | Path) -> dict[str, Any]:
        """`reward_options` of a judged reward that grades with the adapter at ``adapter``."""
        return {
            "judge": {"kind": "engine", "adapter": str(adapter)},
            "rubric": self.rubric,
            "grading": self.grading,
        }


def draw(
    engine: Engine,
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    sampling: Sampling,
    *,
    seed: int,
    epoch: int = 0,
) -> list[Candidates]:
    """The policy's answers at every decision of ``dialogues``, on boards as in training. ``sampling.adapter``
    says which policy.
    """
    points = decisions(encoder, dialogues, seed=seed, epoch=epoch)
    keys = [noise_key(p.dialogue, p.turn) for p in points]
    groups = engine.sample([p.prompt for p in points], sampling, keys=keys)
    return [
        Candidates(
            p.dialogue,
            p.turn,
            tuple(s.text for s in g.samples),
            encoder.catalog.subset(p.dialogue.tools) if p.dialogue.tools else encoder.catalog,
            p.board,
        )
        for p, g in zip(points, groups, strict=True)
    ]


def mixed(drawn: Candidates, most: int, draws: random.Random) -> Candidates:
    """Up to ``most`` different candidates: some of the policy's own answers and some spoilt or wanted ones,
    at random.
    """
    own = list(dict.fromkeys(drawn.texts))
    made = [
        t
        for t in mutations(drawn.dialogue, drawn.turn, drawn.board, drawn.tools, draws).values()
        if t not in own
    ]
    draws.shuffle(own)
    draws.shuffle(made)
    kept = own[: max(most // 2, most - len(made))]
    texts = [*kept, *dict.fromkeys(made)][:most]
    return replace(drawn, texts=tuple(texts))


def lessons(
    judge: EngineJudge, asked: Asked, groups: Sequence[Candidates], seed: int = 0
) -> Iterator[tuple[Candidates, list[Group]]]:
    """For each group its examples, one a number of the verdict: the question as ``judge`` sends it with the
    verdict begun, then the teacher's digit, which alone carries loss. A dialogue's questions share its rows.
    Groups that do not fit the context are left out.
    """
    assert judge.engine is not None
    requests = [asked.request(group, seed) for group in groups]
    for group, request, scores in zip(groups, requests, taught(asked, requests), strict=True):
        question, slots, examples = judge.prompt(request), judge.slots(request), []
        if len(question) + longest(slots) > judge.engine.context_length:
            continue
        for slot in slots:
            said, prompt = scores[slot.id], [*question, *slot.before]
            digit = judge.digit(said.value if slot.part == "score" else said.parts[slot.part])
            examples.append(Group(prompt, [Sample(prompt, [digit])], tree=group.dialogue.id))
        yield group, examples


def taught(asked: Asked, requests: Sequence[JudgeRequest]) -> list[dict[str, Score]]:
    """What the rules say, by id."""
    rubric = find_rubric(asked.teacher)
    answers = asyncio.run(RuleJudge().reply([replace(request, rubric=rubric) for request in requests]))
    found = []
    for request, answer in zip(requests, answers, strict=True):
        verdict = read_verdict(str(answer), request.ids, rubric.parts)
        assert not isinstance(verdict, Unusable), verdict
        found.append(verdict.scores)
    return found


@dataclass
class Taught:
    """What training came to: ``steps``, ``examples``, ``too_long`` (groups that did not fit), and (seconds,
    loss in nats a digit) as it went.
    """

    steps: int = 0
    examples: int = 0
    too_long: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)

    def last(self, share: float = 0.1) -> float:
        """Mean loss of the last ``share`` of the steps."""
        tail = [loss for _, loss in self.losses[-max(1, round(len(self.losses) * share)) :]]
        return sum(tail) / len(tail)


def teach(
    engine: Engine,
    asked: Asked,
    drawn: Sequence[Candidates],
    *,
    seconds: float,
    steps: int | None = None,
    rate: float = 2e-3,
    batch: int = 1,
    most: int = 6,
    spoilt: float = 0.5,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> Taught:
    """Train the engine's adapter on lessons about ``drawn`` for ``seconds`` or ``steps``, whichever ends
    first (at least one step), ``batch`` dialogues a step.

    A group is the policy's own answers where they differ, as in use, else (and with probability ``spoilt``
    anyway) mixed with spoilt ones, up to ``most``; spoilt answers and the order of candidates are drawn anew
    each time. The rate warms up over 3% of the way and falls to nothing over the rest. RulerError when there
    is nothing to tell apart.
    """
    judge, draws, told = EngineJudge(engine), random.Random(seed), Taught()
    by_dialogue: dict[str, list[Candidates]] = {}
    for group in drawn:
        by_dialogue.setdefault(group.dialogue.id, []).append(group)
    if not by_dialogue:
        raise RulerError("distil: no decisions to learn from")
    start, waiting = time.monotonic(), list[str]()
    while (
        share := max((time.monotonic() - start) / seconds, told.steps / steps if steps else 0.0)
    ) < 1 or not told.steps:
        if len(waiting) < batch:
            more = list(by_dialogue)
            draws.shuffle(more)
            waiting += more
        chosen = [g for id in waiting[:batch] for g in by_dialogue[id]]
        del waiting[:batch]
        groups = [g for g in (_question(g, most, spoilt, draws) for g in chosen) if len(set(g.texts)) > 1]
        examples = [
            example for _, example in lessons(judge, asked, groups, seed=told.steps)
        ]  # one list a group
        told.too_long += len(groups) - len(examples)
        if not examples:
            if share >= 1:
                raise RulerError("distil: no group fits the context or has two answers to compare")
            continue
        factor = max(0.01, min(1.0, share / 0.03 + 0.05, 1.02 - share))
        loss = engine.train([number for example in examples for number in example], SFT(lr=rate * factor))[
            "loss"
        ]
        told.steps, told.examples = told.steps + 1, told.examples + len(examples)
        told.losses.append((time.monotonic() - start, loss))
        if progress is not None:
            progress(min(share, 1.0), f"step {told.steps}, loss {loss:.3f}")
    return told


def _question(group: Candidates, most: int, spoilt: float, draws: random.Random) -> Candidates:
    own = len(set(group.texts)) > 1
    return mixed(group, most, draws) if not own or draws.random() < spoilt else group
