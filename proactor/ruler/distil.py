"""Distillation of the rule judge into an adapter, so that a small model can judge in process.

A model of a million parameters, asked without training, fills the digits of a verdict with noise. Here an
adapter learns them by supervised training on the verdicts of `RuleJudge`, about answers of the policy itself
and about mutated ones (`proactor.ruler.mutations`). The result imitates rules that know the references, on
dialogues where it does not see them: it is no second opinion, and no evidence of what a judge model would
say. All choices here are ours [INFERRED].

    setup = StudentSetup()  # a short question, so that it fits a small context
    answers = sample_answers(engine, encoder, train, Sampling(n=8), seed=0)
    teach(engine, setup, answers, seconds=300)
    engine.save_adapter("runs/NAME/judge")
    reward_options = setup.options("runs/NAME/judge")  # of a judged reward
"""

from __future__ import annotations

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
from proactor.event_loop import run_to_end
from proactor.ruler.engine_judge import EngineJudge, longest_slot
from proactor.ruler.judge import Judge
from proactor.ruler.mutations import mutations
from proactor.ruler.question import JudgeRequest, Question
from proactor.ruler.rubric import RulerError, find_rubric
from proactor.ruler.rule_judge import RuleJudge
from proactor.ruler.ruler import Ruler
from proactor.ruler.verdict import Score, Unusable, read_verdict

RUBRIC = "Score each answer: right time, right values, nothing superfluous."
"""The student's default rubric. Without sub-scores a verdict has a quarter of the numbers."""


@dataclass(frozen=True, slots=True)
class StudentSetup:
    """How the student is asked: ``rubric`` and ``grading`` of its `Ruler`, in training as in use.

    ``teacher``: the rubric of the rules. Raises RulerError where it lacks a sub-score of the student's.
    """

    rubric: str = RUBRIC
    grading: str = "{rubric}"
    teacher: str = "custom"

    def __post_init__(self) -> None:
        student, teacher = find_rubric(self.rubric), find_rubric(self.teacher)
        if missing := [part for part in student.parts if part not in teacher.parts]:
            raise RulerError(f"distil: the rubric {teacher.name} gives no {missing[0]}")

    def ruler(self, judge: Judge) -> Ruler:
        """The ruler of a student ``judge``."""
        return Ruler(judge, self.rubric, grading=self.grading)

    def request(self, candidates: Candidates, seed: int = 0) -> JudgeRequest:
        """The question of such a ruler about ``candidates``; ``seed`` gives their order."""
        return Question.of(candidates, self.grading).ask(find_rubric(self.rubric), seed)

    def options(self, adapter: str | Path) -> dict[str, Any]:
        """`reward_options` of a judged reward whose judge is the adapter in the folder ``adapter``."""
        return {
            "judge": {"kind": "engine", "adapter": str(adapter)},
            "rubric": self.rubric,
            "grading": self.grading,
        }


def sample_answers(
    engine: Engine,
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    sampling: Sampling,
    *,
    seed: int,
    epoch: int = 0,
) -> list[Candidates]:
    """The policy's answers at every decision of ``dialogues``, on boards as in training.

    ``sampling.adapter``: with the adapter on or off.
    """
    points = decisions(encoder, dialogues, seed=seed, epoch=epoch)
    keys = [noise_key(p.dialogue, p.turn) for p in points]
    groups = engine.sample([p.prompt for p in points], sampling, keys=keys)
    return [
        Candidates(
            p.dialogue,
            p.turn,
            tuple(s.text for s in g.samples),
            encoder.catalog.offered_in(p.dialogue),
            p.board,
        )
        for p, g in zip(points, groups, strict=True)
    ]


