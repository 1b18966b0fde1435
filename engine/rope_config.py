"""Rotary position embedding: settings, their reading from ``config.json``, and the frequencies they give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from proactor.engine.config_keys import Keys

RopeKind = Literal["default", "linear", "yarn", "llama3"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding. ``factor`` and the fields after it are read only by the kinds that use them.

    [CODE] transformers `modeling_rope_utils`; [PAPER] yarn: arXiv 2309.00071.
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float = 1.0
    """Scale of cos and sin (yarn only): 0.1 ln(factor) + 1 unless the checkpoint gives its own."""

    def inv_freq(self, head_dim: int) -> Tensor:
        """Radians a position for each pair of dimensions: f32 [head_dim / 2], bit-equal to transformers."""
        exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
        plain = 1.0 / (self.theta**exponent)
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "yarn":
            return self._yarn(head_dim, self.theta**exponent)
        if self.kind == "llama3":
            return self._llama3(plain)
        return plain

    def _yarn(self, head_dim: int, periods: Tensor) -> Tensor:
        """Interpolated slow dimensions, extrapolated fast ones, and a linear ramp between those that turn
        `beta_slow` and `beta_fast` times in the original context.
        """

        def dimension(turns: float) -> float:
            return (head_dim * math.log(self.original_context / (turns * 2 * math.pi))) / (
                2 * math.log(self.theta)
            )

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        if low == high:
            high += 0.001
        ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
        keep = 1 - ramp
        return 1.0 / (self.factor * periods) * (1 - keep) + 1.0 / periods * keep

    def _llama3(self, plain: Tensor) -> Tensor:
        """Long wavelengths divided by the factor, short ones kept, a smooth blend between."""
        wavelength = 2 * math.pi / plain
        longest, shortest = (
            self.original_context / self.low_freq_factor,
            self.original_context / self.high_freq_factor,
        )
        scaled = torch.where(wavelength > longest, plain / self.factor, plain)
        low, high = self.low_freq_factor, self.high_freq_factor
        smooth = (self.original_context / wavelength - low) / (high - low)
        blend = (1 - smooth) * scaled / self.factor + smooth * scaled
        between = ~(wavelength < shortest) * ~(wavelength > longest)
        return torch.where(between, blend, scaled)


def read_rope(keys: Keys, positions: int) -> RopeConfig:
    """Both spellings: ``rope_theta`` with ``rope_scaling``, and transformers 5's ``rope_parameters``.

    Where both are given, ``rope_scaling`` replaces the other whole, as in transformers. A base that only
    ``rope_parameters`` holds would be lost: refused.
    """
    name = "rope_scaling" if keys.values.get("rope_scaling") else "rope_parameters"
    values = keys.mapping(name)
    if name == "rope_scaling" and not ("rope_theta" in values or keys.values.get("rope_theta")):
        hidden = _thetas(keys)
        if hidden - {10000.0}:
            raise keys.error(
                "rope_scaling", f"has no rope_theta, and hides that of rope_parameters ({max(hidden):g})"
            )
    if "full_attention" in values:
        values = Keys(values, keys.where).mapping("full_attention")
    rope = Keys(values, f"{keys.where}: {name}")
    theta = rope.number("rope_theta", keys.number("rope_theta", 10000.0))
    kind = values.get("rope_type", values.get("type")) or "default"
    partial = values.get("partial_rotary_factor", keys.values.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise rope.error("partial_rotary_factor", f"{partial!r} is not supported, only 1")
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", rope.number("factor"))
    holder = rope if keys.values.get("original_max_position_embeddings") is None else keys
    original = holder.count("original_max_position_embeddings", positions)
    if kind == "llama3":
        return RopeConfig(
            theta,
            "llama3",
            rope.number("factor"),
            original,
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
        )
    if kind == "yarn":
        factor = rope.number("factor", positions / original)
        if theta <= 1:
            raise rope.error("rope_theta", f"should be above 1 for yarn, not {theta:g}")
        return RopeConfig(
            theta,
            "yarn",
            factor,
            original,
            beta_fast=rope.number("beta_fast") if values.get("beta_fast") else 32.0,
            beta_slow=rope.number("beta_slow") if values.get("beta_slow") else 1.0,
            truncate=rope.flag("truncate", True),
            attention_factor=_attention_factor(rope, factor),
        )
    raise rope.error("rope_type", f"{kind!r} is not supported; supported: default, linear, yarn, llama3")


def _thetas(keys: Keys) -> set[float]:
    """Every base in `rope_parameters`, whether flat or by layer type."""
    parameters = keys.mapping("rope_parameters")
    parts = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    where = f"{keys.where}: rope_parameters"
    return {Keys(part, where).number("rope_theta") for part in parts if part.get("rope_theta") is not None}


def _attention_factor(rope: Keys, factor: float) -> float:
    """0.1 ln(factor) + 1, or with ``mscale`` and ``mscale_all_dim`` a ratio of two. [CODE] transformers."""
    if rope.values.get("attention_factor") is not None:
        return rope.number("attention_factor")

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        return scale(rope.number("mscale")) / scale(rope.number("mscale_all_dim"))
    return scale(1.0)
