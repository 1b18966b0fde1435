"""Jobs of the GPU benchmark at tiny sizes on a CPU: their order, and that every one of them runs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from bench.gpu import attention_peers, decode, gap, jobs, profile, tiles, train
from bench.gpu.decode import captured
from bench.gpu.jobs import MODEL_JOBS, NAMES, model_names, plan, tasks_of
from bench.gpu.task import BOTH, FORWARD, Job, Skipped, Task, figure, run_task
from proactor.engine.layout import layout
from proactor.kernels.norm import RMS_NORM
from proactor.kernels.op import QWEN25
from proactor.kernels.registry import OPS
from proactor.kernels.spans import Spans
from tests.bench.gpu.fake import CPU, FakeWatch, figure_of, setting

LONG = ("profile",)
"""What a task's name ends with that is tried once, below: the profiler takes seconds to begin."""


def test_most_worth_comes_first_and_other_models_last() -> None:
    models = [shape.name for shape in QWEN25]
    planned = plan(OPS, models, NAMES, peers=True, quick=False)
    assert [(job.kind, job.ops[:1]) for job in planned[:6]] == [
        ("decode", ()),
        ("train", ()),
        ("rows", ("nf4_linear",)),
        ("rows", ("span_attention",)),
        ("rows", ("paged_attention",)),
        ("rows", ("logprob",)),
    ]
    assert [job.model for job in planned] == sorted((job.model for job in planned), key=models.index)
    passes = [(op.name, p) for op in OPS for p in (FORWARD, BOTH) if p == FORWARD or op.gradients]
    for model in models:
        tasks = [(n, p) for job in planned if job.model == model for n in job.ops for p in job.passes]
        differentiable = {op.name for op in OPS if op.gradients}
        assert sorted(t for t in tasks if t[1] == FORWARD or t[0] in differentiable) == sorted(passes)
    assert {job.kind for job in planned} == {"rows", *MODEL_JOBS}


def test_peers_can_be_left_out_and_jobs_chosen() -> None:
    without = plan(OPS, ["tiny"], NAMES, peers=False, quick=False)
    assert {job.kind for job in without} == {"rows", *MODEL_JOBS} - {"tree", "step-peer"}
    assert [job.name for job in plan(OPS, ["tiny"], ["gap", "train"], peers=True, quick=False)] == [
        "train tiny",
        "gap tiny",
    ]
    (quick,) = plan(OPS, ["tiny", "other"], NAMES, peers=True, quick=True)
    assert (quick.kind, quick.quick, sorted(quick.ops)) == ("rows", True, sorted(op.name for op in OPS))


def test_first_names_are_operations() -> None:
    """A renamed operation would silently lose its place."""
    assert {name for group, _ in jobs.FIRST for name in group} <= {op.name for op in OPS}
    assert {sweep.op for sweep in tiles.SWEEPS} <= {op.name for op in OPS}


def test_models_by_their_short_names() -> None:
    assert model_names("14b", False) == ["Qwen2.5-14B"]
    assert model_names("all", False) == [shape.name for shape in QWEN25]
    assert model_names("all", True) == ["tiny"]
    with pytest.raises(ValueError, match="15b: not one of 14b, 7b"):
        model_names("15b", False)


@pytest.mark.parametrize("kind", MODEL_JOBS)
def test_every_job_runs_at_tiny_sizes(kind: str) -> None:
    """On a card it must not die of a typo."""
    tasks = [t for t in tasks_of(Job(kind, "tiny"), setting()) if not t.name.endswith(LONG)]
    assert tasks
    for task in tasks:
        rows, lost = run_task(task, FakeWatch())
        assert rows and not lost
        for row in rows:
            assert "failed" not in row and "skipped" not in row, row
            if "value" in row:
                assert row["value"] > 0 and row["target"] > 0 and row["unit"] and row["target_from"]
        json.dumps(rows)


def test_tasks_of_the_14b_model_are_known_without_a_card() -> None:
    names = [
        task.name
        for job in plan(OPS, ["Qwen2.5-14B"], NAMES, peers=True, quick=False)
        for task in tasks_of(job, setting(dry=False))
    ]
    assert len(names) == len(set(names))
    for batch in (1, 16, 64, 256):
        assert f"decode step, B = {batch}, context 2048, one CUDA graph" in names
    assert {"forward_backward, 2048 rows", "forward_backward, 7168 rows"} <= set(names)


