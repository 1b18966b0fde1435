"""Proactive Agent: metrics beside ProactiveBench's published rows, balancing, and the reward model."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.dialogue.event_streams import Judged
from proactor.engine import Engine, LoRA, ProactorError
from proactor.environments.errors import GymError
from proactor.files import SourceError
from proactor.methods.proactive_agent import (
    AcceptReject,
    Counts,
    JudgeTraining,
    RewardModel,
    agent_counts,
    balanced,
    judge_counts,
    read_labelled,
    training_order,
)
from tests.proactor.environments.test_event_streams import line, write
from tests.proactor.training.episodes import events_folder

# -- metrics ---


def test_metrics_worked_by_hand() -> None:
    metrics = Counts(tp=3, fp=2, tn=4, fn=1).metrics
    wanted = {"recall": 0.75, "precision": 0.6, "accuracy": 0.7, "false_alarm": 0.4, "f1": 0.6667}
    assert metrics == pytest.approx(wanted, abs=5e-5)
    assert set(Counts().metrics.values()) == {0.0}


PUBLISHED: tuple[tuple[str, Counts, tuple[float, ...]], ...] = (
    (
        "gpt-4o",
        Counts(112, 114, 1, 0),
        (0.9999999999107143, 0.4955752212170099, 0.4977973568062644, 0.5044247787387423, 0.6627218890206926),
    ),
    (
        "activeqwen",
        Counts(111, 112, 4, 0),
        (0.99999999990991, 0.4977578475113113, 0.506607929493101, 0.5022421524438456, 0.664670654205063),
    ),
    (
        "activellama",
        Counts(96, 115, 12, 4),
        (0.9599999999040001, 0.45497630329597266, 0.47577092508917307, 0.545023696656634, 0.6173633396486803),
    ),
    (
        "claude-3-5-sonnet",
        Counts(86, 119, 19, 3),
        (0.9662921347228886, 0.4195121951014872, 0.4625550660589183, 0.5804878048497323, 0.5850340093440234),
    ),
    (
        "qwen2-72b-instruct",
        Counts(95, 67, 50, 15),
        (0.8636363635578513, 0.586419753050221, 0.638766519795649, 0.41358024688805056, 0.6985294068960858),
    ),
)
"""ProactiveAgent at commit 86383616, row ``real_average`` of eval/results/MODEL.csv: recall, precision,
accuracy, false alarm, F1. The verdicts themselves are not published: the counts are the only ones of its 227
events with these quotients, and their TP + FP is the number of proposals in its eval/traces.zip.
"""
TABLE: tuple[tuple[str, Counts, tuple[float, ...]], ...] = (
    ("GPT-4o", Counts(104, 112, 9, 2), (98.11, 48.15, 49.78, 51.85, 64.60)),
    ("Claude-3.5-Sonnet", Counts(93, 112, 20, 2), (97.89, 45.37, 49.78, 54.63, 62.00)),
    ("LLaMA-3.1-8B-Proactive", Counts(105, 106, 15, 1), (99.06, 49.76, 52.86, 50.24, 66.25)),
    ("Qwen2-7B-Proactive", Counts(111, 112, 4, 0), (100.00, 49.78, 50.66, 50.22, 66.47)),
)
"""The same repository's README, in percent; counts of 227 events found in the same way."""


@pytest.mark.parametrize(("name", "counts", "row"), PUBLISHED, ids=lambda x: x if isinstance(x, str) else "")
def test_published_results(name: str, counts: Counts, row: tuple[float, ...]) -> None:
    assert counts.tp + counts.fp + counts.tn + counts.fn == 227
    assert tuple(counts.metrics.values()) == pytest.approx(row, abs=1e-12)


@pytest.mark.parametrize(("name", "counts", "row"), TABLE, ids=lambda x: x if isinstance(x, str) else "")
def test_the_published_table(name: str, counts: Counts, row: tuple[float, ...]) -> None:
    assert counts.tp + counts.fp + counts.tn + counts.fn == 227
    assert [100 * value for value in counts.metrics.values()] == pytest.approx(row, abs=0.0051)


def test_an_agents_verdicts() -> None:
    judged = [("x", True), ("x", False), (None, True), ("null", False), ("y", None)]
    assert agent_counts(judged) == (Counts(1, 1, 1, 1), 1)


def test_a_judges_own_score_counts_no_answer_as_rejected() -> None:
    counts = judge_counts([True, True, False, False, True, False], [True, False, True, False, None, None])
    assert counts == Counts(tp=1, fp=1, tn=2, fn=2)


# -- data ---


def test_balancing_as_upstream() -> None:
    kinds = {("x", False): 913, ("x", True): 474, (None, True): 149, (None, False): 93}
    lines = [
        Judged.model_validate(line(1, task, valid)) for (task, valid), n in kinds.items() for _ in range(n)
    ]
    out = balanced(lines)
    assert out[: len(lines)] == lines
    assert Counter(one.kind for one in out) == {
        "False-Alarm": 913,
        "Correct-Detection": 474,
        "Correct-Rejection": 182,
        "Missed-Need": 182,
    }
    assert balanced([]) == []


def judged(folder: Path, *more: dict[str, Any]) -> Path:
    """Five streams whose every line says whether its task is right: "good" is accepted."""
    lines = [
        line(n, task, task == "good", s) for s in "abcde" for n in (1, 2) for task in ("good", "bad", None)
    ]
    return write(folder, *lines, *more)


