"""Sections of a report beside before and after: two runs, probabilities, trade-off, reward by stage."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from proactor.calibration.points import TradeOffPoint
from proactor.calibration.probabilities import DialogueProbabilities, TurnProbabilities
from proactor.calibration.store import save_probabilities
from proactor.calibration.tradeoff import TradeOff, collect_trade_offs, policies, save_trade_offs
from proactor.dialogue import Dialogue, Reference, Turn
from proactor.dialogue.matching import MatchRule
from proactor.evaluation.play import Evaluation, Replay, evaluate_policies
from proactor.evaluation.store import save_evaluations
from proactor.report.anatomy import classify_replays
from proactor.report.comparison import Sides, table
from proactor.report.curves import Trained, sections
from proactor.report.folders import read_calibration, rebuild_report, side_by_side
from proactor.report.heatmap import heat_map
from proactor.report.page import Calibrated
from proactor.report.stages import reward_parts
from proactor.report.talks import talks
from proactor.rewards import score_replay
from proactor.scoring.metrics import aggregate
from tests.proactor.dialogues import ready, users
from tests.proactor.report.agents import agent, evaluation
from tests.proactor.report.test_page import AFTER, BEFORE, DIALOGUES, HISTORY, HOSTILE, Page, report


def probabilities(dialogue: Dialogue, tools: list[str]) -> DialogueProbabilities:
    """Made-up ones: tool i at the k-th decision has 0.1 (i + 1) / (k + 1)."""
    rows = [
        TurnProbabilities(turn=u, wait=0.5, tools={t: 0.1 * (i + 1) / (k + 1) for i, t in enumerate(tools)})
        for k, u in enumerate(dialogue.decision_turns)
    ]
    return DialogueProbabilities(dialogue_id=dialogue.id, turns=tuple(rows))


def point(false: float, saved: float, threshold: float | None = None) -> TradeOffPoint:
    return TradeOffPoint(
        threshold=threshold, wrong_per_100=false, turns_saved=saved, recall=0.625, lead=None, fires=7
    )


def test_a_heat_map_shows_called_tools_first_and_their_windows() -> None:
    turns = tuple(Turn(index=i, speaker="user" if i % 2 else "agent", text=f"t{i}") for i in range(1, 8))
    references = (
        Reference(id="a", name="book", coverage=(1, 5), ready=(3, 5)),
        Reference(id="b", name="call", coverage=(5, 7), null_reason="unmatched"),
    )
    dialogue = Dialogue(id="d", turns=turns, references=references)
    tools = [*(f"x{i:02}" for i in range(12)), "book", "call"]
    heat = heat_map(dialogue, probabilities(dialogue, tools))
    assert heat.tools[:2] == ("book", "call")
    assert heat.tools[2:] == tuple(f"x{i:02}" for i in range(11, 3, -1))
    assert heat.hidden == 4 and heat.highest == pytest.approx(0.4)
    assert [row.cells[0].window for row in heat.rows] == ["pending", "ready", "ready", ""]
    assert [row.cells[1].window for row in heat.rows] == ["", "", "unknown", "unknown"]
    assert heat.rows[1].cells[0].probability == pytest.approx(1.3 / 2)
    assert [row.text for row in heat.rows] == ["t1", "t3", "t5", "t7"]


def test_reward_parts_are_told_by_thirds_of_training() -> None:
    rows = [
        {
            "kind": "grpo",
            "parts/reward": float(i),
            "parts/rac_within": 0.5,
            "parts/rac": 1.0,
            "coef/rac": i / 10,
        }
        for i in range(7)
    ]
    by_name = {c.name: c for c in reward_parts([{"kind": "sft", "parts/reward": 99.0}, *rows])}
    assert list(by_name) == ["reward", "rac"]
    assert by_name["reward"].means == (0.5, 2.5, 5.0)
    assert by_name["rac"].spreads == (0.5, 0.5, 0.5)
    assert by_name["rac"].coefficients == pytest.approx((0.05, 0.25, 0.5))
    assert by_name["reward"].coefficients == (None, None, None)
    assert reward_parts(rows[:2]) == []
    page = Page(report(history=[*HISTORY, *rows])).text
    assert "What the reward was made of" in page and "What the reward was made of" not in Page(report()).text


def test_calibration_files_of_a_run_are_drawn(tmp_path: Path) -> None:
    run = tmp_path / "run"
    systems = evaluate_policies(DIALOGUES)
    save_evaluations(run / "evaluations.json", DIALOGUES, {"before": BEFORE, "after": AFTER, **systems})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HISTORY))
    plain = rebuild_report(run).read_text()
    assert 'id="tradeoff"' not in plain and 'id="heat"' not in plain
    curve = TradeOff(
        system="common threshold",
        points=(point(0.0, 1.0, 0.9), point(4.0, 30.0, 0.5)),
        chosen=point(1.0, 12.25, 0.7),
        chosen_on="dev",
    )
    save_trade_offs(
        run / "tradeoff.json", collect_trade_offs("test", DIALOGUES, 1.0, [curve, *policies(DIALOGUES)])
    )
    save_probabilities(run / "probabilities.json", [probabilities(DIALOGUES[0], [HOSTILE, "b"])])
    text = rebuild_report(run).read_text()
    page = Page(text)
    assert page.tags == Page(plain).tags
    assert "12.25" in page.text and "chosen on dev" in page.text and "human" in page.text
    assert page.text.count(HOSTILE) == 1
    assert text.count('<circle class="chosen"') == 1
    (run / "tradeoff.json").write_text('{"part": 3}')
    with pytest.raises(ValueError, match=r"tradeoff\.json: "):
        read_calibration(run, DIALOGUES)
    elsewhere = DIALOGUES[0].model_copy(update={"turns": DIALOGUES[0].turns[:1]})
    with pytest.raises(ValueError, match=r"probabilities\.json: dialogue '.*' has no turn 3$"):
        read_calibration(run, [elsewhere])


def test_the_trade_off_chart_is_to_scale() -> None:
    trade_offs = collect_trade_offs(
        "test", DIALOGUES, 1.0, [TradeOff(system="a", points=(point(4.0, 10.0),))]
    )
    text = report(calibrated=Calibrated(trade_offs))
    within = re.search(r'<rect class="within" x="([\d.]+)" y="14.0" width="([\d.]+)"', text)
    dot = re.search(r'<circle class="other" cx="([\d.]+)"', text)
    assert within and dot
    assert float(dot[1]) - float(within[1]) == pytest.approx(
        2 * float(within[2]), abs=0.2
    )  # a square-root scale: 4 is twice as far as 1
    assert "square-root scale" in text


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    other = evaluation(DIALOGUES, agent(DIALOGUES, 9, 0.5))
    for name, after in (("north", AFTER), ("south", other)):
        save_evaluations(tmp_path / name / "evaluations.json", DIALOGUES, {"before": BEFORE, "after": after})
    file = side_by_side(tmp_path / "north", tmp_path / "south", tmp_path / "both.html")
    page = Page(file.read_text()).text
    assert "north and south" in page and "worst with south" in page and "after training" not in page.lower()
    assert f"{AFTER.metrics['first_fire_f1']:.3f}" in page and f"{other.metrics['first_fire_f1']:.3f}" in page
    save_evaluations(
        tmp_path / "south" / "evaluations.json", DIALOGUES[:5], {"after": evaluation(DIALOGUES[:5], {})}
    )
    with pytest.raises(ValueError, match="before or after, not both"):
        side_by_side(tmp_path / "north", tmp_path / "south", tmp_path / "both.html")
    save_evaluations(tmp_path / "south" / "evaluations.json", DIALOGUES, {"before": BEFORE})
    with pytest.raises(ValueError, match=r"south/evaluations\.json: no system 'after'"):
        side_by_side(tmp_path / "north", tmp_path / "south", tmp_path / "both.html")


def test_two_runs_share_their_charts(tmp_path: Path) -> None:
    north = [{"kind": "grpo", "step": i, "reward_mean": 0.1 * i, "lr": 1.0} for i in range(1, 4)]
    south = [
        {"kind": "grpo", "step": i, "reward_mean": 0.2, "lr": 1.0, "judge/spread": 0.1 * i}
        for i in range(1, 6)
    ]
    for name, rows in (("north", north), ("south", south)):
        save_evaluations(tmp_path / name / "evaluations.json", DIALOGUES, {"before": BEFORE, "after": AFTER})
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / name / "config.yaml").write_text("reward: weighted_metric\n")
    text = side_by_side(tmp_path / "north", tmp_path / "south", tmp_path / "both.html").read_text()
    (drawn,) = re.findall(r'class="beside" points="([^"]*)"', text)
    xs, ys = zip(*(map(float, point.split(",")) for point in drawn.split()))
    assert xs == (46.0, 112.5, 179.0), "the other run's three steps on an axis of five"
    assert ys[0] > ys[1] > ys[2]
    page = Page(text).text
    assert "0.200 → 0.200 (0.300)" in page and "Learning rate 1.000" in page
    assert (
        "dashed, where it has the number: north" in page
        and "dashed, where" not in Page(report(history=HISTORY)).text
    )


def test_phases_of_two_runs_begin_together() -> None:
    """One run had 40 supervised steps before, the other none: their GRPO steps still share the x axis."""
    sft = [{"kind": "sft", "step": i, "loss": 1 / i} for i in range(1, 41)]
    grpo = [{"kind": "grpo", "step": i, "reward_mean": 0.1 * i} for i in range(1, 6)]
    for history, beside in (([*sft, *grpo], grpo), (grpo, [*sft, *grpo])):
        (panel,) = [
            p
            for section in sections(Trained(history), Trained(beside))
            for p in section.panels
            if p.key == "reward_mean"
        ]
        drawn = dict(re.findall(r'class="(beside|curve)" points="([^"]*)"', panel.svg))
        assert drawn["beside"] == drawn["curve"]


def test_a_run_without_metrics_is_told_apart_too(tmp_path: Path) -> None:
    for name in ("north", "south"):
        save_evaluations(tmp_path / name / "evaluations.json", DIALOGUES, {"before": BEFORE, "after": AFTER})
    rows = [{"kind": "grpo", "step": i, "reward_mean": 0.1 * i} for i in range(1, 4)]
    (tmp_path / "south" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(side_by_side(tmp_path / "north", tmp_path / "south", tmp_path / "a.html").read_text()).text
    assert "Of south" in page and "What the reward was made of" not in page
    (tmp_path / "north" / "metrics.jsonl").write_text(
        json.dumps(rows[0] | {"judge/spread": 0.2, "lr": 1.0}) + "\n"
    )
    page = Page(side_by_side(tmp_path / "north", tmp_path / "south", tmp_path / "a.html").read_text()).text
    assert "Only in north, and not drawn: Learning rate, Spread." in page


def test_names_of_runs_stay_text() -> None:
    text = report(sides=Sides.of_runs(HOSTILE, "b"))
    assert Page(text).tags <= Page(report()).tags


def test_gains_and_timelines_follow_the_exact_rule_of_the_evaluations() -> None:
    rule = MatchRule(required={"remind": frozenset({"task"})})
    wanted = Reference(
        id="r", name="remind", params={"task": "kids", "time": "5 pm"}, coverage=(1, 4), ready=(2, 3)
    )
    dialogue = users(4, wanted)

    def played(task: str, time: str) -> Evaluation:
        outputs = {2: (ready("remind", task=task, time=time),)}
        contribution, rewards = score_replay(dialogue, outputs, rule=rule)
        replays = [Replay("d", {}, outputs, rewards)]
        return Evaluation(aggregate([contribution]), [contribution], replays, rule=rule)

    before, after = played("laundry", "5 pm"), played("kids", "6 pm")  # both half right
    replays = {s: classify_replays([dialogue], e) for s, e in (("before", before), ("after", after))}
    (talk,) = talks([dialogue], before, after, replays)
    assert (talk.before, talk.after) == (0.0, 1.0)
    marks = {system: m.kind for system, (m,) in talk.timeline.rows[1].cells[0].marks.items()}
    assert marks == {"before": "false", "after": "on_time"}
    lines = {line.metric.key: line for section in table(before, after, {}).values() for line in section}
    assert [lines[k].change.estimate for k in ("values_right", "first_fire_f1")] == [1.0, 1.0]
    assert lines["similarity_first_fire_f1"].change.estimate == 0.0
