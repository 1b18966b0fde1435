"""Samples and groups, which callers hold, and `EngineError`.

Token ids are kept as sampled, end tokens included; nothing is encoded again from text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsFloat

from proactor.kernels.errors import ProactorError

FinishReason = Literal["stop", "length", "context", "cancelled", "deadline", "outside"]
"""An end id or stop string, ``max_tokens``, the end of the context, the caller, the caller's time limit, or
not drawn by this engine.
"""

Tops = list[list[tuple[int, float]]]
"""(id, log-probability) of the most probable ids at each token, the most probable first."""

BASE_VERSION = -1
"""``policy_version`` of samples drawn with the adapter off, from no version of it."""


class EngineError(ProactorError):
    """Input that the engine refuses; the message is one line that names what is wrong."""


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks."""
    return " ".join(str(error).split())


@dataclass(slots=True)
class Sample:
    """One completion of a prompt.

    ``logprobs`` are of the distribution sampled from (after temperature, filters and masks),
    ``policy_logprobs`` of the full softmax at ``temperature``; both are natural logarithms, one a token of
    ``token_ids``, NaN where it was not recorded; empty where none was. ``mask`` is False where a token is not
    trained (observations); None trains every token.
    ``adapter``: the engine's adapter that drew it; None where the base did, or no engine.
    ``policy_version``: the version of it (`Engine.versions`) that drew its oldest token; ``versions`` names
    that of each token where they differ (later turns, samples that went on through an update); None: they do
    not.
    ``advantage`` is one number, one a turn (a run of trained tokens), or one a token (numpy and torch too).
    ``weight``, in the same forms and not below 0, multiplies the loss of the tokens, which stay counted as
    they are where a loss divides by them; None is 1.
    ``noise``: (seed, iteration, group key, sample), which decides what is drawn at each position; None where
    no engine drew it. ``top_logprobs``: at each token the most probable ids, most probable first, with their
    ``policy_logprobs``; None unless `Sampling.top_logprobs` asked. ``info`` is the caller's own; the engine
    neither reads nor writes it.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    policy_logprobs: list[float] = field(default_factory=list)
    policy_version: int = 0
    versions: list[int] | None = None
    finish_reason: FinishReason = "outside"
    text: str = ""
    reward: float | None = None
    advantage: SupportsFloat | Iterable[SupportsFloat] | None = None
    weight: SupportsFloat | Iterable[SupportsFloat] | None = None
    mask: list[bool] | None = None
    temperature: float = 1.0
    noise: tuple[int, int, int, int] | None = field(default=None, compare=False)
    top_logprobs: Tops | None = None
    adapter: str | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def trained_mask(self) -> list[bool]:
        """Whether each token is trained. Raises EngineError when ``mask`` has another length."""
        if self.mask is None:
            return [True] * len(self.token_ids)
        if len(self.mask) != len(self.token_ids):
            raise EngineError(f"sample: a mask of {len(self.mask)} for {len(self.token_ids)} tokens")
        return self.mask

    def token_versions(self) -> list[int]:
        """The policy version of each token. Raises EngineError when ``versions`` has another length."""
        if self.versions is None:
            return [self.policy_version] * len(self.token_ids)
        if len(self.versions) != len(self.token_ids):
            raise EngineError(f"sample: {len(self.versions)} versions for {len(self.token_ids)} tokens")
        return self.versions

    def token_tops(self) -> Tops:
        """``top_logprobs`` of each token; none where nothing was kept."""
        return [[] for _ in self.token_ids] if self.top_logprobs is None else self.top_logprobs

    def stamp(self, version: int) -> None:
        """Tokens without a version of their own yet were drawn by policy ``version``."""
        own = self.versions or []
        self.versions = own + [version] * (len(self.token_ids) - len(own))

    def turns(self) -> list[tuple[int, int]]:
        """Spans [start, end) of consecutive trained tokens, in order: the agent's turns."""
        flags = [*self.trained_mask(), False]
        starts = [i for i, on in enumerate(flags) if on and (i == 0 or not flags[i - 1])]
        ends = [i for i, on in enumerate(flags) if not on and i > 0 and flags[i - 1]]
        return list(zip(starts, ends, strict=True))

    def extend(self, ids: Sequence[int]) -> None:
        """Append observation ids: context for what follows, never trained, with log-probabilities of 0 where
        the tokens before them have some.
        """
        if self.versions is not None:
            self.versions = [*self.token_versions(), *([self.policy_version] * len(ids))]
        self.mask = [*self.trained_mask(), *([False] * len(ids))]
        for recorded in (self.logprobs, self.policy_logprobs):
            if recorded or not self.token_ids:
                recorded.extend([0.0] * len(ids))
        self.token_ids.extend(ids)
        if self.top_logprobs is not None:
            self.top_logprobs.extend([] for _ in ids)

    def append(self, other: Sample) -> None:
        """Append a turn that was sampled from ``prompt_ids + token_ids``, with all that was recorded of it.

        Raises EngineError when ``other`` continues something else, or another adapter drew it: versions count
        the updates of one.
        """
        if other.prompt_ids != self.prompt_ids + self.token_ids:
            raise EngineError(
                "sample.append: the other sample's prompt is not this sample's prompt and tokens"
            )
        if other.temperature != self.temperature:
            raise EngineError(
                f"sample.append: drawn at temperature {other.temperature}, this sample at {self.temperature}"
            )
        if None not in (self.adapter, other.adapter) and other.adapter != self.adapter:
            raise EngineError(
                f"sample.append: drawn by adapter {other.adapter!r}, this sample by {self.adapter!r}"
            )
        self.adapter = self.adapter or other.adapter
        if other.policy_version != self.policy_version or self.versions or other.versions:
            self.versions = [*self.token_versions(), *other.token_versions()]
        if self.top_logprobs is not None or other.top_logprobs is not None:
            self.top_logprobs = [*self.token_tops(), *other.token_tops()]
        self.mask = [*self.trained_mask(), *other.trained_mask()]
        count, more = len(self.token_ids), len(other.token_ids)
        self.logprobs = _joined(self.logprobs, count, other.logprobs, more)
        self.policy_logprobs = _joined(self.policy_logprobs, count, other.policy_logprobs, more)
        self.token_ids.extend(other.token_ids)
        self.policy_version = min(self.policy_version, other.policy_version)
        self.finish_reason, self.text = other.finish_reason, other.text

    def token_advantages(self) -> list[float]:
        """``advantage`` of each token, 0 where masked or None.

        Raises EngineError for a wrong number of values, and for a value that is not a number.
        """
        return self._by_token("advantage", self.advantage, 0.0)

    def token_weights(self) -> list[float]:
        """``weight`` of each token, 0 where masked, 1 where None. Errors as `token_advantages`."""
        return self._by_token("weight", self.weight, 1.0)

    def _by_token(self, name: str, value: Any, missing: float) -> list[float]:
        flags, values = self.trained_mask(), missing if value is None else _numbers(name, value)
        if isinstance(values, float):
            return [values if on else 0.0 for on in flags]
        turns = self.turns()
        if len(values) == len(self.token_ids):
            return [a if on else 0.0 for a, on in zip(values, flags, strict=True)]
        if len(values) != len(turns):
            raise EngineError(
                f"{name}: {len(values)} values for a sample of {len(turns)} turns and "
                f"{len(self.token_ids)} tokens"
            )
        out = [0.0] * len(flags)
        for value, (start, end) in zip(values, turns, strict=True):
            out[start:end] = [value] * (end - start)
        return out


