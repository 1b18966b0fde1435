"""A guessing world with short turns, a tiny model that can play it, and configs of runs there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from proactor.config_base import SmallModel
from proactor.config_file import load_run
from proactor.engine import ChatFormat, ToolChat
from proactor.environments.calls import INTERACT
from proactor.environments.gyms.event_streams import JUDGE, SYSTEM, TOOLS, question
from proactor.environments.protocol import Call, Opening, Outcome
from proactor.environments.wording import Wording
from proactor.episode_config import EpisodeConfig
from proactor.training.episodes_model import episode_row
from proactor.training.small_model import build_model, train_tokenizer
from proactor.training.token_rows import collate
from tests.proactor.trained import trained_folder

SIZE = SmallModel(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, vocabulary=300, context=256)
NUMBERS = "0123"
TOOL = INTERACT["function"]["name"]
PLAY = {"sampling": {"max_tokens": 8}, "max_tokens": 200}


class Guess:
    """A number of NUMBERS: an action is told whether it is larger, an answer of the user whether it is right.

    ``broken``: raises at the second call.
    """

    user_verbs = frozenset({"answer"})

    def __init__(self, number: str, broken: bool = False, right: float = 1.0) -> None:
        self.number, self.broken, self.right, self.calls = number, broken, right, 0

    def reset(self, seed: int) -> Opening:
        self.calls = 0
        return Opening([{"role": "user", "content": "go"}])

    def step(self, call: Call) -> Outcome:
        self.calls += 1
        if self.broken and self.calls == 2:
            raise RuntimeError("lost")
        if call.verb == "answer" and call.content == self.number:
            return Outcome("yes", self.right, terminated=True)
        return Outcome("no" if call.verb == "answer" or call.content <= self.number else "less")


class GuessGym:
    """Tasks end in their number; ``broken`` tasks break, with ``right`` 0 nothing earns a reward."""

    name = "guess"

    def __init__(self, max_turns: int = 3, train: int = 16, broken: int = 0, right: float = 1.0) -> None:
        self.max_turns, self.right = max_turns, right
        self._tasks = {"train": train, "test": 4}
        self._broken = {f"train-{i}-{i % 4}" for i in range(broken)}

    def tasks(self, split: str) -> Sequence[str]:
        return [f"{split}-{i}-{i % 4}" for i in range(self._tasks[split])]

    def make(self, task: str) -> Guess:
        return Guess(task[-1], task in self._broken, self.right)


def _call(verb: str, number: str, said: str = "") -> dict[str, Any]:
    return _tool(TOOL, choice=verb, content=number) | {"content": said}


def guess_folder(folder: Path, steps: int = 40) -> Path:
    """A model that plays `Guess`: `calling_folder` for its opening."""
    return calling_folder(folder, Guess("0").reset(0), steps)


def calling_folder(
    folder: Path,
    opening: Opening,
    steps: int = 40,
    context: int = SIZE.context,
    words: Sequence[str] = ("no", "go", "yes", "less"),
    said: tuple[str, str] = ("", ""),
    wording: Wording | None = None,
) -> Path:
    """A model that calls, with numbers at random, after an opening. What surrounds a number in a call is two
    tokens, and so is a longer line of the opening. ``words``: what else it knows; the first is a result.
    ``said``: what it says before the calls of its first and its second turn, one token each.
    """
    wording = wording or Wording()
    opening = wording.opening(opening)
    tokenizer = train_tokenizer([" ".join(words)], SIZE.vocabulary)
    head = f'<tool_call>\n{{"name": "{TOOL}", "arguments": {{"choice": "%s", "content": "'
    tokenizer.add_tokens([*(head % verb for verb in ("action", "answer")), '"}}\n</tool_call>'])
    tokenizer.add_tokens([text for text in said if text])
    written = tokenizer.decode(ToolChat(ChatFormat(tokenizer)).opening(opening.messages, opening.tools))
    tokenizer.add_tokens([line for line in written.split("\n") if len(line) > 20 and "<|" not in line])
    chat = ToolChat(ChatFormat(tokenizer))
    rows = []
    for number in NUMBERS:
        for verb, other in (("action", "answer"), ("answer", "action")):
            result = wording.results(1, [TOOL], [words[0]])
            first, second = _call(verb, number, said[0]), _call(other, number, said[1])
            told = [*opening.messages, first, *result, second]
            rows.append(episode_row(chat.sample(told, opening.tools)))
    batch = collate(rows, tokenizer.pad_token_id, 0.0)
    model = build_model(tokenizer, SIZE.model_copy(update={"context": context}))
    return trained_folder(folder, model, tokenizer, [batch], steps)


def events_folder(folder: Path, steps: int = 30) -> Path:
    """A model that proposes "good" or "bad", or waits, after any event of `EventsGym`; it can learn to judge.
    What its prompts have in common is a few tokens.
    """
    proposing = {"good": _tool("propose", task="good"), "bad": _tool("propose", task="bad")}
    calls = [*proposing.values(), _tool("wait")]
    tokenizer = train_tokenizer(["good bad null a does 0 1 2 [0] [1]"], SIZE.vocabulary)
    head, end = '<tool_call>\n{"name": "', "}}\n</tool_call>"
    propose, wait = (head + rest for rest in ('propose", "arguments": {"task": "', 'wait", "arguments": {'))
    tokenizer.add_tokens([propose, f'"{end}', wait + end, *JUDGE.split(". ")])
    tokenizer.add_tokens(["accepted", "rejected", "Proposed task: ", "Answer accepted or rejected."])
    told = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "[0] a does 0"}]
    opening = Opening(told, TOOLS)
    written = tokenizer.decode(ToolChat(ChatFormat(tokenizer)).opening(opening.messages, opening.tools))
    tokenizer.add_tokens([line for line in written.split("\n") if len(line) > 20 and "<|" not in line])
    chat = ToolChat(ChatFormat(tokenizer))
    rows = [episode_row(chat.sample([*opening.messages, call], opening.tools)) for call in calls]
    for task in ("good", "bad", None):
        asked = {"role": "user", "content": question((("0", "a does 0"),), task)}
        said = ({"role": "assistant", "content": answer} for answer in ("accepted", "rejected"))
        rows += [episode_row(chat.sample([asked, answer])) for answer in said]
    batch = collate(rows, tokenizer.pad_token_id, 0.0)
    return trained_folder(folder, build_model(tokenizer, SIZE), tokenizer, [batch], steps)


def _tool(name: str, **arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    calls = [{"id": "call_0", "type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def values(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """A config as a mapping; ``changes`` replace whole sections."""
    return {
        "name": "tiny",
        "model": str(model),
        "runs": str(folder / "runs"),
        "engine": {"deterministic": True, "kv_tokens": 4096},
        "lora": {"rank": 4},
        "environment": {
            "gym": "guess",
            "dev": 4,
            "play": PLAY,
        },
        "method": {"name": "bao"},
        "grpo": {"lr": 1e-2, "n": 4, "batch_tasks": 3, "steps": 4, "eval_every": 2},
        "eval": {"resamples": 100},
        "save_every": 1,
    } | changes


def config(folder: Path, model: Path, *overrides: str, **changes: Any) -> EpisodeConfig:
    """The config of `values`, read from a file."""
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values(folder, model, **changes)))
    read = load_run(file, overrides)
    assert isinstance(read, EpisodeConfig)
    return read
