"""What goes wrong in a run's episodes, fault by fault: each has its result and its counter, others go on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proactor.engine import ProactorError, ToolChat
from proactor.environments.calls import INTERACT
from proactor.environments.gyms import catalog
from proactor.progress import Quiet
from proactor.training.episodes_loop import train_episodes
from proactor.training.runs import RunError
from tests.proactor.environments.worlds import RELEASE, Gym
from tests.proactor.training.episodes import PLAY, calling_folder, config
from tests.proactor.training.test_loop import rows


@pytest.fixture(scope="module", autouse=True)
def gyms(guess: None) -> Iterator[None]:
    RELEASE.clear()  # other modules set it when they end
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog.GYMS, "bad", Gym)
        yield
    RELEASE.set()


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that calls in the worlds of `worlds`."""
    opening = Gym().make("fine").reset(0)
    return calling_folder(tmp_path_factory.mktemp("count") / "model", opening)


class Heard(Quiet):
    """Keeps what is told of steps, and what is said."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.lines: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def say(self, text: str) -> None:
        self.lines.append(text)


def trained(
    folder: Path, model: Path, environment: dict[str, Any], *overrides: str, **changes: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Heard]:
    """(rows of GRPO steps, episodes of the first one, what was said) of a short run."""
    heard = Heard()
    settings = config(
        folder,
        model,
        "grpo.steps=2",
        "eval.final=false",
        *overrides,
        engine={"kv_tokens": 4096},
        environment={"dev": 1, "play": PLAY, **environment},
        **changes,
    )
    train_episodes(settings, ui=heard)
    file = settings.folder / "samples" / "grpo-000001.jsonl"
    episodes = [json.loads(line) for line in file.read_text().splitlines()]
    return [row for row in rows(settings.folder) if row["kind"] == "grpo"], episodes, heard


# -- the agent's faults ---


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


TOOL = INTERACT["function"]["name"]
LESS = call(TOOL, '{"choice": "action", "content": "3"}')
WRONG = call(TOOL, '{"choice": "answer", "content": "9"}')
REPLIES = {
    "no call": "I give up.",
    "broken JSON": call(TOOL, '{"choice": "action", "content": '),
    "two calls": f"{LESS}\n{WRONG}",
    "wrong verb": call(TOOL, '{"choice": "sell", "content": "1"}'),
    "another tool": call("buy", '{"what": "1"}'),
    "nothing in it": call(TOOL, "{}"),
    "not text": call(TOOL, '{"choice": ["answer"], "content": {"a": null}}'),
    "fine": LESS,
}


def test_replies_that_make_no_sense_have_their_results(
    guess_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the agent draws is taken for one of REPLIES, in turn."""
    read, replies = ToolChat.read, itertools.cycle(REPLIES.values())

    def taken(self: ToolChat, ids: Any, stop: Any = ()) -> Any:
        return read(self, self.template.chat.encode_answer(next(replies)), stop)

    monkeypatch.setattr(ToolChat, "read", taken)
    steps, episodes, _ = trained(tmp_path, guess_model, {"gym": "guess"}, "grpo.n=16", "grpo.batch_tasks=4")
    ended: dict[str, int] = {}
    seen = set()
    for episode in episodes:
        ended[episode["ending"]] = ended.get(episode["ending"], 0) + 1
        for turn in episode["turns"]:
            calls = [(c["verb"], c["content"]) for c in turn["calls"]]
            seen.add(tuple(calls))
            if not calls:
                assert turn is episode["turns"][-1] and episode["ending"] == "no_call"
                assert turn["reward"] == 0 and turn["feedback"] == ""
            if len(calls) == 2:
                assert turn["feedback"].count("\n") == 1 and turn["user_involved"]
    assert ended.keys() == {"no_call", "turns"} and sum(ended.values()) == 64
    assert {
        (),
        (("action", "3"), ("answer", "9")),
        (("sell", "1"),),
        (("buy", ""),),
        (("", ""),),
        (("['answer']", "{'a': None}"),),
        (("action", "3"),),
    } == seen
    for row in steps:
        assert row["host/no_call"] == row["ending/no_call"] > 0 and row["host/several_calls"] > 0
        assert row["episodes_failed"] == 0 and "host/errors" not in row and row["skipped_update"] == 0
    assert steps[0]["ending/no_call"] == ended["no_call"]


# -- the environment's faults ---

FAULTS = {
    "raises": "raises: KeyError: 'lost\\nand more'",
    "exits": "exits: SystemExit: 3",
    "nan": "nan: the reward is nan, no finite number",
    "huge": "no finite number",
    "score": "score: the score is 'good', no finite number",
    "info": "info: the info is NoneType instead of a mapping",
    "text": "text: step returned str instead of Outcome",
    "observation": "observation: the observation is bytes instead of str",
    "hangs": "hangs: no answer within 2 s",
    "reset": "reset: RuntimeError: no reset",
    "absent": "absent: no task 'absent'",
}


