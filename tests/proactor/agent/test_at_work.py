"""From transcripts to an agent at work, as the example does it; then beside the humans of its transcripts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from examples import agent_at_work
from proactor.agent import Agent, Decision
from proactor.agent.shadow import differences
from proactor.dialogue import Reference, Status
from proactor.dialogue.matching import EXACT
from proactor.evaluation.play import evaluate
from proactor.sources import load
from proactor.training.adapters import adapter_digest
from tests.proactor.agent.agents import heard_at_once
from tests.proactor.commands.calls import call, refusal
from tests.proactor.dialogues import ready, users

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def agent(folder: Path) -> Agent:
    return agent_at_work.main(folder)


@pytest.fixture(scope="module")
def run(folder: Path, agent: Agent) -> Path:
    return folder / "runs" / "home"


def test_it_fires_in_a_new_conversation(agent: Agent, run: Path) -> None:
    assert len(agent_at_work.transcripts()) == 30
    assert not any(agent_at_work.NEW[1] in json.dumps(line) for line in agent_at_work.transcripts())
    [act] = agent.conversations["new"].acts.values()
    assert (act.id, act.name, act.params) == ("3.1", "set_light", {"room": "hall"})
    events = [json.loads(line)["event"] for line in (run / "decisions.jsonl").read_text().splitlines()]
    assert events[:3] == ["started", "opened", "turn"] and "result" in events


def test_with_a_trained_model_too_decisions_are_those_of_evaluate(agent: Agent, folder: Path) -> None:
    dialogues = load("jsonl", folder / "windows").dialogues
    played = evaluate(agent.engine, agent.encoder, dialogues, max_tokens=32)
    decided = heard_at_once(Agent(agent.engine, agent.encoder, agent.run), dialogues)
    fires = 0
    for replay in played.replays:
        for decision in decided[replay.dialogue_id]:
            wanted = [a for a in replay.actions[decision.turn] if a.status is Status.READY]
            assert [(a.name, a.params) for a in decision.fires] == [(a.name, a.params) for a in wanted]
            fires += len(wanted)
    assert fires >= 25


def third_turn(agent: Agent) -> Decision:
    """The decision at which the first transcript calls for an action."""
    messages = agent_at_work.transcripts()[0]["messages"]
    assert isinstance(messages, list)
    return [agent.observe("c", message) for message in messages[:3]][-1]


def test_thresholds_of_calibrate_are_used_by_default(run: Path, folder: Path, agent: Agent) -> None:
    call("calibrate", folder / "home.yaml", "--budget", "4")
    calibrated = Agent.load(run, log=None)
    assert calibrated.thresholds is not None and calibrated.thresholds.budget == 4.0
    assert calibrated.thresholds.adapter == "best"
    assert calibrated.thresholds.adapter_digest == adapter_digest(run / "best")
    decision = third_turn(calibrated)
    assert decision.calibrated and decision.budget == 4.0
    [act] = decision.fires
    assert act.params == {"room": "kitchen"} and act.threshold is not None
    assert (act.probability or 0) >= act.threshold and "probability" in decision.reason
    assert not third_turn(Agent.load(run, log=None, greedy=True)).calibrated


@pytest.mark.parametrize("log", ["windows", "transcripts.jsonl"])
def test_shadow_saves_the_turns_that_the_human_waited(
    run: Path, folder: Path, log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call("shadow", run, folder / log, "--greedy", "--resamples", "100")
    said = capsys.readouterr().out
    assert "turns saved" in said and "earlier" in said and "proactor report" in said
    found = json.loads((run / f"shadow-{log.split('.')[0]}.json").read_text())
    figures = {system["system"]: system["points"][0] for system in found["figures"]["systems"]}
    assert figures["human"]["turns_saved"] == 0 < figures["agent"]["turns_saved"]
    assert found["windows"] == ("given" if log == "windows" else "log")
    assert found["counts"]["earlier"] == sum(row["what"] == "earlier" for row in found["found"])
    row = next(row for row in found["found"] if row["what"] == "earlier")
    assert row["turn"] == 3 and row["human"] == 5 and row["params"] == row["wanted"]
    call("report", run / f"shadow-{log.split('.')[0]}.jsonl")
    assert "home-29" in (run / f"shadow-{log.split('.')[0]}.html").read_text()


def test_run_takes_lines_and_answers_each(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        '{"conversation": "c", "speaker": "user", "text": "hello"}',
        '{"conversation": "c", "role": "assistant", "content": "what can i do ?"}',
        '{"conversation": "c", "speaker": "user", "text": "light for the hall please"}',
        '{"conversation": "c", "speaker": "robot", "text": "beep"}',
        "not json",
        '{"conversation": "c", "result": "3.1", "content": "on"}',
        '{"conversation": "c", "confirm": null}',
        '{"conversation": "c", "speaker": "user", "text": "für den Flur"}',
    ]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode("cp1252"))))
    call("run", run, "--stdin", "--greedy", "--log", "lines.jsonl")
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [answer.get("kind") for answer in answers] == ["wait", "wait", "fire", *[None] * 5]
    assert [answer.get("decided") for answer in answers[:3]] == [True, False, True]
    assert answers[2]["actions"][0]["params"] == {"room": "hall"}
    assert "speaker 'robot' is not known" in answers[3]["error"]
    assert "line 5:1: not JSON" in answers[4]["error"]
    assert answers[5] == {"conversation": "c", "result": "3.1"}
    assert "no action was asked" in answers[6]["error"]
    assert "line 8:1: not UTF-8 (byte 0xfc)" in answers[7]["error"]


def test_run_plays_a_chat(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = "hello\nagent: what can i do ?\nmusic for the hall please\n/done\n/yes\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    call("run", run, "--greedy", "--log", "")
    said = capsys.readouterr().out
    assert "fire play_music(room=hall)" in said and "wait" in said and "no action was asked" in said


def test_refusals(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run (no config.yaml there" in refusal(capsys, "run", folder)
    assert "no run (no config.yaml there" in refusal(capsys, "shadow", folder, folder / "transcripts.jsonl")
    assert "one of them" in refusal(capsys, "run", run, "--stdin", "--chat")
    silent = folder / "silent.jsonl"
    silent.write_text(
        '{"id": "a", "turns": [{"speaker": "user", "text": "x"}, {"speaker": "bot", "text": "y"}]}'
    )
    assert "the log has no actions" in refusal(capsys, "shadow", run, silent)
    assert "--path goes with the name of a corpus" in refusal(capsys, "shadow", run, silent, "--path", folder)


def test_differences_are_told_by_what_the_human_did() -> None:
    wanted = Reference(
        id="a", name="book", params={"day": "monday"}, coverage=(1, 6), ready=(3, 5), observed_trigger=4
    )
    dialogue = users(6, wanted)
    told = {3: "earlier", 4: "same turn", 5: "later", 6: "later"}
    for turn, what in told.items():
        [only] = differences(dialogue, {turn: (ready("book", day="monday"),)}, frozenset(), EXACT)
        assert (only.what, only.turn, only.human) == (what, turn, 4)
    [early] = differences(dialogue, {1: (ready("book", day="monday"),)}, frozenset({"book"}), EXACT)
    assert early.what == "before assent"
    values = {"day": "monday", "hour": "9"}
    two = dialogue.model_copy(update={"references": (wanted.model_copy(update={"params": values}),)})
    fires = {3: (ready("book", day="monday", hour="10"), ready("other"))}
    assert [f.what for f in differences(two, fires, frozenset(), EXACT)] == [
        "wrong values",
        "not called for",
        "missed",
    ]
