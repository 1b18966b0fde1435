"""`Desk`: takes requests of OpenAI's form to the sampler, and makes completions of what was drawn.

The clients (`openai_client`) differ in how they wait for it.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from proactor.engine.jobs import JobMaker
from proactor.engine.sampling_loop import SamplingLoop
from proactor.engine.session import UNNAMED
from proactor.engine.submission import Submission, time_limit
from proactor.engine.text_stream import TextPieces
from proactor.engine.tool_calls import Reply
from proactor.engine.tool_template import ToolTemplate
from proactor.engine.types import EngineError, Group, Sample, Tops


class RequestTimeout(EngineError, TimeoutError):
    """A request that was not answered within its ``timeout``."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Takes requests to the sampler and makes completions of its groups.

    ``names``: of models, and the `Sampling.adapter` of each. ``unnamed`` numbers the requests without a
    seed; ``numbers`` those of a client that has one.
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
        return {"token": self.texts.text(token), "logprob": logprob, "bytes": list(self.texts.own(token))}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
