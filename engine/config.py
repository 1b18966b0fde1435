"""Frozen configurations of the engine. Unknown keys and impossible values are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from proactor.engine.types import EngineError

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
ALL_TARGETS: tuple[Target, ...] = ("q", "k", "v", "o", "gate", "up", "down")


class Config(BaseModel):
    """Base of every configuration: immutable, and an unknown key is an error that names it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, arbitrary_types_allowed=True
    )


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
        description="how 4-bit linears stay in memory: nf4 as they are (auto, where the fused kernels run), "
        "dense as a dequantised copy, which is faster elsewhere",
    )
    deterministic: bool = Field(
        False, description="results are bitwise independent of batching and ranks (CPU and float32 only)"
    )
    kv_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens that the KV cache holds; None: max_batch whole contexts, at most 1 GiB on a CPU, "
        "at most 16 GiB and half of the free memory on a GPU",
    )
    page_size: int = Field(16, ge=1, description="tokens of a KV page")
    token_budget: int = Field(
        8192,
        ge=1,
        description="rows (tokens) a forward pass aims at; a larger group is one tree",
    )
    max_batch: int = Field(256, ge=1, description="most sequences that decode at once")
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
                near = get_close_matches(name, [*cls.model_fields, "lora", "seed", "progress"], 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cls.model_fields)}"
                raise EngineError(f"Engine.load: unknown option {name!r} ({hint})")
        try:
            return cls(**options)
        except ValidationError as error:
            first = error.errors()[0]
            raise EngineError(f"{first['loc'][0]}={first['input']!r}: {first['msg']}") from None


class LoRA(Config):
    """Low-rank adapters (arXiv 2106.09685); the defaults are ProActor's reported settings [NOTES]."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    targets: tuple[Target, ...] = ALL_TARGETS
    dropout: float = 0.0
    rslora: bool = False

    @property
    def scale(self) -> float:
        """Factor of the low-rank product: alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def identity(self) -> dict[str, Any]:
        """What the adapter's numbers mean, JSON-able: rank, scale and targets."""
        return {"rank": self.rank, "scale": self.scale, "targets": list(self.targets)}

    @field_validator("targets")
    @classmethod
    def _ordered(cls, value: tuple[Target, ...]) -> tuple[Target, ...]:
        if not value:
            raise ValueError("at least one target is needed")
        return tuple(t for t in ALL_TARGETS if t in value)

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, value: float) -> float:
        if value != 0:
            raise ValueError(
                "dropout above 0 would depend on the sequence as a whole, which a token tree cannot share; "
                "use 0"
            )
        return value


class Sampling(Config):
    """How samples are drawn. Temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off."""

    n: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, lt=1)
    max_tokens: int = Field(256, ge=1)
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    seed: int | None = None
    adapter: bool = True
    ignore_eos: bool = False
    logit_mask: object | None = Field(
        None,
        description="callable (token ids so far: list[int], position: int) -> bool tensor [V] of allowed "
        "ids, or None for all",
    )

    @property
    def filtered(self) -> bool:
        """Whether the distribution sampled from differs from the full softmax at this temperature."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.logit_mask is not None


class AdamW(Config):
    """Optimizer and schedule. ``warmup`` and ``total`` count steps; after ``warmup`` the rate decays, to
    ``final`` times ``lr`` at ``total``.
    """

    lr: float = Field(5e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_norm: float | None = Field(1.0, gt=0)
    warmup: int = Field(0, ge=0)
    total: int | None = Field(None, ge=1)
    decay: Literal["constant", "linear", "cosine"] = "constant"
    final: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _has_total(self) -> AdamW:
        if self.decay != "constant" and self.total is None:
            raise ValueError(f"decay={self.decay} needs total, the number of steps it spans")
        return self


class GRPO(AdamW):
    """Group-relative policy optimisation (arXiv 2402.03300).

    The defaults are ART's [CODE]: clip 0.2, no KL, population deviation, token mean. ``normalizer``: the
    divisor of a step's loss, summed over all ranks and trees: trained tokens, samples (each with its own
    token mean), or ``constant``; groups without spread count, masked tokens and samples do not.
    ``minibatches``: steps an epoch, to which whole trees are dealt in an order that depends on their tokens
    alone. ``importance_cap`` truncates the weight exp(policy - sampled log-probability), which is 1 unless
    top-k, top-p, min-p or a mask filtered the distribution; None leaves the weight out.
    """

    epsilon: float = Field(0.2, gt=0)
    epsilon_high: float | None = Field(None, gt=0)
    beta: float = Field(0.0, ge=0)
    advantages: Literal["art", "verl"] = "art"
    normalizer: Literal["tokens", "samples", "constant"] = "tokens"
    constant: float = Field(1.0, gt=0)
    importance_cap: float | None = Field(None, gt=0)
    epochs: int = Field(1, ge=1)
    minibatches: int = Field(1, ge=1)


class SFT(AdamW):
    """Supervised loss: mean negative log-likelihood of the unmasked tokens."""

    normalizer: Literal["tokens", "samples", "constant"] = "tokens"
    constant: float = Field(1.0, gt=0)
