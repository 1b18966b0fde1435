"""Model, sampler and trainer in one process, on one copy of the weights.

    from proactor.engine import Engine, GRPO, LoRA, Sampling

    engine = Engine.load("path/or/hub-id", lora=LoRA(rank=8, alpha=16))
    groups = engine.sample(prompts, Sampling(n=8))
    for group in groups:
        group.rewards = [score(s.text) for s in group.samples]
    print(engine.train(groups, GRPO(lr=5e-6)))

Importing changes no global state; torch is imported when one of these names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proactor.engine.chat import ChatFormat as ChatFormat
    from proactor.engine.checkpoint import save_quantized as save_quantized
    from proactor.engine.config import GRPO as GRPO
    from proactor.engine.config import SFT as SFT
    from proactor.engine.config import AdamW as AdamW
    from proactor.engine.config import LoRA as LoRA
    from proactor.engine.config import Sampling as Sampling
    from proactor.engine.engine import Engine as Engine
    from proactor.engine.loss import GRPOLoss as GRPOLoss
    from proactor.engine.loss import SFTLoss as SFTLoss
    from proactor.engine.tree import TokenBatch as TokenBatch
    from proactor.engine.tree import Tree as Tree
    from proactor.engine.types import EngineError as EngineError
    from proactor.engine.types import Group as Group
    from proactor.engine.types import Sample as Sample

_HOME = {
    "ChatFormat": "chat",
    "GRPO": "config",
    "SFT": "config",
    "AdamW": "config",
    "LoRA": "config",
    "Sampling": "config",
    "Engine": "engine",
    "GRPOLoss": "loss",
    "SFTLoss": "loss",
    "TokenBatch": "tree",
    "Tree": "tree",
    "save_quantized": "checkpoint",
    "EngineError": "types",
    "Group": "types",
    "Sample": "types",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"proactor.engine.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
