"""Peak memory that a plan predicts beside the peak that is measured, for six shapes of model and tree.

    python -m bench.plan [--shape NAME …]

Each shape is a process of its own: a random Qwen2 in float32 with an adapter of rank 16, and one gradient of
a dialogue (a caterpillar tree), in one pass or by turns. Measured is what the process holds at most during
the gradient (VmHWM, reset before it: Linux) above what it held before the model was loaded; a tiny engine ran
before that, so that libraries are loaded on both sides. Predicted is ``Engine.plan(groups).peak``.

glibc keeps freed blocks of up to 32 MiB in its heap for later ones, as it finds out by itself, and what is
left between them counts as held. So each shape is measured twice: with large blocks given back as they are
freed (MALLOC_MMAP_THRESHOLD_=131072, where glibc begins), and as the allocator is by default (``heap``).

``live``: what the plan counts as held, and the bytes of all tensors that live in the same gradient once more,
counted at each operation. What a library takes for itself is in the measured peak alone.

Writes ``bench/results/<machine>/plan.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.models import ALPHA, RANK, VOCAB
from bench.records import add_results, say, stamp, write_record
from bench.turns import peak_bytes
from proactor.engine import GRPO, AdamW, Engine, Group, GRPOLoss, LoRA, Sample

GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
"""The environment in which glibc gives large blocks back as they are freed."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and a dialogue's tree; ``chunk`` 0: in one pass. ``beta``: with a pass of the adapter off."""

    layers: int
    hidden: int
    tied: bool
    context: int
    turns: int
    samples: int
    tokens: int
    chunk: int = 0
    beta: float = 0.0

    def groups(self) -> list[Group]:
        """The dialogue: its context grows evenly, samples hang off every turn."""
        generator = torch.Generator().manual_seed(7)

        def draw(count: int) -> list[int]:
            ids: list[int] = torch.randint(3, VOCAB, (count,), generator=generator).tolist()
            return ids

        trunk, groups = draw(self.context), []
        for turn in range(self.turns):
            prompt = trunk[: self.context * (turn + 1) // self.turns]
            answers = [draw(self.tokens) for _ in range(self.samples)]
            samples = [Sample(prompt, ids, advantage=i - 1.0) for i, ids in enumerate(answers)]
            groups.append(Group(prompt, samples, tree="dialogue"))
        return groups

    @property
    def rows(self) -> int:
        """Rows of the tree, at most."""
        return self.context + self.turns * self.samples * self.tokens


SHAPES = {
    "deep, one pass": Shape(24, 256, True, 400, 4, 4, 32),
    "deep, by turns": Shape(24, 256, True, 800, 8, 4, 32, chunk=256),
    "wide, one pass": Shape(4, 768, False, 400, 4, 4, 32),
    "wide, by turns": Shape(4, 768, False, 800, 8, 4, 32, chunk=256),
    "middle, one pass, KL": Shape(8, 512, True, 300, 3, 8, 32, beta=0.1),
    "middle, by turns, KL": Shape(8, 512, False, 800, 5, 8, 32, chunk=448, beta=0.1),
}


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(prog="bench.plan", description="predicted and measured peaks")
    parser.add_argument("--shape", action="append", choices=SHAPES, help="one of the shapes; default: all")
    add_results(parser)
    parser.add_argument("--child", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--heap", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(SHAPES[options.child], options.heap)))
        return
    shapes = {}
    for name in options.shape or SHAPES:
        shapes[name] = found = child(name, GIVING_BACK)
        found["heap"] = child(name, {}, "--heap")["measured"]
        say(
            f"{name}: predicted {mib(found['predicted'])}, measured {mib(found['measured'])}, by default "
            f"{mib(found['heap'])}, live {mib(found['live'])}: {found['ratio']:.3f}"
        )
        if not options.shape:
            write_record(options.results, "plan", {"shapes": shapes, **stamp()})


def child(name: str, environment: dict[str, str], *flags: str) -> dict[str, Any]:
    """One shape in a process of its own."""
    command = [sys.executable, "-m", "bench.plan", "--child", name, *flags]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(command, env=kept | environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def mib(size: int) -> str:
    """Bytes for a line."""
    return f"{size / 2**20:,.0f} MiB"


def measure(shape: Shape, heap: bool) -> dict[str, Any]:
    """Predicted, measured and counted bytes of one shape; ``heap``: measured alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = Shape(1, 64, True, 8, 1, 2, 4)
        gradient(open_engine(small, folder / "small"), small)
        write(shape, folder / "model")
        before = held_bytes()
        engine = open_engine(shape, folder / "model")
        gradient(engine, shape)
        engine.step(AdamW(lr=1e-6))
        held = held_bytes() - before
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
        gradient(engine, shape)
        measured = peak_bytes() - before
        if heap:
            return {"measured": measured}
        engine.zero_grad()
        plan = engine.plan(shape.groups(), GRPO(beta=shape.beta))
        with counting(engine) as live:
            gradient(engine, shape)
    return {
        "shape": asdict(shape),
        "parameters": parameters(engine),
        "rows": plan.tokens,
        "again": plan.again,
        "held": held,
        "predicted_held": plan.held,
        "predicted": plan.peak,
        "measured": measured,
        "live": live.peak + plan.held,
        "ratio": plan.peak / measured,
    }


def write(shape: Shape, folder: Path) -> None:
    """The model's folder, by a process that ends: what transformers leaves behind is not the engine's."""
    code = (
        "import sys; from pathlib import Path; from bench.models import write_tiny_qwen2; "
        "layers, hidden, context, tied = map(int, sys.argv[2:]); "
        "write_tiny_qwen2(Path(sys.argv[1]), hidden_size=hidden, intermediate_size=3 * hidden, "
        "num_hidden_layers=layers, max_position_embeddings=context, tie_word_embeddings=bool(tied))"
    )
    context = max(2048, shape.context + shape.tokens)
    numbers = [shape.layers, shape.hidden, context, int(shape.tied)]
    subprocess.run([sys.executable, "-c", code, str(folder), *map(str, numbers)], check=True)


def open_engine(shape: Shape, folder: Path) -> Engine:
    """An engine whose trees are one pass each, or in chunks."""
    if not folder.exists():
        write(shape, folder)
    lora = LoRA(rank=RANK, alpha=ALPHA)
    rows = shape.chunk or shape.rows
    return Engine.load(folder, dtype="float32", lora=lora, token_budget=shape.rows, chunk_rows=rows)


def gradient(engine: Engine, shape: Shape) -> None:
    """One gradient."""
    engine.forward_backward(shape.groups(), GRPOLoss(GRPO(beta=shape.beta)))


def parameters(engine: Engine) -> int:
    """Numbers of the base model."""
    decoder = engine.decoder
    found = [decoder.embed, decoder.norm, *([] if decoder.head is decoder.embed else [decoder.head])]
    count = 0
    for layer in decoder.layers:
        found += [layer.norm1, layer.norm2]
        for base in layer.linears.values():
            found += [] if base.bias is None else [base.bias]
            count += math.prod(base.weight().shape)
    return count + sum(t.numel() for t in found)


def held_bytes() -> int:
    """What this process holds now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def strided(values: Any) -> list[torch.Tensor]:
    """The tensors among ``values``, without ordered weights, whose storage cannot be seen."""
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor) and not t.is_mkldnn]


class LiveBytes(TorchDispatchMode):
    """The most bytes of storages made inside that lived at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {id(t.untyped_storage()) for t in strided((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in strided(out):
            storage = tensor.untyped_storage()
            if id(storage) not in known and not hasattr(storage, "counted"):
                setattr(storage, "counted", Counted(self, storage.nbytes()))  # noqa: B010 - dies with it
        return out


class Counted:
    """The bytes of one storage."""

    def __init__(self, log: LiveBytes, nbytes: int) -> None:
        self.log, self.nbytes = log, nbytes
        log.now += nbytes
        log.peak = max(log.peak, log.now)

    def __del__(self) -> None:
        self.log.now -= self.nbytes


@contextmanager
def counting(engine: Engine) -> Iterator[LiveBytes]:
    """Count in the engine's own thread, where the work is done."""
    live = LiveBytes()
    engine._owner.call(live.__enter__)
    try:
        yield live
    finally:
        engine._owner.call(lambda: live.__exit__(None, None, None))  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
