"""Attention on a dialogue replayed turn by turn, 21 turns with 8 samples each, beside what libraries offer.

A tree has no form in `varlen_attn`; there every sample carries a copy of its whole context. FlexAttention
takes the tree as a block mask and compiles for its length; SDPA takes a dense mask.
"""

from __future__ import annotations

from functools import partial

import torch

from bench.gpu.attention_peers import FLEX, SDPA, VARLEN_COPIES
from bench.gpu.rows import OpRow, run_row
from bench.gpu.task import BOTH, FORWARD, Job, Setting, Task
from proactor.kernels.op import Arguments, Case, ModelShape
from proactor.kernels.span_attention import SPAN_ATTENTION
from proactor.kernels.spans import Spans

TURNS, SAMPLES, USER, AGENT = 21, 8, 64, 32
"""Turns, samples of each, tokens that a turn adds to the trunk, tokens of a sample."""


def dialogue(turns: int, samples: int, user: int, agent: int) -> Spans:
    """A trunk that grows by ``user`` rows a turn, with ``samples`` leaves of ``agent`` rows behind each."""
    lengths = [user] * turns + [agent] * turns * samples
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    parents = [i - 1 for i in range(turns)] + [turn for turn in range(turns) for _ in range(samples)]
    return Spans.tree(starts, lengths, parents)


def tree_case(shape: ModelShape, dry: bool) -> Case:
    """The dialogue as a case of `span_attention`."""
    spans = dialogue(3, 2, 5, 4) if dry else dialogue(TURNS, SAMPLES, USER, AGENT)

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        def draw(heads: int) -> torch.Tensor:
            size = (spans.rows, heads, shape.head_dim)
            return torch.randn(size, generator=generator, device=device).to(dtype)

        q, k, v = draw(shape.heads), draw(shape.kv_heads), draw(shape.kv_heads)
        return {"q": q, "k": k, "v": v, "spans": spans, "scale": shape.head_dim**-0.5}

    return Case(f"dialogue of {spans.rows} rows", make)


def tasks(job: Job, setting: Setting) -> list[Task]:
    """A row for each peer and pass, so that one that compiles long or breaks costs only its own."""
    out = []
    for peer in (VARLEN_COPIES, FLEX, SDPA):
        for passes in (FORWARD, BOTH):
            row = OpRow(SPAN_ATTENTION, job.model, tree_case(job.shape, setting.dry), passes, (peer,))
            out.append(Task(f"{row.name} beside {peer.name}", partial(run_row, row, setting), 75.0))
    return out
