"""The page of a run in an environment: complete, searchable, safe whatever an episode says; several runs."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from proactor.files import SourceError
from proactor.report import conversations
from proactor.report.conversations import FIRST_PAGE, compared_groups, spread
from proactor.report.folders import rebuild_report, together
from proactor.report.numbers import number, signed_number
from proactor.training.episode_rows import (
    BeforeAfter,
    EpisodeRow,
    read_before_after,
    read_samples,
    sample_files,
)
from tests.proactor.report.episode_runs import STEPS, made_up, write_run
from tests.proactor.report.test_page import HOSTILE, Page
from tests.proactor.report.test_talks import BROWSER, browse, unpacked


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "frugal")


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return rebuild_report(run).read_text()


def on_test(run: Path) -> BeforeAfter:
    found = read_before_after(run)
    assert found is not None
    return found


def trained(run: Path) -> dict[int, list[EpisodeRow]]:
    return {step: read_samples(file) for step, file in sample_files(run).items()}


# -- one run ---


def test_the_page_stands_alone(text: str) -> None:
    page = Page(text)
    assert not page.tags & {"link", "img", "iframe", "object", "base", "image"}
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert not re.search(r"url\(|@import|https?:", text)
    data, script = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert data[0] == ' type="text/plain" id="packed"' and not script[0]
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value)
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    targets = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= targets


def test_it_begins_with_what_training_changed(run: Path, text: str) -> None:
    summary = json.loads((run / "summary.json").read_text())
    page = Page(text).text
    for key, name in (("score", "Score"), ("pass_u2", "Pass@U-2"), ("user_rate", "UR"), ("tokens", "Tokens")):
        before, after = (number(summary[side][key]) for side in ("before", "after"))
        assert f"{name}{after} from {before}" in page, name
        low, high = (number(summary["intervals"]["after"][key][end]) for end in ("low", "high"))
        assert f"{low} to {high}" in page, name
    played = on_test(run)
    solved = [{e.task for e in side if e.score >= 1} for side in (played.before, played.after)]
    gained, lost = solved[1] - solved[0], solved[0] - solved[1]
    assert gained and f"Solved after, not before: {len(gained)}: " in page
    assert f"Solved before, not after: {len(lost)}" in page
    assert f"GRPO step {summary['chosen']['best_step']} of {STEPS}" in page
    assert "function_family" in page and "bao" in page and "weighted_metric" not in page


def test_metrics_that_are_a_price_are_better_when_lower(text: str) -> None:
    rows = re.findall(r"<tr><td class=\"name\">(.*?)</tr>", text, re.DOTALL)
    by_name = {Page(f"<p>{row.split('<small>')[0]}</p>").text.split(" ↓")[0]: row for row in rows}
    assert "lower is better" in by_name["U"] and "lower is better" in by_name["UR"]
    assert "▲ better" in by_name["U"] and "+" not in by_name["U"].split('data-label="change"')[1][:3]
    assert "lower is better" not in by_name["Tokens"] and "better" not in by_name["Tokens"]


def test_every_turn_is_a_bubble(run: Path, text: str) -> None:
    drawn = {(row["part"], row["text"].split("\n")[0]): row["html"] for row in unpacked(text)}
    episodes = [("test", e) for side in (on_test(run).before, on_test(run).after) for e in side]
    episodes += [(f"step {step}", e) for step, rows in trained(run).items() for e in rows]
    turns: dict[tuple[str, str], list[Any]] = {}
    for part, episode in episodes:
        turns.setdefault((part, episode.task), []).extend(episode.turns)
    assert turns.keys() == drawn.keys()
    for place, taken in turns.items():
        html, page = drawn[place], Page(drawn[place]).text
        assert html.count('class="bubble agent"') == len(taken)
        assert html.count('class="bubble user"') == sum(t.user_involved for t in taken)
        assert html.count('href="#m-user"') == sum(t.user_involved for t in taken)
        assert page.count("no call that could be read") == sum(not t.calls for t in taken)
        for turn in taken:
            assert turn.feedback in page and turn.said in page
            assert all(f"{call.verb} {call.content}" in page for call in turn.calls)
            assert f"reward {signed_number(turn.reward, 2)}" in page
            if turn.advantage is not None:
                assert f"advantage {signed_number(turn.advantage, 2)}" in page
        given = [t.advantage for t in taken if t.advantage is not None]
        assert html.count('class="adv minus"') == sum(a < 0 for a in given)
        assert len(re.findall(r"--a: ([\d.]+)", html)) == len(given)
        assert not given or "--a: 1.000" in html, "the group's largest fills its half"


def test_the_changed_tasks_come_first_then_the_latest_steps(run: Path, text: str) -> None:
    rows = unpacked(text)
    order = ["gained", "lost", "up", "down", "same"]
    changes = [order.index(row["change"]) for row in rows if row["part"] == "test"]
    assert changes == sorted(changes) and changes[0] == 0
    steps = [row["step"] for row in rows if row["part"] != "test"]
    assert steps == sorted(steps, reverse=True) and set(steps) == set(range(1, STEPS + 1))
    assert rows[: len(changes)] == [row for row in rows if row["part"] == "test"]
    plain = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert plain.count('<details class="talk group"') == FIRST_PAGE < len(rows)
    assert '<form id="filters" hidden>' in text


def test_a_task_that_one_side_lacks_is_shown_alone() -> None:
    rng = random.Random(0)
    rows = [made_up(t, 0, rng, 0.5) for t in ("a", "b", "b", "c")]
    groups = compared_groups(BeforeAfter(success=1.0, before=tuple(rows[:2]), after=tuple(rows[2:])))
    assert groups[0].task == "b" and groups[0].change and len(groups[0].episodes) == 2
    alone = {g.task: (g.change, [e.name for e in g.episodes]) for g in groups[1:]}
    assert alone == {"a": ("", ["before"]), "c": ("", ["after"])}


def test_of_a_long_training_some_steps_are_shown_and_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spread(range(1, 61), 4) == [1, 21, 40, 60] and spread([3, 5], 4) == [3, 5]
    monkeypatch.setattr(conversations, "MOST", 48)
    text = rebuild_report(run).read_text()
    shown = sorted({row["step"] for row in unpacked(text) if row["part"] != "test"})
    assert len(shown) < STEPS and {shown[0], shown[-1]} == {1, STEPS}
    told = f"Of the {STEPS} steps with samples, {len(shown)} are here ({', '.join(map(str, shown))})"
    assert told in Page(text).text
    monkeypatch.undo()
    assert "steps with samples" not in Page(rebuild_report(run).read_text()).text


def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path / "run")
    turn = {"calls": [{"verb": HOSTILE, "content": HOSTILE}], "said": HOSTILE, "feedback": HOSTILE}
    call = {"verb": "tool", "arguments": {HOSTILE: HOSTILE}}
    row = {"task": HOSTILE, "score": 1.0, "ending": HOSTILE, "error": HOSTILE, "opening": HOSTILE}
    row |= {"turns": [turn, {"calls": [call], "advantage": -0.5}]}
    (folder / "episodes.json").write_text(json.dumps({"success": 1.0, "before": [row], "after": [row]}))
    for file in sample_files(folder).values():
        file.write_text(json.dumps(row) + "\n")
    hostile = rebuild_report(folder).read_text()
    usual = [Page(text), *(Page(entry["html"]) for entry in unpacked(text))]
    tags = set().union(*(page.tags for page in usual))
    attributes = {(tag, name) for page in usual for tag, name, _ in page.attributes}
    drawn = [Page(entry["html"]) for entry in unpacked(hostile)]
    for page in (Page(hostile), *drawn):
        assert page.tags <= tags and {(tag, name) for tag, name, _ in page.attributes} <= attributes
    assert all(page.text.count(HOSTILE) > 5 for page in drawn)


def test_a_run_before_its_end_has_a_page_too(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", final=False)
    page = Page(rebuild_report(folder).read_text()).text
    assert "has not compared its start with its best" in page and "What changed" not in page
    assert "Learning curves" in page and "train-" in page
    for file in sample_files(folder).values():
        file.unlink()
    assert "Learning curves" in Page(rebuild_report(folder).read_text()).text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("samples/grpo-000012.jsonl", '{"task": "t"}\n', r"grpo-000012\.jsonl:1: score: Field required"),
        ("samples/grpo-000012.jsonl", "{}\n{\n", r"grpo-000012\.jsonl:2: not JSON"),
        ("episodes.json", '{"success": 1, "before": []}', r"episodes\.json: after: Field required"),
        ("summary.json", '{"before": {}}', r"summary\.json of run: tasks: Field required"),
        (
            "summary.json",
            '{"before": {}, "tasks": 1, "intervals": {"before": {}}, "difference": {}}',
            r"summary\.json of run: before: pass_u1 is missing",
        ),
        ("metrics.jsonl", None, r"metrics\.jsonl: no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    file: str, content: str | None, message: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(SourceError, match=message) as refused:
        rebuild_report(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("", lambda row: True),
        ("part=test&change=gained", lambda row: row["change"] == "gained"),
        ("part=step+3", lambda row: row["step"] == 3),
        ("part=training&ending=no_call", lambda row: row["step"] > 0 and "no_call" in dict(row["episodes"])),
        ("level=partly&order=worst", lambda row: any(level == "partly" for _, level in row["episodes"])),
        ("level=none&ending=terminated", lambda row: ["terminated", "none"] in row["episodes"]),
        ("q=TEST-1+rule&layout=stacked", lambda row: "test-1" in row["text"]),
        ("q=no-such-word", lambda row: False),
    ],
)
def test_the_script_finds_what_is_asked_for(text: str, tmp_path: Path, asked: str, wanted: Any) -> None:
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    seen = browse(tmp_path / "page.html", tmp_path / "profile", asked, "episodes")
    rows = [row for row in unpacked(text) if wanted(row)]
    assert f">{len(rows)} of {len(unpacked(text))} groups of episodes" in seen
    assert seen.count('<details class="talk group"') == min(len(rows), 20)
    assert ('id="entries" data-layout="stacked"' in seen) == ("layout=stacked" in asked)


# -- several runs ---


def test_several_runs_are_a_point_each(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, seed=i, skill=skill)
        for i, (name, skill) in enumerate((("a", 0.9), ("b", 0.4), ("<c>", 0.7)))
    ]
    text = together(folders, tmp_path / "page.html").read_text()
    page = Page(text)
    assert text.count('<circle class="after"') == text.count('<circle class="before"') == 3
    assert sorted(re.findall(r'class="name"[^>]*>([^<]*)<', text)) == ["&lt;c&gt;", "a", "b"]
    assert text.count('class="whisker"') == 12 and text.count('class="front test"') == 1
    assert "a, b and <c>" in page.text and "<script" not in text
    assert "not tested on the same tasks" not in page.text
    points = {}
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        for side in ("before", "after"):
            points[folder.name, side] = (-summary[side]["user_actions"], summary[side]["score"])
    rows = re.findall(r'<tr( class="on_front")?><td><bdi>(.*?)</bdi> <small>(\w+)', text)
    shown = {(name.replace("&lt;", "<").replace("&gt;", ">"), side): bool(on) for on, name, side in rows}
    assert shown.keys() == points.keys() and any(shown.values())
    for place, point in points.items():
        beaten = any(o != point and o[0] >= point[0] and o[1] >= point[1] for o in points.values())
        assert shown[place] == (not beaten), place


def test_runs_on_other_tasks_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", tests=5)]
    assert "not tested on the same tasks" in Page(together(folders, tmp_path / "p.html").read_text()).text


def test_runs_that_no_page_shows_together(tmp_path: Path) -> None:
    run, unfinished = write_run(tmp_path / "run"), write_run(tmp_path / "short", final=False)
    with pytest.raises(SourceError, match="short: has not played its test tasks"):
        together([run, unfinished], tmp_path / "page.html")
    for name in "abc":
        (tmp_path / name).mkdir()
    with pytest.raises(SourceError, match="c: a page shows two runs on dialogues side by side, not more"):
        together([tmp_path / name for name in "abc"], tmp_path / "page.html")
