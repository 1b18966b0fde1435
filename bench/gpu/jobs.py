"""The jobs of a run, in order of worth, and the tasks of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.gpu import decode, gap, rows, step_peer, tiles, train, tree_peers
from bench.gpu.card import PRODUCTS, ceilings, facts, readings
from bench.gpu.task import BOTH, FORWARD, TINY, Job, Row, Setting, Task, available
from bench.gpu.timing import Stopwatch
from proactor.kernels.op import QWEN25, Op

EVERY = (FORWARD, BOTH)
FIRST: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("nf4_linear",), (FORWARD,)),  # for a step's few rows there is no backward pass
    (("span_attention",), EVERY),
    (("paged_attention", "shared_prefix_attention", "paged_rows_attention"), EVERY),
    (("logprob", "logprob_loss"), EVERY),
)
"""Operations that decide a step, with the passes that matter; the rest follows as the registry has it."""
MODEL_JOBS = ("decode", "train", "gap", "tree", "tiles", "step-peer")
"""Kinds of jobs besides "rows", which is the operations' rows."""
NAMES = (*MODEL_JOBS[:2], "rows", *MODEL_JOBS[2:])
"""The names of ``--jobs``, in order of worth."""


def _card(job: Job, setting: Setting) -> list[Task]:
    """What the card is and reaches: the row that the parent makes every later `Setting` from."""

    def run(watch: Stopwatch) -> list[Row]:
        device = setting.torch_device
        known = facts(device) | {"before": readings()}
        sizes = (64,) if setting.dry else PRODUCTS[1:2] if job.quick else PRODUCTS
        ceiling, measured = ceilings(watch, device, available(setting), sizes)
        return [{"card": known, "ceilings": measured, "rates": (ceiling.copy, ceiling.product)}]

    return [Task("the card and its ceilings", run, 60.0)]


KINDS: dict[str, Callable[[Job, Setting], list[Task]]] = {
    "card": _card,
    "rows": rows.tasks,
    "decode": decode.tasks,
    "train": train.tasks,
    "gap": gap.tasks,
    "tree": tree_peers.tasks,
    "tiles": tiles.tasks,
    "step-peer": step_peer.tasks,
}


def tasks_of(job: Job, setting: Setting) -> list[Task]:
    """The tasks of a job: their names are known without a card, and nothing runs yet."""
    return KINDS[job.kind](job, setting)


def plan(
    ops: Sequence[Op], models: Sequence[str], names: Sequence[str], peers: bool, quick: bool
) -> list[Job]:
    """The jobs, most worth first; ``names`` of `NAMES`. Later models have the operations' rows alone.

    ``peers`` False leaves out what only compares with libraries. ``quick``: one row an operation.
    """
    known = {op.name for op in ops}
    groups = [(kept, passes) for names_, passes in FIRST if (kept := tuple(n for n in names_ if n in known))]
    done = {(name, p) for group, passes in groups for name in group for p in passes}
    rest = [
        ((op.name,), left)
        for op in ops
        if (left := tuple(p for p in EVERY if (op.name, p) not in done)) and (op.gradients or FORWARD in left)
    ]
    if quick:
        every = dict.fromkeys(name for group, _ in (*groups, *rest) for name in group)
        return [Job("rows", models[0], tuple(every), (FORWARD,), quick=True)]
    first, *later = models
    whole = [kind for kind in MODEL_JOBS if kind in names and (peers or kind not in ("tree", "step-peer"))]
    jobs = [Job(kind, first) for kind in whole if kind in ("decode", "train")]
    wanted = "rows" in names
    jobs += [Job("rows", first, *group) for group in groups if wanted]
    jobs += [Job(kind, first) for kind in whole if kind not in ("decode", "train")]
    jobs += [Job("rows", first, *group) for group in rest if wanted]
    return jobs + [Job("rows", model, *group) for model in later for group in (*groups, *rest) if wanted]


def model_names(wanted: str, dry: bool) -> list[str]:
    """The models of ``--model``: "14b", or "all". Raises ValueError for another."""
    if dry:
        return [TINY.name]
    names = {shape.name.rpartition("-")[2].lower(): shape.name for shape in QWEN25}
    if wanted == "all":
        return list(names.values())
    if wanted not in names:
        raise ValueError(f"{wanted}: not one of {', '.join(names)}, all")
    return [names[wanted]]
