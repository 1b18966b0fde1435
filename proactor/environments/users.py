"""The chat model that plays the users of a run, and judges in its environments: one in the engine that trains
the agent, or one behind an endpoint.

    environment: {gym: turtle, user: engine}
    environment: {gym: turtle, user: {kind: engine, model: policy, max_tokens: 64}}
    environment: {gym: turtle, user: {kind: endpoint, model: gpt-4.1-mini, timeout: 20}}

Fields are those of `EngineUser` and `EndpointUser`, written as those of a judge (`ruler.build_judge`).
Environments ask it from the host's threads, never from the event loop or the sampler's thread: who asks waits
until the answer is drawn. Every answer is greedy, so equal questions get equal answers, as far as the model's
numbers allow (in deterministic mode to the token).
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from proactor.dialogue.parse import split_thought
from proactor.endpoint import Endpoint
from proactor.environments.clock import in_line
from proactor.environments.errors import GymError
from proactor.event_loop import BackgroundLoop
from proactor.kinds import build_kind

if TYPE_CHECKING:
    from proactor.engine import Engine, OpenAIClient  # import torch

MOST_TOKENS = 256
"""Tokens of an answer where a config does not say."""
COUNTS = ("requests", "replies", "tokens_in", "tokens_out", "nonsense")
"""Counters that every user has."""


class UserModel(ABC):
    """Answers questions, from any thread."""

    def __init__(self, max_tokens: int = MOST_TOKENS) -> None:
        self.max_tokens = max_tokens
        self.seconds = 0.0
        self._nonsense = 0
        self._lock = threading.Lock()

    def reply(self, question: str) -> str:
        """The answer to a message, without a thought: empty where that did not end. Raises where there is
        none, which ends the episode that asked.
        """
        began = time.perf_counter()
        try:
            return self._answer(question)
        finally:
            with self._lock:
                self.seconds += time.perf_counter() - began

    def note_nonsense(self) -> None:
        """Count an answer that could not be read."""
        with self._lock:
            self._nonsense += 1

    @property
    def counters(self) -> Counter[str]:
        """Totals: `COUNTS` at least, and others of the model's kind; ``nonsense``: answers that could not be
        read. ``seconds``, beside them: time that questions waited, summed over those asked at once.
        """
        return Counter({**dict.fromkeys(COUNTS, 0), **self._counted(), "nonsense": self._nonsense})

    def check(self) -> None:
        """Raise ProactorError where no question can be asked, before a model is loaded."""
        if isinstance(self.max_tokens, bool) or not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise GymError(f"user: max_tokens {self.max_tokens!r} is no number of tokens")

    def bind(self, engine: Engine) -> None:  # noqa: B027 - nothing to take, likewise below
        """Take the engine that trains the agent. Raises EngineError for one that cannot chat."""

    def close(self) -> None:  # noqa: B027
        """End the connections."""

    @property
    def patience(self) -> float:
        """Seconds that an answer may take by the model's own rules once its turn has come; 0: it has none."""
        return 0.0

    @abstractmethod
    def _answer(self, question: str) -> str: ...

    @abstractmethod
    def _counted(self) -> Mapping[str, int]: ...


class EngineUser(UserModel):
    """The model that is trained, in the same batch as the agent: ``model`` is "base" (the adapter off) or
    "policy" (the adapter as it is at present).
    """

    def __init__(self, model: str = "base", max_tokens: int = MOST_TOKENS) -> None:
        super().__init__(max_tokens)
        self.model = model
        self._client: OpenAIClient | None = None

    def check(self) -> None:
        """See `UserModel`."""
        super().check()
        if self.model not in ("base", "policy"):
            raise GymError(f"user engine: model {self.model!r} is not one of base, policy")

    def bind(self, engine: Engine) -> None:
        """See `UserModel`."""
        self._client = engine.openai()

    def _answer(self, question: str) -> str:
        if self._client is None:
            raise GymError("user engine: bind(engine) comes first")
        completion = self._client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": question}],
            temperature=0.0,
            max_tokens=self.max_tokens,
        )
        return completion.choices[0].message.content or ""

    def _counted(self) -> Mapping[str, int]:
        return self._client.counters if self._client is not None else {}


class EndpointUser(UserModel):
    """A model behind an OpenAI-compatible endpoint; ``options`` are fields of `Endpoint`. An answer that is
    not had after the retries ends the episode that asked. Questions beyond the endpoint's ``concurrency``
    wait in line, which no environment is blamed for.
    """

    def __init__(self, endpoint: Endpoint, max_tokens: int = MOST_TOKENS) -> None:
        super().__init__(max_tokens)
        self.endpoint = endpoint
        self._loop, self._slots = BackgroundLoop("user"), threading.Semaphore(endpoint.concurrency)

    @property
    def patience(self) -> float:
        """All attempts and the longest waits between them."""
        e = self.endpoint
        return e.attempts * e.timeout + (e.attempts - 1) * e.longest_wait

    def check(self) -> None:
        """See `UserModel`."""
        super().check()
        self.endpoint.check()

    def close(self) -> None:
        """See `UserModel`."""
        self._loop.submit(self.endpoint.aclose()).result()
        self._loop.close()

    def _answer(self, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        with in_line():
            self._slots.acquire()
        try:
            asked = self.endpoint.reply(messages, seed=0, max_tokens=self.max_tokens)
            said = self._loop.submit(asked).result()
        finally:
            self._slots.release()
        _, answer = split_thought(said)
        return "" if answer.startswith("<think>") else answer  # what was cut off while thinking is a draft

    def _counted(self) -> Mapping[str, int]:
        return self.endpoint.counters


def _endpoint_user(
    max_tokens: int = MOST_TOKENS, options: Mapping[str, Any] | None = None, **fields: Any
) -> UserModel:
    return EndpointUser(Endpoint(**fields, options={"temperature": 0.0, **(options or {})}), max_tokens)


_KINDS: dict[str, Callable[..., UserModel]] = {"engine": EngineUser, "endpoint": _endpoint_user}


def build_user(
    spec: str | Mapping[str, Any], more: Mapping[str, Callable[..., UserModel]] | None = None
) -> UserModel:
    """The user of ``spec``, checked as far as is possible without a model; ``more``: kinds beside these.

    Raises GymError for an unknown kind, field or model, EndpointSetupError for an endpoint's impossible value
    and one without its client or key.
    """
    user = build_kind("user", spec, {**_KINDS, **(more or {})}, GymError)
    user.check()
    return user
