"""Configs: what is read, what an override may change, and the one line that every mistake gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proactor.config import RunConfig
from proactor.config_base import ConfigError
from proactor.config_file import load_config, load_run
from proactor.engine import EngineError
from proactor.episode_config import EpisodeConfig
from proactor.training.demonstrations import Demonstrations
from proactor.training.episodes import open_tasks, open_user
from proactor.training.method_credit import Credit

TEXT = "model: some/hub-id\nsft: {lr: 1e-3}\ngrpo: {lr: 1e-5, steps: 50, sampling: {n: 4}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my-run.yaml"
    path.write_text(TEXT)
    return path


def message(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_and_given_values(file: Path) -> None:
    config = load_config(file)
    assert config.name == "my-run" and config.folder == Path("runs/my-run") and config.model == "some/hub-id"
    assert config.sft is not None and config.sft.lr == 1e-3
    assert config.grpo is not None and config.grpo.lr == 1e-5
    assert (config.grpo.sampling.n, config.grpo.sampling.max_tokens) == (4, 64)
    assert (config.data.train.split, config.data.dev.split, config.data.test.split) == (
        "train",
        "dev",
        "test",
    )
    with pytest.raises(EngineError, match=r"^RunConfig\.seed cannot be set: make another one with seed="):
        config.seed = 3  # type: ignore[misc]


def test_overrides_are_typed_by_their_field(file: Path) -> None:
    config = load_config(
        file,
        [
            "name=007",
            "seed=3",
            "grpo.lr=2e-4",
            "sft=null",
            "data.train.limit=9",
            "data.options.size=50",
            "lora.targets=[q, v]",
            "reward_options.early=linear",
            "reward_options.theta=1e-1",
            "engine.deterministic=true",
            "grpo.sampling.temperature=0.7",
        ],
    )
    assert config.name == "007" and config.seed == 3 and config.sft is None
    assert config.grpo is not None and config.grpo.lr == 2e-4 and config.grpo.steps == 50
    assert config.grpo.sampling.temperature == 0.7 and config.grpo.sampling.n == 4
    assert (
        config.data.train.limit == 9
        and config.data.train.split == "train"
        and config.data.options == {"size": 50}
    )
    assert config.lora.targets == ("q", "v") and config.engine.deterministic is True
    assert config.reward_options == {"early": "linear", "theta": 0.1}


def test_a_decay_spans_its_stage_in_optimizer_steps(file: Path) -> None:
    config = load_config(
        file, ["grpo.decay=linear", "grpo.epochs=2", "grpo.minibatches=3", "sft.decay=cosine"]
    )
    assert config.grpo is not None and config.grpo.total == 300
    assert config.sft is not None and config.sft.total == config.sft.max_steps
    given = load_config(file, ["grpo.decay=linear", "grpo.total=7"])
    assert given.grpo is not None and given.grpo.total == 7


def test_a_mode_that_writes_more_gets_more_tokens_unless_told_otherwise(file: Path) -> None:
    for mode, room in (("plain", 64), ("reasoning", 192), ("graph", 320)):
        config = load_config(file, [f"prompt.mode={mode}"])
        assert config.grpo is not None and config.prompt.mode == mode
        assert (config.eval.max_tokens, config.grpo.sampling.max_tokens, config.grpo.sampling.n) == (
            room,
            room,
            4,
        )
    given = load_config(
        file, ["prompt.mode=graph", "eval.max_tokens=50", "grpo.sampling.max_tokens=60", "eval.metric=ac"]
    )
    assert given.grpo is not None and (given.eval.max_tokens, given.grpo.sampling.max_tokens) == (50, 60)
    assert load_config(file, ["prompt.mode=reasoning", "grpo=null"]).eval.max_tokens == 192
    assert load_config(file).prompt.mode == "plain" and load_config(file).data.labels == "windows"


SIZES = "hidden layers heads kv_heads intermediate vocabulary context batch lr muon_lr".split()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("grpo.lrr=1", ["grpo.lrr", "did you mean 'lr'"]),
        ("stepz=1", ["'stepz'", "known: name, seed"]),
        ("grpo.sampling.nn=2", ["grpo.sampling.nn"]),
        ("lora.rnk=4", ["lora.rnk", "'rank'"]),
        ("grpo.lr=fast", ["grpo.lr", "'fast'"]),
        ("grpo.lr=-1", ["grpo.lr", "greater than 0"]),
        ("grpo.sampling.temperature=0", ["grpo.sampling", "greedy"]),
        ("grpo.sampling.n=1", ["grpo.sampling", "a group of one"]),
        ("grpo.sampling.n=true", ["grpo.sampling.n", "a number, not True"]),
        ('grpo.sampling.stop=[""]', ["grpo.sampling.stop.0", "at least 1 character"]),
        ("grpo.betas=[1, 0.9]", ["grpo.betas", "below 1"]),
        ("grpo.lr=.inf", ["grpo.lr", "finite"]),
        ("data.train.limit=true", ["data.train.limit", "a number, not True"]),
        ("pretrain.seconds=.inf", ["pretrain.seconds", "finite"]),
        *((f"pretrain.size.{k}=0", [f"pretrain.size.{k}", "greater than", "got 0"]) for k in SIZES),
        ("pretrain.size.hiden=3", ["pretrain.size.hiden", "did you mean 'hidden'"]),
        ("pretrain.size={heads: 3}", ["pretrain.size", "kv_heads=2 does not divide heads=3"]),
        ("pretrain.size={hidden: 20}", ["pretrain.size", "hidden=20 is not an even multiple of heads=4"]),
        ("lora.dropout=0.1", ["lora.dropout"]),
        ("lora.use_dora=true", ["lora", "use_dora is not supported"]),
        ("lora.targets=[q, lm_head]", ["lora.targets", "'lm_head' is none of the linears"]),
        ("lora.rank_pattern={q: 0}", ["lora.rank_pattern.q_proj", "greater than or equal to 1"]),
        ("data.source=imagined", ["data.source", "one of synthetic, "]),
        ("data.path=/no/such/place", ["data.path", "/no/such/place"]),
        ("eval.metric=luck", ["eval.metric", "first_fire_f1"]),
        *(
            (f"eval.metric={key}", [f"eval.metric: '{key}' is lowest for an agent that never acts", "recall"])
            for key in ("false_per_100", "ftr")
        ),
        ("name=a/b", ["name"]),
        ("prompt.mode=thinking", ["prompt.mode", "'plain', 'reasoning' or 'graph'"]),
        ("data.labels=dots", ["data.labels", "'windows' or 'points'"]),
        ("data.unseen.domain=[a]", ["data.unseen.domain", "did you mean 'domains'"]),
        ("reward.x=1", ["reward"]),
    ],
)
def test_a_wrong_override_is_named(file: Path, override: str, parts: list[str]) -> None:
    said = message(file, override)
    assert override in said
    for part in parts:
        assert part in said


def test_overrides_need_a_form(file: Path) -> None:
    assert "write key=value" in message(file, "grpo.lr")
    assert "not YAML" in message(file, "grpo.lr=[1")
    assert "no keys inside" in message(file, "model.x=1")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: a\ngrpo: {stpes: 3}\n", ["grpo.stpes", "steps"]),
        ("model: a\nseed: 1\nseed: 2\n", [":3", "'seed' is given twice"]),
        ("model: a\n  seed: 1\n", [":2", "not YAML"]),
        ("- a\n", ["expected keys"]),
        ("seed: 1\n", ["model", "required"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    said = message(path)
    for part in [str(path), *parts]:
        assert part in said


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    assert "none.yaml: no such file" in message(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "bytes.yaml:1: not UTF-8" in message(tmp_path / "bytes.yaml")


def test_paths_lie_beside_the_config_or_in_the_working_directory(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "corpus").mkdir()
    (file.parent / "weights").mkdir()
    config = load_config(file, ["data.path=corpus", "model=weights"])
    assert config.data.path == str(file.parent / "corpus") and config.model == str(file.parent / "weights")
    monkeypatch.chdir(file.parent)
    assert load_config(file, ["data.path=corpus"]).data.path == "corpus"


def test_the_data_folder_comes_from_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    override = "data.path=${PROACTOR_DATA}/corpus"
    monkeypatch.delenv("PROACTOR_DATA", raising=False)
    said = message(file, override)
    assert "PROACTOR_DATA is not set" in said and "data.path" in said
    (file.parent / "corpus").mkdir()
    monkeypatch.setenv("PROACTOR_DATA", str(file.parent))
    assert load_config(file, [override]).data.path == str(file.parent / "corpus")
    assert load_config(file, [f"data.path=${{NOT_SET_HERE:-{file.parent}}}/corpus"]).data.path == str(
        file.parent / "corpus"
    )


def test_the_configs_of_the_repository_load(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("abcd", "sgd", "star", "userrl", "proactivebench"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PROACTOR_DATA", str(tmp_path))
    files = sorted((repo_root / "configs").glob("*.yaml"))
    assert {f.stem for f in files} >= {"demo", "synthetic", "sgd-small", "star-small", "userrl-qwen7b"}
    for path in files:
        assert path.read_text().startswith("# "), f"{path} starts with the command that runs it"
        assert f"configs/{path.name}" in path.read_text().splitlines()[0]
        config = load_run(path)
        assert config.name == path.stem
        if isinstance(config, EpisodeConfig):
            Credit.of(config.method)


def test_the_configs_of_environments_have_tasks(
    repo_root: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROACTOR_DATA", str(data_dir))
    found = 0
    for path in sorted((repo_root / "configs").glob("*.yaml")):
        if "environment:" in path.read_text():
            config = load_run(path)
            assert isinstance(config, EpisodeConfig)
            gym, parts = open_tasks(config, open_user(config))
            assert len(parts.dev) == config.environment.dev >= 16 and len(parts.test) > 50
            assert len(parts.train) > (150 if gym.name == "events" else 300)  # events of 13 streams
            assert config.sft is None or Demonstrations.check(gym)
            found += 1
    assert found >= 4


def test_configs_of_recorded_runs_still_load(repo_root: Path) -> None:
    """Records keep the whole config of their runs, written by earlier versions: saved runs must resume."""

    def configs(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict) and {"name", "model", "lora"} <= value.keys():
            yield value
        elif isinstance(value, dict):
            for inner in value.values():
                yield from configs(inner)

    records = sorted((repo_root / "bench" / "results").glob("*/*.json"))
    recorded = [config for file in records for config in configs(json.loads(file.read_text()))]
    assert len(recorded) >= 9
    for values in recorded:
        kind = EpisodeConfig if "environment" in values else RunConfig
        assert kind.model_validate(values).name == values["name"]


def test_a_user_without_a_home_is_one_line(file: Path) -> None:
    for key in ("model", "data.path"):
        with pytest.raises(ConfigError, match=rf"{key}: no home folder is known for '~no-such-user/x'"):
            load_config(file, [f"{key}=~no-such-user/x"])


CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_a_run_writes_is_read_again(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, with every default spelt out: a resumed run and a comparison read it so."""
    monkeypatch.setenv("PROACTOR_DATA", str(tmp_path))
    for folder in ("abcd", "sgd", "star", "userrl", "proactivebench"):
        (tmp_path / folder).mkdir()
    config = load_run(path, [])
    assert type(config).model_validate(config.model_dump(mode="json")) == config
