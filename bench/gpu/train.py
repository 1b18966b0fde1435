"""`Engine.forward_backward` of a whole model by rows of the tree: seconds, peak memory, where the time goes.

The tree is a prompt of half of the rows with eight samples behind it, all with an advantage. No gradient
checkpointing: what autograd keeps of a row is the memory that is compared with the prediction.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch

from bench.gpu.floors import train_flops
from bench.gpu.model import random_engine
from bench.gpu.profile import profiled
from bench.gpu.task import Job, Row, Setting, Skipped, Task, available, figure
from bench.gpu.timing import Stopwatch, wait
from proactor.engine.config import GRPO
from proactor.engine.engine import Engine
from proactor.engine.footprint import Footprint
from proactor.engine.layout import layout
from proactor.engine.loss import GRPOLoss
from proactor.engine.tree import Tree
from proactor.engine.types import Group, Sample

ROWS, TINY_ROWS = (2048, 4096, 7168), (48, 64)
SAMPLES, ROUNDS = 8, 3
FORMULA = "what is held, and `Footprint.pass_bytes` (engine/footprint.py) of the rows"
FLOOR = "operations of frozen linears twice, attention, adapter and head at the measured rate of products"


def tasks(job: Job, setting: Setting) -> list[Task]:
    """By rows: the time, then the memory; in the middle a profile."""
    counts = TINY_ROWS if setting.dry else ROWS
    steps = TrainSteps(job, setting)
    out = []
    for rows in counts:
        out.append(Task(f"forward_backward, {rows} rows", partial(steps.run, rows), 90.0))
    return [
        *out,
        Task(f"forward_backward, {counts[1]} rows, profile", partial(steps.profile, counts[1]), 60.0),
    ]


class TrainSteps:
    """The model, made when the first task needs it."""

    def __init__(self, job: Job, setting: Setting) -> None:
        self.job, self.setting, self.device = job, setting, setting.torch_device
        self.loss = GRPOLoss(GRPO())

    @cached_property
    def engine(self) -> Engine:
        return random_engine(self.job.shape, self.device, self.setting.seed, 2**15)

    def call(self, rows: int) -> Any:
        """What `run` times, and the tree that it computes. Raises Skipped for one that has no room."""
        tree = Tree([group_of(rows, self.job.shape.vocabulary)])
        engine, loss = self.engine, self.loss
        need, room = predicted(engine, tree.rows), available(self.setting)
        if need > room and not self.setting.dry:
            raise Skipped(f"a pass of {need / 1e9:.1f} GB, {room / 1e9:.1f} GB are free")
        return (lambda: engine.forward_backward([tree], loss)), tree

    def run(self, rows: int, watch: Stopwatch) -> list[Row]:
        call, tree = self.call(rows)
        call()  # compiles
        self.engine.zero_grad()
        held = _reset_peak(self.device)
        call()
        peak = _peak(self.device)
        taken = sorted(watch.sample([call], 0.0)[0] for _ in range(ROUNDS))
        seconds = taken[ROUNDS // 2]
        flops = train_flops(self.job.shape, tree.rows, visible_pairs(tree), head_rows(tree))
        floor = flops / self.setting.ceilings.product
        figures = [
            figure(
                seconds * 1e3,
                "ms",
                floor * 1e3,
                FLOOR,
                rows=tree.rows,
                low=taken[0],
                high=taken[-1],
                rows_per_second=tree.rows / seconds,
                tokens_per_second=tree.flat_tokens / seconds,
                flops=flops,
            )
        ]
        if peak:
            expected = predicted(self.engine, tree.rows)
            figures.append(
                figure(
                    peak / 1e9,
                    "GB",
                    (held + expected) / 1e9,
                    FORMULA,
                    held=held,
                    peak=peak,
                    bytes_per_row=(peak - held) / tree.rows,
                )
            )
        return figures

    def profile(self, rows: int, watch: Stopwatch) -> list[Row]:
        call, _ = self.call(rows)
        call()
        return [{"profile": profiled(call, self.device)}]


def group_of(rows: int, vocabulary: int) -> Group:
    """A prompt of half of ``rows`` tokens with `SAMPLES` samples behind it; a tree of ``rows`` rows."""
    generator = torch.Generator().manual_seed(rows)
    each = rows // 2 // SAMPLES
    prompt = _ids(rows - SAMPLES * each, vocabulary, generator)
    samples = [
        Sample(prompt, _ids(each + 1, vocabulary, generator), advantage=1.0 if i % 2 else -1.0)
        for i in range(SAMPLES)
    ]
    return Group(prompt, samples)


def _ids(count: int, vocabulary: int, generator: torch.Generator) -> list[int]:
    ids: list[int] = torch.randint(vocabulary, (count,), generator=generator).tolist()
    return ids


def visible_pairs(tree: Tree) -> int:
    """(query row, key it sees), counted over the tree: a row at depth d sees d + 1 keys."""
    return sum(len(n.ids) * n.depth + len(n.ids) * (len(n.ids) + 1) // 2 for n in tree.nodes)


def head_rows(tree: Tree) -> int:
    """Rows whose logits the loss needs."""
    return len(layout(tree).head_row)


def predicted(engine: Engine, rows: int) -> int:
    """Bytes that a backward pass over ``rows`` needs above what is held, by the engine's formula."""
    assert engine.decoder.lora is not None
    footprint = Footprint.of(engine.config, engine.decoder.lora.lora, True, torch.bfloat16)
    return footprint.pass_bytes(rows, gradient=True)


def _reset_peak(device: torch.device) -> int:
    """Bytes held now, from which a peak is counted; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    wait(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device) -> int:
    """Most bytes held since `_reset_peak`; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    wait(device)
    return torch.cuda.max_memory_allocated(device)
