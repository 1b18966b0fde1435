"""An OpenAI-compatible endpoint, asked politely: one place for time-outs, retries, counters and what a server
does not support.

The `openai` client does the talking with its own retries off, so that the policy here is the only one and
every attempt is counted. Needs the extra: ``pip install 'proactor[openai]'``; imported only when an endpoint
is first used.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from proactor.engine import ProactorError

if TYPE_CHECKING:
    import openai

Kind = Literal["timeout", "rate_limit", "connection", "http", "empty"]
Form = Literal["json_schema", "json_object", "none"]

FORMS: tuple[Form, ...] = ("json_schema", "json_object", "none")
"""How a schema is asked for, strictest first; a server that refuses one is asked for the next."""

REFUSALS = (400, 422, 501)
"""Statuses by which servers say that they do not know a request field."""


class EndpointError(Exception):
    """No usable answer after the endpoint's own retries; ``kind`` says why, the message is one line."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(" ".join(message.split())[:300])
        self.kind: Kind = kind


class EndpointSetupError(ProactorError):
    """An endpoint that cannot be asked at all: no client installed, no key, or an impossible setting. One
    line.
    """


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    content: str | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")

    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    model_config = ConfigDict(extra="ignore")

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    """What is read of a chat completion."""

    model_config = ConfigDict(extra="ignore")

    choices: tuple[_Choice, ...]
    usage: _Usage | None = None


