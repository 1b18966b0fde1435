"""Turns that come while a conversation decides: in their order, once each, or dropped with it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from proactor.agent import Agent, AgentError, Decision
from proactor.agent.conversation import Conversation
from proactor.agent.draft import Draft, Proposal
from proactor.engine import EngineError
from tests.proactor.agent.agents import Scripted, load_agent, scripted
from tests.proactor.dialogues import ready


def test_decisions_of_one_conversation_come_one_after_the_other(base: Agent) -> None:
    """Also where the first is given up, and where the one between them is given up before it began."""
    told: list[str] = []

    class Waiting(Scripted):
        gate: asyncio.Event

        async def draft(self, conversation: Conversation, upto: int) -> Draft:
            told.append(f"begins {upto}")
            await self.gate.wait()
            told.append(f"ends {upto}")
            return Draft()

    agent = scripted(base, {})

    async def talk(given_up: tuple[int, ...]) -> list[str]:
        told.clear()
        agent._decider = decider = Waiting({})
        decider.gate = asyncio.Event()
        turns = [asyncio.create_task(agent.observe_async(f"c{given_up}", f"turn {i}")) for i in (1, 2, 3)]
        while not told:
            await asyncio.sleep(0)
        for turn in given_up:
            turns[turn - 1].cancel()
        for _ in range(20):  # whoever may begin does
            await asyncio.sleep(0)
        decider.gate.set()
        await asyncio.wait(turns)
        return list(told)

    one_by_one = [f"{word} {turn}" for turn in (1, 2, 3) for word in ("begins", "ends")]
    assert asyncio.run(talk(())) == one_by_one
    assert asyncio.run(talk((1,))) == ["begins 1", *one_by_one[2:]]
    assert asyncio.run(talk((2,))) == [*one_by_one[:2], *one_by_one[4:]]


class Gated(Scripted):
    """A decider that says when it begins, and waits."""

    def __init__(self, drafts: Mapping[int, Sequence[Proposal]]) -> None:
        super().__init__(drafts)
        self.begun, self.gate = asyncio.Event(), asyncio.Event()

    async def draft(self, conversation: Conversation, upto: int) -> Draft:
        self.begun.set()
        await self.gate.wait()
        return await super().draft(conversation, upto)


class Failing(Scripted):
    """A decider that raises ``fault`` as long as there is one."""

    def __init__(self, drafts: Mapping[int, Sequence[Proposal]], fault: Exception | None) -> None:
        super().__init__(drafts)
        self.fault = fault

    async def draft(self, conversation: Conversation, upto: int) -> Draft:
        if self.fault is not None:
            raise self.fault
        return await super().draft(conversation, upto)


def test_a_decision_of_a_closed_conversation_is_dropped(base: Agent, tmp_path: Path) -> None:
    """The one under way, and the one behind it; neither lands in a conversation opened anew."""
    log = tmp_path / "log.jsonl"
    agent = scripted(base, {}, log)

    async def talk() -> list[Decision | BaseException]:
        agent._decider = decider = Gated({1: [Proposal(ready("status", order="1"))]})
        turns = [asyncio.create_task(agent.observe_async("c", text)) for text in ("a", "b")]
        await decider.begun.wait()
        agent.close("c")
        agent.open("c")
        decider.gate.set()
        return await asyncio.gather(*turns, return_exceptions=True)

    errors = asyncio.run(talk())
    assert [type(error) for error in errors] == [AgentError, AgentError]
    assert str(errors[0]) == "conversation 'c': was closed before turn 1 was decided"
    assert not agent.conversations["c"].acts and agent.counters["refused"] == 2
    assert '"event": "decision"' not in log.read_text() and agent.counters["fires"] == 0


def test_an_idle_conversation_is_closed_but_not_while_it_decides(base: Agent) -> None:
    agent = scripted(base, {})
    now = 0.0
    agent.conversations.clock = lambda: now

    async def talk() -> None:
        nonlocal now
        agent._decider = decider = Gated({})
        turn = asyncio.create_task(agent.observe_async("c", "a"))
        await decider.begun.wait()
        now = 11.0
        agent.close_idle(10)
        assert "c" in agent.conversations
        decider.gate.set()
        await turn

    asyncio.run(talk())
    agent.close_idle(11)
    assert "c" in agent.conversations
    agent.close_idle(10)
    assert "c" not in agent.conversations and agent.counters["closed_idle"] == 1


def test_a_turn_sent_again_by_its_number_is_not_heard_twice(base: Agent) -> None:
    agent = scripted(base, {1: [Proposal(ready("status", order="1"))]})
    first = agent.observe("c", "where is order 1", number=1)
    spoke = agent.observe("c", {"speaker": "agent", "text": "here"}, number=2)
    agent.observe("c", "thanks", number=3)
    assert agent.observe("c", " where is order 1 ", number=1) == first and first.kind == "fire"
    assert agent.observe("c", {"speaker": "agent", "text": "here"}, number=2) == spoke
    for number, text, said in (
        (1, "where is order 2", "turn 1 was heard with another text"),
        (2, "here", "turn 2 was heard with another text"),
        (5, "well", "turn 5: the next one is 4"),
        (0, "well", "turn 0: the next one is 4"),
    ):
        with pytest.raises(AgentError, match=said):
            agent.observe("c", text, number=number)
    assert agent.counters["turns"] == 3 and agent.counters["decisions"] == 2


def test_a_turn_sent_again_waits_for_its_decision(base: Agent) -> None:
    agent = scripted(base, {})

    async def talk() -> list[Decision]:
        agent._decider = decider = Gated({1: [Proposal(ready("status", order="1"))]})
        turns = [asyncio.create_task(agent.observe_async("c", "a", number=1)) for _ in range(2)]
        await decider.begun.wait()
        decider.gate.set()
        decided = await asyncio.gather(*turns)
        decider.begun.clear()
        decider.gate.clear()
        lost = asyncio.create_task(agent.observe_async("c", "b", number=2))
        await decider.begun.wait()
        lost.cancel()
        decider.gate.set()
        again = [agent.observe_async("c", "b", number=2) for _ in range(2)]
        return [*decided, *await asyncio.gather(*again)]

    first, second, lost, once_more = asyncio.run(talk())
    assert first == second and first.fires
    assert lost == once_more and lost.turn == 2 and agent.counters["decisions"] == 2


@pytest.mark.parametrize("fault", [EngineError("no memory"), OSError(28, "No space left on device")])
def test_a_decision_that_failed_is_made_when_its_turn_comes_again(base: Agent, fault: Exception) -> None:
    agent = scripted(base, {})
    agent._decider = decider = Failing({1: [Proposal(ready("status", order="1"))]}, fault)
    for _ in range(2):
        with pytest.raises(type(fault)):
            agent.observe("c", "where is order 1", number=1)
    decider.fault = None
    decision = agent.observe("c", "where is order 1", number=1)
    assert decision.fires and decision == agent.observe("c", "where is order 1", number=1)
    assert agent.counters["turns"] == 1 and agent.counters["decisions"] == 1


def test_one_that_was_not_logged_is_made_too(base: Agent, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    agent = scripted(base, {1: [Proposal(ready("status", order="1"))]}, log)

    async def talk() -> Decision:
        agent._decider = decider = Gated({1: [Proposal(ready("status", order="1"))]})
        turn = asyncio.create_task(agent.observe_async("c", "a", number=1))
        await decider.begun.wait()
        agent.log.file = tmp_path  # a folder: it cannot be written
        decider.gate.set()
        with pytest.raises(OSError):
            await turn
        agent.log.file = log
        return await agent.observe_async("c", "a", number=1)

    assert asyncio.run(talk()).fires and log.read_text().count('"event": "decision"') == 1


def test_a_failed_turn_is_not_decided_behind_a_later_one(base: Agent) -> None:
    agent = scripted(base, {})
    agent._decider = decider = Failing({}, EngineError("no memory"))
    with pytest.raises(EngineError, match="no memory"):
        agent.observe("c", "a", number=1)
    decider.fault = None
    assert agent.observe("c", "b", number=2).decided
    with pytest.raises(AgentError, match=r"^conversation 'c': turn 1 was heard before, and has no decision$"):
        agent.observe("c", "a", number=1)


def test_a_turn_that_is_too_long_stays_refused(run: Path) -> None:
    agent = load_agent(run, log=None, overrides=("engine.deterministic=false", "eval.max_tokens=8"))
    agent.observe("c", "hello", number=1)
    long = "light " * agent.engine.context_length
    for said in ("needs", "has no decision"):
        with pytest.raises(AgentError, match=said):
            agent.observe("c", long, number=2)
    assert agent.observe("c", "hello", number=3).dropped == 1
