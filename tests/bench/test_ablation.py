"""Windows against points, on a model of two layers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bench import ablation, learning
from proactor.config_file import load_config
from proactor.dialogue.windows import as_points
from proactor.evaluation.store import load_evaluations, save_evaluations
from proactor.training.corpora import load_corpus
from proactor.training.loop import train
from proactor.training.runs import Run
from tests.proactor.runs import config_file, tiny_folder


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been started; `train` happens in this process, `pretrain` makes an empty folder."""
    seen: list[list[str]] = []

    def run(command: list[str], check: bool) -> None:
        seen.append(command[3:])
        overrides = [part for part in command[5:] if not part.startswith("--")]
        settings = load_config(command[4], overrides)
        if command[3] == "pretrain":
            Path(settings.model).mkdir()
        else:
            train(settings, resume="--resume" in command, fresh="--fresh" in command)

    monkeypatch.setattr(learning, "subprocess", SimpleNamespace(run=run))
    return seen


def test_both_labels_from_one_model_at_one_budget_and_a_second_call(
    tmp_path: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path, tiny_folder(tmp_path / "model", steps=8))
    arguments = [
        str(file),
        "grpo.steps=1",
        "sft.max_steps=3",
        "data.test.limit=5",
        "sft.eval_every=1",
        "sft.patience=1",
        "eval.max_tokens=8",  # hardly trained, it writes on to the end
        "grpo.sampling.max_tokens=8",
        "--seeds",
        "1",
        "--results",
        str(tmp_path / "results"),
    ]
    ablation.main(arguments)
    runs = {labels: Run(tmp_path / "runs" / f"tiny-{labels}-s0") for labels in ablation.LABELS}
    for labels, run in runs.items():
        assert [sum(row["kind"] == kind for row in run.rows()) for kind in ("sft", "grpo")] == [3, 1]
        settings = yaml.safe_load((run.folder / "config.yaml").read_text())
        assert settings["data"]["labels"] == labels and settings["model"] == str(tmp_path / "model")
    tested = [load_evaluations(run.folder / "evaluations.json")[0] for run in runs.values()]
    assert (
        tested[0]
        == tested[1]
        == list(load_corpus(load_config(file, ["data.test.limit=5"]), "test").dialogues)
    ), "both are judged by windows"
    assert tested[0] != [as_points(d) for d in tested[0]]
    first = [next(r["loss"] for r in run.rows() if r["kind"] == "sft") for run in runs.values()]
    assert first[0] != first[1], "the labels differ"
    (written,) = (tmp_path / "results").glob("*/ablation-tiny.json")
    record = json.loads(written.read_text())
    assert (
        record["stages"].keys() == {"sft", "sft+grpo"} and record["seeds"] == 1 and record["dialogues"] == 5
    )
    assert {"never", "always", "values_seen", "human"} == record["rivals"].keys()
    labels = record["training_labels"]
    assert labels["points_logged"] + labels["points_end"] + labels["null"] == labels["references"]
    assert json.loads(capsys.readouterr().out.splitlines()[-2]).keys() == record["stages"].keys()
    assert [c[0] for c in commands] == ["train", "train"]
    ablation.main(arguments)
    assert len(commands) == 2, "what is there is taken as it is"


def test_the_difference_is_windows_minus_points(tmp_path: Path) -> None:
    from proactor.evaluation.play import evaluate_policies
    from proactor.sources import load

    dialogues = load("synthetic", limit=6).dialogues
    known = evaluate_policies(dialogues)

    def run(name: str, before: str, after: str) -> Path:
        named = {"before": known[before], "after": known[after], **known}
        save_evaluations(tmp_path / name / "evaluations.json", dialogues, named)
        return tmp_path / name

    comparison = ablation.compare(
        {
            "windows": [run("w0", "never", "values_seen"), run("w1", "always", "human")],
            "points": [run("p0", "never", "never"), run("p1", "always", "never")],
        }
    )
    sft, both = comparison["stages"]["sft"], comparison["stages"]["sft+grpo"]
    assert all(i["estimate"] == 0 for i in sft["windows_minus_points"].values()) and not any(
        sft["windows_above"].values()
    )
    f1 = [known[name].metrics["first_fire_f1"] or 0.0 for name in ("values_seen", "human")]
    assert (
        both["windows_minus_points"]["first_fire_f1"]["estimate"] == pytest.approx(sum(f1) / 2)
        and sum(f1) > 1
    )
    assert (
        both["windows"]["first_fire_f1"] == pytest.approx(sum(f1) / 2)
        and both["points"]["first_fire_f1"] == 0
    )
    assert both["windows_above"]["first_fire_f1"] == 2


def test_each_side_may_pretrain_on_its_own_labels(tmp_path: Path, commands: list[list[str]]) -> None:
    file = config_file(tmp_path, tmp_path / "model", pretrain={"seconds": 1})
    base = load_config(file)
    shared = [ablation.side_overrides([], base, labels, False) for labels in ablation.LABELS]
    for overrides in shared:
        learning.ensure_model(file, overrides)
    assert [c[0] for c in commands] == ["pretrain"] and "data.labels=windows" in commands[0]
    for labels in ablation.LABELS:
        learning.ensure_model(file, ablation.side_overrides([], base, labels, True))
    assert [("data.labels=windows" in c, c[-1]) for c in commands[1:]] == [
        (labels == "windows", f"model={tmp_path / 'model'}-{labels}") for labels in ablation.LABELS
    ]


def test_a_config_that_cannot_be_compared_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config_file(tmp_path, tmp_path / "model")
    for arguments, said in (
        ([str(file), "grpo=null"], "no grpo section"),
        ([str(file), "--each"], "no pretrain section"),
    ):
        with pytest.raises(SystemExit) as ended:
            ablation.main(arguments)
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_supervised_stage_makes_all_its_steps(tmp_path: Path) -> None:
    base = load_config(config_file(tmp_path, tmp_path / "model"))
    for labels in ablation.LABELS:
        chosen = load_config(
            tmp_path / "tiny.yaml",
            ablation.side_overrides(
                ["sft.lr=1e-2"], load_config(tmp_path / "tiny.yaml", ["sft.lr=1e-2"]), labels, False
            ),
        )
        assert chosen.sft is not None and (chosen.sft.max_steps, chosen.sft.patience, chosen.sft.lr) == (
            4,
            4,
            1e-2,
        )
        without = load_config(
            tmp_path / "tiny.yaml",
            ablation.side_overrides(["sft=null"], base.model_copy(update={"sft": None}), labels, False),
        )
        assert without.sft is not None and without.sft.batch_dialogues == 2 and not without.sft.pending
        assert without.sft.patience == without.sft.max_steps
