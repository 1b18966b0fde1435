"""A run's folder: rows survive a kill, samples are cut back with them, nothing is overwritten by accident."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from proactor.config import RunConfig
from proactor.config_file import load_config
from proactor.episode_config import EpisodeConfig
from proactor.files import SourceError
from proactor.sources.unseen import Unseen
from proactor.training.config_change import first_change
from proactor.training.runs import Run, RunError, read_rows

CONFIG = RunConfig.model_validate({"name": "r", "model": "m", "sft": {}, "grpo": {}})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "r")
    run.begin(CONFIG, resume=False, fresh=False)
    return run


def row(step: int, **values: object) -> dict[str, object]:
    return {"phase": "grpo", "kind": "grpo", "step": step, **values}


def test_rows_are_cut_back_to_the_saved_length(run: Run) -> None:
    for step in (1, 2):
        run.log(row(step, loss=0.5))
        run.write_samples("grpo", step, [{"text": "ä"}])
    length = run.flush()
    run.log(row(3, loss=0.25))
    run.write_samples("grpo", 3, [])
    assert [r["step"] for r in run.rows()] == [1, 2, 3]
    run.rewind(length, 2)
    assert [r["step"] for r in run.rows()] == [1, 2]
    assert sorted(f.name for f in (run.folder / "samples").iterdir()) == [
        "grpo-000001.jsonl",
        "grpo-000002.jsonl",
    ]


def test_rows_that_the_state_counts_on_must_be_there(run: Run) -> None:
    run.log(row(1))
    with pytest.raises(RunError, match=r"metrics\.jsonl: \d+ bytes, .* missing"):
        run.rewind(run.flush() + 1, 1)


def test_what_a_killed_writer_left_in_the_folder_is_gone(run: Run) -> None:
    """Whoever has its process id by now; what a user called so in another folder stays."""
    for name in (f".last.writing-{os.getpid()}-1a", ".gone.writing-1-2b", "mine/.last.writing-1-3c"):
        (run.folder / name).mkdir(parents=True)
        (run.folder / name / "adapter_model.safetensors").write_text("half")
    (run.folder / ".state.writing-1-4d").symlink_to(run.folder / "mine")
    run.begin(CONFIG, resume=True, fresh=False)
    assert sorted(f.name for f in run.folder.iterdir()) == ["config.yaml", "mine"]
    assert [f.name for f in (run.folder / "mine").iterdir()] == [".last.writing-1-3c"]


def test_numbers_that_are_not_finite_become_null(run: Run) -> None:
    run.log(row(1, grad_norm=float("nan"), loss=float("inf"), share=0.5))
    assert run.rows()[0] == row(1, grad_norm=None, loss=None, share=0.5)


def test_half_a_surrogate_pair_becomes_a_question_mark(run: Run) -> None:
    """As in a world's error, or in a call's JSON."""
    run.log(row(1, said="cut \ud83d"))
    run.write_episodes({"before": ["cut \ud83d"]})
    assert run.rows()[0]["said"] == "cut ?"
    assert json.loads((run.folder / "episodes.json").read_text()) == {"before": ["cut ?"]}


def test_a_row_cut_off_by_a_kill_is_left_out_and_a_damaged_one_named(run: Run) -> None:
    file = run.folder / "metrics.jsonl"
    for torn in (b'{"step": 2, "lo', b'{"note": "\xc3'):
        file.write_bytes(json.dumps(row(1)).encode() + b"\n" + torn)
        assert [r["step"] for r in run.rows()] == [1]
    file.write_text('{"step": 1\n' + json.dumps(row(2)) + "\n")
    with pytest.raises(SourceError, match=r"metrics\.jsonl:1: not JSON"):
        run.rows()
    file.write_text("3\n")
    with pytest.raises(SourceError, match=r"metrics\.jsonl:1: not an object"):
        run.rows()
    with pytest.raises(SourceError, match=r"none\.jsonl: no such file"):
        read_rows(run.folder / "none.jsonl")


def test_numbers_reach_tensorboard(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run.log(row(1, loss=0.5))
    run.log({"phase": "grpo", "kind": "eval", "step": 1, "eval_reward": 0.25})
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("grpo/loss")] == [(1, 0.5)]
    assert [e.value for e in events.Scalars("eval/reward")] == [0.25]


def test_a_folder_with_a_run_is_not_taken_by_accident(run: Run) -> None:
    run.log(row(1))
    with pytest.raises(RunError, match="--resume continues it, --fresh replaces it"):
        Run(run.folder).begin(CONFIG, resume=False, fresh=False)
    Run(run.folder).begin(CONFIG, resume=True, fresh=False)
    assert run.rows()
    (run.folder / "notes.txt").write_text("mine")
    Run(run.folder).begin(CONFIG, resume=False, fresh=True)
    assert not run.rows() and (run.folder / "notes.txt").exists()
    run.log(row(1))
    with pytest.raises(RunError, match="resumed or replaced"):
        Run(run.folder).begin(CONFIG, resume=True, fresh=True)
    assert run.rows()


@pytest.mark.parametrize("name", ["start", "best", "last", "samples/mine"])
@pytest.mark.parametrize("word", ["fresh", ""])
def test_a_run_does_not_start_with_what_it_writes_itself(run: Run, name: str, word: str) -> None:
    """It would be deleted, or replaced, and a resumed run would find another one."""
    (run.folder / name).mkdir(parents=True)
    (run.folder / name / "adapter").write_text("mine")
    itself = CONFIG.model_copy(update={"start": f"{run.folder}/../r/{name}"})
    with pytest.raises(
        RunError, match=rf"^start: .*the run itself writes into \S+/{name.split('/')[0]}; name=…"
    ):
        run.begin(itself, resume=False, fresh=word == "fresh")
    assert (run.folder / name / "adapter").exists()


def test_a_run_may_start_with_what_lies_beside_its_files(run: Run) -> None:
    (run.folder / "mine").mkdir()
    beside = CONFIG.model_copy(update={"start": str(run.folder / "mine")})
    run.begin(beside, resume=False, fresh=True)
    assert (run.folder / "mine").is_dir()


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"seed": 1}, False),
        ({"grpo": {"lr": 1.0}}, False),
        ({"grpo": {"steps": 7}}, True),
        ({"save_every": 3}, True),
        ({"eval": {"final": False, "resamples": 100, "budget": 2.0}}, True),
        ({"eval": {"metric": "recall"}}, False),
        ({"eval": {"reward": "rac"}}, False),
        ({"eval": {"temperature": 0.5}}, False),
        ({"eval": {"max_tokens": 9}}, False),
        ({"eval": {"optional_values": True}}, False),
        ({"eval": {"costs": {"default": {"interrupt_cost": 9.0}}}}, False),
        ({"model": "./m"}, True),
        ({"model": "./n"}, False),
    ],
)
def test_a_resumed_run_keeps_what_makes_it_that_run(
    run: Run, change: dict[str, object], allowed: bool
) -> None:
    run.log(row(1))
    other = RunConfig.model_validate({"name": "r", "model": "m", "sft": {}, "grpo": {}} | change)
    if allowed:
        run.begin(other, resume=True, fresh=False)
    else:
        with pytest.raises(RunError, match=r"config\.yaml: .* was .*, now "):
            run.begin(other, resume=True, fresh=False)


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"final": False, "resamples": 100, "limit": 3, "adapter": "last"}, True),
        ({"metric": "pass_u1"}, False),
        ({"success": 0.5}, False),
        ({"temperature": 0.5}, False),
    ],
)
def test_a_resumed_run_in_an_environment_keeps_what_its_checks_measure(
    tmp_path: Path, change: dict[str, object], allowed: bool
) -> None:
    values = {"name": "r", "model": "m", "environment": {"gym": "function"}, "grpo": {}}
    run = Run(tmp_path / "r")
    run.begin(EpisodeConfig.model_validate(values), resume=False, fresh=False)
    run.log(row(1))
    other = EpisodeConfig.model_validate(values | {"eval": change})
    with nullcontext() if allowed else pytest.raises(RunError, match=r"config\.yaml: eval\..* was .*, now "):
        run.begin(other, resume=True, fresh=False)


@pytest.mark.parametrize(
    ("older", "name", "way"),
    [
        (
            {"grpo": {"importance_cap": None}},
            "grpo.importance_cap was None, now 'auto'",
            "grpo.importance_cap=null",
        ),
        ({"grpo": {"beta": 0.3}}, "grpo.beta was 0.3, now 0.0", "grpo.beta=0.3"),
        (
            {"eval": {"resamples": 100}, "reward": "rac"},
            "reward was 'rac', now 'weighted_metric'",
            "reward=rac",
        ),
        ({"eval": {"metric": "pri"}}, "eval.metric was 'pri', now 'reward'", "eval.metric=pri"),
        ({"lora": {"targets": ["q", "v"]}}, "lora.targets was ['q', 'v']", """'lora.targets=["q", "v"]'"""),
        ({"sft": None}, "sft.acted was None, now 0.5", None),
        ({"reward_options": {"f": 2}}, "reward_options.f was 2, now None", None),
    ],
)
def test_a_run_of_older_defaults_can_go_on(
    tmp_path: Path, older: dict[str, object], name: str, way: str | None
) -> None:
    """What the refusal names is taken: the key as an override, and the run's own config in any case."""
    begun = RunConfig.model_validate(
        {"name": "r", "model": "m", "sft": {}, "grpo": {}, "runs": str(tmp_path)} | older
    )
    run = Run(begun.folder)
    run.begin(begun, resume=False, fresh=False)
    run.log(row(1))
    now, file = tmp_path / "now.yaml", run.folder / "config.yaml"
    now.write_text(yaml.safe_dump({"name": "r", "model": "m", "sft": {}, "grpo": {}, "runs": str(tmp_path)}))
    with pytest.raises(RunError) as caught:
        run.begin(load_config(now), resume=True, fresh=False)
    own = f"`proactor train {file} --resume` goes on with it, name=… starts another run"
    assert f": {name}" in str(caught.value)
    assert str(caught.value).endswith(f"keeps its config; {f'{way} or ' if way else ''}{own}")
    run.begin(load_config(file), resume=True, fresh=False)
    if way:
        run.begin(load_config(now, shlex.split(way)), resume=True, fresh=False)


