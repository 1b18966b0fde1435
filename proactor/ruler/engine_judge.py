"""The engine that trains the policy as judge, in the same process.

In its default form nothing is generated: each number of a verdict is the mean over its first digit, weighted
by the model's probability. [INFERRED; weighting scores by probability is G-Eval's, arXiv 2303.16634.]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from proactor.engine import Constraint, Sampling
from proactor.files import folder_hash
from proactor.ruler.judge import JudgeFailure
from proactor.ruler.question import JudgeRequest
from proactor.ruler.rubric import RulerError
from proactor.ruler.verdict import verdict_schema

if TYPE_CHECKING:  # an import at run time would import torch
    from torch import Tensor

    from proactor.engine import ChatFormat, Engine


@dataclass(frozen=True, slots=True)
class Slot:
    """A number of a verdict: ``part`` of the candidate ``id``. Its first digit follows the ids ``before``."""

    id: str
    part: str
    before: list[int]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A request as token ids, and the numbers it asks for where the verdict's form is forced."""

    request: JudgeRequest
    ids: list[int]
    slots: list[Slot]


def longest_slot(slots: Sequence[Slot]) -> int:
    """Tokens that the longest of ``slots`` adds to the question, its digit included."""
    return max((len(slot.before) + 1 for slot in slots), default=0)


@dataclass
class EngineJudge:
    """Grades with the adapter off, or with the adapter in the PEFT folder ``adapter``.

    All requests are one batch, and their shared prefixes (rubric, tools, dialogue) are computed once.
    ``forced``: nothing is generated. Each number of the verdict is a branch of its own: the question, the
    candidate once more, and the beginning of the number. Its value is the mean over the first digit, each
    digit standing for the middle of its tenth, so it lies in 0.05..0.95. Any model thus gives a readable
    verdict in one pass, without explanations; no number depends on another, and candidates with the same most
    probable digit still differ. Otherwise the model generates up to ``max_tokens`` at ``temperature`` (0:
    greedy), and with the adapter off questions stay cached over training steps. ``constrained``: what it
    generates is a verdict with every id once (`Constraint`; the extra ``constrain``), without thinking first.

    A reply leaves the policy's noise, version, weights and optimizer as they were. Another adapter must have
    the shape of the policy's; it is swapped in for the batch, which drops the policy's cached prompts.
    """

    engine: Engine | None = field(default=None, repr=False)
    adapter: str | Path | None = None
    forced: bool = True
    max_tokens: int = 1024
    temperature: float = 0.0
    constrained: bool = False
    concurrent: bool = field(default=False, init=False)
    _chat: ChatFormat | None = field(default=None, init=False, repr=False)
    _digits: tuple[int, ...] = field(default=(), init=False, repr=False)
    _content: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        if self.forced and self.temperature:
            raise RulerError(f"engine judge: temperature={self.temperature:g} goes with forced=False")
        if self.forced and self.constrained:
            raise RulerError("engine judge: constrained goes with forced=False")
        if self.engine is not None:
            self.bind(self.engine)

    @property
    def name(self) -> str:
        """The base model, the adapter with its content hash, and the form of the verdict."""
        base = self.engine.base_name if self.engine is not None else ""
        written = "constrained" if self.constrained else "free"
        form = "digits" if self.forced else f"{written},{self.max_tokens},t={self.temperature:g}"
        adapter = "no adapter"
        if self.adapter is not None:
            adapter = f"{self.adapter}={self._content}" if self._content else f"{self.adapter}"
        return f"engine:{base}+{adapter},{form}"

    def bind(self, engine: Engine) -> None:
        """Take the engine to grade with.

        Raises RulerError for an engine without a tokenizer, for one whose tokenizer has no token per digit
        (when ``forced``), and for an adapter folder that holds none.
        """
        chat = engine.chat
        if chat is None:
            raise RulerError(f"engine judge: {engine.base_name} has no tokenizer")
        digits = [chat.encode_continuation(str(digit)) for digit in range(10)]
        if self.forced and (
            any(len(ids) != 1 for ids in digits) or len(chat.encode_continuation("0.75")) < 4
        ):
            raise RulerError(
                f"engine judge: the tokenizer of {engine.base_name} has no token a digit: use forced=False"
            )
        if self.adapter is not None:
            from proactor.engine import has_adapter  # imports torch

            if not has_adapter(self.adapter):
                raise RulerError(f"engine judge: {self.adapter}: no adapter there")
            self._content = folder_hash(self.adapter)
        self.engine, self._chat, self._digits = engine, chat, tuple(ids[0] for ids in digits)

    async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        """Answers of one batch. A question that does not fit the context is a failure ``too_long``."""
        engine, _ = self._require_engine()
        answers: dict[int, str | JudgeFailure] = {}
        prompts: dict[int, _Prompt] = {}
        for i, request in enumerate(requests):
            prompt = _Prompt(request, self.prompt(request), self.slots(request) if self.forced else [])
            need = len(prompt.ids) + (longest_slot(prompt.slots) if self.forced else self.max_tokens)
            if need > engine.context_length:
                answers[i] = JudgeFailure(
                    "too_long", f"{need} tokens for a context of {engine.context_length}"
                )
            else:
                prompts[i] = prompt
        if prompts:
            grade = self._grade_by_digits if self.forced else self._grade_by_text
            with nullcontext() if self.adapter is None else _SwappedAdapter(engine, self.adapter):
                answers |= zip(prompts, grade(engine, list(prompts.values())), strict=True)
        return [answers[i] for i in range(len(requests))]

    def _grade_by_text(self, engine: Engine, prompts: Sequence[_Prompt]) -> list[str]:
        """Verdicts as the model writes them."""
        settings = [
            Sampling(
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                adapter=self.adapter is not None,
                seed=prompt.request.seed,
                constraint=self._verdict(prompt.request),
            )
            for prompt in prompts
        ]
        samplings = engine.samplings
        try:
            groups = engine.sample([prompt.ids for prompt in prompts], settings, keys=[0] * len(prompts))
        finally:
            engine.samplings = samplings  # the policy's noise must not depend on how often a judge was asked
        return [group.samples[0].text for group in groups]

    def _verdict(self, request: JudgeRequest) -> Constraint | None:
        """What a verdict must be; None for any text."""
        if not self.constrained:
            return None
        return Constraint(json_schema=verdict_schema(request.ids, request.rubric.parts, each=True))

    def _grade_by_digits(self, engine: Engine, prompts: Sequence[_Prompt]) -> list[str]:
        """Verdicts whose numbers are means over digits. All questions about one dialogue are one tree."""
        sequences, trees = [], []
        for i, prompt in enumerate(prompts):
            candidates = prompt.request.candidates
            tree = candidates.dialogue.id if candidates is not None else i
            for slot in prompt.slots:
                sequences += [[*prompt.ids, *slot.before, digit] for digit in self._digits]
                trees += [tree] * 10
        logps = engine.logprobs(
            sequences,
            [(len(s) - 1, len(s)) for s in sequences],
            adapter=self.adapter is not None,
            trees=trees,
        )
        means = iter([_mean_digit(logps[i : i + 10]) for i in range(0, len(logps), 10)])
        texts = []
        for prompt in prompts:
            entries: dict[str, dict[str, str | float]] = {}
            for slot in prompt.slots:
                entries.setdefault(slot.id, {"id": slot.id})[slot.part] = next(means)
            texts.append(json.dumps({"scores": list(entries.values())}))
        return texts

    def prompt(self, request: JudgeRequest) -> list[int]:
        """The question as token ids."""
        engine, chat = self._require_engine()
        return engine.encode(_with_known_roles(request.messages, chat))

    def slots(self, request: JudgeRequest) -> list[Slot]:
        """The numbers of a verdict, candidate by candidate, each after the beginning of a verdict of its own.

        The candidate is quoted there, because a small model cannot look it up by its id.
        """
        _, chat = self._require_engine()
        beginnings = [
            f'{{"scores":[{{"id":"{id}","trajectory":[{written.replace(chr(10), ",")}]'
            for id, written in zip(request.ids, request.written, strict=True)
        ]
        return [
            Slot(id, part, chat.encode_continuation(f'{before},"{part}":0.'))
            for id, before in zip(request.ids, beginnings, strict=True)
            for part in (*request.rubric.parts, "score")
        ]

    def digit(self, value: float) -> int:
        """The token id of the first digit after the point, for a number in 0..1; 1 gives the digit 9."""
        self._require_engine()
        return self._digits[min(9, int(value * 10 + 1e-9))]

    def _require_engine(self) -> tuple[Engine, ChatFormat]:
        if self.engine is None or self._chat is None:
            raise RulerError("engine judge: bind(engine) comes first")
        return self.engine, self._chat