def with_mutations(answers: Candidates, most: int, rng: random.Random) -> Candidates:
    """Up to ``most`` different candidates, chosen at random: some of the policy's answers, some mutated."""
    own = list(dict.fromkeys(answers.texts))
    mutated = [
        text
        for text in mutations(answers.dialogue, answers.turn, answers.board, answers.tools, rng).values()
        if text not in own
    ]
    rng.shuffle(own)
    rng.shuffle(mutated)
    kept = own[: max(most // 2, most - len(mutated))]
    texts = [*kept, *dict.fromkeys(mutated)][:most]
    return replace(answers, texts=tuple(texts))


def lessons(
    judge: EngineJudge, setup: StudentSetup, groups: Sequence[Candidates], seed: int = 0
) -> Iterator[tuple[Candidates, list[Group]]]:
    """The training examples of each group, one per number of its verdict.

    An example is the question as ``judge`` sends it, the beginning of the verdict, and the teacher's digit,
    which alone has loss. The questions about one dialogue share its rows. Skips groups that are too long.
    """
    assert judge.engine is not None
    requests = [setup.request(group, seed) for group in groups]
    for group, request, scores in zip(groups, requests, teacher_scores(setup, requests), strict=True):
        question, slots, examples = judge.prompt(request), judge.slots(request), []
        if len(question) + longest_slot(slots) > judge.engine.context_length:
            continue
        for slot in slots:
            score, prompt = scores[slot.id], [*question, *slot.before]
            digit = judge.digit(score.value if slot.part == "score" else score.parts[slot.part])
            examples.append(Group(prompt, [Sample(prompt, [digit])], tree=group.dialogue.id))
        yield group, examples


def teacher_scores(setup: StudentSetup, requests: Sequence[JudgeRequest]) -> list[dict[str, Score]]:
    """The rule judge's scores for each request, by candidate id."""
    rubric = find_rubric(setup.teacher)
    answers = run_to_end(RuleJudge().reply([replace(request, rubric=rubric) for request in requests]))
    scores = []
    for request, answer in zip(requests, answers, strict=True):
        verdict = read_verdict(str(answer), request.ids, rubric.parts)
        assert not isinstance(verdict, Unusable), verdict
        scores.append(verdict.scores)
    return scores


@dataclass
class TeachingLog:
    """The course of a training.

    ``too_long``: groups that did not fit the context. ``losses``: (seconds since the start, mean loss in nats
    per digit) of each step.
    """

    steps: int = 0
    examples: int = 0
    too_long: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)

    def last(self, share: float = 0.1) -> float:
        """Mean loss over the last ``share`` of the steps."""
        tail = [loss for _, loss in self.losses[-max(1, round(len(self.losses) * share)) :]]
        return sum(tail) / len(tail)


def teach(
    engine: Engine,
    setup: StudentSetup,
    answers: Sequence[Candidates],
    *,
    seconds: float,
    steps: int | None = None,
    rate: float = 2e-3,
    batch: int = 1,
    most: int = 6,
    spoilt: float = 0.5,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> TeachingLog:
    """Train the engine's adapter on lessons about ``answers``, ``batch`` dialogues per step.

    Ends after ``seconds`` or ``steps``, whichever comes first, after one step at least. A group whose answers
    differ is used as it is, or, with probability ``spoilt``, with mutations (`with_mutations`, up to
    ``most``); a group of equal answers always with mutations. Mutations and the order of candidates are drawn
    anew each time. The learning rate rises over the first 3% of the way and falls to 0 over the rest.

    Raises RulerError without ``answers``, and where no group fits the context or has two different answers.
    """
    judge, rng, log = EngineJudge(engine), random.Random(seed), TeachingLog()
    by_dialogue: dict[str, list[Candidates]] = {}
    for group in answers:
        by_dialogue.setdefault(group.dialogue.id, []).append(group)
    if not by_dialogue:
        raise RulerError("distil: no decisions to learn from")
    start, queue = time.monotonic(), list[str]()
    while True:
        share = max((time.monotonic() - start) / seconds, log.steps / steps if steps else 0.0)
        if share >= 1 and log.steps:
            return log
        if len(queue) < batch:
            more = list(by_dialogue)
            rng.shuffle(more)
            queue += more
        chosen = [group for id in queue[:batch] for group in by_dialogue[id]]
        del queue[:batch]
        groups = [_vary(group, most, spoilt, rng) for group in chosen]
        groups = [group for group in groups if len(set(group.texts)) > 1]
        examples = [examples for _, examples in lessons(judge, setup, groups, seed=log.steps)]
        log.too_long += len(groups) - len(examples)
        if not examples:
            if share >= 1:
                raise RulerError("distil: no group fits the context or has two answers to compare")
            continue
        factor = max(0.01, min(1.0, share / 0.03 + 0.05, 1.02 - share))
        batch_examples = [example for of_group in examples for example in of_group]
        loss = engine.train(batch_examples, SFT(lr=rate * factor))["loss"]
        log.steps, log.examples = log.steps + 1, log.examples + len(examples)
        log.losses.append((time.monotonic() - start, loss))
        if progress is not None:
            progress(min(share, 1.0), f"step {log.steps}, loss {loss:.3f}")


def _vary(group: Candidates, most: int, spoilt: float, rng: random.Random) -> Candidates:
    """``group`` with mutations, always where its answers are equal, else with probability ``spoilt``."""
    differ = len(set(group.texts)) > 1
    return with_mutations(group, most, rng) if not differ or rng.random() < spoilt else group
