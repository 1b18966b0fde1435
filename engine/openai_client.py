"""`OpenAIClient`: the objects of OpenAI's client without a socket, answered by the engine of this process.

    client = engine.openai()
    question = [{"role": "user", "content": "Is it right?"}]
    done = client.chat.completions.create(model="base", messages=question)
    done.choices[0].message.content, done.usage.total_tokens

Judges, simulated users and environments written for an OpenAI client run on it. Their requests join the rows
that the engine samples already. ``create`` blocks its thread; ``client.asynchronous.chat.completions.create``
is awaited, in any event loop. From inside the engine (a mask, a loss) both are refused: it would wait for
itself.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from proactor.engine.adapter_names import BASE, POLICY
from proactor.engine.arguments import integer
from proactor.engine.chat import ChatFormat
from proactor.engine.chat_chunk import ChatChunks, ChatCompletionChunk
from proactor.engine.chat_completion import (
    ChatCompletion,
    ChatCompletionMessage,
    ChatCompletionMessageToolCall,
    ChatCompletionTokenLogprob,
    Choice,
    ChoiceLogprobs,
    CompletionUsage,
    Function,
    TopLogprob,
    fingerprint,
)
from proactor.engine.chat_request import ChatRequest
from proactor.engine.drawing import Drawing
from proactor.engine.jobs import JobMaker
from proactor.engine.sampling_loop import SamplingLoop
from proactor.engine.session import UNNAMED
from proactor.engine.submission import Submission, arrived, time_limit
from proactor.engine.text import decode
from proactor.engine.text_stream import TextPieces
from proactor.engine.tool_calls import Reply
from proactor.engine.tool_template import ToolTemplate
from proactor.engine.types import EngineError, Group, Sample, Tops

C = TypeVar("C")

MODELS: Mapping[str, bool | str] = {BASE: False, POLICY: True}
"""Names of the weights, and what `Sampling.adapter` is for them; beside them the names of all adapters."""


class RequestTimeout(EngineError, TimeoutError):
    """A request that was not answered within its ``timeout``."""


@dataclass(frozen=True, slots=True)
class _Desk:
    """Takes requests to the sampler and makes completions of its groups.

    ``names``: of models, and the `Sampling.adapter` of each. ``unnamed`` numbers the requests without a
    seed; ``numbers`` those of a client that has one. ``token_texts``: those that were decoded, by id.
    """

    loop: SamplingLoop
    maker: JobMaker
    template: ToolTemplate
    texts: TextPieces
    names: Mapping[str, bool | str]
    engine_seed: int
    unnamed: Iterator[int]
    seed: int | None = None
    priority: int = 1
    timeout: float | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)
    counters: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    token_texts: dict[int, str] = field(default_factory=dict)

    def number(self, request: ChatRequest) -> int:
        """The key of the next request's noise; 0 where it has a seed."""
        if request.seed is not None:
            return 0
        return next(self.unnamed if self.seed is None else self.numbers) & 0xFFFFFFFF

    def submission(self, request: ChatRequest, key: int) -> Submission:
        """What is to be sampled for a request; encodes it. Raises EngineError for one that cannot be."""
        if request.model not in self.names:
            raise EngineError(f"model {request.model!r} is none of {', '.join(map(repr, self.names))}")
        context = self.maker.config.context_length
        sampling = request.sampling(self.names[request.model], context, self.template)
        ids = self.template.encode(request.messages, request.tools)
        noise = (self.engine_seed, UNNAMED) if self.seed is None else (self.seed, 0)
        jobs = self.maker.make([ids], sampling, [key], noise)
        timeout = self.timeout if request.timeout is None else request.timeout
        return Submission(jobs, self.priority, time_limit(timeout, "openai"))

    def send(self, submission: Submission) -> None:
        """Submit a request."""
        self.count({"requests": 1})
        self.loop.submit(submission)

    def usage(self, request: ChatRequest, group: Group) -> CompletionUsage:
        """The tokens of a request, counted. Raises RequestTimeout where its time was over."""
        prompt, samples = group.prompt_ids, group.samples
        drawn = sum(len(sample.token_ids) for sample in samples)
        self.count({"tokens_in": len(prompt), "tokens_out": drawn})
        if any(sample.finish_reason == "deadline" for sample in samples):
            self.count({"timeouts": 1})
            raise RequestTimeout(f"model {request.model!r}: no answer in time, {drawn} tokens were drawn")
        self.count({"replies": len(samples)})
        return CompletionUsage(
            prompt_tokens=len(prompt), completion_tokens=drawn, total_tokens=len(prompt) + drawn
        )

    def completion(self, request: ChatRequest, group: Group) -> ChatCompletion:
        """The completion of a request. Raises RequestTimeout where its time was over."""
        usage, first = self.usage(request, group), group.samples[0]
        return ChatCompletion(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            choices=[self.choice(request, i, sample) for i, sample in enumerate(group.samples)],
            created=int(time.time()),
            model=request.model,
            prompt_token_ids=group.prompt_ids,
            usage=usage,
            system_fingerprint=fingerprint(first.adapter, first.policy_version),
            policy_version=first.policy_version,
        )

    def count(self, counts: Mapping[str, int]) -> None:
        """Add to the counters."""
        with self.lock:
            self.counters.update(counts)

    def choice(self, request: ChatRequest, index: int, sample: Sample) -> Choice:
        """A sample as an answer; what it holds is counted."""
        if request.reads_calls:
            reply = self.template.read(sample.token_ids, request.stop)
            self.count(reply.counts() - Counter(replies=1))
        else:
            reply = Reply(sample.text)
        if not request.fulfils([call.name for call in reply.calls]):
            self.count({"tool_choice_unmet": 1})
        if request.wants_json and not reply.calls and not _is_json(reply.content):
            self.count({"json_unmet": 1})
        called = f"call_{len(request.messages)}_{index}"  # one name in a conversation, the same in every run
        calls = [
            ChatCompletionMessageToolCall(
                id=f"{called}_{i}",
                function=Function(name=c.name, arguments=json.dumps(c.arguments, ensure_ascii=False)),
            )
            for i, c in enumerate(reply.calls)
        ]
        message = ChatCompletionMessage(
            content=reply.content or (None if calls else ""),
            tool_calls=calls or None,
            reasoning_content=reply.thinking or None,
        )
        ended = "stop" if sample.finish_reason == "stop" else "length"
        return Choice(
            finish_reason="tool_calls" if calls else ended,
            index=index,
            message=message,
            token_ids=sample.token_ids,
            logprobs=self.logprobs(sample.token_ids, sample.policy_logprobs, sample.token_tops())
            if request.logprobs
            else None,
        )

    def logprobs(self, ids: Sequence[int], logprobs: Sequence[float], tops: Tops) -> ChoiceLogprobs:
        """Tokens with their log-probabilities, and the most probable ones in their places."""
        content = [
            ChatCompletionTokenLogprob(
                **self._token(token, logprob),
                top_logprobs=[TopLogprob(**self._token(*top), token_id=top[0]) for top in near],
            )
            for token, logprob, near in zip(ids, logprobs, tops, strict=True)
        ]
        return ChoiceLogprobs(content=content)

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.token_texts.get(token)
        if text is None:
            text = self.token_texts[token] = decode(self.template.chat.tokenizer, [token], specials=True)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class Completions:
    """``create``, which waits for the answer."""

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk

    def create(self, **fields: Any) -> ChatCompletion:
        """A completion; ``fields`` are those of `ChatRequest`.

        Raises EngineError, in one line, for what is refused, and RequestTimeout.
        """
        request = ChatRequest.of(fields)
        submission = self._desk.submission(request, self._desk.number(request))
        self._desk.send(submission)
        try:
            group = submission.arrivals[0].result()
        except BaseException:  # Ctrl-C too
            self._desk.loop.cancel(submission)
            raise
        return self._desk.completion(request, group)


