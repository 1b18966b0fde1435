"""Tau: tau-bench's retail desk, with its database, tools and reward, and a customer by rule.

Tasks are UserRL's copy of tau-bench's (MIT), the database is tau-bench's own (`tau_store`), the code is ours.
Given the same customer, feedback and rewards are those of UserRL's class over tau-bench, as recorded episodes
show (``tests/proactor/environments/upstream``); only the descriptions of the tools are in other words.

The reward, 0 or 1, comes when the customer ends the conversation or the agent hands over to a human: 1 if the
database is as the task's own actions leave it and the agent said what the task wants to be said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter

from proactor.environments.calls import INTERACT, plain, to_text
from proactor.environments.errors import EpisodeOver
from proactor.environments.gyms.tasks import Held, Tasks, by_id, official_tests
from proactor.environments.gyms.tau_customer import STOP, RuleCustomer
from proactor.environments.gyms.tau_store import Database, Store
from proactor.environments.gyms.tau_tools import TOOLS, TRANSFER, described, invoke
from proactor.environments.protocol import Call, Opening, Outcome
from proactor.files import find_files, read_validated

RESPOND = "respond"
"""tau-bench's name for a message to the customer."""

SYSTEM = (
    "You serve the customers of a shop. Find out who the customer is by email, or by name and zip code, and "
    "what they want; before you change anything, say what and ask for a yes.\n"
    "Call interact_with_env in each turn with one choice:\n"
    'search: "tools" lists the shop\'s tools, "help" explains the choices.\n'
    "action: a message to the customer.\n"
    'answer: one call of a tool, as JSON: {"name": ..., "arguments": {...}}.\n'
    "The number of turns is limited."
)
HELP = (
    'Choices: search with "tools" or "help"; action with a message to the customer; answer with one call of '
    'a tool as JSON, {"name": ..., "arguments": {...}}.'
)
KNOWN = (
    "Tools information is already provided in previous turns in our conversation. Please directly refer to "
    "those information and do not search for available tools again."
)


@dataclass(frozen=True)
class _Action:
    name: str
    kwargs: dict[str, Any]


class _Script(BaseModel):
    model_config = ConfigDict(frozen=True)

    instruction: str
    actions: tuple[_Action, ...]
    outputs: tuple[str, ...]


class _Info(BaseModel):
    task: _Script


class _Record(BaseModel):
    id: str
    obs: str
    info: _Info


@dataclass(frozen=True, slots=True)
class TauTask:
    """What the customer was told to want, and what the desk should do and say."""

    id: str
    opening: str
    instruction: str
    actions: tuple[tuple[str, dict[str, Any]], ...]
    outputs: tuple[str, ...] = ()


class Customer(Protocol):
    """Who talks to the agent; a model, or `RuleCustomer`."""

    opening: str

    def reply(self, message: str) -> str:
        """The answer to a message; one with `STOP` ends the conversation."""
        ...


def rule_customer(task: TauTask) -> Customer:
    """The customer by rule."""
    return RuleCustomer(task.instruction, task.opening)