def test_every_sweep_finds_its_case_and_the_sizes_of_its_table() -> None:
    job = Job("tiles")
    ops = {op.name: op for op in OPS}
    for sweep in tiles.SWEEPS:
        case = tiles.case_of(sweep, ops[sweep.op], job, setting(dry=False))
        assert case.name.startswith(sweep.start)
        for sizes in sweep.settings:
            assert sizes.keys() == sweep.table["default"].keys()


def test_a_sweep_changes_the_table_only_while_it_runs() -> None:
    table = {"default": {"M": 1}, "sm_90": {"M": 2}}
    with tiles.replaced(table, "sm_90", {"M": 3}):
        assert table["sm_90"] == {"M": 3}
    with tiles.replaced(table, "sm_80", {"M": 3}):
        assert table["sm_80"] == {"M": 3}
    assert table == {"default": {"M": 1}, "sm_90": {"M": 2}}


def test_a_wrong_setting_of_a_sweep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes reach the kernel, and what does not compile there costs its setting alone."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    sweep = tiles.SWEEPS[0]
    few = tiles.Sweep(
        sweep.op,
        "",
        "",
        sweep.table,
        ({"block_n": 128, "warps": 4, "stages": 2}, {"block_n": 48, "warps": 4, "stages": 2}),
    )
    monkeypatch.setattr(tiles, "SWEEPS", (few,))
    monkeypatch.setattr("bench.gpu.timing.LEAST_SAMPLES", 1)
    (task,) = tasks_of(Job("tiles", "tiny"), setting())
    present, good, bad = run_task(task, FakeWatch())[0]
    assert present["sizes"].endswith("(present)") and present["speedup"] == 1.0
    assert good["value"] == pytest.approx(1e3)  # µs
    assert bad["failed"]


def test_a_setting_with_wrong_gradients_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass does not show what the tiles of the backward kernels do."""
    table = {"default": {"M": 1}}

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0] * (2 if table.get("interpreter", table["default"]) == {"M": 1} else 3)

    op = dataclasses.replace(RMS_NORM, function=lambda x, weight, eps: Wrong.apply(x), gradients=("x",))
    monkeypatch.setattr(tiles, "OPS", (op,))
    monkeypatch.setattr(tiles, "SWEEPS", (tiles.Sweep("rms_norm", "", "", table, ({"M": 2},), BOTH),))
    (task,) = tasks_of(Job("tiles", "tiny"), setting())
    present, bad = run_task(task, FakeWatch())[0]
    assert present["speedup"] == 1.0
    assert "differs from the present sizes" in bad["failed"]


def test_profiles_name_what_takes_most() -> None:
    a = torch.ones(256, 256)
    rows = profile.profiled(lambda: a @ a, CPU)
    assert "aten::mm" in [row["name"] for row in rows]
    assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows), reverse=True)
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)


def test_a_batch_without_room_is_skipped_by_name() -> None:
    job = Job("decode", "tiny")
    steps = decode.DecodeSteps(job, setting(free=2**15), decode.TINY_SIZES)
    steps.step(1)
    rows, _ = run_task(Task("B = 3", lambda watch: steps.eager(3, watch)), FakeWatch())
    assert rows == [{"name": "B = 3", "skipped": "9 pages needed, memory has room for 3"}]
    with pytest.raises(Skipped, match="GB are free"):
        decode.DecodeSteps(job, setting(free=1), decode.TINY_SIZES).step(1)


def test_a_tree_without_room_is_skipped_by_name() -> None:
    steps = train.TrainSteps(Job("train", "tiny"), setting(free=10**9, dry=False))
    rows, _ = run_task(Task("48 rows", lambda watch: steps.run(48, watch)), FakeWatch())
    assert rows == [{"name": "48 rows", "skipped": "a pass of 1.4 GB, 1.0 GB are free"}]


def test_each_sequence_of_a_step_reads_pages_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "sample_tokens", lambda logits, *_, **__: (logits.clone(),))
    steps = decode.DecodeSteps(Job("decode", "tiny"), setting(), decode.TINY_SIZES)
    step, taken = steps.step(3), []
    monkeypatch.setattr(steps, "_sequence", lambda index, pages: taken.append(pages) or real(index, pages))
    real = decode.DecodeSteps(steps.job, steps.setting, steps.sizes)._sequence
    steps.step(3)
    assert len({page for pages in taken for page in pages}) == 3 * steps.pages
    before = step()
    for page in taken[1]:
        for values in steps.cache.v:
            values[:, page * decode.PAGE : (page + 1) * decode.PAGE] = 0
    changed = (step() != before).any(1)
    assert changed.tolist() == [False, True, False]
    last = taken[0][(steps.sizes.context - 1) // decode.PAGE]  # of the newest token, which a step writes
    written = steps.cache.k[0][:, last * decode.PAGE + (steps.sizes.context - 1) % decode.PAGE].clone()
    steps.cache.k[0].zero_()
    step()
    assert torch.equal(
        steps.cache.k[0][:, last * decode.PAGE + (steps.sizes.context - 1) % decode.PAGE], written
    )


def test_a_graph_is_captured_behind_three_calls_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that capturing demands, on a torch.cuda that only takes notes."""
    done: list[str] = []

    class Stream:
        def __init__(self, device: object = None) -> None:
            pass

        def wait_stream(self, other: object) -> None:
            done.append("wait")

    class Context:
        def __init__(self, what: object) -> None:
            self.name = type(what).__name__

        def __enter__(self) -> None:
            done.append(f"enter {self.name}")

        def __exit__(self, *error: object) -> None:
            done.append(f"leave {self.name}")

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": Context,
        "CUDAGraph": Graph,
        "graph": Context,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    result = torch.ones(1)

    def call() -> torch.Tensor:
        done.append("call")
        return result

    replay, drawn = captured(call, torch.device("cuda"))
    replay()
    assert done == [
        *("wait", "enter Stream", "call", "call", "call", "leave Stream", "wait"),
        *("enter Graph", "call", "leave Graph", "replay"),
    ]
    assert drawn() is result


