"""The task of `bench.episodes`, the same for both sides: FunctionGym's sub-family, with its course forced.

A model with random weights calls no tool, so what it draws is read as a call in any case: its first four ids
become the four numbers of a probe. Every probe is answered, and no turn ends an episode before the last one,
so that all episodes have the same length in a tokenizer of one word per id. Both sides are given the reading
where they look for it: ours in `ToolChat.read`, TRL's in the tokenizer's ``parse_response``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.models import VOCAB, word_tokenizer
from bench.workloads import Workload
from proactor.environments.calls import INTERACT
from proactor.environments.gyms.function import SYSTEM, USER, FunctionWorld
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.environments.protocol import Call, Outcome
from proactor.episode_config import EpisodeConfig
from proactor.training.episodes import TaskParts
from proactor.training.steps import batch

OPTIONS: dict[str, Any] = {"signs": "+-", "largest": 3}
"""Of `FunctionFamily`. Probes hold numbers from 4 on, so that none is the test case."""
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
TOOL: str = INTERACT["function"]["name"]
TEMPLATE = (
    "{% for tool in tools or [] %}{% set f = tool['function'] %}tool {{ f['name'] }} {{ f['description'] }} "
    "{% for name, about in f['parameters']['properties'].items() %}{{ name }} {{ about['description'] }} "
    "{% endfor %}{% endfor %}"
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} "
    "{% for call in m['tool_calls'] or [] %}{% set f = call['function'] %}"
    '<tool_call> {"name": "{{ f[\'name\'] }}", "arguments": {{ f[\'arguments\'] | tojson }}} </tool_call> '
    "{% endfor %}<eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
"""Of a tool only what its definition says on both sides in the same order; the end token closes a turn."""


def chat_tokenizer() -> Any:
    """A `word_tokenizer` with the template, the words of the opening among its own; others are unknown."""
    told = [SYSTEM, USER, str(INTERACT["function"]["description"]), TOOL, "system user assistant tool"]
    told += [f"{key} {about['description']}" for key, about in _properties().items()]
    tokenizer = word_tokenizer(VOCAB, words=sorted(set(" ".join(told).split())))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def arguments(ids: Sequence[int]) -> dict[str, str]:
    """What a reply's ids are read as: a probe of four numbers from 4 to 9."""
    return {"choice": "action", "content": " ".join(str(4 + token % 6) for token in ids[:4])}


def describe(method: Any) -> None:
    """Give a method the docstring from which transformers makes the definition that `INTERACT` is."""
    lines = [f"    {key}: {about['description']}" for key, about in _properties().items()]
    method.__doc__ = "\n".join([INTERACT["function"]["description"], "", "Args:", *lines])


def _properties() -> dict[str, dict[str, Any]]:
    properties: dict[str, dict[str, Any]] = INTERACT["function"]["parameters"]["properties"]
    return properties


class ProbeWorld(FunctionWorld):
    """A world in which a probe earns the mean of its numbers, in tenths: groups have spread without skill."""

    def step(self, call: Call) -> Outcome:
        """The world's answer, with that reward."""
        numbers = [int(number) for number in call.content.split()]
        return replace(super().step(call), reward=sum(numbers) / (10 * len(numbers)))


class Probes(FunctionFamily):
    """The sub-family with such worlds, which end after ``turns`` turns."""

    def __init__(self, turns: int) -> None:
        super().__init__(**OPTIONS, max_turns=turns)

    def make(self, task: str) -> ProbeWorld:
        """A world of a task."""
        return ProbeWorld(self.task(task), self.max_turns, parity=False)


def episode_config(workload: Workload) -> EpisodeConfig:
    """Our config of the run: UserRL's GRPO with the settings of `bench.engine_side.LOSS`."""
    sampling = {"max_tokens": workload.max_tokens, "ignore_eos": True}
    return EpisodeConfig.model_validate(
        {
            "name": workload.name,
            "model": "given",
            "environment": {
                "gym": "function_family",
                "options": OPTIONS,
                "play": {"sampling": sampling, "max_tokens": len(workload.mask) + 1},
            },
            "method": {"name": "userrl"},
            "grpo": {
                "lr": 1e-5,
                "epsilon": 0.2,
                "normalizer": "tokens",
                "max_norm": 1.0,
                "n": workload.samples,
                "batch_tasks": len(workload.lengths),
            },
        }
    )


def tasks_of(config: EpisodeConfig, gym: Probes, step: int) -> list[str]:
    """The tasks of a training step, as our loop chooses them."""
    assert config.grpo is not None, "the config has the stage"
    tasks = TaskParts.of(gym, config).train
    return batch(tasks, config.grpo.batch_tasks, config.seed, "grpo", step, str)[1]
