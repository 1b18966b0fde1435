"""AdamW on the flat adapter: its moments, its schedule, and their state, which a save holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from proactor.engine.config import AdamW
from proactor.engine.lora import LoRABuffer
from proactor.engine.types import EngineError
from proactor.kernels.adamw import clipped_adamw


class Optimizer:
    """The moments of one adapter's parameters, ``m`` and ``v``, float32 beside its ``flat``.

    Counters: ``steps`` taken, ``skipped_steps`` (a gradient that was not finite), ``empty_steps`` (one that
    was 0 everywhere).
    """

    def __init__(self, lora: LoRABuffer) -> None:
        self.lora = lora
        self.m, self.v = torch.zeros_like(lora.flat), torch.zeros_like(lora.flat)
        self.steps = 0
        self.skipped_steps = 0
        self.empty_steps = 0

    def step(self, config: AdamW) -> dict[str, float]:
        """Clip the adapter's gradient, apply one AdamW step and forget the gradient; returns its statistics.

        Two kinds of gradient change nothing, neither moments nor weights nor the step count, and are counted:
        one that is not finite, and one that is 0 everywhere, which would move the adapter by momentum and
        weight decay alone.
        """
        rate = learning_rate(config, self.steps)
        empty = not bool(self.lora.grad.any())
        norm = 0.0 if empty else self._clipped_step(config, rate)
        finite = math.isfinite(norm)
        self.steps += finite and not empty
        self.skipped_steps += not finite
        self.empty_steps += empty
        self.lora.grad.zero_()
        return {
            "grad_norm": norm,
            "lr": rate,
            "step": float(self.steps),
            "nonfinite_gradient": 0.0 if finite else 1.0,
            "zero_gradient": 1.0 if empty else 0.0,
            "adapter_norm": float(torch.linalg.vector_norm(self.lora.flat)),
        }

    def _clipped_step(self, config: AdamW, rate: float) -> float:
        """Clip and update; returns the norm before clipping. One that is not finite changes nothing."""
        return float(
            clipped_adamw(
                self.lora.flat,
                self.lora.grad,
                self.m,
                self.v,
                self.steps + 1,
                rate,
                config.betas,
                config.eps,
                config.weight_decay,
                config.max_norm,
            )
        )

    def reset(self) -> None:
        """Start anew: moments and step count."""
        self.m.zero_()
        self.v.zero_()
        self.steps = 0

    def state(self) -> dict[str, Any]:
        """What training changes: copies of the adapter and both moments, and the step counters; and ``lora``,
        what the adapter's numbers mean.
        """
        return {
            "adapter": self.lora.flat.detach().clone(),
            "m": self.m.clone(),
            "v": self.v.clone(),
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "empty_steps": self.empty_steps,
            "lora": self.lora.lora.identity(),
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over a ``state``. Raises EngineError as `check_state` does, with nothing changed."""
        self.check_state(state)
        self.lora.flat.copy_(state["adapter"])
        self.m.copy_(state["m"])
        self.v.copy_(state["v"])
        self.steps, self.skipped_steps = state["steps"], state["skipped_steps"]
        self.empty_steps = state.get("empty_steps", 0)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise EngineError unless `load_state` can take ``state``.

        Refused are another adapter's rank, scale, targets or size, missing keys, tensors that are not float32
        or not finite, a negative second moment, and counts that are no integers of at least 0. States of
        older versions record neither the first three nor ``empty_steps``.
        """
        recorded = state.get("lora", {})
        if not isinstance(recorded, Mapping):
            raise EngineError(f"state: lora should be rank, scale and targets, not {recorded!r}")
        for name, mine in self.lora.lora.identity().items():
            if recorded.get(name, mine) != mine:
                raise EngineError(
                    f"state: an adapter of {name} {recorded[name]}, this engine's has {name} {mine}"
                )
        for name in ("adapter", "m", "v"):
            self._check_tensor(name, state.get(name))
        if bool((state["v"] < 0).any()):
            raise EngineError("state: v holds negative numbers, which no second moment does")
        check_counts(state, ("steps", "skipped_steps"), optional=("empty_steps",))

    def _check_tensor(self, name: str, value: object) -> None:
        size = self.lora.flat.numel()
        if not isinstance(value, Tensor):
            what = "is missing" if value is None else f"should be a tensor, not a {type(value).__name__}"
            raise EngineError(f"state: {name} {what}")
        if value.dtype != torch.float32:
            raise EngineError(f"state: {name} is {str(value.dtype).removeprefix('torch.')}, not float32")
        if value.shape != self.lora.flat.shape:
            raise EngineError(f"state: {name} of {value.numel()} numbers, this engine's has {size}")
        if not bool(torch.isfinite(value).all()):
            raise EngineError(f"state: {name} holds values that are not finite")


def check_counts(state: Mapping[str, Any], names: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raise EngineError where a count of ``state`` is missing or no integer of at least 0."""
    for name in (*names, *(name for name in optional if name in state)):
        value = state.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            what = f"should be an integer of at least 0, not {value!r}" if name in state else "is missing"
            raise EngineError(f"state: {name} {what}")


def learning_rate(config: AdamW, step: int) -> float:
    """Rate of the update after ``step`` others: linear warm-up, then constant, or decay to ``final * lr``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "constant" or config.total is None:
        return config.lr
    progress = min(1.0, (step - config.warmup) / max(1, config.total - config.warmup))
    left = 1 - progress if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final + (1 - config.final) * left)
