"""Streams of events on a user's computer: after each event the agent proposes a task, or waits.

Streams are ProactiveBench's (Apache-2.0), code and prompts are ours. The agent is asked after every event,
and a proposal or a silence is accepted or rejected by a judge: confirmed by ProactiveAgent's code. There the
agent writes JSON and null for silence; here it calls a tool, and a proposal of null, or of "null", is silence
too. What a verdict pays is ours: ``plain`` 1 where it accepts, ``priced`` also charges what is rejected.

The judge is the run's user model (`environments.users`), asked `question`: an accept-reject reward model
(`methods.proactive_agent`), the engine's bare model or an endpoint. An answer that cannot be read rejects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from proactor.dialogue.event_streams import FILES, Events, Judged, fifth, joined, read_judged, stream_name
from proactor.environments.errors import EpisodeOver, GymError
from proactor.environments.gyms.replies import said_word
from proactor.environments.gyms.tasks import Tasks
from proactor.environments.protocol import Call, Opening, Outcome, ToolDefinition
from proactor.environments.users import UserModel
from proactor.files import find_files

NAME = "events"
PROPOSE, WAIT = "propose", "wait"
SYSTEM = (
    "You see what a user does on a computer, event by event. After each event call one tool: propose with a "
    "task that you would do for the user, where it is of use at this moment, or wait. The user is disturbed "
    "by a task without need, and misses one that is not proposed."
)
JUDGE = (
    "You are the user of a computer. An assistant that sees the events below proposes a task, or null for "
    "none. Accept a task only if it is of value to you at this moment. Accept null if you need no help."
)


def _tool(name: str, about: str, **parameters: str) -> ToolDefinition:
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


TOOLS = (
    _tool(PROPOSE, "Offer to do a task for the user.", task="What to do, in a few words."),
    _tool(WAIT, "Say nothing and see the next event."),
)
Verdict = Literal["TP", "FP", "TN", "FN"]
Pay = Literal["plain", "priced"]
PAYS: dict[Pay, dict[Verdict, float]] = {
    "plain": {"TP": 1.0, "FP": 0.0, "TN": 1.0, "FN": 0.0},
    "priced": {"TP": 1.0, "FP": -1.0, "TN": 0.5, "FN": -0.5},
}


def verdict(proposed: str | None, accepted: bool) -> Verdict:
    """A task accepted TP, rejected FP; silence accepted TN, rejected FN (ProactiveAgent's code)."""
    if proposed is None:
        return "TN" if accepted else "FN"
    return "TP" if accepted else "FP"


def shown(event: tuple[str, str]) -> str:
    """An event as a line."""
    return f"[{event[0]}] {event[1]}"


def question(events: Events, proposed: str | None) -> str:
    """What a judge is asked. The events come first, so that questions about one stream begin alike."""
    told = "\n".join(map(shown, events))
    return f"{JUDGE}\n\nEvents:\n{told}\n\nProposed task: {proposed or 'null'}\nAnswer accepted or rejected."


def proposal(call: Call) -> str | None:
    """The task of a call; None for silence."""
    task = " ".join(str(call.arguments.get("task") or call.content).split())
    return task if call.verb == PROPOSE and task.lower() not in ("", "null", "none") else None


@dataclass(frozen=True, slots=True)
class Part:
    """A stream, shown up to event ``first`` at the beginning, and judged from there to ``last`` (from 1)."""

    events: Events
    first: int
    last: int


class EventsWorld:
    """One part of a stream. A call of no tool is judged by nobody: the next event comes."""

    user_verbs = frozenset({PROPOSE})

    def __init__(self, part: Part, user: UserModel, pay: Pay) -> None:
        self.part, self.user, self.pay = part, user, pay
        self.at, self.accepted, self.over = part.first, 0, False

    def __deepcopy__(self, memo: object) -> EventsWorld:
        twin = EventsWorld(self.part, self.user, self.pay)
        twin.at, twin.accepted, twin.over = self.at, self.accepted, self.over
        return twin

    def reset(self, seed: int) -> Opening:
        """Begin anew; nothing here is drawn."""
        self.at, self.accepted, self.over = self.part.first, 0, False
        told = "\n".join(map(shown, self.part.events[: self.at]))
        return Opening([{"role": "system", "content": SYSTEM}, {"role": "user", "content": told}], TOOLS)

    def step(self, call: Call) -> Outcome:
        """Judge a proposal or a silence, and show the next event. Raises EpisodeOver after the end.

        ``info``: the ``verdict``, and as ``score`` the share of the part's events whose verdict accepted.
        """
        if self.over:
            raise EpisodeOver(f"{NAME}: the episode is over")
        reward, judged, nonsense = 0.0, "", 0
        if call.verb in (PROPOSE, WAIT):
            proposed = proposal(call)
            said = read_verdict(self.user.reply(question(self.part.events[: self.at], proposed)))
            nonsense = int(said is None)
            if said is None:
                self.user.note_nonsense()
            judged = verdict(proposed, said is True)
            reward, self.accepted = PAYS[self.pay][judged], self.accepted + (said is True)
        self.over = self.at >= self.part.last
        share = self.accepted / (self.part.last - self.part.first + 1)
        told = "No more events." if self.over else shown(self.part.events[self.at])
        self.at += 1
        info = {"score": share, "solved": share == 1, "verdict": judged, "nonsense": nonsense}
        return Outcome(told, reward, terminated=self.over, info=info)


def read_verdict(answer: str) -> bool | None:
    """Whether a judge accepts; None where it says neither, both, or only that it does not."""
    said = said_word(answer, {"accept": "accept(?:ed|s|able)?", "reject": "reject(?:ed|s)?"})
    return None if said is None else said == "accept"


class EventsGym:
    """The streams of judged lines at ``path``. ``unit``: a task is an ``event``, all events before it being
    shown (a contextual bandit), or a whole ``stream``. Test tasks are of a fifth of the streams.

    Raises SourceError for a line that is none, GymError for other units and pays.
    """

    name = NAME

    def __init__(
        self,
        path: str | Path,
        user: UserModel,
        unit: Literal["event", "stream"] = "event",
        pay: Pay = "plain",
        max_turns: int = 32,
    ) -> None:
        if unit not in ("event", "stream") or pay not in PAYS:
            raise GymError(f"{NAME}: unit={unit!r}, pay={pay!r}: event or stream, {' or '.join(PAYS)}")
        self.max_turns, self._user, self._pay = max_turns, user, pay
        lines = [line for file in find_files(Path(path), *FILES) for line in read_judged(file, Judged)]
        streams: dict[str, Events] = {}
        for events in joined(lines):
            streams.setdefault(stream_name(events), events)
        parts: dict[str, Part] = {}
        for name, events in streams.items():
            if unit == "stream":
                parts[name] = Part(events, 1, len(events))
            else:
                parts |= {f"{name}/{at}": Part(events, at, at) for at in range(1, len(events) + 1)}
        held = fifth(streams)
        tests = frozenset(name for name in parts if (name in held or name.rpartition("/")[0] in held))
        self._tasks = Tasks(NAME, parts, "official", tests)

    def tasks(self, split: str) -> Sequence[str]:
        """Names of ``train``, ``test`` or ``all``."""
        return self._tasks.names(split)

    def make(self, task: str) -> EventsWorld:
        """A world of a task. Raises GymError for a task that there is not."""
        return EventsWorld(self._tasks[task], self._user, self._pay)
