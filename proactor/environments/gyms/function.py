"""FunctionGym: find the hidden function of four numbers by trial, then compute its value for a test case.

Tasks are UserRL's (Apache-2.0), the code is ours. Feedback and rewards are those of UserRL's own class
(``tests/proactor/environments/upstream`` holds recorded episodes). Two ways to read a probe:

* strict (default): four integers, as the gym's own prompt demands.
* parity: whatever UserRL reads as numbers. It refuses the test case as a probe, but compares exactly: the
  test case shifted by 1e-10 is answered, and tells the result. "1e3" is read as two numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from proactor.environments.calls import FINISH, INTERACT, plain
from proactor.environments.errors import EpisodeOver
from proactor.environments.gyms.arithmetic import Expression, ExpressionError, evaluate, parse
from proactor.environments.gyms.tasks import Held, Tasks, by_id, official_tests
from proactor.environments.protocol import Call, Opening, Outcome
from proactor.files import SourceError, find_files, read_validated

NAMES = "abcd"
TOLERANCE = 1e-6
"""How far an answer may lie from the result."""

SYSTEM = (
    "A hidden function maps four numbers to one, by sums, differences, products, quotients and powers. "
    "Find out what it does to the test case. Call interact_with_env in each turn with one choice:\n"
    "action: four integers, separated by spaces; you are told their result.\n"
    'search: "test"; you are told the four numbers of the test case.\n'
    "answer: the result for the test case. You may answer again after a wrong answer.\n"
    "The number of turns is limited."
)
USER = "My function is ready. Begin."
BAD_PROBE = (
    "Error parsing numbers or calculating result. This may happen like when division by zero occurs. "
    "Please try again with different number combinations."
)
WRONG = (
    "Your answer is wrong. Please continue to try and reason about the hidden function and make your answer "
    "attempt later."
)

_NUMBERS = re.compile(r"-?\d+\.?\d*")
_INTEGERS = re.compile(r"-?\d{1,9}(?:[\s,]+-?\d{1,9})*")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    rule: str
    test_case: Annotated[tuple[int | float, ...], Field(min_length=4, max_length=4)]
    expected_result: float


@dataclass(frozen=True, slots=True)
class FunctionTask:
    """A rule of four numbers, the numbers of its test case and their result."""

    id: str
    rule: str
    expression: Expression
    test_case: tuple[int | float, ...]
    expected: float


def value_of(expression: Expression, numbers: Sequence[float]) -> float | None:
    """The rule's value for four numbers; None where it has none (a division by zero, an overflow, a root of a
    negative number).
    """
    try:
        return float(evaluate(expression, dict(zip(NAMES, map(float, numbers)))))
    except (ArithmeticError, ExpressionError):
        return None


class FunctionWorld:
    """One task. Only an answer needs the user, who checks it."""

    user_verbs = frozenset({"answer"})

    def __init__(self, task: FunctionTask, max_turns: int, parity: bool) -> None:
        self.task, self.max_turns, self.parity = task, max_turns, parity
        self.turns, self.correct, self.over = 0, False, False

    def reset(self, seed: int) -> Opening:
        """Begin anew; nothing here is drawn."""
        self.turns, self.correct, self.over = 0, False, False
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
        return Opening(messages, (INTERACT,))

    def step(self, call: Call) -> Outcome:
        """Answer a probe, tell the test case, or check an answer. Raises EpisodeOver after the end."""
        if self.over:
            raise EpisodeOver(f"function {self.task.id}: the episode is over")
        self.turns += 1
        call = plain(call)
        feedback, reward = self._feedback(call)
        terminated = call.verb == FINISH or (call.verb == "answer" and self.correct)
        truncated = self.turns >= self.max_turns
        self.over = terminated or truncated
        return Outcome(feedback, reward, terminated, truncated, {"turn": self.turns})

    def _feedback(self, call: Call) -> tuple[str, float]:
        match call.verb:
            case "action":
                return self._probe(call.content), 0.0
            case "search" if call.content.lower() == "test":
                return f"Test case: {list(self.task.test_case)}", 0.0
            case "search":
                return "Search content should only be 'test' to get the test case.", 0.0
            case "answer":
                return self._check(call.content)
            case "finish" if self.correct:
                return "Episode finished. You answered correctly!", 0.0
            case "finish":
                expected = self.task.expected
                said = "Episode finished without correct answer. The expected result for the test case was"
                return f"{said}: {expected}", 0.0
        return "Invalid action format. Please use [action], [search], [answer], or [finish].", 0.0

    def _probe(self, content: str) -> str:
        if not content:
            return "Please provide four numbers after [action]."
        if not self.parity and not _INTEGERS.fullmatch(content):
            return "Please provide exactly four integers, separated by spaces."
        numbers = [float(number) for number in _NUMBERS.findall(content)]
        if len(numbers) != len(NAMES):
            return "Please provide exactly four numbers."
        if numbers == list(self.task.test_case):
            return "This is the test case and I cannot provide you with the calculation feedback."
        result = value_of(self.task.expression, numbers)
        return BAD_PROBE if result is None else f"For numbers {numbers}, the result is {round(result, 4)}."

    def _check(self, content: str) -> tuple[str, float]:
        if not content:
            return "Answer is empty. Please provide a numerical answer.", 0.0
        try:
            answer = float(content)
        except ValueError:
            return "Invalid numerical answer. Please provide a valid number.", 0.0
        self.correct = abs(answer - self.task.expected) <= TOLERANCE
        return ("Your answer is correct!", 1.0) if self.correct else (WRONG, 0.0)


class FunctionGym:
    """FunctionGym's tasks, from ``functions.json`` or ``functions.json.gz`` at ``path`` (the file or its
    folder). Raises SourceError for a file that is unreadable or holds a wrong record.
    """

    name = "function"

    def __init__(
        self, path: str | Path, split: Held = "official", max_turns: int = 16, parity: bool = False
    ) -> None:
        self.max_turns, self.parity = max_turns, parity
        file = find_files(Path(path), "functions.json.gz", "functions.json")[0]
        records = read_validated(file, TypeAdapter(list[_Record]))
        tasks = by_id(self.name, file, [(record.id, _task(record, file)) for record in records])
        self._tasks = Tasks(self.name, tasks, split, official_tests(self.name))

    def tasks(self, split: str) -> Sequence[str]:
        """Ids of ``train``, ``test`` or ``all``."""
        return self._tasks.names(split)

    def task(self, name: str) -> FunctionTask:
        """A task, with the rule that the agent is not told."""
        return self._tasks[name]

    def make(self, task: str) -> FunctionWorld:
        """A world of a task. Raises GymError for a task that there is not."""
        return FunctionWorld(self._tasks[task], self.max_turns, self.parity)


def _task(record: _Record, file: Path) -> FunctionTask:
    try:
        expression = parse(record.rule, NAMES)
    except ExpressionError as error:
        raise SourceError(f"{file}: {record.id}.rule: {error}") from None
    value = value_of(expression, record.test_case)
    if value is None or not math.isclose(value, record.expected_result, abs_tol=TOLERANCE):
        raise SourceError(f"{file}: {record.id}: the rule gives {value}, not {record.expected_result}")
    return FunctionTask(record.id, record.rule, expression, record.test_case, record.expected_result)
