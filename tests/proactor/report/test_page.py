"""The report: complete, the same when rebuilt, and safe whatever the data says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue import Dialogue, Reference, Turn
from proactor.evaluation.play import Evaluation, evaluate_policies
from proactor.evaluation.store import save_evaluations
from proactor.files import SourceError
from proactor.report.comparison import METRICS, table
from proactor.report.curves import Trained, sections
from proactor.report.folders import rebuild_report, write_page
from proactor.report.page import build_report
from proactor.scoring.bootstrap import paired_difference
from proactor.sources import load
from proactor.training.record import RunRecord
from tests.proactor.dialogues import users
from tests.proactor.report.agents import agent, evaluation

DIALOGUES = load("synthetic", limit=12, seed=4).dialogues
BEFORE, AFTER = (evaluation(DIALOGUES, agent(DIALOGUES, s, skill)) for s, skill in ((1, 0.1), (2, 0.95)))
HISTORY: list[dict[str, Any]] = [
    {"phase": "sft", "kind": "sft", "step": 1, "loss": 2.0, "lr": 1e-3},
    {"phase": "sft", "kind": "sft", "step": 2, "loss": 1.5, "lr": 1e-3},
    {
        "phase": "grpo",
        "kind": "grpo",
        "step": 3,
        "loss": 0.1,
        "reward_mean": 0.2,
        "reward_std": 0.1,
        "lr": 1e-3,
    },
    {
        "phase": "grpo",
        "kind": "grpo",
        "step": 4,
        "loss": 0.2,
        "reward_mean": 0.4,
        "reward_std": 0.2,
        "lr": 1e-3,
    },
]
HOSTILE = (
    "</style></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>"
    "{{ 7 * 7 }}&lt;"
)
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text, self._open = "", list[str]()
        self.feed(text)
        self.close()
        self.text = " ".join(self.text.split())
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data


def report(**changes: Any) -> str:
    """The page of DIALOGUES; ``changes`` replace arguments of `build_report`, ``history`` the rows."""
    rows = changes.pop("history", HISTORY)
    given: dict[str, Any] = {
        "title": "A run",
        "dialogues": DIALOGUES,
        "before": BEFORE,
        "after": AFTER,
        "trivial": evaluate_policies(DIALOGUES),
        "trained": Trained(rows),
        "notes": {"seconds": 312.4},
    }
    return build_report(**(given | changes))


def test_the_page_stands_alone() -> None:
    text = report()
    page = Page(text)
    assert not page.tags & {"link", "img", "iframe", "object", "base", "image"}
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "action", "data", "xlink:href")
        assert name != "href" or value.startswith("#")
    assert not re.search(r"url\(|@import|https?:", text)
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value)
    assert "default-src 'none'" in policy and "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    data, script = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert data[0] == ' type="text/plain" id="packed"' and not script[0]
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    targets = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= targets


def test_everything_that_was_promised_is_there() -> None:
    page = Page(report())
    for metric in (m for metrics in METRICS.values() for m in metrics):
        assert metric.name in page.text
    for word in (
        "never",
        "always",
        "values seen",
        "gained most",
        "Unknown windows",
        "Unparsed outputs",
        "12.5% → 12.5%",
        "312.4",
    ):
        assert word in page.text, word
    assert f"{AFTER.metrics['first_fire_f1']:.3f}" in page.text
    shapes = {value for tag, name, value in page.attributes if tag == "symbol" and name == "id"}
    used = {value[1:] for tag, name, value in page.attributes if tag == "use"}
    assert used <= shapes
    assert {"m-on_time", "m-early", "m-late", "m-false", "m-repeat"} <= used
    first = next(d for d in DIALOGUES if d.id in page.text)
    assert all(" ".join(turn.text.split()) in " ".join(page.text.split()) for turn in first.turns)


def test_hostile_text_stays_text() -> None:
    dialogue = Dialogue(
        id=HOSTILE,
        turns=(
            Turn(index=1, speaker="user", text=HOSTILE),
            Turn(index=2, speaker="agent", text="\ud800" + HOSTILE),
        ),
        references=(
            Reference(id="r", name=HOSTILE, params={HOSTILE: HOSTILE}, coverage=(1, 2), ready=(1, 1)),
            Reference(id="s", name="t", null_reason=HOSTILE),
        ),
        domain=HOSTILE,
    )
    right = json.dumps([{"name": HOSTILE, "status": "READY", "params": {HOSTILE: "no" + HOSTILE}}])
    runs = [evaluation([dialogue], {HOSTILE: {1: text}}) for text in (HOSTILE, right)]
    history = [{"phase": HOSTILE + str(i), "step": i, HOSTILE: i * 1.5, "x": {HOSTILE: i}} for i in range(3)]
    record = RunRecord(HOSTILE, {"machine": HOSTILE}, None, {"model": HOSTILE}, HOSTILE)
    text = build_report(
        HOSTILE,
        [dialogue],
        *runs,
        {HOSTILE: runs[0]},
        Trained([*history, {"step": 3, f"k{HOSTILE}": 1}], record),
        {HOSTILE: HOSTILE, "list": [HOSTILE], "text": f"a\n{HOSTILE}"},
    )
    known = Trained(HISTORY, RunRecord("a", config_text="seed: 3"))
    page, plain = Page(text), Page(report(notes={"text": "a\nb"}, trained=known))
    assert page.tags <= plain.tags
    assert {(tag, name) for tag, name, _ in page.attributes} <= {
        (tag, name) for tag, name, _ in plain.attributes
    }
    assert page.text.count(HOSTILE) > 10


def test_a_report_can_be_rebuilt_from_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    systems = evaluate_policies(DIALOGUES)
    save_evaluations(run / "evaluations.json", DIALOGUES, {"before": BEFORE, "after": AFTER, **systems})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HISTORY))
    (run / "summary.json").write_text('{"seconds": 12.5}')
    (run / "config.yaml").write_text("seed: 3\ngrpo:\n  steps: 4\n")
    trained = Trained(HISTORY, RunRecord.read(run))
    text = build_report("demo", DIALOGUES, BEFORE, AFTER, systems, trained, {})
    assert "steps: 4" in text and "12.5" in text
    first = write_page(tmp_path / "first.html", text)
    assert rebuild_report(run).read_bytes() == first.read_bytes()

    save_evaluations(run / "evaluations.json", DIALOGUES, {"before": BEFORE})
    with pytest.raises(ValueError, match=r"evaluations\.json: no system 'after'"):
        rebuild_report(run)


def test_a_folder_that_is_no_run_gets_no_report(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as refused:
        rebuild_report(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}: no run's folder: it holds none of config.yaml, ")
    (tmp_path / "config.yaml").write_text("name: begun\n")
    with pytest.raises(SourceError, match=r"evaluations\.json: no such file: the run has not ended"):
        rebuild_report(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_verdicts_follow_direction_and_interval() -> None:
    def verdicts(before: Evaluation, after: Evaluation) -> dict[str, str]:
        return {
            line.metric.key: line.verdict for lines in table(before, after, {}).values() for line in lines
        }

    up, down = verdicts(BEFORE, AFTER), verdicts(AFTER, BEFORE)
    change = paired_difference([BEFORE.contributions], [AFTER.contributions], ["ftr", "first_fire_f1"])
    assert change["ftr"].high < 0 < change["first_fire_f1"].low
    assert (up["ftr"], up["first_fire_f1"]) == ("better", "better")
    assert (down["ftr"], down["first_fire_f1"]) == ("worse", "worse")
    assert up["lead"] == "open"
    assert set(verdicts(AFTER, AFTER).values()) <= {"same", "open"}
    page = Page(report(before=AFTER, after=BEFORE)).text
    worse = page[page.index("What got worse") : page.index("policies that need no model, and")]
    assert "First-fire F1: " in worse and "FTR: " in worse
    assert "Nothing got worse" in Page(report()).text


def test_small_and_empty_corpora() -> None:
    quiet = users(2)
    idle = evaluation([quiet], {})
    assert (
        "First-fire F1"
        in Page(report(dialogues=[quiet], before=idle, after=idle, trivial={}, history=[], notes={})).text
    )
    with pytest.raises(ValueError, match="no dialogues"):
        report(dialogues=[], before=evaluation([], {}), after=evaluation([], {}), trivial={})
    with pytest.raises(ValueError, match="before or after, not both"):
        report(after=evaluation(DIALOGUES[:5], {}))


def test_curves_sort_keys_and_lose_none() -> None:
    rows: list[dict[str, Any]] = [
        *HISTORY,
        {"kind": "eval", "phase": "grpo", "step": 4, "eval_first_fire_f1": 0.5, "odd_counter": 1.0},
    ]
    rows.append(
        {
            "kind": "eval",
            "phase": "grpo",
            "step": 6,
            "eval_first_fire_f1": 0.7,
            "odd_counter": 2,
            "gone": None,
        }
    )
    by_title = {section.title: section for section in sections(Trained(rows))}
    assert [p.key for p in by_title["Learning"].panels] == [
        "reward_mean",
        "eval_first_fire_f1",
        "sft/loss",
    ]
    assert [p.key for p in by_title["Health"].panels] == ["grpo/loss"]
    assert [p.key for p in by_title["Other"].panels] == ["odd_counter"]
    assert by_title["Work"].constants == [("Learning rate", "0.001")]
    assert "polygon" in by_title["Learning"].panels[0].svg  # the deviation is a band, not a chart of its own
    assert not any(p.key == "reward_std" for section in by_title.values() for p in section.panels)


def test_steps_that_start_again_go_on_to_the_right() -> None:
    rows = [{"phase": p, "step": s, "x": float(s)} for p in ("sft", "grpo") for s in (1, 2, 3)]
    svg = sections(Trained(rows))[0].panels[0].svg
    places = [float(x) for x in re.findall(r'<circle class="dot" cx="([\d.]+)"', svg)]
    assert places == sorted(set(places)) and len(places) == 6
    assert ">grpo</text>" in svg