def test_lines_without_a_judgement_are_counted_and_parts_share_no_stream(tmp_path: Path) -> None:
    train, test, counts = read_labelled(judged(tmp_path, line(1, "x", None), line(2, "y", None)))
    assert counts == {"unlabelled": 2} and len(train) == 24 and len(test) == 6
    streams = [{one.events[0] for one in part} for part in (train, test)]
    assert not streams[0] & streams[1]


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([line(1, "x", None)], "0 judged lines of 0 streams"),
        ([line(1, "x", True)], "1 judged lines of 1 streams"),
        ([line(1) | {"valid": "perhaps"}], r"judged\.jsonl:1: valid: "),
        ([{k: v for k, v in line(1).items() if k != "pred_task"}], r"judged\.jsonl:1: pred_task: "),
    ],
)
def test_judged_data_that_cannot_be_is_one_line(
    lines: list[dict[str, Any]], what: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        read_labelled(write(tmp_path, *lines))
    assert "\n" not in str(caught.value)


# -- the reward model ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return events_folder(tmp_path_factory.mktemp("events") / "model")


@pytest.fixture(scope="module")
def learned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RewardModel, Any]:
    train, test, _ = read_labelled(judged(tmp_path_factory.mktemp("judged")))
    model = RewardModel(Engine.load(folder, lora=LoRA(rank=8), kv_tokens=4096))
    before = model.judge(test)
    losses = model.learn(train, JudgeTraining(lr=1e-2, steps=30, batch_lines=24))
    return model, (train, test, before, losses)


def test_it_learns_what_people_accept(learned: tuple[RewardModel, Any]) -> None:
    model, (_, test, before, losses) = learned
    valid = [line.valid is True for line in test]
    assert losses[-1] < losses[0] / 3 and before != valid
    assert model.judge(test) == valid
    assert judge_counts(valid, model.judge(test)).metrics["f1"] == pytest.approx(1.0)
    assert model.counters["tokens_trained"] > 0 and model.counters["questions"] >= 12


def test_log_odds_do_not_depend_on_what_is_asked_beside(learned: tuple[RewardModel, Any]) -> None:
    model, _ = learned
    asked = ["one?", "two, which is longer?", "three"]
    together = model.log_odds(asked, ["s", "s", "t"])
    alone = [model.log_odds([one])[0] for one in asked]
    assert together == pytest.approx(alone, abs=1e-4) and len(set(alone)) == 3


@settings(max_examples=30)
@given(together=st.integers(1, 7), seed=st.integers(0, 3), limit=st.none() | st.integers(1, 40))
def test_lines_of_one_stream_follow_each_other(together: int, seed: int, limit: int | None) -> None:
    lines = [
        Judged.model_validate(line(n, task, task == "good", s))
        for s in "abc"
        for n in (1, 2, 3)
        for task in ("good", "bad")
    ]
    config = JudgeTraining(together=together, seed=seed, limit=limit)
    order = training_order(lines, config)
    whole = training_order(lines, JudgeTraining(together=together, seed=seed))
    assert order == whole[:limit]
    assert Counter(map(str, whole)) == Counter(map(str, balanced(lines, seed)))
    runs = sum(a.events[0] != b.events[0] for a, b in itertools.pairwise(whole)) + 1
    assert runs <= 3 * -(-6 // together)
    assert training_order(lines, JudgeTraining(together=1, seed=0)) != training_order(
        lines, JudgeTraining(together=1, seed=1)
    )


def test_lines_of_one_judgement_teach_nothing(learned: tuple[RewardModel, Any]) -> None:
    model, _ = learned
    with pytest.raises(ProactorError, match="all lines have the same judgement"):
        model.learn([Judged.model_validate(line(1, "x", True))], JudgeTraining(steps=1))


# -- as a user ---


def test_an_adapter_is_trained_once_and_then_read(folder: Path, tmp_path: Path) -> None:
    data, adapter = judged(tmp_path), tmp_path / "judge"
    fields = {"model": str(folder), "adapter": str(adapter), "engine": {"kv_tokens": 4096}}
    train = {"steps": 2, "batch_lines": 4, "lr": 1e-3}
    first = AcceptReject(**fields, data=str(data), train=train)  # type: ignore[arg-type]
    first.check()
    first.bind(None)  # type: ignore[arg-type]
    written = (adapter / "adapter_model.safetensors").read_bytes()
    second = AcceptReject(**fields)  # type: ignore[arg-type]
    second.check()
    second.bind(None)  # type: ignore[arg-type]
    assert (adapter / "adapter_model.safetensors").read_bytes() == written
    assert first.reply("is it?") == second.reply("is it?") in ("accepted", "rejected")
    assert first._judge is not None and second._judge is not None
    assert first._judge.log_odds(["is it?"]) == second._judge.log_odds(["is it?"])
    asked = second._judge.counters["questions"]
    second.reply("is it?")
    assert second._judge.counters["questions"] == asked and second.counters["requests"] == 2


def test_a_judge_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GymError, match=r"no adapter in .*; name data"):
        AcceptReject("model", str(tmp_path / "judge")).check()
    with pytest.raises(GymError, match="user accept_reject: lr: "):
        AcceptReject("model", str(tmp_path), train={"lr": 0})
    with pytest.raises(GymError, match=r"bind\(engine\) comes first"):
        AcceptReject("model", str(tmp_path)).reply("?")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(GymError, match="train it in one process first"):
        AcceptReject("model", str(tmp_path / "judge"), data=str(judged(tmp_path))).check()
