"""AdamW on the flat adapter: its moments, its schedule, and their state, which a save holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from proactor.engine.config import AdamW
from proactor.engine.lora import LoRABuffer
from proactor.engine.state import check_state
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
            "lora": self.lora.identity(),
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any], where: str = "state") -> None:
        """Take over a ``state``. Raises EngineError as `check_state` does, with nothing changed."""
        check_state(state, self.lora.identity(), self.lora.flat.shape, where)
        self.lora.flat.copy_(state["adapter"])
        self.m.copy_(state["m"])
        self.v.copy_(state["v"])
        self.steps, self.skipped_steps = state["steps"], state["skipped_steps"]
        self.empty_steps = state.get("empty_steps", 0)


def learning_rate(config: AdamW, step: int) -> float:
    """Rate of the update after ``step`` others: linear warm-up, then constant, or decay to ``final * lr``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "constant" or config.total is None:
        return config.lr
    progress = min(1.0, (step - config.warmup) / max(1, config.total - config.warmup))
    left = 1 - progress if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final + (1 - config.final) * left)