@dataclass
class Endpoint:
    """A chat model behind an OpenAI-compatible ``/chat/completions``.

    ``base_url``: None is OpenAI's own. ``api_key_env``: the environment variable that holds the key; a server
    of one's own needs none. ``timeout``: seconds for one attempt, start to end. ``concurrency``: attempts
    under way at once. ``attempts``: tries of one reply; rate limits, failed connections, 5xx and unreadable
    bodies are tried again after ``backoff * 2**n`` seconds or what Retry-After asks for, at most
    ``longest_wait``; a time-out is not, since it has cost its time already. ``options`` are sent with every
    request as they are (``temperature``, …).

    A schema is sent as ``response_format``; where the server refuses that, the weaker forms of `FORMS` are
    tried and what worked is kept. ``max_tokens`` becomes ``max_completion_tokens``, and ``seed`` is left out,
    where the server says so by name.

    ``counters``: requests (attempts sent), replies, retries, timeouts, rate_limited, connection_errors,
    http_errors, empty, malformed (bodies that are no chat completion), cut (answers that hit max_tokens),
    json_schema_refused, json_object_refused, max_tokens_refused, seed_refused, tokens_in, tokens_out.
    """

    model: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 30.0
    concurrency: int = 8
    attempts: int = 3
    backoff: float = 0.5
    longest_wait: float = 30.0
    options: Mapping[str, Any] = field(default_factory=dict)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    counters: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _form: Form = field(default="json_schema", init=False, repr=False)
    _limit_key: str = field(default="max_tokens", init=False, repr=False)
    _seeded: bool = field(default=True, init=False, repr=False)
    _link: _Link | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("timeout", 0.0), ("backoff", -1.0), ("concurrency", 0), ("attempts", 0)):
            if not getattr(self, name) > least:
                raise EndpointSetupError(f"endpoint {self.model}: {name}={getattr(self, name)} is too small")

    async def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Mapping[str, Any] | None = None,
        seed: int | None = None,
        max_tokens: int = 1024,
        within: float | None = None,
    ) -> str:
        """The text of the answer. ``schema``: a JSON schema the answer should follow, not checked here.
        ``within``: seconds for all attempts together, from when the request's turn has come.

        Raises EndpointError by kind after the retries, EndpointSetupError where nothing can be asked.
        """
        link = self._here()
        async with link.slots:
            try:
                async with asyncio.timeout(within):
                    return await self._tried(link, messages, schema, seed, max_tokens)
            except TimeoutError:
                raise EndpointError(
                    "timeout", f"{self.model}: no answer within {within:g} s, retries included"
                ) from None

    async def _tried(
        self,
        link: _Link,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any] | None,
        seed: int | None,
        max_tokens: int,
    ) -> str:
        for attempt in range(self.attempts):
            try:
                return await self._supported(link.client, messages, schema, seed, max_tokens)
            except _Again as again:
                if attempt + 1 == self.attempts:
                    raise again.error from None
                self.counters["retries"] += 1
                wait = self.backoff * 2**attempt if again.wait is None else again.wait
                await self.sleep(min(max(wait, 0.0), self.longest_wait))
        raise AssertionError("attempts is at least 1")

    async def aclose(self) -> None:
        """Close the connections of the running loop; a later `reply` opens new ones."""
        link, self._link = self._link, None
        if link is not None and link.loop is asyncio.get_running_loop():
            await link.client.close()

    def _here(self) -> _Link:
        """Client and slots of the running loop: neither may be used from another one, and each `asyncio.run`
        is another one.
        """
        loop = asyncio.get_running_loop()
        if self._link is None or self._link.loop is not loop:
            self._link = _Link(loop, self._connect(), asyncio.Semaphore(self.concurrency))
        return self._link

    def _connect(self) -> openai.AsyncOpenAI:
        try:
            import openai
        except ImportError:
            raise EndpointSetupError(
                "an endpoint needs the openai client: pip install 'proactor[openai]'"
            ) from None
        key = os.environ.get(self.api_key_env)
        if not key and self.base_url is None:
            raise EndpointSetupError(
                f"endpoint {self.model}: the environment variable {self.api_key_env} is not set"
            )
        return openai.AsyncOpenAI(
            api_key=key or "none", base_url=self.base_url, max_retries=0, timeout=self.timeout
        )

    async def _supported(
        self,
        client: openai.AsyncOpenAI,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any] | None,
        seed: int | None,
        max_tokens: int,
    ) -> str:
        """One attempt, sent again at once with less where the server refuses a field; only what then works is
        remembered.
        """
        form: Form = self._form if schema is not None else "none"
        limit_key, seeded = self._limit_key, self._seeded and seed is not None
        refused: list[str] = []
        while True:
            body: dict[str, Any] = {"model": self.model, "messages": [_sendable(m) for m in messages]}
            body |= self.options
            body[limit_key] = max_tokens
            if seeded:
                body["seed"] = seed
            if schema is not None and form != "none":
                body["response_format"] = _response_format(form, schema)
            try:
                text = await self._attempt(client, body)
            except _Refused as refusal:
                if refusal.names("max_completion_tokens", "max_tokens") and limit_key == "max_tokens":
                    limit_key = "max_completion_tokens"
                    refused.append("max_tokens_refused")
                elif refusal.names("seed") and seeded:
                    seeded = False
                    refused.append("seed_refused")
                elif form != "none":
                    refused.append(f"{form}_refused")
                    form = FORMS[FORMS.index(form) + 1]
                else:
                    raise refusal.error from None
                continue
            self.counters.update(refused)
            if refused:
                self._limit_key, self._seeded = limit_key, self._seeded and "seed_refused" not in refused
                self._form = form if schema is not None else self._form
            return text

    async def _attempt(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> str:
        """One request. Raises _Again for what may pass, _Refused for what the server will not take, else
        EndpointError.
        """
        import openai

        self.counters["requests"] += 1
        try:
            # the client's time-out counts each read by itself, which a server that trickles would never reach
            async with asyncio.timeout(self.timeout):
                raw = await client.chat.completions.with_raw_response.create(**body)
        except (openai.APITimeoutError, TimeoutError):
            self.counters["timeouts"] += 1
            raise EndpointError("timeout", f"{self.model}: no answer within {self.timeout:g} s") from None
        except openai.RateLimitError as error:
            self.counters["rate_limited"] += 1
            raise _Again(EndpointError("rate_limit", f"{self.model}: {error}"), _retry_after(error)) from None
        except openai.APIStatusError as error:
            self.counters["http_errors"] += 1
            problem = EndpointError("http", f"{self.model}: {error}")
            if error.status_code >= 500 and error.status_code not in REFUSALS:
                raise _Again(problem, _retry_after(error)) from None
            raise (_Refused(problem) if error.status_code in REFUSALS else problem) from None
        except openai.APIConnectionError as error:
            self.counters["connection_errors"] += 1
            raise _Again(EndpointError("connection", f"{self.model}: {error.__cause__ or error}")) from None
        return self._read(raw.http_response.text)

    def _read(self, text: str) -> str:
        try:
            completion = _Completion.model_validate_json(text)
        except ValidationError:
            self.counters["malformed"] += 1
            raise _Again(
                EndpointError("http", f"{self.model}: not a chat completion: {text[:80]!r}")
            ) from None
        if completion.usage is not None:
            self.counters["tokens_in"] += completion.usage.prompt_tokens or 0
            self.counters["tokens_out"] += completion.usage.completion_tokens or 0
        first = completion.choices[0] if completion.choices else None
        if first is not None and first.finish_reason == "length":
            self.counters["cut"] += 1
        if first is None or not (first.message.content or "").strip():
            self.counters["empty"] += 1
            raise EndpointError("empty", f"{self.model}: an answer without text")
        self.counters["replies"] += 1
        return first.message.content or ""


@dataclass(frozen=True, slots=True)
class _Link:
    loop: asyncio.AbstractEventLoop
    client: openai.AsyncOpenAI
    slots: asyncio.Semaphore


class _Again(Exception):
    """What may pass when tried again; ``wait``: seconds the server asked for."""

    def __init__(self, error: EndpointError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


class _Refused(Exception):
    """A request that the server does not take as it is."""

    def __init__(self, error: EndpointError) -> None:
        super().__init__(str(error))
        self.error = error

    def names(self, *fields: str) -> bool:
        """Does the server's message name one of these request fields?"""
        return any(f"'{name}'" in str(self.error) for name in fields)


def _sendable(message: Mapping[str, str]) -> dict[str, str]:
    """Half a surrogate pair is a str but no UTF-8, which is what a request is sent in."""
    return {name: text.encode("utf-8", "replace").decode() for name, text in message.items()}


def _response_format(form: Form, schema: Mapping[str, Any]) -> dict[str, Any]:
    if form == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds of a Retry-After header; None for none, or for a date (which the backoff serves as well)."""
    said = error.response.headers.get("retry-after", "")
    try:
        seconds = float(said)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None
