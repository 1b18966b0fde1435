"""Time of a sampler's step outside the model: the scheduler, the rows, what is drawn, stop strings.

    python -m bench.host_time [--steps 100]      # microseconds by decoding sequences; writes host-time.json

The engine's own sampler and scheduler run; a stand-in for the model returns hidden states and logits that are
there already. Its time and that of the draw over the vocabulary are left out. Two forms: the one of a CPU,
and the tables that a GPU's kernels read, on a CPU and without kernels: what Python costs there, not launches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # decided when kernels are defined; none is launched

import torch
from torch import Tensor

from bench.records import add_results, say, stamp, write_record
from proactor.engine import Sampling, draws
from proactor.engine import sampler as sampler_module
from proactor.engine.draws import DrawColumns
from proactor.engine.jobs import Job
from proactor.engine.sampler import Sampler

SIZES = (1, 16, 64, 256)
FORMS = {"cpu": "reference", "tables": "triton"}
"""Form of the rows: the ``PROACTOR_KERNELS`` that chooses it."""
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "filters": {"top_k": 40, "top_p": 0.95, "min_p": 0.01},
    "stop strings": {"stop": ("</answer>", "\n\nUser:")},
}
VOCABULARY, END = 257, 256
WARM = 40
OUTSIDE = ("model", "draw")
"""Parts that are left out."""


class StandIn:
    """A decoder whose hidden states and logits are there before they are asked for."""

    def __init__(self, rows: int) -> None:
        self.config = SimpleNamespace(num_kv_heads=1, num_layers=1, head_dim=8)
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.form, self.head = SimpleNamespace(exact=False), None
        self.states = torch.zeros(rows, 8)
        self.scores = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0))
        self.scores[:, END] = -100.0  # no sample ends before its time

    def hidden(self, ids: Tensor, positions: Tensor, view: Any, adapters: Any) -> Tensor:
        """States [T, 8]."""
        return self.states[: len(ids)]

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The states as they are."""
        return hidden

    def head_linear(self, hidden: Tensor, head: Any) -> Tensor:
        """Logits [T, V]; a copy, because the draw overwrites them."""
        return self.scores[: len(hidden)].clone()


class Clock:
    """Seconds by part; a part's time is without that of the parts inside it."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.parts: defaultdict[str, float] = defaultdict(float)
        self._now = now
        self._inner = [0.0]

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, whose time counts for ``part``."""

        def clocked(*args: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            began = self._now()
            result = call(*args, **options)
            seconds = self._now() - began
            self.parts[part] += seconds - self._inner.pop()
            self._inner[-1] += seconds
            return result

        return clocked


def byte_tokenizer() -> Any:
    """A byte-level tokenizer of a token a byte, and the end token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<end>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def decoding(tokenizer: Any, count: int, steps: int, sampling: dict[str, Any]) -> Sampler:
    """A sampler in which ``count`` sequences decode, for at least ``steps`` more."""
    most = 2 * count + WARM + steps
    pages = count * (4 + most // 16)
    sampler = Sampler(StandIn(64 * count), tokenizer, pages, 16, 64 * count, count)  # type: ignore[arg-type]
    rng = random.Random(0)
    for i in range(count):
        prompt = [rng.randrange(END) for _ in range(rng.randrange(16, 48))]
        sampler.add(Job(prompt, Sampling(max_tokens=most, **sampling), (0, 0, i), most, frozenset([END]), i))
    while sampler.scheduler.counters()["decoding"] < count:
        sampler.step()
    for _ in range(WARM):
        sampler.step()
    return sampler


def watch(clock: Clock, sampler: Sampler, columns: type[DrawColumns], split: bool) -> list[Any]:
    """Patches that time the sampler's parts; without ``split`` only what is left out, and the whole."""
    decoder = sampler.decoder
    parts: list[tuple[Any, str, str]] = [
        (sampler, "step", "rest"),
        *((decoder, name, "model") for name in ("hidden", "final_norm", "head_linear")),
        (sampler_module, "sample_tokens", "draw"),
    ]
    if split:
        parts += [
            (sampler.scheduler, "plan", "plan"),
            (sampler.scheduler, "commit", "commit"),
            (sampler.cache, "prepare", "rows"),
            (sampler.rows, "build", "rows"),
            (sampler, "_drawing", "arguments"),
            *((columns, name, "arguments") for name in ("uniforms", "filters")),
            *((columns, name, "record") for name in ("take", "record", "ended")),
            (sampler, "_stopped", "stops"),
        ]
    return [mock.patch.object(o, name, clock.timed(part, getattr(o, name))) for o, name, part in parts]


def time_steps(sampler: Sampler, steps: int, split: bool) -> list[dict[str, float]]:
    """Microseconds by part of each step."""
    clock, taken = Clock(), []
    patches = watch(clock, sampler, DrawColumns, split)
    for patch in patches:
        patch.start()
    try:
        for _ in range(steps):
            clock.parts.clear()
            sampler.step()
            taken.append({part: 1e6 * seconds for part, seconds in clock.parts.items()})
    finally:
        for patch in patches:
            patch.stop()
    return taken


def measure(tokenizer: Any, count: int, steps: int, sampling: dict[str, Any]) -> dict[str, Any]:
    """The time outside the model and the draw: median and fastest tenth; medians of its parts."""
    sampler = decoding(tokenizer, count, 2 * steps, sampling)
    whole = sorted(step["rest"] for step in time_steps(sampler, steps, split=False))
    split = time_steps(sampler, steps, split=True)
    return {
        "sequences": count,
        "outside": round(statistics.median(whole), 1),
        "fastest_tenth": round(whole[len(whole) // 10], 1),
        "parts": {
            part: round(statistics.median(step[part] for step in split), 1)
            for part in split[0]
            if part not in OUTSIDE
        },
    }


def drawn_already(logits: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A stand-in for `sample_tokens` where its kernel would run."""
    zeros = torch.zeros(len(logits))
    return torch.arange(len(logits)) % END, zeros, zeros


def noise_already(keys: Tensor) -> Tensor:
    """A stand-in for `keyed_uniforms` where its kernel would run."""
    return torch.zeros(len(keys), dtype=torch.float64)


def measure_form(form: str, steps: int) -> dict[str, list[dict[str, Any]]]:
    """`measure` of every setting and size."""
    tokenizer, found = byte_tokenizer(), {}
    with mock.patch.dict(os.environ, {"PROACTOR_KERNELS": FORMS[form]}):
        for name, sampling in SETTINGS.items():
            found[name] = [measure(tokenizer, count, steps, sampling) for count in SIZES]
            for row in found[name]:
                parts = ", ".join(f"{part} {us:.0f}" for part, us in row["parts"].items())
                say(
                    f"  {form:<6} {name:<12} {row['sequences']:>4}: {row['outside']:6.0f} us "
                    f"(fastest tenth {row['fastest_tenth']:.0f}): {parts}"
                )
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(prog="python -m bench.host_time", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each size, and as many split")
    add_results(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    forms = {"cpu": measure_form("cpu", options.steps)}
    with (
        mock.patch.object(sampler_module, "sample_tokens", drawn_already),
        mock.patch.object(draws, "keyed_uniforms", noise_already),
    ):
        forms["tables"] = measure_form("tables", options.steps)
    record = {
        **stamp(),
        "command": f"python -m bench.host_time --steps {options.steps}",
        "unit": "microseconds of a step outside the model and the draw",
        "forms": forms,
    }
    say(f"record: {write_record(options.results, 'host-time', record)}")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
