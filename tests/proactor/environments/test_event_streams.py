"""The gym of event streams with a scripted judge: verdicts, pay, endings, and which streams are held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue.event_streams import Judged, fifth, joined, stream_name
from proactor.environments.errors import EpisodeOver, GymError
from proactor.environments.gyms.catalog import open_gym
from proactor.environments.gyms.event_streams import EventsGym, proposal, question, read_verdict, verdict
from proactor.environments.protocol import Call
from proactor.files import SourceError
from tests.proactor.environments.test_guessing import Scripted


def line(count: int, task: str | None = None, valid: bool | None = True, stream: str = "a") -> dict[str, Any]:
    """A judged line after ``count`` events of a stream."""
    obs = [{"time": str(i), "event": f"{stream} does {i}"} for i in range(count)]
    return {"obs": obs, "pred_task": task, "valid": valid, "category": "x"}


def write(folder: Path, *lines: dict[str, Any]) -> Path:
    (folder / "judged.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def gym(folder: Path, user: Scripted, **options: Any) -> EventsGym:
    return EventsGym(write(folder, line(3), *(line(2, stream=s) for s in "bcdefg")), user, **options)


def propose(task: Any) -> Call:
    return Call("propose", arguments={"task": task})


def named(made: EventsGym, stream: str) -> str:
    """The tasks' name of a stream."""
    return stream_name((("0", f"{stream} does 0"),))


# -- a stream ---


def test_a_stream_is_judged_event_by_event(tmp_path: Path) -> None:
    user = Scripted("accepted", "Rejected.", "I accept it")
    made = gym(tmp_path, user, unit="stream", pay="priced")
    world = made.make(named(made, "a"))
    opening = world.reset(0)
    assert opening.messages[-1]["content"] == "[0] a does 0"
    assert [tool["function"]["name"] for tool in opening.tools] == ["propose", "wait"]
    outcomes = [world.step(call) for call in (propose("sing"), Call("wait"), propose("dance"))]
    assert [o.reward for o in outcomes] == [1.0, -0.5, 1.0]
    assert [o.info["verdict"] for o in outcomes] == ["TP", "FN", "TP"]
    assert [o.observation for o in outcomes] == ["[1] a does 1", "[2] a does 2", "No more events."]
    assert [o.terminated for o in outcomes] == [False, False, True]
    assert outcomes[-1].info["score"] == pytest.approx(2 / 3) and not outcomes[-1].info["solved"]
    assert "a does 1" not in user.asked[0] and "a does 1" in user.asked[1]
    assert "Proposed task: sing" in user.asked[0] and "Proposed task: null" in user.asked[1]
    with pytest.raises(EpisodeOver):
        world.step(Call("wait"))


def test_one_event_is_a_bandit_that_has_seen_all_before_it(tmp_path: Path) -> None:
    made = gym(tmp_path, Scripted("accepted"))
    world = made.make(named(made, "a") + "/3")
    assert world.reset(0).messages[-1]["content"] == "[0] a does 0\n[1] a does 1\n[2] a does 2"
    outcome = world.step(Call("wait"))
    assert outcome.terminated and outcome.reward == 1 and outcome.info["solved"]
    assert outcome.info["verdict"] == "TN"


def test_nonsense_rejects_and_is_counted_and_an_unknown_tool_is_not_judged(tmp_path: Path) -> None:
    user = Scripted("accepted or rejected, who knows")
    made = gym(tmp_path, user, unit="stream", pay="priced")
    world = made.make(named(made, "a"))
    world.reset(0)
    first, second = world.step(propose("sing")), world.step(Call("shout"))
    assert first.info == {"score": 0, "solved": False, "verdict": "FP", "nonsense": 1}
    assert user.counters["nonsense"] == 1 and first.reward == -1
    assert second.reward == 0 and second.info["verdict"] == "" and len(user.asked) == 1


@pytest.mark.parametrize("task", [None, "null", "Null", " ", "None"])
def test_a_null_proposal_is_silence(task: str | None) -> None:
    assert proposal(propose(task)) is None and proposal(propose("find null pointers")) == "find null pointers"


def test_verdicts() -> None:
    assert [verdict(t, v) for t in ("x", None) for v in (True, False)] == ["TP", "FP", "TN", "FN"]
    assert [read_verdict(s) for s in ("ACCEPTED", "rejected", "yes", "accept; reject")] == [
        True,
        False,
        None,
        None,
    ]


@pytest.mark.parametrize(
    "said",
    [
        "I would not accept this.",
        "Not accepted",
        "The task is not acceptable.",
        "I can’t accept it; it is of no value",
        "I do not, under any circumstances, accept it",
        "do not reject",
        "Unacceptable",
        "",
    ],
)
def test_what_a_judge_does_not_do_is_no_verdict(said: str) -> None:
    assert read_verdict(said) is None


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("**Accepted**", True),
        ("Accepted. I would not reject it", True),
        ("The user would accept this.", True),
        ("Rejected, since I do not accept it", False),
        ("It is not useful, so rejected", False),
        ("It is not of value, rejected.", False),
        ("Verdict: rejected", False),
    ],
)
def test_a_verdict_stands_first_or_is_mentioned_without_a_negation(said: str, accepted: bool) -> None:
    assert read_verdict(said) is accepted


def test_questions_of_a_stream_begin_alike() -> None:
    one, two = question((("0", "a"), ("1", "b")), "x"), question((("0", "a"), ("1", "b")), None)
    assert one.partition("Proposed task")[0] == two.partition("Proposed task")[0]


# -- tasks ---


def test_a_fixed_fifth_of_the_streams_is_held_out(tmp_path: Path) -> None:
    made = gym(tmp_path, Scripted())
    streams = {named(made, s) for s in "abcdefg"}
    tests = {name.rpartition("/")[0] for name in made.tasks("test")}
    assert tests == fifth(streams) and len(tests) == 1
    assert not tests & {name.rpartition("/")[0] for name in made.tasks("train")}
    whole = gym(tmp_path, Scripted(), unit="stream")
    assert set(whole.tasks("test")) == tests and len(whole.tasks("all")) == 7


def test_prefixes_are_one_stream_and_null_is_null() -> None:
    lines = [Judged.model_validate(line(n, "null", None)) for n in (1, 3, 2)]
    assert all(one.pred_task is None for one in lines)
    assert [(len(events), len(of)) for events, of in joined(lines).items()] == [(3, 3)]


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(GymError, match="unit='day'"):
        gym(tmp_path, Scripted(), unit="day")
    with pytest.raises(GymError, match=r"gym\.user: the events gym needs it"):
        open_gym({"name": "events", "path": tmp_path})
    (tmp_path / "judged.jsonl").write_text(json.dumps(line(1) | {"obs": []}) + "\n")
    with pytest.raises(SourceError, match=r"judged\.jsonl:1: obs: "):
        EventsGym(tmp_path, Scripted())