def _with_known_roles(messages: Sequence[Mapping[str, str]], chat: ChatFormat) -> list[Mapping[str, str]]:
    """``messages``, joined to a single user message where the chat template has no system role."""
    if "system" in chat.report.roles:
        return list(messages)
    return [{"role": "user", "content": "\n\n".join(m["content"] for m in messages)}]


def _mean_digit(logps: Sequence[Tensor]) -> float:
    """The mean number, from the log-probabilities (tensors [1]) of the ten first digits, renormalised."""
    values = [float(logp) for logp in logps]
    weights = [math.exp(value - max(values)) for value in values]
    mean = sum(weight * (digit + 0.5) for digit, weight in enumerate(weights)) / sum(weights)
    # Rounded so that near-equal candidates tie: a group's normalisation would amplify the noise.
    return round(mean / 10, 2)


class _SwappedAdapter:
    """Another adapter in place of the policy's while the block runs.

    Weights, optimizer and version are restored exactly.
    """

    def __init__(self, engine: Engine, folder: str | Path) -> None:
        self.engine, self.folder = engine, folder

    def __enter__(self) -> None:
        self.state = self.engine.state_dict()
        self.engine.load_adapter(self.folder)

    def __exit__(self, *exception: object) -> None:
        self.engine.load_state_dict({**self.state, "samplings": self.engine.samplings})
