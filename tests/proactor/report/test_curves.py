"""Learning curves: the chosen step marked, zeros kept, minor curves folded, different rewards drawn apart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from proactor.evaluation.store import save_evaluations
from proactor.report.curves import Panel, Trained, sections
from proactor.report.folders import rebuild_report, side_by_side
from proactor.report.rewards import RewardsApart
from proactor.training.outcome import outcome
from proactor.training.record import RunRecord
from tests.proactor.report.test_page import AFTER, BEFORE, DIALOGUES, Page, report


def rows(values: list[float], sft: int = 3) -> list[dict[str, Any]]:
    """A supervised stage, then GRPO with a check before it and after every second step."""
    history: list[dict[str, Any]] = [
        {"phase": "sft", "kind": "sft", "step": i, "loss": 2.0 / i} for i in range(1, sft + 1)
    ]
    for i, value in enumerate(values):
        if i:
            history += [
                {"phase": "grpo", "kind": "grpo", "step": sft + 2 * i - 1 + k, "reward_mean": 0.1 * i + k}
                for k in (0, 1)
            ]
        history.append(
            {
                "phase": "grpo",
                "kind": "eval",
                "step": sft + 2 * i,
                "eval_reward": value,
                "eval_pri": value / 2,
            }
        )
    return history


def trained(values: list[float], name: str = "a", metric: str = "reward", **config: Any) -> Trained:
    history = rows(values)
    for row in history:
        row |= {f"eval_{metric}": row["eval_reward"]} if "eval_reward" in row else {}
    return Trained(history, RunRecord(name, {}, outcome(history, metric), config))


def panel(run: Trained, key: str, beside: Trained | None = None, apart: RewardsApart | None = None) -> Panel:
    (found,) = [p for s in sections(run, beside, apart) for p in s.panels if p.key == key]
    return found


def test_the_chosen_step_is_ringed_where_the_tile_has_its_number() -> None:
    run = trained([0.25, 0.5, 0.75, 0.625])
    drawn = panel(run, "eval_reward")
    assert (drawn.first, drawn.chosen, drawn.last) == ("0.250", "0.750", "0.625")
    ring = re.search(r'<circle class="ring" cx="([\d.]+)" cy="([\d.]+)"', drawn.svg)
    dots = re.findall(r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', drawn.svg)
    line = re.search(r'<line class="chosen" x1="([\d.]+)"', drawn.svg)
    assert ring and line and ring.groups() == dots[2] and line[1] == ring[1]
    assert '">0.750</text>' in drawn.svg
    text = report(trained=run)
    assert "◎ 0.750 on dev, chosen step" in Page(text).text
    assert "GRPO step 4 of 6, turn reward on dev 0.250 → 0.750" in Page(text).text
    assert 'class="chosen" x1' in panel(run, "reward_mean").svg, "a line marks it in the other charts"


def test_a_start_that_was_never_beaten_is_the_chosen_point() -> None:
    drawn = panel(trained([0.75, 0.5, 0.25]), "eval_reward")
    dots = re.findall(r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', drawn.svg)
    ring = re.search(r'<circle class="ring" cx="([\d.]+)" cy="([\d.]+)"', drawn.svg)
    assert ring and ring.groups() == dots[0] and drawn.chosen == "0.750"


def test_without_a_chosen_step_nothing_is_marked() -> None:
    text = report(history=rows([0.25, 0.5]))
    assert 'class="ring"' not in text and "chosen step</small>" not in text


def test_the_step_axis_has_a_title() -> None:
    assert "training step, counted over all phases</text>" in panel(trained([0.1, 0.2]), "eval_reward").svg
    alone = Trained([row for row in rows([0.1, 0.2]) if row["phase"] == "grpo" and row["kind"] == "grpo"])
    assert ">training step</text>" in panel(alone, "reward_mean").svg


@pytest.mark.parametrize("key", ["unread/no_name", "unread_graph/no_node", "judge/failed"])
def test_a_step_at_which_a_counter_was_0_is_drawn(key: str) -> None:
    history = [
        {"phase": "grpo", "kind": "grpo", "step": i, **({key: 6.0} if i in (2, 4) else {})}
        for i in range(1, 6)
    ]
    history.insert(2, {"phase": "grpo", "kind": "eval", "step": 2})
    drawn = panel(Trained(history), key)
    assert (drawn.first, drawn.last) == ("0.000", "0.000")
    titles = re.findall(r"<title>(\d): ([\d.]+)</title>", drawn.svg)
    assert titles == [("1", "0.0000"), ("2", "6.0000"), ("3", "0.0000"), ("4", "6.0000"), ("5", "0.0000")]


def test_a_number_that_was_undefined_is_no_zero() -> None:
    history = [{"kind": "grpo", "step": i, "judge/agreement": 0.1 * i} for i in (1, 3)]
    history.insert(1, {"kind": "grpo", "step": 2})
    assert panel(Trained(history), "judge/agreement").svg.count('class="dot"') == 2


def test_minor_curves_are_folded_and_the_metric_of_choice_stands_open() -> None:
    run = trained([0.25, 0.75, 0.5], metric="pri")
    by_title = {section.title: section for section in sections(run)}
    assert "eval_pri" in [p.key for p in by_title["Learning"].panels]
    assert [title for title, section in by_title.items() if section.decisive] == ["Learning"]
    history = [row | {"grad_norm": 0.5 * i} for i, row in enumerate(run.rows)]
    text = report(trained=Trained(history, run.record))
    curves = text[text.index('id="curves"') :]
    folded = "".join(re.findall(r'<details class="fold">.*?</details>', curves, re.DOTALL))
    assert 'title="grad_norm"' in folded and 'title="eval_pri"' not in folded
    assert 'title="eval_pri"' in curves


SAME: dict[str, Any] = {"reward": "weighted_metric", "reward_options": {"early": 0.0}}


@pytest.mark.parametrize(
    ("other", "training", "evaluation"),
    [
        (SAME, False, False),
        ({"reward": "utility"}, True, True),
        (SAME | {"reward_options": {"early": 0.5}}, True, True),
        (SAME | {"eval": {"reward": "utility"}}, False, True),
        ({"reward": "utility", "eval": SAME}, True, False),
        ({}, True, True),
    ],
)
def test_rewards_of_two_runs_share_an_axis_only_if_they_are_one(
    other: dict[str, Any], training: bool, evaluation: bool
) -> None:
    first, second = trained([0.1, 0.2], "first", **SAME), trained([0.3, 0.5], "second", **other)
    apart = RewardsApart.of_runs(first.record, second.record)
    assert (bool(apart.training), bool(apart.evaluation)) == (training, evaluation)
    panels = [p for s in sections(second, first, apart) for p in s.panels]
    for key, separate in (("reward_mean", training), ("eval_reward", evaluation), ("eval_pri", False)):
        of_key = [p for p in panels if p.key == key]
        assert [p.run for p in of_key] == (["second", "first"] if separate else [""])
        assert all(('class="beside"' in p.svg) != separate for p in of_key)


def test_a_comparison_of_different_rewards_says_why(tmp_path: Path) -> None:
    for name, reward in (("north", "weighted_metric"), ("south", "utility")):
        save_evaluations(tmp_path / name / "evaluations.json", DIALOGUES, {"before": BEFORE, "after": AFTER})
        (tmp_path / name / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows([0.1, 0.2, 0.3]))
        )
        (tmp_path / name / "config.yaml").write_text(f"reward: {reward}\n")
    text = side_by_side(tmp_path / "north", tmp_path / "south", tmp_path / "both.html").read_text()
    page = Page(text).text
    reason = "north is trained by weighted_metric, south is trained by utility"
    assert f"Drawn apart, because the rewards are not one measure: {reason}" in page
    assert "not comparable with" in page and "Turn reward is " not in page
    row = text[text.index('<td class="name">Turn reward') :]
    row = row[: row.index("</tr>")]
    assert "not comparable" in row and "<svg" not in row
    assert 'class="gain"' not in text, "rewards of turns do not stand side by side either"


def test_the_run_section_tells_what_the_run_was(tmp_path: Path) -> None:
    save_evaluations(tmp_path / "evaluations.json", DIALOGUES, {"before": BEFORE, "after": AFTER})
    history = rows([0.25, 0.5])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    chosen = outcome(history, "reward")
    assert chosen is not None
    summary = {"version": "9.8.7", "commit": "abc123", "machine": "a big one", "chosen": chosen.model_dump()}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.yaml").write_text("model: some/model\nseed: 41\nreward: utility\n")
    page = Page(rebuild_report(tmp_path).read_text()).text
    told = page[page.rindex("model") - 400 :]
    for words in ("some/model", "41", "GRPO step 2 of 2", "9.8.7", "abc123", "a big one", "utility"):
        assert words in told, words