class AsyncCompletions:
    """``create``, which is awaited; giving up the wait ends the sampling."""

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk

    async def create(self, **fields: Any) -> ChatCompletion:
        """As `Completions.create`."""
        return await self.answer(ChatRequest.of(fields))

    async def answer(self, request: ChatRequest) -> ChatCompletion:
        """The completion of a request. Errors as `create`."""
        submission = await self._encoded(request)
        self._desk.send(submission)
        try:
            group = await arrived(submission.arrivals[0])
        except BaseException:
            self._desk.loop.cancel(submission)
            raise
        return await asyncio.to_thread(self._desk.completion, request, group)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatCompletionChunk, None]:
        """The completion of a request in chunks, as it is drawn; the last one has the ``usage``, no choice.

        With tools a choice comes whole, when it ends: only then is it known what it calls. Leaving the loop
        (`aclose`) ends the sampling. Errors as `create`.
        """
        submission = await self._encoded(request)
        chunks = ChatChunks(request, submission.jobs[0].prompt_ids, self._desk.choice, self._desk.logprobs)
        self._desk.count({"requests": 1})
        async with Drawing(self._desk.loop, submission, self._desk.texts) as drawing:
            async for piece in drawing.pieces():
                if piece.sample.finish_reason != "deadline" and (chunk := chunks.of(piece)) is not None:
                    yield chunk
            [group] = await drawing.groups()
        yield chunks.end(self._desk.usage(request, group))

    async def _encoded(self, request: ChatRequest) -> Submission:
        # the key first: requests of one event loop are numbered in their order
        return await asyncio.to_thread(self._desk.submission, request, self._desk.number(request))


