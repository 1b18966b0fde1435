"""What becomes of proposals: fired, asked about, held back; what people make of them; what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.agent import Agent, AgentError
from proactor.agent.draft import Proposal
from proactor.annotation import annotate
from proactor.annotation.log_oracle import LogOracle
from proactor.calibration.thresholds import Thresholds
from proactor.catalogs import write_catalog
from proactor.commands.agent import take_line
from proactor.config_base import ConfigError
from proactor.dialogue.agent_log import Answered, read_events
from proactor.dialogue.catalog import Catalog, Tool
from proactor.files import SourceError
from proactor.report.agent_page import write_agent_report
from proactor.sources import load
from tests.proactor.agent.agents import CATALOG, load_agent, run_folder, scripted
from tests.proactor.dialogues import pending, ready


def nested(levels: int) -> list[Any]:
    return json.loads("[" * levels + "]" * levels)  # type: ignore[no-any-return]


def near_why(agent: Agent, *proposals: Any) -> list[str]:
    decision = scripted(agent, {1: [Proposal(p) for p in proposals]}).observe("c", "hello")
    assert decision.kind == "wait" and not decision.actions
    assert all(near.why in decision.reason for near in decision.near)
    return [near.why for near in decision.near]


def test_what_is_no_action_of_a_tool_is_held_back_with_its_reason(base: Agent) -> None:
    assert near_why(base, ready("refund", order="1")) == ["no such tool on offer"]
    assert near_why(base, ready("status"), pending("cancel")) == ["order missing", "order missing"]
    assert near_why(base, ready("coffee", size="huge")) == ["size: 'huge' is none of small, large"]
    assert near_why(base, ready("status", order="1", colour="red")) == ["it has no parameter 'colour'"]
    assert near_why(base, pending("status", order="1")) == ["announced, not ready"]
    fine = scripted(base, {1: [Proposal(ready("coffee", size="Large"))]}).observe("c", "hello")
    assert fine.kind == "fire" and fine.action is not None and fine.action.params == {"size": "Large"}


def test_nothing_fires_twice_unless_it_failed(base: Agent) -> None:
    again = [Proposal(ready("status", order="1"))]
    agent = scripted(base, {1: again, 2: again, 3: again, 4: again})
    first = agent.observe("c", "a").action
    assert first is not None and first.id == "1.1"
    assert [near.why for near in agent.observe("c", "b").near] == ["fired before (1.1)"]
    agent.result("c", "timed out", act="1.1", ok=False)
    assert agent.conversations["c"].own.board.entries == ()
    assert agent.observe("c", "c").kind == "fire"
    agent.result("c", "shipped")
    assert [near.why for near in agent.observe("c", "d").near] == ["done before (3.1)"]


def test_an_ask_is_made_once_and_fires_when_it_is_confirmed(base: Agent) -> None:
    asks = [Proposal(pending("cancel", order="7"))]
    agent = scripted(base, {1: asks, 2: asks})
    assert agent.observe("c", "cancel order 7").kind == "ask"
    assert [near.why for near in agent.observe("c", "well").near] == ["asked before (1.1)"]
    fired = agent.confirm("c")
    assert fired.kind == "fire" and [act.params for act in fired.fires] == [{"order": "7"}]
    assert agent.conversations["c"].own.board.render() == 'Board: [{"TRIGGERED":"cancel","order":"7"}]'
    with pytest.raises(AgentError, match=r"^conversation 'c': confirm: no action was asked$"):
        agent.confirm("c")


def test_a_ready_answer_fires_what_was_asked_once_and_a_rejected_one_is_left(base: Agent) -> None:
    again = [Proposal(ready("cancel", order="7"))]
    agent = scripted(base, {1: [Proposal(pending("cancel", order="7"))], **dict.fromkeys(range(2, 7), again)})
    agent.observe("yes", "cancel order 7")
    assert agent.observe("yes", "yes").kind == "fire"
    assert [near.why for near in agent.observe("yes", "yes").near] == ["fired before (2.1)"]
    with pytest.raises(AgentError, match=r"confirm: no action was asked$"):
        agent.confirm("yes")
    agent.result("yes", "timed out", ok=False)
    assert agent.observe("yes", "again").kind == "fire"
    agent.reject("yes")
    assert [near.why for near in agent.observe("yes", "no").near] == ["rejected before (4.1)"]
    with pytest.raises(AgentError, match=r"result: cancel \(1.1\) was replaced, not fired$"):
        agent.result("yes", act="1.1")
    agent.observe("no", "cancel order 7")
    agent.reject("no")
    assert [near.why for near in agent.observe("no", "no").near] == ["rejected before (1.1)"]


def test_what_cannot_be_used_is_one_line_and_the_log_keeps_it(base: Agent, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    agent = scripted(base, {2: [Proposal(ready("status", order="1"))]}, log)
    agent.observe("c", "hello")
    faults = {
        "speaker 'robot' is not known as user": lambda: agent.observe(
            "c", {"speaker": "robot", "text": "beep"}
        ),
        "an empty turn of 'user'": lambda: agent.observe("c", "  "),
        "a turn without a speaker": lambda: agent.observe("c", {"text": "x"}),
        "without text": lambda: agent.observe("c", {"speaker": "user", "text": 3}),
        "result: no action was fired": lambda: agent.result("c", "late"),
        "confirm: no action '9.9'": lambda: agent.confirm("c", "9.9"),
        "reject: is not open": lambda: agent.reject("nobody"),
        "offers 'refund', which is none of": lambda: agent.open("other", ["refund"]),
    }
    for said, fault in faults.items():
        with pytest.raises(AgentError) as error:
            fault()
        assert said in str(error.value) and "\n" not in str(error.value)
        assert str(error.value).startswith("conversation ")
    decision = agent.observe("c", {"role": "customer", "content": "where is order 1"})
    assert decision.turn == 2 and decision.kind == "fire" and agent.counters["refused"] == len(faults)
    with pytest.raises(AgentError, match=r"result: status \(2.1\) was done, not fired"):
        agent.result("c", "ok", act="2.1")
        agent.result("c", "ok", act="2.1")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    refused = [line for line in lines if line["event"] == "refused"]
    assert refused[0]["error"].startswith("conversation 'c': speaker 'robot'")
    assert refused[0]["given"] == {"speaker": "robot", "text": "beep"} and len(refused) == len(faults) + 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('"conversation": "c", "confirm": {"id": "1.1"}', "confirm: no action {'id': '1.1'}"),
        ('"conversation": "c", "reject": [1]', r"reject: no action [1] (its actions: 1.1)"),
        ('"conversation": "c", "result": 1.1', "result: no action 1.1"),
        (r'"conversation": "\ud83d", "speaker": "user", "text": "a"', "its id is no UTF-8"),
        (r'"conversation": "\ud83d", "speaker": "robot", "text": "a"', "speaker 'robot' is not known"),
        (r'"conversation": "\ud83d", "confirm": null', "confirm: is not open"),
        (r'"conversation": "c", "speaker": "user", "text": {"\ud83d": 1}', "without text"),
        (f'"conversation": "c", "speaker": "user", "text": {"[" * 300}{"]" * 300}', "without text"),
    ],
)
def test_a_line_that_is_no_use_is_refused_and_the_next_one_is_heard(
    base: Agent, tmp_path: Path, line: str, said: str
) -> None:
    log = tmp_path / "log.jsonl"
    agent = scripted(base, {1: [Proposal(ready("status", order="1"))]}, log)
    agent.observe("c", "where is order 1")
    with pytest.raises(AgentError) as error:
        take_line(agent, f"{{{line}}}".encode(), "line 2")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert (
        take_line(agent, b'{"conversation": "c", "speaker": "user", "text": "thanks"}', "line 3")["turn"] == 2
    )
    assert len(agent.conversations) == 1
    assert [event.event for _, event in read_events(log)][-3:] == ["refused", "turn", "decision"]


def test_tool_results_and_instructions_are_no_turns(base: Agent) -> None:
    agent = scripted(base, {})
    agent.observe("c", "hello")
    for role in ("tool", "system", "developer"):
        assert not agent.observe("c", {"role": role, "content": "x"}).decided
    assert agent.observe("c", "again").turn == 2 and agent.counters["left_out"] == 3


def test_the_oldest_turns_are_dropped_where_the_context_is_full(run: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    agent = load_agent(run, log=log, overrides=("engine.deterministic=false", "eval.max_tokens=8"))
    long = "remind me to water the plants at the office on friday morning please " * 2
    decisions = [agent.observe("c", f"{i} {long}") for i in range(24)]
    dropped = [d.dropped for d in decisions]
    assert dropped[0] == 0 and dropped == sorted(dropped) and 0 < dropped[-1] < 23
    assert agent.counters["dropped_turns"] == dropped[-1] and [d.turn for d in decisions] == list(
        range(1, 25)
    )
    assert len(agent.conversations["c"].dialogue(24).turns) == 24 - dropped[-1]
    with pytest.raises(AgentError, match=r"^conversation 'c': turn 25 needs \d+ tokens .* context has 1024"):
        agent.observe("c", long * 40)
    assert agent.counters["dropped_turns"] == dropped[-1] + 1
    short = agent.observe("c", "short")
    assert (short.turn, short.dropped) == (26, dropped[-1] + 1)
    read = [turn.text for turn in agent.conversations["c"].dialogue(26).turns]
    assert read == [*(f"{i} {long}".strip() for i in range(dropped[-1], 24)), "short"]
    later = [agent.observe("c", f"{i} {long}").dropped for i in range(26, 50)]  # the one left out counts once
    assert later == sorted(later) and agent.counters["dropped_turns"] == later[-1]
    assert len(agent.conversations["c"].dialogue(50).turns) == 50 - later[-1]
    said = [line for line in log.read_text().splitlines() if '"event": "turn"' in line]
    assert len(said) == 50


def test_a_log_is_read_again_as_transcripts(base: Agent, tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    drafts = {
        1: [Proposal(ready("status", order="1"), 0.9, 0.5), Proposal(ready("coffee", size="small"))],
        3: [Proposal(pending("cancel", order="1"))],
    }
    agent = scripted(base, drafts, log)
    for name in ("kept", "rejected"):
        agent.observe(name, "where is order 1 <script>alert(1)</script>")
        agent.result(name, {"status": "shipped"}, act="1.1")
        agent.observe(name, {"speaker": "agent", "text": "on its way"})
        agent.observe(name, "then cancel order 1")
        if name == "kept":
            agent.confirm(name)
        else:
            agent.reject(name, "1.2")
            agent.reject(name, "3.1")
        agent.close(name)
        agent.observe(name, "me again")
    corpus_tools = tmp_path / "catalog.json"
    write_catalog(CATALOG, corpus_tools)
    corpus = load("jsonl", log, one_speaker="keep")
    found = {d.id: [(r.name, r.params, r.observed_trigger) for r in d.references] for d in corpus.dialogues}
    status, coffee = ("status", {"order": "1"}, 1), ("coffee", {"size": "small"}, 1)
    assert found == {
        "kept": [status, coffee, ("cancel", {"order": "1"}, 3)],
        "kept#2": [status, coffee],
        "rejected": [status],
        "rejected#2": [status, coffee],
    }
    assert corpus.counters["fires_rejected"] == 1
    report = annotate(load("jsonl", log).dialogues, CATALOG, LogOracle(), tmp_path / "windows")
    assert report["dialogues"]["kept"] == 2
    page = write_agent_report(log).read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    for words in ("0.900 of 0.500", "cancel: the user agreed, fired", "shipped", "kept#2", "me again"):
        assert words in page
    log.write_text(log.read_text() + '{"event": "turn", "conversation": "kept"}\n')
    with pytest.raises(SourceError, match=r"decisions.jsonl:\d+: "):
        load("jsonl", log)


def test_folders_that_are_no_run_of_these_tools_are_refused(
    run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(AgentError, match=r"no run \(no config.yaml there"):
        Agent.load(tmp_path)
    with pytest.raises(ConfigError, match="no adapter there"):
        Agent.load(run)
    other = tmp_path / "tools.json"
    for changed, said in (
        ([*CATALOG.tools, Tool(name="refund")], "'refund' is not among the tools that"),
        ([*CATALOG.tools[1:], Tool(name="status")], r"status has the parameters \(none\)"),
        (CATALOG.tools[1:], "lacks 'status'"),
    ):
        write_catalog(Catalog(tools=tuple(changed)), other)
        with pytest.raises(AgentError, match=said):
            Agent.load(run, adapter="none", tools=other)
    odd = run_folder(tmp_path / "odd", tiny_model, CATALOG, Thresholds(tools={"refund": 0.5}))
    with pytest.raises(AgentError, match="threshold of 'refund', which is none of the run's tools"):
        Agent.load(odd, adapter="none", thresholds=odd / "thresholds.json")
    with pytest.raises(AgentError, match="a greedy agent uses none"):
        Agent.load(run, adapter="none", thresholds="x.json", greedy=True)


def test_two_agents_write_one_log(base: Agent, tmp_path: Path) -> None:
    """As `serve` and `run` do in a run's folder: what each does goes on after the other began."""
    log = tmp_path / "decisions.jsonl"
    drafts = {1: [Proposal(ready("status", order="1"))], 2: [Proposal(pending("cancel", order="1"))]}
    one = scripted(base, drafts, log)
    one.observe("c", "where is order 1")
    other = scripted(base, drafts, log)
    other.observe("c", "where is order 1")
    one.result("c", "shipped", act="1.1")
    one.observe("c", "cancel it")
    other.reject("c", "1.1")
    one.confirm("c", "2.1")
    write_catalog(CATALOG, tmp_path / "catalog.json")
    found = {d.id: [r.name for r in d.references] for d in load("jsonl", log, one_speaker="keep").dialogues}
    assert found == {"c": ["status", "cancel"], "c#2": []}


@pytest.mark.parametrize(
    ("content", "logged"),
    [
        (b"\xff", "b'\\xff'"),
        ({"page": [b"ok", (1, 2)]}, {"page": ["b'ok'", [1, 2]]}),
        ({b"\xff": 10**400, "n": 10**298}, {"b'\\xff'": hex(10**400), "n": 10**298}),
        (-(10**5000), hex(-(10**5000))),
        ({"\ud83d": ["\ud83d"]}, {"?": ["?"]}),
        (nested(199), nested(199)),
        (nested(300), "list, nested too deeply"),
    ],
    ids=["bytes", "nested", "keys", "integer", "half of an emoji", "deep", "too deep"],
)
def test_whatever_a_tool_gives_the_log_stays_readable(
    base: Agent, tmp_path: Path, content: Any, logged: Any
) -> None:
    log = tmp_path / "decisions.jsonl"
    agent = scripted(base, {1: [Proposal(ready("status", order="1"))]}, log)
    with pytest.raises(AgentError, match=r"a turn is|a turn without a speaker"):
        agent.observe("c", content)
    agent.observe("c", "where is order 1")
    agent.result("c", content)
    [*_, (_, event)] = read_events(log)
    assert isinstance(event, Answered) and event.content == logged
