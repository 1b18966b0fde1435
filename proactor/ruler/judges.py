"""Who grades: our own engine in process, a model behind an endpoint, or rules (see `proactor.ruler.rules`).

A judge answers requests with text, or says why it could not; what the text is worth is decided in `proactor.ruler.verdict`, for
all judges alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from proactor.adapters import content
from proactor.endpoint import Endpoint, EndpointError
from proactor.ruler.errors import RulerError
from proactor.ruler.question import JudgeRequest

if TYPE_CHECKING:
    from proactor.engine import ChatFormat, Engine, Sampling

FailureKind = Literal["timeout", "rate_limit", "connection", "http", "empty", "too_long"]


@dataclass(frozen=True, slots=True)
class JudgeFailure:
    """A request that got no answer, by kind."""

    kind: FailureKind
    message: str = ""


@runtime_checkable
class Judge(Protocol):
    """Anything that grades. ``name`` says which model with which settings: what it said is kept under it. ``concurrent``: may it be
    asked while the policy is being sampled? If not, it wants all requests in one batch."""

    @property
    def name(self) -> str: ...

    @property
    def concurrent(self) -> bool: ...

    async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        """One answer a request, in order. Failures of single requests are returned, not raised."""
        ...


@dataclass
class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint, asked for the verdict's JSON schema; requests run side by side."""

    endpoint: Endpoint
    max_tokens: int = 2048
    concurrent: bool = field(default=True, init=False)

    @property
    def name(self) -> str:
        options = "".join(f",{k}={v}" for k, v in sorted(self.endpoint.options.items()))
        return f"endpoint:{self.endpoint.model}@{self.endpoint.base_url or 'openai'}{options}"

    async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        """Raises EndpointSetupError (no client, no key) at the first request; all else is a failure of one request."""
        return list(await asyncio.gather(*(self.reply_within(request, None) for request in requests)))

    async def reply_within(self, request: JudgeRequest, seconds: float | None) -> str | JudgeFailure:
        """One answer, in so many seconds from when the endpoint takes the request up: many wait for their turn there."""
        try:
            return await self.endpoint.reply(
                request.messages, schema=request.schema, seed=request.seed, max_tokens=self.max_tokens, within=seconds
            )
        except EndpointError as error:
            return JudgeFailure(error.kind, str(error))


