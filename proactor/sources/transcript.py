"""A record of our own forms as a dialogue: who speaks, which turns count, where its actions stand.

- a dialogue as `Dialogue.model_dump(mode="json")` gives it, with references (what `annotate` writes) and what
  people decided about them (`sources.reviewed`), or
- a transcript: ``{"id": …, "turns": [{"speaker": …, "text": …}, …]}``, with or without a log of actions
  (``references``). Turns stay unchanged, also two of one speaker in a row. Speakers go by the option
  `speakers`, else by common names (`USERS`, `AGENTS`). Other keys of a line are ignored and counted
  (``ignored_keys``), or
- OpenAI's ``{"messages": [...]}`` (`sources.messages`).

In transcripts

- ``system`` is the agent only where no other agent speaks, as in corpora of user and system. Beside an
  assistant it gives instructions: its turns are left out and counted as `system_messages`, and so are those
  of a ``developer``; results of a ``tool`` or ``function`` are left out as `tool_messages`, turns of speakers
  to `drop` as `dropped_speakers`;
- values that are no text (numbers) are taken as text;
- ``tools`` are those on offer, by name or as definitions, of which only the names are read here;
- an `observed_trigger` on an agent's turn moves to the last user turn before it (`triggers_moved`), since the
  agent decides after user turns. An action before the user spoke is left out (`actions_before_user`).

A dialogue with one speaker has no agent to decide, or nothing to decide on. It is dropped, named in
`TranscriptReader.dropped` and counted as `no_user_turns` or `no_agent_turns`, unless the option `one_speaker`
says otherwise [INFERRED].
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from proactor.dialogue import Dialogue, Speaker, Turn
from proactor.files import SourceError, valid_utf8
from proactor.sources import action_log, messages, reviewed
from proactor.sources.base import Malformed

USERS = frozenset("user customer human client caller member patient guest visitor".split())
AGENTS = frozenset(
    "agent assistant system bot chatbot ai model operator advisor adviser representative rep support "
    "staff".split()
)
SYSTEM = frozenset({"system"})
"""Speakers that are the agent only where no other one is."""
EVERYONE_ELSE = "*"

KEYS = {"id", "turns", *Dialogue.model_fields}
TURN_KEYS = {"speaker", "text", "index", "role", "content"}
"""What is read of a transcript, and of a turn of it."""

Role = Literal["user", "agent", "drop"]


class Speakers(BaseModel):
    """Who is the user and who the agent, by name, in any case; these names come before the common ones.

    ``drop``: speakers whose turns are left out. ``"*"`` stands for every name that is not known otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: tuple[str, ...] = ()
    agent: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Speakers:
        names = [_plain(name) for name in (*self.user, *self.agent, *self.drop)]
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise ValueError(f"speaker {twice!r} is named twice")
        return self

    def named(self, name: str) -> Role | None:
        """The role that is given to ``name`` itself."""
        roles: tuple[Role, ...] = ("user", "agent", "drop")
        return next((role for role in roles if _plain(name) in map(_plain, getattr(self, role))), None)

    def role(self, name: str) -> Role | None:
        """The role of the speaker called ``name``; None where it is not known."""
        if (role := self.named(name)) is not None:
            return role
        plain = _plain(name)
        if plain in USERS:
            return "user"
        return "agent" if plain in AGENTS else self.named(EVERYONE_ELSE)


