"""The configurations of the engine: how a model is run, its adapter, sampling, optimizer and losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from proactor.engine.constraint import Constraint
from proactor.engine.frozen import Config, describe, near_name
from proactor.engine.types import EngineError

MOST_KV_TOKENS, LARGEST_PAGE = 2**28, 2**16
"""Tokens of a KV cache and of its pages: beyond these a number is a mistake, and its page list a burden."""
MOST_SAMPLES, MOST_MINIBATCHES = 2**20, 2**16
MOST_TOP_LOGPROBS = 20
MOST_STOPS, LONGEST_STOP = 16, 1000
"""Stop strings of a sample, and characters of one: what a search for them holds stays small."""


class EngineConfig(Config):
    """How a model is loaded and run: the options of `Engine.load`, and the section ``engine:`` of a run."""

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu, cuda or cuda:N; auto is this rank's GPU where there is one",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="dtype of activations and dense weights; a torch.dtype is taken too. "
        "auto: float32 on a CPU, bfloat16 on a GPU",
    )
    quantization: Literal["auto", "nf4", "none"] = Field(
        "auto", description="auto keeps what is stored, nf4 quantises while loading, none dequantises"
    )
    resident: Literal["auto", "dense", "nf4"] = Field(
        "auto",
        description="how 4-bit linears stay in memory: nf4 as they are (auto, on a GPU and where a copy does "
        "not fit), dense as a dequantised copy, which is faster for many rows on a CPU",
    )
    deterministic: bool = Field(
        False, description="results are bitwise independent of batching and ranks (CPU; float32 or bfloat16)"
    )
    kv_tokens: int | None = Field(
        None,
        ge=1,
        le=MOST_KV_TOKENS,
        description="tokens that the KV cache holds; None: max_batch whole contexts, at most 1 GiB on a CPU, "
        "at most what is free beside the model and a step on a GPU",
    )
    page_size: int = Field(16, ge=1, le=LARGEST_PAGE, description="tokens of a KV page")
    token_budget: int | None = Field(
        None,
        ge=1,
        lt=1 << 31,
        description="rows (tokens) a forward pass aims at; a larger group is one tree, as long as it fits, "
        "and so is a larger dialogue where cutting it up costs more than recomputing its context by turns. "
        "None: 8192; for trees on a GPU what fits, at most 16384",
    )
    chunk_rows: int | None = Field(
        None,
        ge=1,
        lt=1 << 31,
        description="rows that are computed with gradient at a time: larger trees are recomputed by turns, "
        "which takes less memory and more time. None: token_budget, and without one on a GPU what fits",
    )
    max_batch: int = Field(256, ge=1, lt=1 << 31, description="most sequences that decode at once")
    batching: Literal["adaptive", "fixed"] = Field(
        "adaptive",
        description="adaptive: how many sequences decode, and how many rows of prompts run beside them, "
        "follows the load, within max_batch and token_budget; fixed: always as many as these allow",
    )
    batching_log: str | None = Field(
        None,
        description="file that each decision of adaptive batching is appended to with its readings, as JSON "
        "lines (python -m bench.load --replay)",
    )
    max_waiting: int = Field(
        4096, ge=1, description="requests that wait in the sampler; callers of later ones wait before it"
    )
    max_staleness: int = Field(
        0,
        ge=0,
        description="updates (train, step) that a sample in flight goes on through: its KV is computed again "
        "and each token records its policy version; an update waits for samples that have seen so many",
    )
    parked_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the KV cache that may be kept for samples that a session is yet to continue",
    )
    rank_timeout: float = Field(
        600.0,
        gt=0,
        le=86400,
        description="seconds that a rank waits for the others before it ends, naming them; longer than any "
        "rank's part of a step or an evaluation takes",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub repository")

    @field_validator("dtype", mode="before")
    @classmethod
    def _name_dtype(cls, value: object) -> str:
        """Name a torch.dtype, so that a config needs no torch and can be written to a file."""
        return value if isinstance(value, str) else str(value).removeprefix("torch.")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> EngineConfig:
        """The config of keyword options. Raises EngineError for an unknown option or a value out of range."""
        for name in options:
            if name not in cls.model_fields:
                hint = near_name(name, cls.model_fields, ("lora", "seed", "progress"))
                raise EngineError(f"Engine.load: unknown option {name!r} ({hint})")
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise EngineError(describe(error, cls)) from None


LEAST_TEMPERATURE = 1e-4
"""float32 holds logits divided by it."""


class Sampling(Config):
    """How samples are drawn. Temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off."""

    n: int = Field(1, ge=1, le=MOST_SAMPLES)
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0, lt=1 << 31)
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, lt=1)
    max_tokens: int = Field(256, ge=1)
    stop: tuple[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)], ...] = Field(
        (),
        max_length=MOST_STOPS,
        description="strings that end a sample, searched in its text with special tokens visible; the text "
        "ends before them, the ids keep them",
    )
    stop_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    seed: int | None = None
    adapter: bool | str = Field(
        True,
        description="True: the engine's first adapter, if it has any; False: the base; or an adapter's name",
    )
    ignore_eos: bool = False
    logit_mask: object | None = Field(
        None,
        description="callable (token ids so far: list[int], position: int) -> bool tensor [V] of allowed "
        "ids (V: the model's vocab_size), or None for all",
    )
    constraint: Constraint | None = Field(
        None, description="what the text must be: {json_schema: …}, {regex: …} or {grammar: …}"
    )
    top_logprobs: int = Field(
        0,
        ge=0,
        le=MOST_TOP_LOGPROBS,
        description="how many of the most probable ids `Sample.top_logprobs` keeps at each token",
    )

    @field_validator("temperature")
    @classmethod
    def _computable(cls, value: float) -> float:
        if 0 < value < LEAST_TEMPERATURE:
            raise ValueError(f"{value:g} is too small to divide by; 0 is greedy, else at least 0.0001")
        return value

    @field_validator("logit_mask")
    @classmethod
    def _is_callable(cls, value: object | None) -> object | None:
        if value is not None and not callable(value):
            raise ValueError(
                f"should be a function (token ids, position) -> bool tensor, not a {type(value).__name__}"
            )
        return value

    @property
    def filtered(self) -> bool:
        """Whether the distribution sampled from differs from the full softmax at this temperature."""
        cut = self.top_k > 0 or self.top_p < 1 or self.min_p > 0
        return cut or self.logit_mask is not None or self.constraint is not None


class AdamW(Config):
    """Optimizer and schedule. ``warmup`` and ``total`` count steps; after ``warmup`` the rate decays, to
    ``final`` times ``lr`` at ``total``.
    """

    lr: float = Field(5e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, ge=1e-30)  # 0 in float32 would make NaN of weights without a gradient
    weight_decay: float = Field(0.0, ge=0)
    max_norm: float | None = Field(1.0, gt=0)
    warmup: int = Field(0, ge=0)
    total: int | None = Field(None, ge=1)
    decay: Literal["constant", "linear", "cosine"] = "constant"
    final: float = Field(0.0, ge=0, le=1)

    @field_validator("betas")
    @classmethod
    def _decaying(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"{list(value)}: both should be at least 0 and below 1")
        return value

    @model_validator(mode="after")
    def _has_total(self) -> AdamW:
        if self.decay != "constant" and self.total is None:
            raise ValueError(f"decay={self.decay} needs total, the number of steps it spans")
        return self


AUTO_CAP = 2.0
"""The importance cap "auto": a common one of truncated importance sampling between sampler and trainer (TIS)
[INFERRED].
"""
LARGE_GAP = 0.01
"""Mean difference between the sampler's and the trainer's log-probabilities, in nats a token, that is named
large [INFERRED].
"""


class Overlong(Config):
    """Overlong reward shaping (DAPO, arXiv 2503.14476, equation 13 [NOTES]): from ``limit - cache`` trained
    tokens on, a sample's reward falls in a line, at ``limit`` by ``penalty``, and no further.
    """

    limit: int = Field(ge=1)
    cache: int = Field(ge=1)
    penalty: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _within(self) -> Overlong:
        if self.cache > self.limit:
            raise ValueError(f"cache={self.cache} is above limit={self.limit}")
        return self


class GRPO(AdamW):
    """Group-relative policy optimisation (arXiv 2402.03300).

    The defaults are ART's [CODE]: clip 0.2, no KL, population deviation, token mean. ``normalizer``: the
    divisor of a step's loss, summed over all ranks and trees: trained tokens, samples or turns (each with its
    own token mean), or ``constant``; groups without spread count, masked tokens and samples do not.
    ``minibatches``: steps an epoch, to which whole trees are dealt in an order that depends on their tokens
    alone. ``importance_cap`` truncates the weight exp(policy - sampled log-probability), which is 1 unless
    top-k, top-p, min-p, a mask or a constraint filtered the distribution; None leaves the weight out.
    ``importance``: a token beyond the cap counts as at the cap, or (masked) not at all. ``old_policy``: what
    the ratio compares with, the log-probabilities that the sampler recorded, or those that the trainer
    computes anew before the first update; the importance weight is then of the trainer's against the
    sampler's distribution.
    In `Engine.train` the cap "auto" corrects what separates sampler and trainer: tokens of the present policy
    compare with the trainer's own log-probabilities, and weigh exp(trainer - recorded), at most `AUTO_CAP`.
    Of several updates in a call the later ones do so above a gap of `LARGE_GAP` (`engine/old_policy.py`).
    Without a gap it changes nothing.

    ``advantages``, ``ratio``, ``clip`` and ``kl`` give its relatives (`kernels/grpo.py` and
    `engine/policy_terms.py` have the formulas): Dr. GRPO is mean with ``normalizer`` constant, RLOO is rloo,
    GSPO is ratio sequence with ``normalizer`` samples, CISPO is clip cispo, DAPO's loss is ``epsilon_high``
    above ``epsilon`` with ``normalizer`` tokens, its reward shaping ``overlong``. REINFORCE++ is advantages
    reinforce, or reinforce_baseline; both compare over the whole step (`engine/advantages.py`).

    ``entropy_bonus``: times the entropy of each token's distribution, taken off the loss. Groups without
    advantage are left out only where it and ``beta`` are 0.

    ``branch_credit``: the advantage of a sample that others continue (`Group.parent`), which is trained once:
    its own, or the sum or the mean of those of the samples that end below it; then it needs no reward. With
    sum it weighs as in N copies of it, as far as its ratio is not clipped.
    """

    epsilon: float = Field(0.2, gt=0)
    epsilon_high: float | None = Field(None, gt=0)
    beta: float = Field(0.0, ge=0)
    kl: Literal["k1", "k2", "k3"] = "k3"
    ratio: Literal["token", "sequence"] = "token"
    clip: Literal["ppo", "cispo"] = "ppo"
    advantages: Literal["art", "verl", "mean", "rloo", "reinforce", "reinforce_baseline"] = "art"
    branch_credit: Literal["own", "mean", "sum"] = "own"
    overlong: Overlong | None = None
    entropy_bonus: float = Field(0.0, ge=0)
    old_policy: Literal["recorded", "recomputed"] = "recorded"
    normalizer: Literal["tokens", "samples", "turns", "constant"] = "tokens"
    constant: float = Field(1.0, gt=0)
    importance_cap: Annotated[float, Field(gt=0)] | Literal["auto"] | None = "auto"
    importance: Literal["truncated", "masked"] = "truncated"
    epochs: int = Field(1, ge=1)
    minibatches: int = Field(1, ge=1, le=MOST_MINIBATCHES)

    @property
    def truncation(self) -> float | None:
        """``importance_cap`` as a number."""
        return AUTO_CAP if self.importance_cap == "auto" else self.importance_cap


class SFT(AdamW):
    """Supervised loss: mean negative log-likelihood of the unmasked tokens."""

    normalizer: Literal["tokens", "samples", "turns", "constant"] = "tokens"
    constant: float = Field(1.0, gt=0)
