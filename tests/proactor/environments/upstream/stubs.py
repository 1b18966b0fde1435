"""UserRL's and tau-bench's own classes without a model: their clients' calls are answered by our rule users.

Nothing of them is changed; only the names under which they find their client lead here. The answers are
computed from the prompts alone, so they do not depend on what was asked before.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from proactor.environments.gyms.intention_user import Detail, RuleUser
from proactor.environments.gyms.tau_customer import RuleCustomer

USERRL, TAU_BENCH = "USERRL", "TAU_BENCH"
"""Environment variables: where the repositories are checked out."""


def missing(*variables: str) -> str:
    """Why upstream cannot be driven here; "" where it can."""
    for variable in variables:
        if not Path(os.environ.get(variable, ""), "README.md").is_file() or not os.environ.get(variable):
            return f"{variable} names no copy of the repository"
    if importlib.util.find_spec("gymnasium") is None:
        return "gymnasium is not installed"
    return ""


def make_importable() -> None:
    """Put both repositories' packages on the path, with a stand-in for litellm where it is not installed."""
    folders = [*Path(os.environ[USERRL], "gyms").glob("*Gym")]
    if os.environ.get(TAU_BENCH):
        folders.append(Path(os.environ[TAU_BENCH]))
    sys.path.extend(str(folder) for folder in folders if str(folder) not in sys.path)
    if "litellm" not in sys.modules and importlib.util.find_spec("litellm") is None:
        sys.modules["litellm"] = types.ModuleType("litellm")
        sys.modules["litellm"].completion = completion  # type: ignore[attr-defined]


def answered(text: str) -> Any:
    """A chat completion that says ``text``."""
    message = SimpleNamespace(content=text, model_dump=lambda: {"role": "assistant", "content": text})
    return SimpleNamespace(choices=[SimpleNamespace(message=message)], _hidden_params={"response_cost": 0.0})


OPENINGS: dict[str, str] = {}
"""Each task's first message, by its instruction."""


def remember(tasks: Sequence[dict[str, Any]]) -> None:
    """Let `completion` know the first messages of these tasks of Tau."""
    OPENINGS.update({task["info"]["task"]["instruction"]: task["obs"] for task in tasks})


def completion(model: str, custom_llm_provider: str, messages: Sequence[dict[str, Any]]) -> Any:
    """litellm's: the customer of the task whose instruction the system message holds."""
    found = re.search(r"\n\nInstruction: (.*)\nRules:", messages[0]["content"], re.DOTALL)
    if not found:
        return answered("Hello.")
    instruction = found[1].removesuffix("\n")
    customer = RuleCustomer(instruction, OPENINGS[instruction])
    said = customer.opening
    for message in messages[2:]:
        if message["role"] == "user":
            said = customer.reply(message["content"])
    return answered(said)


class Client:
    """openai's: the user and the judge of an intention task."""

    def __init__(self, **options: Any) -> None:
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, messages: Sequence[dict[str, str]], **options: Any) -> Any:
        """Answer either prompt."""
        return answered(json.dumps(judged(messages[-1]["content"])))


class AsyncClient(Client):
    """The same, to be awaited."""

    async def create(self, messages: Sequence[dict[str, str]], **options: Any) -> Any:  # type: ignore[override]
        """Answer either prompt."""
        return super().create(messages, **options)


def judged(prompt: str) -> dict[str, Any]:
    """What the rule user says, or which of the details still open a question covers."""
    task = ast.literal_eval(
        _between(prompt, "TASK REQUEST: " if "TASK REQUEST: " in prompt else "\nTASK: ", "\nCATEG")
    )
    details = [
        Detail(d["description"], int(d["importance"]), d["inquiry"], tuple(d["options"]))
        for d in task["missing_details"]
    ]
    user = RuleUser(task["id"], details, seed=0)
    if "TASK REQUEST: " in prompt:
        asked = user.asked(_between(prompt, "CURRENT QUESTION FROM HELPER: ", "\n\nCONVERSATION HISTORY:"))
        return {"thought": "", "response": user.answer(asked)}
    asked = user.asked(_between(prompt, "LATEST USER'S QUESTION: ", "\n\nYour job is"))
    listed = re.findall(r"^\d+\. \[[A-Z]+\] (.*)$", prompt, re.MULTILINE)
    left, place = [], 0
    for description in listed:  # those still open, in the order of the task's
        place = next(p for p in range(place, len(details)) if details[p].description == description)
        left.append(place)
        place += 1
    covered = [number for number, place in enumerate(left) if place in asked]
    return {"analysis": "", "is_task_related": True, "covered_detail_indices": covered}


def _between(text: str, before: str, after: str) -> str:
    start = text.index(before) + len(before)
    return text[start : text.index(after, start)]


def with_rule_users() -> None:
    """Let UserRL's Intention and tau-bench find the clients above."""
    prompts = importlib.import_module("intentiongym.env.prompts")
    prompts.openai = SimpleNamespace(OpenAI=Client, AsyncOpenAI=AsyncClient)
    if os.environ.get(TAU_BENCH):
        importlib.import_module("tau_bench.envs.user").completion = completion