class TranscriptOptions(BaseModel):
    """How transcripts are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: str | None = Field(
        default=None,
        description="the user's name in transcripts; who is not known as a user is then an agent",
    )
    speakers: Speakers = Field(
        default=Speakers(), description='names by role: {user: [Zoe], agent: ["*"], drop: [event]}'
    )
    empty: Literal["error", "drop"] = Field(
        default="error", description="what becomes of a turn without text"
    )
    one_speaker: Literal["drop", "keep", "error"] = Field(
        default="drop", description="what becomes of a dialogue without user turns, or without agent turns"
    )
    undecided: Literal["keep", "mask"] = Field(
        default="keep", description="what becomes of a window that no reviewer accepted"
    )


class TranscriptReader:
    """Builds dialogues of records. ``losses``: what was left out of the one that was read last; the caller
    empties it. ``dropped``: by id, why a dialogue was not kept.
    """

    def __init__(self, options: TranscriptOptions, counters: Counter[str]) -> None:
        self.options = options
        self.counters = counters
        self.dropped: dict[str, str] = {}
        self.losses: list[str] = []

    def role(self, name: str) -> Role | None:
        """The role of the speaker called ``name``; None where it is not known."""
        if self.options.user is not None and _plain(name) == _plain(self.options.user):
            return "user"
        role = self.options.speakers.role(name)
        if role is None and self.options.user is not None:
            return "agent"
        return role

    def dialogue(self, record: dict[str, Any], counters: Counter[str]) -> Dialogue:
        """The dialogue of a record of any form; its actions are not compared with tools. Raises Malformed,
        pydantic's ValidationError or KeyError (`base.convert`).
        """
        if messages.is_chat(record):
            record = messages.as_transcript(
                record, counters, self.losses, lambda name: self.role(name) == "user"
            )
        record = action_log.values_as_text(record, counters)
        listed = record["turns"]
        if not isinstance(listed, list) or not all(isinstance(turn, dict) for turn in listed):
            raise Malformed("`turns` is not a list of objects")
        complete = bool(listed) and all("index" in turn for turn in listed)
        dialogue = self._annotated(record) if complete else self._transcript(record, listed)
        return self._without_empty(dialogue)

    def keeps(self, where: str, dialogue: Dialogue) -> bool:
        """Whether both speakers occur or ``one_speaker`` lets one pass. May raise SourceError."""
        speakers = {turn.speaker for turn in dialogue.turns}
        missing = next((name for name in ("user", "agent") if name not in speakers), None)
        if missing is None:
            return True
        if self.options.one_speaker == "error":
            raise SourceError(f"{where}: dialogue {dialogue.id!r} has no {missing} turns")
        self.counters[f"no_{missing}_turns"] += 1
        if self.options.one_speaker == "keep":
            return True
        self.dropped[dialogue.id] = f"no {missing} turns"
        return False

    def _annotated(self, record: dict[str, Any]) -> Dialogue:
        accepted_only = self.options.undecided == "mask"
        return Dialogue.model_validate(reviewed.plain(record, self.counters, accepted_only=accepted_only))

    def _transcript(self, record: dict[str, Any], listed: list[dict[str, Any]]) -> Dialogue:
        turns: list[Turn] = []
        places = [0]  # the number of turns kept up to each turn
        instructed = self._has_instructions(listed)
        for index, turn in enumerate(listed, start=1):
            text = turn.get("text", turn.get("content"))
            if not isinstance(text, str):
                raise Malformed(f"turn {index}: no text (found {text!r})")
            name = speaker_name(turn, index)
            if (left_out := self._left_out(name, text, instructed)) is not None:
                self.counters[left_out] += 1
            else:
                speaker = self._speaker(name, index)
                turns.append(Turn(index=len(turns) + 1, speaker=speaker, text=valid_utf8(text.strip())))
                self.counters["broken_characters"] += turns[-1].text != text.strip()
            places.append(len(turns))
            self.counters["ignored_keys"] += len(turn.keys() - TURN_KEYS)
        self.counters["ignored_keys"] += len(record.keys() - KEYS)
        known = {key: value for key, value in record.items() if key in KEYS}
        if isinstance(known.get("tools"), list):
            known["tools"] = messages.tool_names(known["tools"])
        for kind in action_log.KINDS:
            if isinstance(known.get(kind), list):
                known[kind] = action_log.placed(known[kind], turns, places, self.counters, self.losses)
        return Dialogue.model_validate({"source": "jsonl", **known, "turns": tuple(turns)})

    def _left_out(self, name: str, text: str, instructed: bool) -> str | None:
        """The counter of a turn that is none: a speaker to drop, an instruction, a tool's result, an empty
        turn to drop.
        """
        named, plain = self.options.speakers.named(name), _plain(name)
        if named is None and plain in messages.RESULTS:
            return "tool_messages"
        if named is None and (plain in messages.INSTRUCTIONS - SYSTEM or (instructed and plain in SYSTEM)):
            return "system_messages"
        if self.role(name) == "drop":
            return "dropped_speakers"
        return "empty_turns" if self.options.empty == "drop" and _is_blank(text) else None

    def _has_instructions(self, listed: list[dict[str, Any]]) -> bool:
        """Whether `system` is not the agent: another one speaks."""
        names = {_plain(speaker_name(turn, index)) for index, turn in enumerate(listed, start=1)}
        names -= messages.RESULTS | (messages.INSTRUCTIONS - SYSTEM)
        return bool(names & SYSTEM) and any(self.role(name) == "agent" for name in names - SYSTEM)

    def _speaker(self, name: str, index: int) -> Speaker:
        role = self.role(name)
        if role is None or role == "drop":
            raise Malformed(
                f"turn {index}: speaker {name!r} is not known as user ({', '.join(sorted(USERS))}) or agent "
                f"({', '.join(sorted(AGENTS))}); the option `user` names the user, `speakers` both"
            )
        return role

    def _without_empty(self, dialogue: Dialogue) -> Dialogue:
        kept = [turn for turn in dialogue.turns if not _is_blank(turn.text)]
        if len(kept) == len(dialogue.turns):
            return dialogue
        first = next(turn.index for turn in dialogue.turns if turn not in kept)
        if self.options.empty == "error":
            raise Malformed(f"turn {first} is empty; the option empty=drop leaves such turns out")
        if dialogue.references or dialogue.withdrawn:
            raise Malformed(f"turn {first} is empty and cannot be dropped: the windows count on it")
        self.counters["empty_turns"] += len(dialogue.turns) - len(kept)
        turns = tuple(turn.model_copy(update={"index": i}) for i, turn in enumerate(kept, start=1))
        return Dialogue.model_validate({**dict(dialogue), "turns": turns})


def speaker_name(turn: dict[str, Any], index: int) -> str:
    """The name of a turn's speaker. Raises Malformed where there is none."""
    name = turn.get("speaker", turn.get("role"))
    if not isinstance(name, str) or not name.strip():
        raise Malformed(f"turn {index}: no speaker (found {name!r})")
    return name.strip()


def _plain(name: str) -> str:
    return name.strip().casefold()


def _is_blank(text: str) -> bool:
    return not any(c.isprintable() and not c.isspace() for c in text)
