"""The routes of a trained agent: turns in, decisions out.

    POST /v1/agent/observe   {"conversation", "speaker", "text", "turn"} -> a `Decision`
    POST /v1/agent/confirm   {"conversation", "act"}                -> the `Decision` that fires it
    POST /v1/agent/reject    {"conversation", "act"}
    POST /v1/agent/result    {"conversation", "act", "content", "ok"}
    POST /v1/agent/close     {"conversation"}

``act`` null: the latest that fits. ``turn`` null: the next one; with its number a turn may be sent again by
a client that lost the answer. What cannot be used is answered with 400 and one line. The agent has an
event loop of its own: it takes locks, encodes prompts and writes its log, none of which may hold up others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from proactor.agent import Agent, Decision
from proactor.engine import Config
from proactor.event_loop import BackgroundLoop
from proactor.server.limits import Limits
from proactor.server.refusals import as_json, busy
from proactor.server.serving import Serving

T = TypeVar("T")
A = TypeVar("A", bound="OfConversation")

LONGEST_ID = 256
"""Characters of a conversation's id."""


class OfConversation(Config):
    """A request about a conversation."""

    conversation: str = Field(min_length=1, max_length=LONGEST_ID)


class Observed(OfConversation):
    """A turn, and its number. ``tools``: those on offer, where it is the first one."""

    speaker: str = "user"
    text: str
    turn: int | None = None
    tools: tuple[str, ...] = ()


class Verdict(OfConversation):
    """What a person made of an action."""

    act: str | None = None


class Outcome(Verdict):
    """How an action went."""

    content: Any = None
    ok: bool = True


def agent_router(agent: Agent, home: BackgroundLoop, limits: Limits) -> APIRouter:
    """The routes of ``agent``, which works in the event loop ``home``."""
    router = APIRouter()

    def add(call: str, kind: type[A], work: Callable[[A], Coroutine[Any, Any, Decision | None]]) -> None:
        @router.post(f"/v1/agent/{call}")
        async def route(request: Request) -> Response:
            serving = Serving.of(request)
            asked = kind(**await serving.fields(request))
            async with serving.place(request):
                decision = await _to_its_end(home, work(asked))
            return as_json({"ok": True} if decision is None else decision.model_dump(mode="json"))

    async def observe(asked: Observed) -> Decision:
        agent.close_idle(limits.conversation_idle)
        open_now = agent.conversations
        if len(open_now) >= limits.max_conversations and asked.conversation not in open_now:
            raise busy(f"{len(open_now)} conversations are open at once, and no more")
        said = {"speaker": asked.speaker, "text": asked.text}
        return await agent.observe_async(asked.conversation, said, tools=asked.tools, number=asked.turn)

    async def confirm(asked: Verdict) -> Decision:
        return agent.confirm(asked.conversation, asked.act)

    async def reject(asked: Verdict) -> None:
        agent.reject(asked.conversation, asked.act)

    async def result(asked: Outcome) -> None:
        agent.result(asked.conversation, asked.content, act=asked.act, ok=asked.ok)

    async def close(asked: OfConversation) -> None:
        agent.close(asked.conversation)

    add("observe", Observed, observe)
    add("confirm", Verdict, confirm)
    add("reject", Verdict, reject)
    add("result", Outcome, result)
    add("close", OfConversation, close)
    return router


async def _to_its_end(home: BackgroundLoop, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work`` in another event loop. What has begun there ends there, whoever stops waiting: a
    turn that was heard is decided, and keeps its place until then.
    """
    done = asyncio.wrap_future(home.submit(work))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done])
        raise
