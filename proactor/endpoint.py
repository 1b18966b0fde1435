"""Client of an OpenAI-compatible endpoint: time-outs, retries, counters, and fields that a server refuses.

The `openai` client sends the requests with its own retries off, so that the policy here is the only one and
every attempt is counted. It needs the extra ``pip install 'proactor[openai]'`` and is imported on first use.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from proactor.completion import Dialect, read_completion
from proactor.endpoint_errors import (
    EndpointError,
    EndpointSetupError,
    FieldRefused,
    Kind,
    Retryable,
    judged,
    retry_after,
    said,
)
from proactor.files import valid_utf8
from proactor.transport import (
    HEADERS,
    TransportError,
    base_url_problem,
    guard,
    hide,
    options_problem,
    read_key,
)

if TYPE_CHECKING:
    import openai

NO_CLIENT = "an endpoint needs the openai client: pip install 'proactor[openai]'"


LEAST = {"timeout": 0.0, "backoff": -1.0, "concurrency": 0, "attempts": 0, "max_response_bytes": 0}
"""Settings of an endpoint and what they must be above."""


@dataclass
class Endpoint:
    """A chat model behind an OpenAI-compatible ``/chat/completions``.

    ``base_url``: None is OpenAI's own; without user name, password or query. ``api_key_env``: the environment
    variable with the key; with a ``base_url`` it may be unset. The key is cut out of what the server says.
    ``timeout``: seconds for one attempt, start to end. ``concurrency``: attempts in flight. ``attempts``:
    attempts for one reply. Rate limits, failed connections, 5xx and unreadable bodies are retried after
    ``backoff * 2**n`` seconds or the server's Retry-After, at most ``longest_wait``; time-outs are not
    retried. Redirects are refused, and bodies of more than ``max_response_bytes``, unpacked. ``options``
    (``temperature``, …) are sent with every request.

    A schema is sent as ``response_format``; where the server refuses it, the weaker forms of `FORMS` are
    tried and the one that worked is kept. Where the server names ``max_tokens`` it becomes
    ``max_completion_tokens``; where it names ``seed`` that is left out.

    ``counters``: requests (attempts sent), replies, retries, timeouts, rate_limited, connection_errors,
    http_errors, refused_responses (redirects, bodies that are too large), empty, malformed (bodies that are
    no chat completion), cut (answers that hit max_tokens),
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
    max_response_bytes: int = 4 * 2**20
    options: Mapping[str, Any] = field(default_factory=dict)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    counters: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _dialect: Dialect = field(default=Dialect(), init=False, repr=False)
    _link: _Link | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if not getattr(self, name) > least:
                raise EndpointSetupError(f"endpoint {self.model}: {name}={getattr(self, name)} is too small")
        if self.base_url is not None and (problem := base_url_problem(self.base_url)):
            raise EndpointSetupError(
                f"endpoint {self.model}: base_url {problem}; a key belongs in the environment variable that "
                "api_key_env names"
            )
        if problem := options_problem(self.options):
            raise EndpointSetupError(
                f"endpoint {self.model}: {problem}; a key belongs in the environment variable that "
                "api_key_env names"
            )

    async def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Mapping[str, Any] | None = None,
        seed: int | None = None,
        max_tokens: int = 1024,
        within: float | None = None,
    ) -> str:
        """The text of the answer. ``schema``: a JSON schema for the answer, not validated here. ``within``:
        seconds for all attempts together, counted once one of the ``concurrency`` slots is free.

        Raises EndpointError after the retries, EndpointSetupError where no request can be sent.
        """
        link = self._link_of_loop()
        async with link.slots:
            try:
                async with asyncio.timeout(within):
                    return await self._retry(link, messages, schema, seed, max_tokens)
            except TimeoutError:
                raise EndpointError(
                    "timeout", f"{self.model}: no answer within {within:g} s, retries included"
                ) from None

    async def _retry(
        self,
        link: _Link,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any] | None,
        seed: int | None,
        max_tokens: int,
    ) -> str:
        for attempt in range(self.attempts):
            try:
                return await self._negotiate(link.client, messages, schema, seed, max_tokens)
            except Retryable as failure:
                if attempt + 1 == self.attempts:
                    raise failure.error from None
                self.counters["retries"] += 1
                wait = self.backoff * 2**attempt if failure.wait is None else failure.wait
                await self.sleep(min(max(wait, 0.0), self.longest_wait))
        raise AssertionError("attempts is at least 1")

    async def aclose(self) -> None:
        """Close the connections of the running loop; a later `reply` opens new ones."""
        link, self._link = self._link, None
        if link is not None and link.loop is asyncio.get_running_loop():
            await link.client.close()

    def _link_of_loop(self) -> _Link:
        """Client and slots of the running loop; each `asyncio.run` makes a new loop."""
        loop = asyncio.get_running_loop()
        if self._link is None or self._link.loop is not loop:
            self._link = _Link(loop, self._connect(), asyncio.Semaphore(self.concurrency))
        return self._link

    def _connect(self) -> openai.AsyncOpenAI:
        self.check()
        try:
            import openai
        except ImportError:
            raise EndpointSetupError(NO_CLIENT) from None
        return openai.AsyncOpenAI(
            api_key=self._key() or "none",
            base_url=self.base_url,
            max_retries=0,
            timeout=self.timeout,
            default_headers=HEADERS,
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False, event_hooks={"response": [guard(self.max_response_bytes)]}
            ),
        )

    def check(self) -> None:
        """Raise EndpointSetupError without the client, and where the key is needed and missing, or cannot be
        sent.
        """
        if importlib.util.find_spec("openai") is None:
            raise EndpointSetupError(NO_CLIENT)
        if not self._key() and self.base_url is None:
            raise EndpointSetupError(
                f"endpoint {self.model}: the environment variable {self.api_key_env} is not set"
            )

    def _key(self) -> str:
        """The API key; empty without one. Raises EndpointSetupError where it cannot be sent."""
        try:
            return read_key(self.api_key_env)
        except TransportError as error:
            raise EndpointSetupError(f"endpoint {self.model}: {error}") from None

    def _failed(self, kind: Kind, what: object) -> EndpointError:
        """An EndpointError that names the model and not the key."""
        return EndpointError(kind, f"{self.model}: {hide(str(what), self._key())}")

    async def _negotiate(
        self,
        client: openai.AsyncOpenAI,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any] | None,
        seed: int | None,
        max_tokens: int,
    ) -> str:
        """One attempt, sent again at once without a field that the server refuses; what works is kept."""
        dialect = self._dialect
        refused: list[str] = []
        options = {key: value for key, value in self.options.items() if key != "extra_body"}
        options |= self.options.get("extra_body", {})
        encodable = [{name: valid_utf8(text) for name, text in m.items()} for m in messages]
        while True:
            fields = dialect.fields(schema, seed, max_tokens)
            # In this way the client takes fields that it does not know; without it they are a TypeError.
            others = {key: value for key, value in options.items() if key not in fields}
            body = {"model": self.model, "messages": encodable, **fields, "extra_body": others}
            try:
                text = await self._attempt(client, body)
            except FieldRefused as refusal:
                weaker = dialect.without(str(refusal), fields)
                if weaker is None:
                    raise refusal.error from None
                dialect = weaker[0]
                refused.append(weaker[1])
                continue
            if refused:
                self.counters.update(refused)
                self._dialect = dialect
            return text

    async def _attempt(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> str:
        """One request. Raises Retryable, FieldRefused, or else EndpointError."""
        import openai

        self.counters["requests"] += 1
        try:
            # The client's time-out counts each read by itself: a server that trickles would never reach it.
            async with asyncio.timeout(self.timeout):
                raw = await client.chat.completions.with_raw_response.create(**body)
        except (openai.APITimeoutError, TimeoutError):
            self.counters["timeouts"] += 1
            raise self._failed("timeout", f"no answer within {self.timeout:g} s") from None
        except openai.RateLimitError as error:
            self.counters["rate_limited"] += 1
            raise Retryable(self._failed("rate_limit", said(error)), retry_after(error)) from None
        except openai.APIStatusError as error:
            self.counters["http_errors"] += 1
            raise judged(error, self._failed("http", said(error))) from None
        except (openai.APIConnectionError, TransportError) as error:
            # older clients wrap what a hook raises
            cause = error if isinstance(error, TransportError) else error.__cause__ or error
            if isinstance(cause, TransportError):
                self.counters["refused_responses"] += 1
                raise self._failed("http", cause) from None
            self.counters["connection_errors"] += 1
            raise Retryable(self._failed("connection", cause)) from None
        return self._read(raw.http_response.text)

    def _read(self, body: str) -> str:
        try:
            completion = read_completion(body)
        except ValidationError:
            self.counters["malformed"] += 1
            shown = hide(body, self._key())[:80]  # in this order: no part of the key is left
            raise Retryable(self._failed("http", f"not a chat completion: {shown!r}")) from None
        if completion.usage is not None:
            self.counters["tokens_in"] += completion.usage.prompt_tokens or 0
            self.counters["tokens_out"] += completion.usage.completion_tokens or 0
        text = ""
        if completion.choices:
            first = completion.choices[0]
            if first.finish_reason == "length":
                self.counters["cut"] += 1
            text = first.message.content or ""
        if not text.strip():
            self.counters["empty"] += 1
            raise self._failed("empty", "an answer without text")
        self.counters["replies"] += 1
        return text


@dataclass(frozen=True, slots=True)
class _Link:
    """A client and its concurrency slots, bound to one event loop."""

    loop: asyncio.AbstractEventLoop
    client: openai.AsyncOpenAI
    slots: asyncio.Semaphore
