"""Who grades: our own engine in process, a model behind an endpoint, or rules (see `proactor.ruler.rules`).

A judge answers requests with text, or says why it could not; what the text is worth is decided in
`proactor.ruler.verdict`, for all judges alike.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from proactor.endpoint import Endpoint, EndpointError
from proactor.files import folder_hash
from proactor.ruler.question import JudgeRequest
from proactor.ruler.rubric import RulerError

if TYPE_CHECKING:
    from torch import Tensor

    from proactor.engine import ChatFormat, Engine

FailureKind = Literal["timeout", "rate_limit", "connection", "http", "empty", "too_long"]


@dataclass(frozen=True, slots=True)
class JudgeFailure:
    """A request that got no answer, by kind."""

    kind: FailureKind
    message: str = ""


@runtime_checkable
class Judge(Protocol):
    """Anything that grades. ``name`` says which model with which settings: what it said is kept under it.
    ``concurrent``: may it be asked while the policy is being sampled? If not, it wants all requests in one
    batch.
    """

    @property
    def name(self) -> str: ...

    @property
    def concurrent(self) -> bool: ...

    async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        """One answer a request, in order. Failures of single requests are returned, not raised."""
        ...


@dataclass
class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint, asked for the verdict's JSON schema; requests run side by
    side.
    """

    endpoint: Endpoint
    max_tokens: int = 2048
    concurrent: bool = field(default=True, init=False)

    @property
    def name(self) -> str:
        options = "".join(f",{k}={v}" for k, v in sorted(self.endpoint.options.items()))
        return f"endpoint:{self.endpoint.model}@{self.endpoint.base_url or 'openai'}{options}"

    async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        """Raises EndpointSetupError (no client, no key) at the first request; all else is a failure of one
        request.
        """
        return list(await asyncio.gather(*(self.reply_within(request, None) for request in requests)))

    async def reply_within(self, request: JudgeRequest, seconds: float | None) -> str | JudgeFailure:
        """One answer, in so many seconds from when the endpoint takes the request up: many wait for their
        turn there.
        """
        try:
            return await self.endpoint.reply(
                request.messages,
                schema=request.schema,
                seed=request.seed,
                max_tokens=self.max_tokens,
                within=seconds,
            )
        except EndpointError as error:
            return JudgeFailure(error.kind, str(error))