def test_what_an_older_program_did_not_write_has_its_default(run: Run) -> None:
    run.begin(CONFIG, resume=False, fresh=False)
    file = run.folder / "config.yaml"
    older = yaml.safe_load(file.read_text())
    del older["data"]["unseen"]
    file.write_text(yaml.safe_dump(older))
    assert first_change(run.config, CONFIG) is None
    unseen = CONFIG.model_copy(
        update={"data": CONFIG.data.model_copy(update={"unseen": Unseen(domains=("travel",))})}
    )
    assert first_change(run.config, unseen) == ("data.unseen.domains", [], ["travel"])
    assert first_change(run.config, unseen, ("data",)) is None


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    other = Run(tmp_path / "r", writer=False)
    other.begin(CONFIG, resume=False, fresh=False)
    other.log(row(1))
    other.write_samples("grpo", 1, [])
    other.write_summary({})
    assert not (tmp_path / "r").exists()


def test_a_full_disk_is_named_and_leaves_the_old_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_summary({"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"summary\.json: cannot be written \(No space left on device\)"):
            run.write_summary({"a": 2})
    assert json.loads((run.folder / "summary.json").read_text()) == {"a": 1}
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: full(descriptor))
        with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be written \(No space left"):
            run.log(row(1))


@pytest.mark.parametrize("name", ["samples", "metrics.jsonl", "tensorboard", "best", "state.safetensors"])
@pytest.mark.parametrize("word", ["resume", "fresh", ""])
def test_a_run_writes_and_deletes_nothing_behind_a_link(
    run: Run, tmp_path: Path, name: str, word: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "grpo-000009.jsonl").write_text("mine")
    run.folder.mkdir(exist_ok=True)
    (run.folder / name).symlink_to(elsewhere)
    with pytest.raises(RunError, match=f"{name}: is a link"):
        run.begin(CONFIG, resume=word == "resume", fresh=word == "fresh")
    assert (elsewhere / "grpo-000009.jsonl").read_text() == "mine"


def test_a_run_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "r").symlink_to(tmp_path / "disk")
    linked = Run(tmp_path / "r")
    linked.begin(CONFIG, resume=False, fresh=True)
    linked.log(row(1))
    assert Run(tmp_path / "disk").rows() == [row(1)]


def test_samples_of_other_names_are_left_alone(run: Run) -> None:
    run.write_samples("grpo", 3, [])
    for name in ("notes.jsonl", "grpo-x.jsonl", "grpo-000009.jsonl.bak"):
        (run.folder / "samples" / name).write_text("mine")
    run.rewind(0, 0)
    left = sorted(f.name for f in (run.folder / "samples").iterdir())
    assert left == ["grpo-000009.jsonl.bak", "grpo-x.jsonl", "notes.jsonl"]


def test_a_row_of_a_full_disk_is_written_whole_or_not_at_all(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log(row(1))
    write = os.write
    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"metrics\.jsonl: cannot be written"):
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:9]))
        run.log(row(2))
    assert run.rows() == [row(1)]
    run.log(row(2))
    assert run.rows() == [row(1), row(2)]


def test_what_a_resumed_run_writes_again_hides_the_first_time_in_tensorboard(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (1, 2, 3):
        run.log(row(step, loss=float(step)))
    Run(run.folder).log(row(2, loss=7.0))
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("grpo/loss")] == [(1, 1.0), (2, 7.0)]
