"""The routes of a trained agent: turns in, decisions out.

    POST /v1/agent/observe   {"conversation", "speaker", "text"}    -> a `Decision`
    POST /v1/agent/confirm   {"conversation", "act"}                -> the `Decision` that fires it
    POST /v1/agent/reject    {"conversation", "act"}
    POST /v1/agent/result    {"conversation", "act", "content", "ok"}
    POST /v1/agent/close     {"conversation"}

``act`` null: the latest that fits. What cannot be used is answered with 400 and one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from proactor.agent import Agent, Decision
from proactor.engine import ProactorError


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    conversation: str = Field(min_length=1)


class Observed(_Request):
    """A turn. ``tools``: those on offer, where it is the first one."""

    speaker: str = "user"
    text: str
    tools: tuple[str, ...] = ()


class Answer(_Request):
    """What a person made of an action."""

    act: str | None = None


class Outcome(Answer):
    """How an action went."""

    content: Any = None
    ok: bool = True


def add_agent_routes(router: APIRouter, agent: Agent) -> APIRouter:
    """Add the routes of ``agent`` to ``router``."""

    @router.post("/v1/agent/observe", response_model=None)
    async def observe(asked: Observed) -> JSONResponse:
        try:
            if asked.tools:
                agent.open(asked.conversation, asked.tools)
            turn = {"speaker": asked.speaker, "text": asked.text}
            return _decided(await agent.observe_async(asked.conversation, turn))
        except ProactorError as error:
            return _refused(error)

    @router.post("/v1/agent/confirm", response_model=None)
    async def confirm(asked: Answer) -> JSONResponse:
        try:
            return _decided(agent.confirm(asked.conversation, asked.act))
        except ProactorError as error:
            return _refused(error)

    @router.post("/v1/agent/reject", response_model=None)
    async def reject(asked: Answer) -> JSONResponse:
        return _told(lambda: agent.reject(asked.conversation, asked.act))

    @router.post("/v1/agent/result", response_model=None)
    async def result(asked: Outcome) -> JSONResponse:
        return _told(lambda: agent.result(asked.conversation, asked.content, act=asked.act, ok=asked.ok))

    @router.post("/v1/agent/close", response_model=None)
    async def close(asked: _Request) -> JSONResponse:
        return _told(lambda: agent.close(asked.conversation))

    return router


def _decided(decision: Decision) -> JSONResponse:
    return JSONResponse(decision.model_dump(mode="json"))


def _told(call: Callable[[], None]) -> JSONResponse:
    try:
        call()
    except ProactorError as error:
        return _refused(error)
    return JSONResponse({"ok": True})


def _refused(error: ProactorError) -> JSONResponse:
    return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)