@dataclass(frozen=True, slots=True)
class Slot:
    """A number of a verdict that is still to be said: ``part`` of the candidate ``id``, whose first digit
    comes after the token ids ``before``.
    """

    id: str
    part: str
    before: list[int]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request as token ids, and the numbers it asks for where the form of the verdict is forced."""

    request: JudgeRequest
    prompt: list[int]
    slots: list[Slot]


def longest(slots: Sequence[Slot]) -> int:
    """Tokens that the longest of ``slots`` takes behind the question, its digit included."""
    return max((len(slot.before) + 1 for slot in slots), default=0)


@dataclass
class EngineJudge:
    """The engine that trains the policy, grading with the adapter off, or with the adapter in the PEFT folder
    ``adapter``.

    All requests are one batch, and their shared beginnings (rubric, tools, dialogue) are computed once.
    ``forced``: nothing is written. Behind the question each number of the verdict is begun on a branch of its
    own, after the candidate once more, and its value is the mean over the first digit that the model would go
    on with, a tenth told by its middle: 0.05 to 0.95. So any model gives a readable verdict, in one pass,
    without explanations; no number leans on one said before it, and answers that the likeliest digit would
    tie are told apart. [INFERRED; weighing scores by their probability is G-Eval's, arXiv 2303.16634.]
    Otherwise it writes freely, up to ``max_tokens``, at ``temperature`` (0: the likeliest answer), and with
    the adapter off questions stay cached over training steps.

    The policy's random numbers, version and optimizer are as they were after a reply. Another adapter must
    have the shape of the policy's and is swapped in for the batch, which costs the policy its cached prompts.
    """

    engine: Engine | None = field(default=None, repr=False)
    adapter: str | Path | None = None
    forced: bool = True
    max_tokens: int = 1024
    temperature: float = 0.0
    concurrent: bool = field(default=False, init=False)
    _chat: ChatFormat | None = field(default=None, init=False, repr=False)
    _digits: tuple[int, ...] = field(default=(), init=False, repr=False)
    _content: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        if self.forced and self.temperature:
            raise RulerError(f"engine judge: temperature={self.temperature:g} goes with forced=False")
        if self.engine is not None:
            self.bind(self.engine)

    @property
    def name(self) -> str:
        base = self.engine.base_name if self.engine is not None else ""
        form = "digits" if self.forced else f"free,{self.max_tokens},t={self.temperature:g}"
        adapter = (
            "no adapter" if self.adapter is None else f"{self.adapter}{self._content and f'={self._content}'}"
        )
        return f"engine:{base}+{adapter},{form}"

    def bind(self, engine: Engine) -> None:
        """The engine to grade with. RulerError where it cannot: no tokenizer, none with single digits when
        ``forced``, no adapter where one is named.
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
            if not (Path(self.adapter) / "adapter_config.json").is_file():
                raise RulerError(f"engine judge: {self.adapter}: no adapter there")
            self._content = folder_hash(self.adapter)
        self.engine, self._chat, self._digits = engine, chat, tuple(ids[0] for ids in digits)

    async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        """Answers of one batch. A question that does not fit the context is a failure ``too_long``."""
        engine, _ = self._bound()
        answers: dict[int, str | JudgeFailure] = {}
        asked: dict[int, _Asked] = {}
        for i, request in enumerate(requests):
            one = _Asked(request, self.prompt(request), self.slots(request) if self.forced else [])
            need = len(one.prompt) + (longest(one.slots) if self.forced else self.max_tokens)
            if need > engine.context_length:
                answers[i] = JudgeFailure(
                    "too_long", f"{need} tokens for a context of {engine.context_length}"
                )
            else:
                asked[i] = one
        if asked:
            ask = self._weigh if self.forced else self._sample
            with nullcontext() if self.adapter is None else _Wearing(engine, self.adapter):
                answers |= zip(asked, ask(engine, list(asked.values())), strict=True)
        return [answers[i] for i in range(len(requests))]

    def _sample(self, engine: Engine, asked: Sequence[_Asked]) -> list[str]:
        from proactor.engine import Sampling

        on = self.adapter is not None
        settings = [
            Sampling(
                temperature=self.temperature, max_tokens=self.max_tokens, adapter=on, seed=one.request.seed
            )
            for one in asked
        ]
        draws = engine.samplings
        try:
            groups = engine.sample([one.prompt for one in asked], settings, keys=[0] * len(asked))
        finally:
            engine.samplings = draws  # the policy's noise must not depend on how often a judge was asked
        return [group.samples[0].text for group in groups]

    def _weigh(self, engine: Engine, asked: Sequence[_Asked]) -> list[str]:
        """Verdicts whose numbers are means over digits; the questions about one dialogue are one tree."""
        sequences, trees = [], []
        for i, one in enumerate(asked):
            tree = one.request.candidates.dialogue.id if one.request.candidates is not None else i
            for slot in one.slots:
                sequences += [[*one.prompt, *slot.before, digit] for digit in self._digits]
                trees += [tree] * 10
        logps = engine.logprobs(
            sequences,
            [(len(s) - 1, len(s)) for s in sequences],
            adapter=self.adapter is not None,
            trees=trees,
        )
        means = iter([_mean_digit(logps[i : i + 10]) for i in range(0, len(logps), 10)])
        texts = []
        for one in asked:
            entries: dict[str, dict[str, str | float]] = {}
            for slot in one.slots:
                entries.setdefault(slot.id, {"id": slot.id})[slot.part] = next(means)
            texts.append(json.dumps({"scores": list(entries.values())}))
        return texts

    def prompt(self, request: JudgeRequest) -> list[int]:
        """The question as token ids."""
        engine, chat = self._bound()
        return engine.encode(_fitting(request.messages, chat))

    def slots(self, request: JudgeRequest) -> list[Slot]:
        """The numbers of a verdict, candidate by candidate, each with the beginning of a verdict that tells
        nothing but it.

        The candidate is quoted there: a small model cannot look up by its id what it is to grade.
        """
        _, chat = self._bound()
        begun = [
            f'{{"scores":[{{"id":"{id}","trajectory":[{written.replace(chr(10), ",")}]'
            for id, written in zip(request.ids, request.written, strict=True)
        ]
        return [
            Slot(id, part, chat.encode_continuation(f'{before},"{part}":0.'))
            for id, before in zip(request.ids, begun, strict=True)
            for part in (*request.rubric.parts, "score")
        ]

    def digit(self, value: float) -> int:
        """The token id of the first digit behind the point, for a number in 0..1: 9 tenths are the most that
        can be said.
        """
        self._bound()
        return self._digits[min(9, int(value * 10 + 1e-9))]

    def _bound(self) -> tuple[Engine, ChatFormat]:
        if self.engine is None or self._chat is None:
            raise RulerError("engine judge: bind(engine) comes first")
        return self.engine, self._chat


def _fitting(messages: Sequence[Mapping[str, str]], chat: ChatFormat) -> list[Mapping[str, str]]:
    """One message where the template has no system role."""
    if "system" in chat.report.roles:
        return list(messages)
    return [{"role": "user", "content": "\n\n".join(m["content"] for m in messages)}]


def _mean_digit(logps: Sequence[Tensor]) -> float:
    """The mean number, from the log-probabilities [1] of 0.0…, 0.1…, to 0.9…, which are the only ways on."""
    values = [float(logp) for logp in logps]
    weights = [math.exp(value - max(values)) for value in values]
    mean = sum(weight * (digit + 0.5) for digit, weight in enumerate(weights)) / sum(weights)
    return round(
        mean / 10, 2
    )  # finer is noise, which a group's normalisation would blow up: such groups shall tie


class _Wearing:
    """Another adapter in the policy's place for a while; weights and version come back exactly, gradients and
    optimizer never leave.
    """

    def __init__(self, engine: Engine, folder: str | Path) -> None:
        self.engine, self.folder = engine, folder

    def __enter__(self) -> None:
        self.weights = [leaf.detach().clone() for leaf in self.engine.parameters()]
        self.version = self.engine.policy_version
        self.engine.load_adapter(self.folder)

    def __exit__(self, *exception: object) -> None:
        import torch

        with torch.no_grad():
            for leaf, old in zip(self.engine.parameters(), self.weights, strict=True):
                leaf.copy_(old)
        self.engine.weights_changed()
        self.engine.policy_version = self.version