@dataclass
class EngineJudge:
    """The engine that trains the policy, grading with the adapter off, or with the adapter in the PEFT folder ``adapter``.

    All requests are one batch; their shared beginnings (rubric, tools, dialogue) are computed once, and with the adapter off they
    stay cached over training steps. ``forced``: the form of the verdict is forced token by token and only the digits are the model's,
    so that any model gives a readable verdict, without explanations and with scores 0.00 to 0.99; otherwise it writes freely, up to
    ``max_tokens``. ``temperature`` 0: the likeliest answer.

    The policy's random numbers, version and optimizer are as they were after a reply. Another adapter must have the shape of the
    policy's and is swapped in for the batch, which costs the policy its cached prompts.
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
        if self.engine is not None:
            self.bind(self.engine)

    @property
    def name(self) -> str:
        base = self.engine.base_name if self.engine is not None else ""
        form = "forced" if self.forced else f"free,{self.max_tokens}"
        adapter = "no adapter" if self.adapter is None else f"{self.adapter}{self._content and f'={self._content}'}"
        return f"engine:{base}+{adapter},{form},t={self.temperature:g}"

    def bind(self, engine: Engine) -> None:
        """The engine to grade with. RulerError where it cannot: no tokenizer, none with single digits when ``forced``, no adapter where one is
        named."""
        chat = engine.chat
        if chat is None:
            raise RulerError(f"engine judge: {engine.base_name} has no tokenizer")
        digits = [chat.encode_text(str(digit)) for digit in range(10)]
        if self.forced and any(len(ids) != 1 for ids in digits):
            raise RulerError(
                f"engine judge: the tokenizer of {engine.base_name} has no token a digit: use forced=False"
            )
        if self.adapter is not None:
            if not (Path(self.adapter) / "adapter_config.json").is_file():
                raise RulerError(f"engine judge: {self.adapter}: no adapter there")
            self._content = content(self.adapter)
        self.engine, self._chat, self._digits = engine, chat, tuple(ids[0] for ids in digits)

    async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        """Answers of one batch. A question that does not fit the context is a failure ``too_long``."""
        engine, _ = self._bound()
        answers: dict[int, str | JudgeFailure] = {}
        prompts: dict[int, list[int]] = {}
        settings: dict[int, Sampling] = {}
        for i, request in enumerate(requests):
            prompt, chosen = self.prompt(request), self._sampling(request, engine)
            need = len(prompt) + chosen.max_tokens
            if need > engine.context_length:
                answers[i] = JudgeFailure("too_long", f"{need} tokens for a context of {engine.context_length}")
            else:
                prompts[i], settings[i] = prompt, chosen
        if prompts:
            texts = self._sample(engine, list(prompts.values()), list(settings.values()))
            answers |= zip(prompts, texts, strict=True)
        return [answers[i] for i in range(len(requests))]

    def _sampling(self, request: JudgeRequest, engine: Engine) -> Sampling:
        from proactor.engine import Sampling

        settings: dict[str, Any] = {"max_tokens": self.max_tokens}
        if self.forced:
            slots = self.form(request)
            mask = _Forced(slots, engine.config.vocab_size)
            settings = {"max_tokens": len(slots), "logit_mask": mask, "ignore_eos": True}
        return Sampling(temperature=self.temperature, adapter=self.adapter is not None, seed=request.seed, **settings)

    def _sample(self, engine: Engine, prompts: list[list[int]], settings: list[Sampling]) -> list[str]:
        draws = engine.samplings
        try:
            with nullcontext() if self.adapter is None else _Wearing(engine, self.adapter):
                groups = engine.sample(prompts, settings, keys=[0] * len(prompts))
        finally:
            engine.samplings = draws  # the policy's noise must not depend on how often a judge was asked
        return [group.samples[0].text for group in groups]

    def prompt(self, request: JudgeRequest) -> list[int]:
        """The question as token ids."""
        engine, chat = self._bound()
        return engine.encode(_fitting(request.messages, chat))

    def form(self, request: JudgeRequest) -> list[tuple[int, ...]]:
        """The verdict as token slots: one id where the form is fixed, the ten digits, 0 first, where the model decides."""
        _, chat = self._bound()
        slots: list[tuple[int, ...]] = []
        before = '{"scores":['
        for id in request.ids:
            before += f'{{"id":"{id}"'
            for part in (*request.rubric.parts, "score"):
                slots += [(token,) for token in chat.encode_text(f'{before},"{part}":0.')]
                slots += [self._digits, self._digits]
                before = ""
            before = "}," if id != request.ids[-1] else "}]}"
        return slots + [(token,) for token in chat.encode_text(before)]

    def _bound(self) -> tuple[Engine, ChatFormat]:
        if self.engine is None or self._chat is None:
            raise RulerError("engine judge: bind(engine) comes first")
        return self.engine, self._chat


def _fitting(messages: Sequence[Mapping[str, str]], chat: ChatFormat) -> list[Mapping[str, str]]:
    """One message where the template has no system role."""
    if "system" in chat.report.roles:
        return list(messages)
    return [{"role": "user", "content": "\n\n".join(m["content"] for m in messages)}]


@dataclass(frozen=True, slots=True)
class _Forced:
    """A ``logit_mask``: at each position the ids of its slot."""

    slots: list[tuple[int, ...]]
    vocabulary: int

    def __call__(self, ids: list[int], position: int) -> Any:
        import torch

        allowed = torch.zeros(self.vocabulary, dtype=torch.bool)
        allowed[list(self.slots[position])] = True
        return allowed


class _Wearing:
    """Another adapter in the policy's place for a while; weights and version come back exactly, gradients and optimizer never leave."""

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
