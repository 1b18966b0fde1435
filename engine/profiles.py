"""A decode step and a training step by phase, and the operations by themselves, each beside its floor.

Phases are the ranges of `engine/ranges.py`. A floor is what the ceilings of the same run need for the phase's
least bytes and operations; host work has none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from proactor.engine.config import GRPO, EngineConfig, Sampling
from proactor.engine.device import choose_device, choose_dtype
from proactor.engine.engine import Engine
from proactor.engine.floors import Least, decode_work, pass_work, train_work
from proactor.engine.known_models import known_model
from proactor.engine.lora_config import LoRA
from proactor.engine.model_config import ModelConfig
from proactor.engine.ranges import Times, listening
from proactor.engine.types import Group
from proactor.kernels.ceilings import Ceilings, measure_ceilings
from proactor.kernels.op import ModelShape
from proactor.kernels.roofline import OperationTime, operation_times

NO_WORK = Least(0, 0)
FIRST_ID = 3
"""Ids of prompts begin here: special ones lie below."""


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """A phase of one step: seconds of its own, its share of the step, and what its least work takes.

    ``bound``: "memory", "arithmetic", or "" where no floor is known, as for work of the host.
    """

    name: str
    seconds: float
    share: float
    floor: float
    bound: str


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Phases of a step, slowest first; ``seconds`` of the whole, what no phase holds included."""

    title: str
    seconds: float
    phases: list[PhaseTime]
    ceilings: Ceilings


def profile_kernels(
    model: str, options: EngineConfig | None = None, only: str = "", seconds: float = 0.3
) -> tuple[Ceilings, Iterator[OperationTime]]:
    """The ceilings, and the operations at the shapes of ``model`` as they are measured.

    ``model``: a folder, or a name that `known_model` knows. Raises EngineError for neither.
    """
    options = options or EngineConfig()
    folder = Path(model)
    c = ModelConfig.from_folder(folder) if folder.is_dir() else known_model(model)
    sizes = (c.hidden_size, c.num_layers, c.num_heads, c.num_kv_heads, c.head_dim, c.intermediate_size)
    shape = ModelShape(folder.name, *sizes, c.vocab_size)
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    ceilings = measure_ceilings(device, dtype)
    most = 2e11 if device.type == "cpu" else float("inf")
    rows = operation_times(shape, device, dtype, ceilings, seconds=seconds, most_flops=most, only=only)
    return ceilings, rows


def profile_decode(engine: Engine, batch: int, context: int = 128, tokens: int = 32) -> StepProfile:
    """Decode steps of ``batch`` random sequences of ``context`` tokens and up to ``tokens`` more.

    Prompts are computed first, and not counted.
    """
    sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    engine.sample(_prompts(engine, batch, context, seed=1), Sampling(max_tokens=2, ignore_eos=True))
    times = Times()
    with listening(times):
        engine.sample(_prompts(engine, batch, context, seed=2), sampling)
    steps = times.by_name["sample: model"].count
    spent = {name: entry.own / steps for name, entry in times.by_name.items() if name != "sample: prompts"}
    work = decode_work(engine.decoder, batch, context + tokens // 2)
    title = f"decode step, {batch} sequences, context {context} to {context + tokens}"
    return _profile(engine, title, spent, work, sum(spent.values()))


def profile_step(
    engine: Engine, prompts: int = 4, samples: int = 8, context: int = 64, tokens: int = 32
) -> StepProfile:
    """One GRPO step: ``samples`` of ``tokens`` tokens of each prompt, and the update on them.

    Advantages alternate, so that all samples are trained. A step before it warms up. The engine's adapter
    changes. Raises EngineError for an engine without LoRA.
    """
    spent: dict[str, float] = {}
    for round_ in range(2):
        times, began = Times(), time.perf_counter()
        with listening(times):
            sampling = Sampling(n=samples, max_tokens=tokens, ignore_eos=True)
            groups = engine.sample(_prompts(engine, prompts, context, seed=round_), sampling)
            stats = engine.train(_with_advantages(groups), GRPO())
        whole = time.perf_counter() - began
        spent = {name: entry.own for name, entry in times.by_name.items()}
    steps = times.by_name["sample: model"].count
    decode = decode_work(engine.decoder, prompts * samples, context + tokens // 2)
    work = {name: Least(steps * part.bytes, steps * part.flops) for name, part in decode.items()}
    work["sample: prompts"] = pass_work(engine.decoder, prompts * context)
    work |= train_work(engine.decoder, int(stats["tokens_computed"]), int(stats["tokens_trained"]))
    title = f"GRPO step, {prompts} prompts of {context} tokens x {samples} samples of {tokens}"
    return _profile(engine, title, spent, work, whole)


def _profile(
    engine: Engine, title: str, spent: Mapping[str, float], work: Mapping[str, Least], whole: float
) -> StepProfile:
    ceilings = measure_ceilings(engine.decoder.device, engine.decoder.dtype)
    phases = []
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        least = work.get(name, NO_WORK)
        floor, bound = ceilings.floor(least.bytes, least.flops)
        phases.append(PhaseTime(name, seconds, seconds / whole, floor, bound if floor else ""))
    return StepProfile(title, whole, phases, ceilings)


def _prompts(engine: Engine, count: int, length: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(FIRST_ID, engine.config.vocab_size) for _ in range(length)] for _ in range(count)]


def _with_advantages(groups: list[Group]) -> list[Group]:
    for group in groups:
        for i, sample in enumerate(group.samples):
            sample.advantage = 1.0 if i % 2 else -1.0
    return groups


def load_to_profile(model: str | Path, options: EngineConfig) -> Engine:
    """An engine with LoRA of rank 8, and no more cache than a profile needs."""
    return Engine.load(model, lora=LoRA(rank=8), config=options)
