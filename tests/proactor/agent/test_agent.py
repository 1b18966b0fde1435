"""An agent at work decides as `evaluate` and `calibrate` do, computes each turn once, and serves many."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import proactor
from proactor.agent import Agent, AgentError
from proactor.agent.run_folder import RunFolder
from proactor.calibration.score_table import score_table
from proactor.calibration.thresholds import Thresholds
from proactor.dialogue import Dialogue, Status, Turn
from proactor.engine import Engine
from proactor.evaluation.play import evaluate
from proactor.sources import load
from proactor.training.adapters import adapter_digest
from tests.proactor.agent.agents import heard, heard_at_once, load_agent, run_folder
from tests.proactor.runs import OPTIONS

CORPUS = load("synthetic", split="dev", limit=5, **{**OPTIONS, "tools": 2})
RANDOM = {"seed": 1, "eval": {"max_tokens": 40, "temperature": 1.5, "resamples": 100}}
"""Sampled answers: a model of seconds has few answers of its own, and these are of every kind."""


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("agents") / "run", tiny_model, CORPUS.catalog, **RANDOM)


def test_the_agent_is_a_name_of_the_package() -> None:
    assert proactor.Agent is Agent
    with pytest.raises(AttributeError):
        proactor.Nobody  # noqa: B018


@pytest.mark.parametrize("at_once", [False, True])
def test_decisions_are_those_of_evaluate(run: Path, at_once: bool) -> None:
    agent = load_agent(run, guard=False)
    assert agent.engine.deterministic and agent.thresholds is None
    engine = Engine.load(agent.run.config.model, deterministic=True, kv_tokens=8192)
    played = evaluate(engine, agent.encoder, CORPUS.dialogues, max_tokens=40, temperature=1.5, seed=1)
    if at_once:
        decided = heard_at_once(agent, CORPUS.dialogues)
    else:
        decided = {d.id: heard(agent, d) for d in CORPUS.dialogues}
    later = 0
    for replay in played.replays:
        decisions = decided[replay.dialogue_id]
        assert {d.turn: d.answer for d in decisions} == replay.outputs
        for decision in decisions:
            ready = [a for a in replay.actions[decision.turn] if a.status is Status.READY]
            assert [(a.name, a.params) for a in decision.fires] == [(a.name, a.params) for a in ready]
            assert not decision.calibrated and "without thresholds" in decision.reason
            assert decision.kind == ("fire" if ready else "ask" if decision.asks else "wait")
            later += decision.turn > 1 and decision.answer != "[]"
    assert later > 3 and agent.counters["decisions"] == sum(map(len, decided.values()))


def test_with_thresholds_decisions_are_those_of_the_replay(run: Path, tiny_model: Path) -> None:
    greedy = load_agent(run)
    table, _ = score_table(greedy.engine, greedy.encoder, CORPUS.dialogues, floor=0.02, max_tokens=40)
    levels = sorted(row.probability for row in table.rows)
    name = CORPUS.catalog.names[0]
    thresholds = Thresholds(default=levels[len(levels) // 2], tools={name: levels[3]}, dialogues=5)
    folder = run_folder(run.parent / "chosen", tiny_model, CORPUS.catalog, thresholds, **RANDOM)
    agent = load_agent(folder, guard=False)
    replayed = thresholds.replay(table)
    decided = heard_at_once(agent, CORPUS.dialogues)
    for dialogue in CORPUS.dialogues:
        fires = {d.turn: [(a.name, a.params) for a in d.fires] for d in decided[dialogue.id] if d.fires}
        wanted = replayed[dialogue.id].items()
        assert fires == {turn: [(a.name, a.params) for a in actions] for turn, actions in wanted}
        for decision in decided[dialogue.id]:
            assert decision.calibrated and decision.budget == 1.0
            for act in decision.fires:
                assert act.threshold == thresholds.of(act.name) <= (act.probability or 0)
            below = [n for n in decision.near if n.why == "below its threshold"]
            assert all((n.probability or 1) < (n.threshold or 0) for n in below)
    assert sum(len(fires) for fires in replayed.values()) > 2


def forty_turns() -> Dialogue:
    said = [turn.text[:12] for dialogue in CORPUS.dialogues for turn in dialogue.turns]
    turns = [
        Turn(index=i + 1, speaker="agent" if i % 2 else "user", text=said[i % len(said)]) for i in range(40)
    ]
    return Dialogue(id="long", turns=tuple(turns))


@pytest.mark.parametrize("calibrated", [False, True])
def test_each_turn_is_computed_once(run: Path, tiny_model: Path, calibrated: bool) -> None:
    """Rows against tokens read: of the dialogue, of the boards, and of the answers."""
    folder = run
    if calibrated:
        folder = run.parent / "waiting"
        run_folder(folder, tiny_model, CORPUS.catalog, Thresholds(default=0.9), **RANDOM)
    agent = load_agent(folder, overrides=("eval.temperature=0", "engine.deterministic=false"))
    dialogue, encoder = forty_turns(), agent.encoder
    decisions = heard(agent, dialogue)
    trunk = encoder.trunk(dialogue)
    boards = sum(len(encoder.prompt(dialogue, d.turn)) - trunk.ends[d.turn] for d in decisions)
    read = trunk.ends[39] + boards + agent.counters["answer_tokens"]
    assert len(decisions) == 20 and agent.counters["dropped_turns"] == 0
    assert agent.engine.counters()["rows_computed"] <= 1.05 * read


def test_threads_talk_in_conversations_of_their_own_and_in_one(run: Path) -> None:
    """Turns of one conversation that come from several threads are decided on one after the other."""
    agent = load_agent(run, overrides=("eval.temperature=0", "engine.deterministic=false"))
    alone = {d.id: [(x.turn, x.answer) for x in heard(agent, d)] for d in CORPUS.dialogues}
    together = load_agent(run, overrides=("eval.temperature=0", "engine.deterministic=false"))
    found: dict[str, list[tuple[int, str]]] = {}

    def talk(dialogue: Dialogue) -> None:
        found[dialogue.id] = [(x.turn, x.answer) for x in heard(together, dialogue)]

    threads = [threading.Thread(target=talk, args=(d,)) for d in CORPUS.dialogues]
    shared = [threading.Thread(target=together.observe, args=("shared", f"turn {i}")) for i in range(6)]
    for thread in (*threads, *shared):
        thread.start()
    for thread in (*threads, *shared):
        thread.join()
    assert found == alone
    assert together.counters["decisions"] == agent.counters["decisions"] + 6
    last = together.observe("shared", "and now")
    assert last.turn == 7 and last.decided


def test_thresholds_of_another_adapter_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Also of the run's own adapter as it was before more training; not those of files that name none."""
    folder = run_folder(tmp_path / "run", tiny_model, CORPUS.catalog)
    for name in ("best", "last"):
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text("{}")
        (folder / name / "adapter_model.safetensors").write_text(name)
    best, last = (adapter_digest(folder / name) for name in ("best", "last"))
    assert len({best, last, adapter_digest(None)}) == 3

    def read(adapter: str, digest: str, **given: Any) -> Thresholds | None:
        chosen = Thresholds(budget=2.0, adapter="best", adapter_digest=digest)
        (folder / "thresholds.json").write_text(chosen.model_dump_json())
        return RunFolder.read(folder, adapter, **given).thresholds

    for digest in (best, ""):
        own = read("best", digest)
        assert own is not None and (own.budget, own.adapter) == (2.0, "best")
    assert read("last", best) is None, "the run's own thresholds are those of best"
    assert read("best", last, greedy=True) is None
    file = folder / "thresholds.json"
    for adapter, digest, given in (
        ("best", last, None),
        ("last", best, file),
        ("none", best, file),
        ("best", "none", None),
    ):
        with pytest.raises(AgentError, match=r"thresholds.json: chosen for the adapter 'best' .* calibrate"):
            read(adapter, digest, thresholds=given)