def test_a_graph_that_draws_other_tokens_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = decode.DecodeSteps(Job("decode", "tiny"), setting(), decode.TINY_SIZES)
    monkeypatch.setattr(decode, "captured", lambda call, device: (call, lambda: call() + 1))
    rows, _ = run_task(Task("graph", lambda watch: steps.graph(1, watch)), FakeWatch())
    assert "other tokens" in rows[0]["failed"]


def test_memory_is_compared_with_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_reset_peak", lambda device: 1_000_000)
    monkeypatch.setattr(train, "_peak", lambda device: 3_000_000)
    monkeypatch.setattr(train, "predicted", lambda engine, rows: rows * 100_000)
    steps = train.TrainSteps(Job("train", "tiny"), setting())
    time, memory = steps.run(48, FakeWatch())
    assert (time["rows"], time["unit"]) == (48, "ms")
    assert (memory["value"], memory["target"]) == (pytest.approx(0.003), pytest.approx(0.0058))
    assert memory["bytes_per_row"] == pytest.approx(2_000_000 / 48)


def test_a_tree_has_the_rows_and_pairs_that_it_is_named_for() -> None:
    for rows in (*train.ROWS, *train.TINY_ROWS):
        tree = train.Tree([train.group_of(rows, 512)])
        assert tree.rows == rows
    spans = train_spans(tree)
    assert train.visible_pairs(tree) == int(spans.visible().sum())


def train_spans(tree: Any) -> Spans:
    start = layout(tree).start
    place = {node: i for i, node in enumerate(start)} | {-1: -1}
    nodes = [tree.nodes[i] for i in start]
    return Spans.tree(list(start.values()), [len(n.ids) for n in nodes], [place[n.parent] for n in nodes])


def test_the_gap_of_bfloat16_is_of_the_size_of_rounding() -> None:
    (task,) = gap.tasks(Job("gap", "tiny"), setting())
    row = figure_of(run_task(task, FakeWatch())[0])
    assert row["tokens"] == 12
    assert 0 < row["value"] < 0.05
    assert row["median"] <= row["percentile_99"] <= row["largest"]
    assert row["ratio_max_error"] == pytest.approx(row["largest"], rel=0.1)


def test_figures_name_value_and_target() -> None:
    assert figure(1.0, "ms", 0.5, "a formula", more=2) == {
        "value": 1.0,
        "unit": "ms",
        "target": 0.5,
        "target_from": "a formula",
        "more": 2,
    }


def test_varlen_copies_have_a_path_for_every_leaf() -> None:
    from bench.gpu.tree_peers import dialogue

    spans = dialogue(3, 2, 5, 4)
    paths = attention_peers._paths(spans)
    assert [len(path) for path in paths] == [9, 9, 14, 14, 19, 19]
    assert {row for path in paths for row in path} == set(range(spans.rows))