@dataclass(slots=True)
class Group:
    """Samples that are compared with one another.

    ``tree``: equal keys mark groups that belong together (one dialogue's turns): they stay on one rank and
    their common prompt rows are computed once. ``index``: place of the prompt in the call that sampled it,
    because a stream yields groups in the order in which they end.

    ``parent``: a sample of an earlier group with the same ``tree`` key, whose prompt and tokens begin this
    group's prompt. The shared span is computed once and trained once, as part of the parent sample, with the
    parent's advantage. Flattening instead, the span copied into each of this group's N samples, trains it N
    times unless the copies mask it (`Sample.mask`).
    """

    prompt_ids: list[int]
    samples: list[Sample]
    tree: Hashable | None = None
    parent: Sample | None = None
    index: int = 0

    @property
    def rewards(self) -> list[float | None]:
        """The samples' rewards, in order; assign a list to set them."""
        return [s.reward for s in self.samples]

    @rewards.setter
    def rewards(self, values: Sequence[float]) -> None:
        """Set every sample's reward.

        Raises EngineError, with nothing set, for a wrong number of values and for a value that is no number.
        """
        count = len(self.samples)
        if not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0:
            raise EngineError(f"rewards: a list of {count} numbers is needed, not {values!r:.60}")
        if len(values) != count:
            raise EngineError(f"rewards: {len(values)} values for {count} samples")
        rewards = []
        for i, value in enumerate(values):
            try:
                rewards.append(float(value))
            except (TypeError, ValueError) as error:
                raise EngineError(f"rewards: value {i} is {value!r}, not a number") from error
        for sample, reward in zip(self.samples, rewards, strict=True):
            sample.reward = reward

    @property
    def masked(self) -> bool:
        """Whether no sample has a trained token. False for an empty sample, which is an error, not a mask."""
        return not any(any(s.trained_mask()) or not s.token_ids for s in self.samples)


def with_parents(groups: Sequence[Group], wanted: Callable[[Group], bool]) -> list[Group]:
    """The ``wanted`` groups and those that hold their `Group.parent`, in the order of ``groups``."""
    kept: list[Group] = []
    parents: set[int] = set()
    for group in reversed(groups):  # a parent stands before its children
        if wanted(group) or any(id(s) in parents for s in group.samples):
            kept.append(group)
            if group.parent is not None:
                parents.add(id(group.parent))
    return kept[::-1]


def _joined(first: list[float], count: int, second: list[float], more: int) -> list[float]:
    """Log-probabilities of ``count`` tokens and ``more``: NaN for those of which alone none were recorded."""
    if not first and not second:
        return []
    return [*(first or [math.nan] * count), *(second or [math.nan] * more)]


def _numbers(name: str, value: Any) -> float | list[float]:
    """An advantage or a weight as one float or a list of them. Raises EngineError for anything else."""
    if hasattr(value, "tolist"):  # numpy and torch, scalars too
        value = value.tolist()
    try:
        if isinstance(value, Iterable):
            return [float(a) for a in value]
        return float(value)
    except (TypeError, ValueError) as error:
        raise EngineError(f"{name}: {value!r} is neither a number nor a list of numbers") from error
