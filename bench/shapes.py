"""Configurations of a Qwen2.5's shape, for models that are never downloaded."""

from __future__ import annotations

from typing import Any

from proactor.engine.known_models import qwen2_keys
from proactor.engine.model_config import ModelConfig
from proactor.kernels.op import ModelShape


def model_config(shape: ModelShape, **changes: Any) -> ModelConfig:
    """The configuration of a Qwen2.5 of this shape; ``changes`` as `qwen2_keys`."""
    return ModelConfig.from_dict(qwen2_keys(shape, **changes))