@dataclass
class TauWorld:
    """One task. Only messages involve the user; tools are the shop's own."""

    task: TauTask
    database: Database
    max_turns: int
    customer_of: Callable[[TauTask], Customer] = rule_customer
    user_verbs: frozenset[str] = field(default=frozenset({"action"}), init=False)

    def reset(self, seed: int) -> Opening:
        """Begin anew with an untouched database; nothing here is drawn."""
        self.store, self.customer = Store(self.database), self.customer_of(self.task)
        self.said: list[str] = []
        self.turns, self.over, self.listed = 0, False, False
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": self.customer.opening},
        ]
        return Opening(messages, (INTERACT,))

    def step(self, call: Call) -> Outcome:
        """Tell the customer something, run a tool, or explain. Raises EpisodeOver after the end."""
        if self.over:
            raise EpisodeOver(f"tau {self.task.id}: the episode is over")
        self.turns += 1
        text, call = to_text(call).strip(), plain(call)
        feedback, reward, done = self._answer(call, text)
        truncated = self.turns >= self.max_turns
        self.over = done or truncated
        return Outcome(feedback, reward, done, truncated, {"turn": self.turns})

    def _answer(self, call: Call, text: str) -> tuple[str, float, bool]:
        match call.verb:
            case "search":
                return self._explain(call.content.lower()), 0.0, False
            case "action":
                return self._act(RESPOND, {"content": call.content})
            case "answer":
                read = read_tool_call(call.content)
                if read is None:
                    said = (
                        "Invalid tool call format. Please provide valid JSON format in content when calling"
                    )
                    return f"{said} the internal tool.", 0.0, False
                return self._act(*read)
            case "finish":
                return "Episode finished. Final reward: 0.0", 0.0, True
        said = (
            f"Invalid action format: {text}. Please follow the system instruction to call the interact tool."
        )
        return said, 0.0, False

    def _explain(self, query: str) -> str:
        if query == "tools":
            first, self.listed = not self.listed, True
            return described() if first else KNOWN
        if query == "help":
            return HELP
        return (
            f"Search not supported for '{query}'. Please search for available tools by providing 'tools' in "
            "content or show help information by providing 'help' in content."
        )

    def _act(self, name: str, arguments: dict[str, Any]) -> tuple[str, float, bool]:
        if name == RESPOND:
            content = arguments.get("content")
            if not isinstance(content, str):
                return "Error executing tool call: respond needs a text as content", 0.0, False
            self.said.append(content)
            feedback = self.customer.reply(content)
            done = STOP in feedback
        elif name in TOOLS:
            feedback, done = invoke(self.store, name, arguments), name == TRANSFER
        else:
            return f"Unknown action {name}", 0.0, False
        return feedback, self._reward() if done else 0.0, done

    def _reward(self) -> float:
        wanted = Store(self.database)
        for name, arguments in self.task.actions:
            if name in TOOLS and name != TRANSFER:
                invoke(wanted, name, arguments)
        said = [message.lower().replace(",", "") for message in self.said]
        told = all(any(output.lower() in message for message in said) for output in self.task.outputs)
        return float(told and self.store.same(wanted))


def read_tool_call(content: str) -> tuple[str, dict[str, Any]] | None:
    """The tool and arguments of ``{"name": ..., "arguments": {...}}`` or ``name: {...}``; or None."""
    try:
        if content.startswith("{") and content.endswith("}"):
            call = json.loads(content)
            name, arguments = call.get("name", ""), call.get("arguments", {})
        else:
            name, _, rest = content.partition(":")
            name, arguments = name.strip(), json.loads(rest)
    except (ValueError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict) or name == "invalid_action":
        return None
    return name, arguments


class TauGym:
    """Tau's retail tasks, from ``tau.json`` (or .gz) or UserRL's ``tau_*.json`` at ``path`` (the file or its
    folder), over tau-bench's tables in the folder ``database``. Raises SourceError for an unreadable file or
    a wrong record. ``customer``: makes another customer for a task.
    """

    name = "tau"

    def __init__(
        self,
        path: str | Path,
        database: str | Path,
        split: Held = "official",
        max_turns: int = 30,
        customer: Callable[[TauTask], Customer] = rule_customer,
    ) -> None:
        self.max_turns, self.customer = max_turns, customer
        files = find_files(Path(path), "tau.json.gz", "tau.json", "tau_*.json")
        records = [r for file in files for r in read_validated(file, TypeAdapter(list[_Record]))]
        named = [(r.id, _task(r)) for r in records if r.id.startswith("retail-")]
        self._tasks = Tasks(self.name, by_id(self.name, files[0], named), split, official_tests(self.name))
        self.database = Database.read(database)

    def tasks(self, split: str) -> Sequence[str]:
        """Ids of ``train``, ``test`` or ``all``, of the retail desk."""
        return self._tasks.names(split)

    def task(self, name: str) -> TauTask:
        """A task, with the script that the agent is not told."""
        return self._tasks[name]

    def make(self, task: str) -> TauWorld:
        """A world of a task. Raises GymError for a task that there is not."""
        return TauWorld(self._tasks[task], self.database, self.max_turns, self.customer)


def _task(record: _Record) -> TauTask:
    script = record.info.task
    actions = tuple((action.name, action.kwargs) for action in script.actions)
    return TauTask(record.id, record.obs, script.instruction, actions, script.outputs)