def test_worlds_that_misbehave_end_their_own_episodes(counting: Path, tmp_path: Path) -> None:
    fine = [f"fine{i}" for i in range(3)]
    environment = {
        "gym": "bad",
        "options": {"train": [*FAULTS, *fine, "fine"]},
        "host": {"timeout": 2},
    }
    steps, episodes, heard = trained(
        tmp_path, counting, environment, "grpo.steps=1", f"grpo.batch_tasks={len(FAULTS) + 4}"
    )
    [row] = steps
    said = {}
    for episode in episodes:
        if episode["ending"] in ("error", "timeout"):
            said[episode["task"]] = episode["error"]
            assert "\n" not in episode["error"]
            assert not episode["turns"] or episode["turns"][-1]["reward"] == 0
    dev = set(FAULTS) - set(said)
    assert len(dev) <= 1, "one task is for dev"
    for task, line in said.items():
        assert FAULTS[task] in line
    failed = sum(episode["ending"] in ("error", "timeout") for episode in episodes)
    assert row["episodes_failed"] == failed == row["host/errors"] + row.get("host/timeouts", 0) > 0
    assert row["episodes"] == len(episodes) and row["skipped_update"] == 0 and row["grad_norm"] > 0
    assert row["groups_with_spread"] >= 1 and row["groups_too_small"] >= len(said) - 2
    assert f"{failed} episodes failed (" in heard.steps[0]


def test_failed_episodes_are_in_no_metric(counting: Path, tmp_path: Path) -> None:
    """Of training, of the dev tasks and of the test tasks; the console and the summary count them."""
    environment = {"gym": "bad", "options": {"train": ["raises", "fine0", "fine1"], "test": ["fine", "nan"]}}
    steps, episodes, heard = trained(
        tmp_path, counting, environment, "grpo.steps=1", "grpo.batch_tasks=2", "eval.final=true"
    )
    fine = [e for e in episodes if e["ending"] != "error"]
    assert steps[0]["score"] == pytest.approx(sum(e["score"] for e in fine) / len(fine))
    run = tmp_path / "runs" / "tiny"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["tasks"], summary["failed"]) == (1, {"before": 1, "after": 1})
    tested = json.loads((run / "episodes.json").read_text())
    [score] = [e["score"] for e in tested["after"] if e["ending"] != "error"]
    assert summary["after"]["score"] == pytest.approx(score)
    lost = "1 of 2 episodes failed and are in no metric (nan: the reward is nan, no finite number)"
    assert [line for line in heard.lines if "failed" in line][-2:] == [
        f"before, on test: {lost}",
        f"after, on test: {lost}",
    ]


def test_test_tasks_that_all_failed_are_no_comparison(counting: Path, tmp_path: Path) -> None:
    environment = {"gym": "bad", "options": {"train": ["fine0", "fine1"], "test": ["nan"]}}
    with pytest.raises(RunError, match="in each task an environment failed"):
        trained(tmp_path, counting, environment, "grpo.steps=1", "grpo.batch_tasks=1", "eval.final=true")


def test_a_gym_that_cannot_be_had_stops_the_run_and_says_why(counting: Path, tmp_path: Path) -> None:
    """A missing package or key is found when the first world is built: no episode begins."""
    environment = {"gym": "bad", "options": {"train": ["absent", "absent", "absent"]}}
    steps, episodes, heard = trained(
        tmp_path, counting, environment, "grpo.steps=9", "grpo.max_flat_steps=2", "grpo.batch_tasks=2"
    )
    assert [row["flat_steps"] for row in steps] == [1, 2]
    for row in steps:
        assert row["episodes_failed"] == row["episodes"] == 8 and row["skipped_update"] == 1
        assert row["groups_too_small"] == 2
    [line] = [line for line in heard.lines if line.startswith("GRPO stopped after step 2 of 9")]
    assert line.endswith("an environment failed: absent: no task 'absent'")
    assert all(not episode["turns"] for episode in episodes)


def test_credits_that_would_turn_signs_around_are_one_line(guess_model: Path, tmp_path: Path) -> None:
    """Rewards below 0 with a credit by reward-to-go: the method refuses, naming the episode."""
    environment = {"gym": "guess", "options": {"right": -1.0}}
    method = {"name": "userrl", "options": {"turns": "r2g"}}
    with pytest.raises(ProactorError, match=r"turn credits \(r2g\) add up to -") as refused:
        trained(tmp_path, guess_model, environment, "grpo.n=16", method=method)
    assert "\n" not in str(refused.value) and "episode of guess 'train-" in str(refused.value)
