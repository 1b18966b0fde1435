"""The gap between sampler and trainer in bfloat16: log-probabilities of sampled tokens, computed twice.

The sampler decodes token by token through pages and fused 4-bit products; the trainer runs one pass over the
tree with dequantised weights. Policy-gradient ratios begin at the exponential of their difference.
"""

from __future__ import annotations

from functools import partial

import torch

from bench.gpu.floors import rounding_gap
from bench.gpu.model import random_engine
from bench.gpu.task import Job, Row, Setting, Task, figure
from bench.gpu.timing import Stopwatch
from proactor.engine.config import Sampling

SIZES, TINY_SIZES = (512, 8, 64), (24, 3, 4)
"""Tokens of the prompt, samples, tokens of each."""
TARGET = "sqrt(2 layers) 2^-9: each addition to the residual stream rounds to bfloat16 independently"


def tasks(job: Job, setting: Setting) -> list[Task]:
    """One task."""
    prompt, samples, tokens = TINY_SIZES if setting.dry else SIZES
    name = f"gap of sampler and trainer, {samples} samples of {tokens} tokens behind {prompt}"
    return [Task(name, partial(_measure, job, setting), 90.0)]


def _measure(job: Job, setting: Setting, watch: Stopwatch) -> list[Row]:
    length, count, tokens = TINY_SIZES if setting.dry else SIZES
    shape = job.shape
    engine = random_engine(shape, setting.torch_device, setting.seed, 8192)
    generator = torch.Generator().manual_seed(setting.seed)
    prompt = torch.randint(shape.vocabulary, (length,), generator=generator).tolist()
    (group,) = engine.sample([prompt], Sampling(n=count, max_tokens=tokens, ignore_eos=True))
    recomputed = engine.logprobs(
        [prompt + s.token_ids for s in group.samples],
        [(length, length + len(s.token_ids)) for s in group.samples],
    )
    drawn = torch.tensor([value for s in group.samples for value in s.policy_logprobs])
    gap = torch.cat(recomputed) - drawn
    size = gap.abs()
    details = {
        "tokens": len(gap),
        "mean_signed": float(gap.mean()),
        "median": float(size.median()),
        "percentile_99": float(size.quantile(0.99)),
        "largest": float(size.max()),
        "ratio_max_error": float(gap.expm1().abs().max()),
        "kl": float((gap.exp() - 1 - gap).mean()),
        "mean_logprob": float(drawn.mean()),
    }
    return [figure(float(size.mean()), "nats", rounding_gap(shape), TARGET, **details)]
