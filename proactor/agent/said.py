"""A turn as a caller gives it: who speaks, and what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proactor.agent.errors import AgentError
from proactor.dialogue import Speaker, Turn
from proactor.files import valid_utf8
from proactor.sources.messages import INSTRUCTIONS, RESULTS
from proactor.sources.transcript import AGENTS, USERS


@dataclass(frozen=True, slots=True)
class SaidTurn:
    """``name``: the speaker as given. ``speaker`` None: an instruction or a tool's result, no turn."""

    name: str
    speaker: Speaker | None
    text: str


def read_said(turn: Mapping[str, Any] | Turn | str) -> SaidTurn:
    """A turn of any form. Raises AgentError for an unknown speaker, and where there is no text."""
    if isinstance(turn, str):
        turn = {"speaker": "user", "text": turn}
    elif isinstance(turn, Turn):
        turn = {"speaker": turn.speaker, "text": turn.text}
    elif not isinstance(turn, Mapping):
        raise AgentError(f"a turn is text, or a mapping with speaker and text, not {type(turn).__name__}")
    name, text = turn.get("speaker", turn.get("role")), turn.get("text", turn.get("content"))
    if not isinstance(name, str) or not name.strip():
        raise AgentError(f"a turn without a speaker (found {name!r})")
    if not isinstance(text, str):
        raise AgentError(f"a turn of {name!r} without text (found {text!r})")
    plain, text = name.strip().casefold(), valid_utf8(text.strip())
    if plain in INSTRUCTIONS | RESULTS:
        return SaidTurn(name, None, text)
    if plain not in USERS | AGENTS:
        raise AgentError(
            f"speaker {name!r} is not known as user ({', '.join(sorted(USERS))}) or agent "
            f"({', '.join(sorted(AGENTS))})"
        )
    if not text:
        raise AgentError(f"an empty turn of {name!r}")
    return SaidTurn(name, "user" if plain in USERS else "agent", text)