@dataclass(frozen=True, slots=True)
class Chat(Generic[C]):
    """Holds ``completions``."""

    completions: C


class AsyncOpenAIClient:
    """`OpenAIClient` for event loops."""

    def __init__(self, desk: _Desk) -> None:
        self.chat = Chat(AsyncCompletions(desk))


class OpenAIClient:
    """Made by `Engine.openai`; from any thread.

    ``counters``: requests, replies, timeouts, tokens_in, tokens_out, what replies to requests with tools held
    (`Reply.counts`), and the answers that were cut before they were as asked for: json_unmet,
    tool_choice_unmet.
    """

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk
        self.chat = Chat(Completions(desk))

    @classmethod
    def of(
        cls,
        loop: SamplingLoop,
        maker: JobMaker,
        chat: ChatFormat | None,
        base_name: str,
        aliases: Mapping[str, str] | None,
        noise: tuple[int, Iterator[int]],
    ) -> OpenAIClient:
        """A client of these parts of an engine; ``noise``: seed and numbers of requests without a seed.

        Raises EngineError for an alias of no model, and without a chat format.
        """
        if chat is None:
            raise EngineError(f"{base_name}: no tokenizer in the model folder, so there is no chat")
        known = {**MODELS, **{name: name for name in maker.adapters}}
        names = {**known, **({} if base_name in known else {base_name: False})}
        for alias, name in (aliases or {}).items():
            if name not in known:
                raise EngineError(f"openai: alias {alias!r} stands for {name!r}, which is none of {[*known]}")
            names[alias] = known[name]
        return cls(_Desk(loop, maker, ToolTemplate(chat), TextPieces(chat.tokenizer), names, *noise))

    @property
    def asynchronous(self) -> AsyncOpenAIClient:
        """The same client with ``create`` as a coroutine."""
        return AsyncOpenAIClient(self._desk)

    @property
    def counters(self) -> Counter[str]:
        """Totals of this client and of those made `with_options` of it."""
        return self._desk.counters

    @property
    def models(self) -> Sequence[str]:
        """Names that a request may have as its ``model``."""
        return tuple(self._desk.names)

    def with_options(
        self, *, seed: int | None = None, priority: int | None = None, timeout: float | None = None
    ) -> OpenAIClient:
        """The same client with other options; what is None stays.

        ``seed``: the answer to its k-th request is then a function of seed, k, and the request: the same in
        every run, whatever else is sampled meanwhile, if one thread asks. Without one each request draws a
        noise of its own, unless it has a ``seed`` itself. ``priority``: as `Session.sample`; 1 by default,
        because whoever asks holds up an episode that has begun. ``timeout``: seconds, looked at between two
        steps.
        """
        given = {"seed": seed, "priority": priority, "timeout": timeout}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        for name in changes.keys() & {"seed", "priority"}:
            integer(changes[name], f"openai: {name}")
        if timeout is not None and not (isinstance(timeout, int | float) and timeout >= 0):
            raise EngineError(f"openai: timeout {timeout!r} is not a number of seconds")
        return OpenAIClient(replace(self._desk, **changes, numbers=itertools.count()))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
