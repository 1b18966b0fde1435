"""``proactor train --dry-run`` reads the data and plans what the run then computes; it reads no weights."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from proactor.config_file import load_config
from proactor.engine import ModelPlan, plan_here, read_outline
from proactor.training.run_plan import RunPlan, RunPlanner
from proactor.training.runs import Run
from tests.proactor.commands.calls import call, refusal
from tests.proactor.runs import config_file


@pytest.fixture(scope="module")
def outline(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder without its weights."""
    folder = tmp_path_factory.mktemp("outline") / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def planned(file: Path, *overrides: str, **options: Any) -> tuple[RunPlan, ModelPlan]:
    settings = load_config(file, overrides)
    model, chat = plan_here(settings.model, settings.lora, settings.engine), read_outline(settings.model).chat
    assert chat is not None
    planner = RunPlanner.open(settings, chat, model.config.context_length)
    return planner.plan(model, **{"answers": "longest", "looked_at": 10, **options}), model


def test_it_needs_no_weights_and_writes_nothing(
    outline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proactor.commands.common.console.width", 200)  # no line of a table is wrapped
    file = config_file(tmp_path, outline)
    call("train", file, "--dry-run")
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "computed from data and shapes, nothing was run",
        "GRPO step: tokens computed",
        "projected hours, at least: the run",
        "Hours are a projection at",
        "measured on this CPU",
        "dialogues: 4 train, 2 dev, 2 test.",
    ):
        assert words in said
    assert not (tmp_path / "runs").exists()


def test_a_card_has_no_hours_without_rates(
    outline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path, outline, engine={})
    call("train", file, "--dry-run", "--gpu", "24")
    said = capsys.readouterr().out
    assert "nothing is known of that card's rates" in said and "projected hours" not in said
    call("train", file, "--dry-run", "--gpu", "24", "--tflops", "100", "--bandwidth", "900", "--ranks", "2")
    said = " ".join(capsys.readouterr().out.split())
    assert "a rank of 2, 24 GB" in said and "100 TFLOP/s and 900 GB/s, given by --tflops and" in said


@pytest.mark.slow
def test_it_plans_what_the_run_then_computes(tiny_model: Path, tmp_path: Path) -> None:
    """Supervised steps to the token. In GRPO's all answers end after one token, and no group is skipped."""
    short = ("grpo.sampling.max_tokens=1", "grpo.beta=0.1", "eval.max_tokens=1", "eval.final=false")
    overrides = ("sft.patience=9", "grpo.eval_every=4", *short)
    file = config_file(tmp_path, tiny_model)
    plan, _ = planned(file, *overrides)
    call("train", file, *overrides)
    rows = Run(load_config(file, overrides).folder, writer=False).rows()
    for stage in plan.stages:
        computed = [
            row for row in rows if row.get("phase") == stage.name.lower() and "tokens_computed" in row
        ]
        assert len(computed) == stage.steps == 4
        for row, step in zip(computed, stage.training, strict=True):
            assert (step.tokens, step.flat) == (
                row["tokens_computed"],
                row["tokens_computed"] + row["tokens_avoided"],
            )
    assert plan.stages[1].training[0].reference == plan.stages[1].training[0].tokens


def test_hours_are_operations_and_bytes_over_the_rates(outline: Path, tmp_path: Path) -> None:
    from proactor.engine import Rates

    file = config_file(tmp_path, outline)
    plan, _ = planned(file, "sft=null")
    (grpo,) = plan.stages
    slow = plan.seconds(Rates(1e6, 1e30, "here"))
    assert slow["GRPO, training"] == pytest.approx(sum(s.operations for s in grpo.training) / 1e6)
    assert slow["GRPO, sampling"] == pytest.approx(sum(s.prefill + s.decode for s in grpo.sampling) / 1e6)
    moved = plan.seconds(Rates(1e30, 1e6, "here"))
    assert moved["GRPO, sampling"] == pytest.approx(sum(s.moved for s in grpo.sampling) / 1e6)
    assert moved["GRPO, training"] < 1e-9
    dev = next(p for p in plan.played if p.name == "dev")
    assert dev.times == 3 and moved["playing dev"] == pytest.approx(3 * dev.sampling.moved / 1e6)


def test_wanted_answers_and_ranks(outline: Path, tmp_path: Path) -> None:
    file = config_file(tmp_path, outline)
    longest, _ = planned(file)
    wanted, _ = planned(file, answers="wanted")
    assert wanted.stages[1].drawn("drawn") < longest.stages[1].drawn("drawn")
    assert wanted.stages[0] == longest.stages[0], "supervised steps know their answers"
    half, _ = planned(file, ranks=2)
    assert half.stages[0].mean("flat") < 0.8 * longest.stages[0].mean("flat")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "24"], "--gpu, --tflops, --bandwidth, --ranks and --tokenizer belong to --dry-run"),
        (["--dry-run", "--tflops", "3"], "--tflops and --bandwidth: a projection needs both"),
        (["--dry-run", "prompt.mode=graph"], "prompt.mode: graph is not planned"),
        (["--dry-run", "sft=null", "grpo=null"], "neither sft nor grpo"),
        (
            ["--dry-run", "--tokenizer", "FOLDER"],
            "the folder holds no tokenizer; --tokenizer FOLDER names one",
        ),
        (["--dry-run", "--gpu", "0.5"], "needs at least"),
    ],
)
def test_refusals(
    options: list[str], words: str, outline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path, outline)
    given = [str(tmp_path) if option == "FOLDER" else option for option in options]
    assert words in refusal(capsys, "train", file, *given)


def test_a_run_in_an_environment_is_not_planned(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = repo_root / "configs" / "function-small.yaml"
    assert "--dry-run plans runs on dialogues" in refusal(capsys, "train", file, "--dry-run")


def test_a_small_model_that_is_not_there_yet(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config, override = repo_root / "configs" / "demo.yaml", "pretrain.share=[0, 0.5]"
    said = refusal(capsys, "train", config, override, "--dry-run")
    command = said.partition("not there yet; this builds it: ")[2]
    assert shlex.split(command) == ["proactor", "pretrain", str(config), override]


def test_the_steps_of_a_run_by_card(
    outline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path, outline)
    command = ("plan", "qwen2.5-14b", "--data", file, "--tokenizer", outline, "--gpu", "24", "--gpu", "80")
    call(*command)
    said = capsys.readouterr().out
    assert "24 GB" in said and "80 GB" in said and "GRPO step: tokens computed" in said
    assert "a dialogue of" not in said
    rank = load_config(file).lora.rank
    peaks = {}
    for given in ((), ("--rank", str(rank)), ("--rank", str(4 * rank)), ("kv_tokens=4096",)):
        call(*command, *given)
        lines = capsys.readouterr().out.splitlines()
        peaks[given] = [line for line in lines if "adapter, gradient" in line or "tokens of KV" in line]
    own, same, larger, fixed = peaks.values()
    assert own == same != larger and "4,096" in fixed[1] and "4,096" not in own[1], (
        "the run's own, or as given"
    )
    assert "--tokenizer" in refusal(capsys, "plan", "qwen2.5-14b", "--data", file, "--tokenizer", tmp_path)
