"""The agent's routes: decisions as JSON, one line with 400 for what cannot be used, and nobody held up."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from proactor.agent import Agent, Decision
from proactor.agent.conversation import Conversation
from proactor.agent.draft import Draft, Proposal
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.event_loop import BackgroundLoop
from proactor.server.agent_routes import agent_router
from proactor.server.limits import Limits
from tests.proactor.agent.agents import Scripted, load_agent, run_folder, scripted
from tests.proactor.dialogues import pending, ready
from tests.proactor.server.served import Served, error
from tests.proactor.server.test_clients import post, until

CATALOG = Catalog(
    tools=(
        Tool(name="status", parameters=(Parameter(name="order"),)),
        Tool(name="cancel", confirm=True, parameters=(Parameter(name="order"),)),
    )
)
DRAFTS = {1: [Proposal(ready("status", order="1"))], 2: [Proposal(pending("cancel", order="1"))]}
OBSERVE = "/v1/agent/observe"
MARKUP = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    agent = load_agent(run_folder(tmp_path_factory.mktemp("routes") / "run", tiny_model, CATALOG), log=None)
    yield agent
    agent.engine.release()


@pytest.fixture
def agent(base: Agent, tmp_path: Path) -> Agent:
    return scripted(base, DRAFTS, tmp_path / "decisions.jsonl")


@pytest.fixture
def served(agent: Agent) -> Iterator[Served]:
    home = BackgroundLoop("agent")
    limits = Limits(max_conversations=2, conversation_idle=60)
    with Served(agent.engine, more=(agent_router(agent, home, limits),), max_body=4096) as served:
        yield served
        served.wait_idle()
    home.close()


def ask(served: Served, call: str, **body: Any) -> tuple[int, str]:
    status, _, answer = served.ask("POST", f"/v1/agent/{call}", {"conversation": "c", **body})
    return status, answer


def test_a_conversation(served: Served) -> None:
    def decision(call: str, **body: Any) -> Decision:
        status, answer = ask(served, call, **body)
        assert status == 200, answer
        return Decision.model_validate_json(answer)

    fired = decision("observe", text="where is order 1", tools=["status", "cancel"])
    assert [(act.id, act.kind, act.name) for act in fired.actions] == [("1.1", "fire", "status")]
    assert ask(served, "result", act="1.1", content={"status": "shipped"}) == (200, '{"ok":true}')
    assert decision("observe", text="then cancel it").kind == "ask"
    assert decision("confirm").fires[0].params == {"order": "1"}
    assert ask(served, "close") == (200, '{"ok":true}')
    assert served.counted("proactor_requests_total", route=OBSERVE, status="200") == 2


@pytest.mark.parametrize(
    ("call", "body", "code", "said"),
    [
        ("observe", {"text": "x", "speaker": "robot"}, 400, "speaker 'robot' is not known"),
        ("observe", {"text": "x", "tools": ["refund"]}, 400, "offers 'refund'"),
        ("observe", {"text": "  "}, 400, "an empty turn of 'user'"),
        ("observe", {"text": 3}, 400, "text=3"),
        ("observe", {"text": "x", "mood": "fine"}, 400, "unknown option 'mood'"),
        ("observe", {"text": "x", "conversation": ""}, 400, "conversation="),
        ("observe", {"text": "x", "conversation": "c" * 257}, 400, "conversation="),
        ("observe", {"text": "x", "conversation": "\ud83d"}, 400, "conversation"),
        ("confirm", {"conversation": "\ud83d"}, 400, "conversation"),
        ("confirm", {"act": {"id": "1.1"}}, 400, "act={'id': '1.1'}"),
        ("observe", {"text": "x", "turn": 2}, 400, "turn 2: the next one is 1"),
        ("observe", {}, 400, "text"),
        ("observe", {"text": "x" * 5000}, 413, "a body of more than 4096 bytes"),
        ("result", {"act": "9.9"}, 400, "is not open"),
        ("confirm", {}, 400, "is not open"),
        ("close", {}, 400, "is not open"),
    ],
)
def test_what_cannot_be_used(served: Served, call: str, body: dict[str, Any], code: int, said: str) -> None:
    status, answer = ask(served, call, **body)
    told = error(answer)["message"]
    assert status == code and said in told and "\n" not in told
    assert served.ask("POST", f"/v1/agent/{call}", b"{}", {"Content-Type": "text/plain"})[0] == 415


def test_actions_that_never_fired_are_refused_and_the_conversation_goes_on(served: Served) -> None:
    ask(served, "observe", text="where is order 1")
    for call, body, said in (
        ("result", {"act": "7.1"}, "result: no action '7.1' (its actions: 1.1)"),
        ("confirm", {}, "confirm: no action was asked"),
        ("confirm", {"act": "1.1"}, "was fired, not asked"),
    ):
        status, answer = ask(served, call, **body)
        assert status == 400 and said in error(answer)["message"]
    assert Decision.model_validate_json(ask(served, "observe", text="then cancel it")[1]).turn == 2


def test_any_result_is_taken(served: Served) -> None:
    """Half of an emoji, and what is nested deeper than it can be logged."""
    ask(served, "observe", text="where is order 1")
    deep = json.loads("[" * 300 + "]" * 300)
    assert ask(served, "result", act="1.1", content={"\ud83d": deep}) == (200, '{"ok":true}')


def test_a_bad_first_turn_opens_nothing_and_tools_may_come_again(served: Served, agent: Agent) -> None:
    assert ask(served, "observe", text="x", speaker="robot", tools=["status"])[0] == 400
    for number in (1, 2):
        assert ask(served, "observe", text="where is order 1", tools=["status"])[0] == 200
        assert len(agent.conversations["c"].turns) == number
    status, answer = ask(served, "observe", text="x", tools=["cancel"])
    assert status == 400 and "is open already, with other tools" in error(answer)["message"]
    assert agent.log.file is not None and agent.log.file.read_text().count("with other tools") == 1


def test_so_many_conversations_are_open_and_idle_ones_are_closed(served: Served, agent: Agent) -> None:
    now = 0.0
    agent.conversations.clock = lambda: now
    for name in ("a", "b"):
        assert ask(served, "observe", conversation=name, text="hello")[0] == 200
    status, answer = ask(served, "observe", conversation="d", text="hello")
    assert status == 429 and "2 conversations are open at once" in error(answer)["message"]
    assert ask(served, "observe", conversation="b", text="I am here")[0] == 200
    now = 59.0
    assert ask(served, "result", conversation="a", act="1.1")[0] == 200  # it is used, b is not
    now = 61.0
    assert ask(served, "observe", conversation="d", text="hello")[0] == 200
    assert "a" in agent.conversations and "b" not in agent.conversations
    assert agent.counters["closed_idle"] == 1
    assert agent.log.file is not None
    [closed] = [line for line in agent.log.file.read_text().splitlines() if '"event": "closed"' in line]
    assert '"conversation": "b", "idle": true' in closed


def test_markup_is_text_and_half_a_character_ends_nothing(served: Served, agent: Agent) -> None:
    status, _, answer = served.ask("POST", OBSERVE, b'{"conversation": "\\ud800", "text": "a"}')
    assert status == 400 and "unicode" in error(answer)["message"]
    status, _, answer = served.ask("POST", OBSERVE, b'{"conversation": "c", "text": "\\udfff"}')
    assert status == 200 and answer.isascii()
    status, headers, answer = served.ask("POST", OBSERVE, {"conversation": "<b>", "text": MARKUP})
    assert status == 200 and headers["content-type"] == "application/json"
    assert agent.log.file is not None
    events = [json.loads(line) for line in agent.log.file.read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events] == ["started", *["opened", "turn", "decision"] * 2]
    assert [event["text"] for event in events if event["event"] == "turn"] == ["?", MARKUP]


class Stuck(Scripted):
    """A decider that holds the thread that it runs in until it may go on, as slow work on a CPU does."""

    def __init__(self) -> None:
        super().__init__(DRAFTS)
        self.begun, self.may_go, self.went = threading.Event(), threading.Event(), list[bool]()

    async def draft(self, conversation: Conversation, upto: int) -> Draft:
        self.begun.set()
        self.went.append(self.may_go.wait(10))
        return await super().draft(conversation, upto)


def test_a_slow_decision_holds_up_no_other_request(served: Served, agent: Agent) -> None:
    agent._decider = stuck = Stuck()
    answers: list[tuple[int, str]] = []
    asking = threading.Thread(target=lambda: answers.append(ask(served, "observe", text="where is order 1")))
    asking.start()
    try:
        assert stuck.begun.wait(30)
        assert served.ask("GET", "/health")[0] == 200 and served.ask("GET", "/v1/models")[0] == 200
    finally:
        stuck.may_go.set()
        asking.join()
    assert stuck.went == [True] and answers[0][0] == 200


def test_an_agent_that_is_locked_elsewhere_holds_up_no_other_request(served: Served, agent: Agent) -> None:
    """A thread of the same process, or a log on a slow disk."""
    ask(served, "observe", text="where is order 1")
    for call, body in (("observe", {"text": "and now"}), ("result", {}), ("reject", {}), ("close", {})):
        with agent._lock, served.connect() as connection:
            connection.sendall(post(f"/v1/agent/{call}", {"conversation": "c", **body}))
            until(lambda: served.serving.taken == 1)
            assert served.ask("GET", "/health")[0] == 200
        served.wait_idle()


def test_a_turn_that_was_heard_is_decided_whoever_leaves(served: Served, agent: Agent) -> None:
    """And it keeps its place until then, so that leaving gives nobody more than their share."""
    agent._decider = stuck = Stuck()
    with served.connect() as connection:
        connection.sendall(post(OBSERVE, {"conversation": "c", "text": "where is order 1"}))
        assert stuck.begun.wait(30)
    until(lambda: any(visit.gone for visit in served.serving._visits) or stuck.went)
    assert not stuck.went and served.serving.taken == 1
    stuck.may_go.set()
    served.wait_idle()
    assert agent.log.file is not None and '"event": "decision"' in agent.log.file.read_text()
    sent_again = ask(served, "observe", text="where is order 1", turn=1)
    assert sent_again[0] == 200 and Decision.model_validate_json(sent_again[1]).fires[0].id == "1.1"
    assert ask(served, "result", act="1.1")[0] == 200
