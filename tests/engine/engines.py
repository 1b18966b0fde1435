"""Tiny engines for tests: two layers, random weights, an adapter that is no longer zero, and a character
tokenizer where text is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from proactor.engine import GRPO, AdamW, Engine, Group, LoRA, Sample, Sampling
from proactor.engine.model import Decoder
from tests.tiny import save_tiny

Mode = TypeVar("Mode", bound=TorchDispatchMode)

EOS = 100
STEP = AdamW(lr=1e-2)
TRAIN = GRPO(lr=1e-2)


def write_folder(folder: Path) -> Path:
    """A model of 101 ids without a tokenizer; id 100 ends."""
    model = save_tiny(folder, eos_token_id=EOS, hidden_size=32, intermediate_size=64, head_dim=8)
    with torch.no_grad():
        model.lm_head.weight.mul_(6.0)  # logits far enough apart for filters, and for errors to show
    model.save_pretrained(folder)
    return folder


def write_text_folder(folder: Path) -> Path:
    """The same with one token a byte (ids 0 … 255), an end token 256, and a vocabulary padded to 264."""
    save_tiny(folder, eos_token_id=256, hidden_size=32, intermediate_size=64, head_dim=8, vocab_size=264)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """One token a byte, and an end token 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)


def load(folder: Path, stir: bool = True, **changes: Any) -> Engine:
    """An engine with pages of 4 tokens; ``stir`` gives the adapter random values, so it has an effect."""
    settings: dict[str, Any] = {
        "lora": LoRA(rank=4, alpha=8),
        "page_size": 4,
        "kv_tokens": 1024,
        "max_batch": 32,
    }
    engine = Engine.load(folder, **{**settings, **changes})
    if stir and engine.trainer is not None:
        shake(engine)
    return engine


def shake(engine: Engine, seed: int = 0, size: float = 0.2, adapter: str | None = None) -> None:
    """Add noise to an adapter and declare it changed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for leaf in engine.parameters(adapter):
            leaf.add_((torch.randn(leaf.shape, generator=generator) * size).to(leaf.device))
    engine.weights_changed(adapter)


def prompts(count: int, length: int = 10, seed: int = 0, shared: int = 0) -> list[list[int]]:
    """Random id lists of different lengths, the first ``shared`` ids the same in all."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randint(0, EOS, (shared,), generator=generator).tolist()
    return [
        head + torch.randint(0, EOS, (length + 3 * i,), generator=generator).tolist() for i in range(count)
    ]


def reward(groups: Sequence[Group]) -> list[Group]:
    """Rewards that differ within every group and depend on the tokens alone."""
    for group in groups:
        group.rewards = [(sum(s.token_ids) % 17) / 17 + i for i, s in enumerate(group.samples)]
    return list(groups)


def drawn(groups: Sequence[Group]) -> list[tuple[Any, ...]]:
    """Everything about samples that must not depend on how they were computed, to the bit."""
    return [
        (s.token_ids, s.logprobs, s.policy_logprobs, s.finish_reason, s.text)
        for g in groups
        for s in g.samples
    ]


def rollout(engine: Engine, count: int = 3, n: int = 3, tokens: int = 6, **changes: Any) -> list[Group]:
    """Rewarded groups of ``count`` prompts."""
    sampling = Sampling(n=n, max_tokens=tokens, ignore_eos=True, **changes)
    return reward(engine.sample(prompts(count, shared=6), sampling))


def outside(prompt: Sequence[int], tokens: Sequence[int], **changes: Any) -> Sample:
    """A sample that no sampler drew."""
    return Sample(list(prompt), list(tokens), **changes)


def gradient(engine: Engine) -> torch.Tensor:
    """The flat gradient as it stands."""
    assert engine.trainer is not None
    return engine.trainer.lora.grad.clone()


def adapter(engine: Engine) -> torch.Tensor:
    """The flat adapter as it stands."""
    assert engine.trainer is not None
    return engine.trainer.lora.flat.detach().clone()


def sampler(engine: Engine) -> Any:
    """The engine's sampler, for tests that look inside."""
    return engine._owner.call(engine._policy.ready_sampler)


def idle(engine: Engine) -> bool:
    """Nothing runs, and no page is held for anything but its content; what was posted before is done."""

    def look() -> bool:
        scheduler = engine._policy.ready_sampler().scheduler
        scheduler.check()
        return scheduler.idle and scheduler.pool.used == 0 and scheduler.reserved == 0

    return engine._owner.call(look)


def decoder(engine: Engine) -> Decoder:
    """The engine's decoder, for tests that look inside."""
    return engine.decoder


@contextmanager
def watching(engine: Engine, mode: Mode) -> Iterator[Mode]:
    """A dispatch mode in the engine's thread: a mode is a thread's own."""
    engine._owner.call(mode.__enter__)
    try:
        yield mode
    finally:
        engine._owner.call(lambda: mode.__exit__(None, None, None))
