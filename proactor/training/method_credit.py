"""`Credit`: what a run's method does with episodes. How they are worded and played, and how they become the
engine's groups, with advantages on their tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import ClassVar

from pydantic import ValidationError

from proactor.config_base import ConfigError
from proactor.engine import GRPO, AdamW, Engine, Group, ToolChat
from proactor.environments.demonstration import Demonstration
from proactor.environments.episode import Episode
from proactor.environments.player import Player
from proactor.environments.wording import Thinking, Wording
from proactor.episode_config import EpisodeConfig, MethodOptions
from proactor.files import settings_problem
from proactor.methods import agent_omit, bao, infopo, omit_lessons, sand, turn_credit
from proactor.methods.agent_omit import AgentOmit
from proactor.methods.bao import BAO
from proactor.methods.infopo import InfoPO
from proactor.methods.omit_format import OmittingPlayer, OmitWording
from proactor.methods.sand import SAND
from proactor.methods.stepagent import StepAgent
from proactor.methods.turn_credit import TurnCredit

Method = TurnCredit | BAO | InfoPO | AgentOmit | SAND | StepAgent


@dataclass(frozen=True, slots=True)
class Credit:
    """How a run's method credits episodes."""

    method: Method

    KINDS: ClassVar[dict[str, type[Method]]] = {
        "userrl": TurnCredit,
        "bao": BAO,
        "infopo": InfoPO,
        "agent_omit": AgentOmit,
        "sand": SAND,
        "stepagent": StepAgent,
    }

    @classmethod
    def of(cls, options: MethodOptions) -> Credit:
        """The method of a config. Raises ConfigError for an option that it does not have."""
        kind = cls.KINDS[options.name]
        try:
            return cls(kind.model_validate(options.options))
        except ValidationError as error:
            known = ", ".join(kind.model_fields)
            _, problem = settings_problem(error, lambda _: f" of {options.name} (known: {known})")
            raise ConfigError(f"method.options: {problem}") from None

    @property
    def wording(self) -> Wording:
        """How episodes are put to the agent."""
        match self.method:
            case AgentOmit() as config:
                return OmitWording(config.instruct)
            case SAND():
                return Thinking()
        return Wording()

    def format_taught(self, demonstration: Demonstration) -> Demonstration:
        """An episode from which a model that is built here learns the method's format."""
        if isinstance(self.method, AgentOmit):
            return omit_lessons.omitting_at_random(demonstration)
        if isinstance(self.method, SAND) and self.method.critic == sand.RULE:
            return sand.thinking_at_random(demonstration)
        return demonstration

    @property
    def player(self) -> type[Player]:
        """What plays episodes."""
        return OmittingPlayer if isinstance(self.method, AgentOmit) else Player

    def groups(
        self, played: Sequence[Sequence[Episode]], engine: Engine, chat: ToolChat, epoch: int
    ) -> tuple[list[Group], Counter[str]]:
        """Groups to train on, and what was left out.

        ``episodes_failed``, ``episodes_without_turns``; ``groups_too_small``: fewer than two episodes are
        left to compare. ``groups_with_spread`` and ``groups_without_spread``: the groups returned;
        `Engine.train` computes nothing for those whose advantages are all 0. Every sample's reward is its
        episode's score. Raises ProactorError for rewards that the method refuses.
        """
        left_out = Counter[str]()
        kept: list[list[Episode]] = []
        for episodes in played:
            fine = [e for e in episodes if not e.failed]
            acted = compared(episodes)
            left_out["episodes_failed"] += len(episodes) - len(fine)
            left_out["episodes_without_turns"] += len(fine) - len(acted)
            if len(acted) < 2:
                left_out["groups_too_small"] += 1
            else:
                kept.append(acted)
        if isinstance(self.method, AgentOmit):
            return self._omit_groups(kept, self.method, left_out)
        groups = []
        for episodes, advantages in zip(kept, self.advantages(kept, engine, chat, epoch), strict=True):
            for episode, values in zip(episodes, advantages, strict=True):
                episode.sample.reward, episode.sample.advantage = episode.score, values
            spread = any(any(values) for values in advantages)
            left_out["groups_with_spread" if spread else "groups_without_spread"] += 1
            groups.append(Group(episodes[0].sample.prompt_ids, [e.sample for e in episodes]))
        return groups, left_out

    def without_spread(self, episodes: Sequence[Episode]) -> bool:
        """Whether a group has episodes to compare, and none of their tokens gets an advantage.

        Raises ConfigError for a method whose advantages depend on other groups, or that has none.
        """
        if len(acted := compared(episodes)) < 2:
            return False
        match self.method:
            case AgentOmit() as config:
                made, _ = agent_omit.groups_of(acted, config, (acted[0].task, acted[0].seed))
                return not any(any(s.token_advantages()) for group in made for s in group.samples)
            case TurnCredit() as credit:
                return not any(map(any, turn_credit.token_advantages(acted, credit)))
            case BAO() as config:
                return not any(map(any, bao.token_advantages(acted, config)))
        raise ConfigError(f"grpo.redraws: not with {type(self.method).__name__}")

    def _omit_groups(
        self, kept: Sequence[Sequence[Episode]], config: AgentOmit, counts: Counter[str]
    ) -> tuple[list[Group], Counter[str]]:
        """Of each group of episodes several: a sample stands after the history that it was drawn after."""
        groups: list[Group] = []
        for episodes in kept:
            made, events = agent_omit.groups_of(episodes, config, (episodes[0].task, episodes[0].seed))
            spread = any(any(s.token_advantages()) for group in made for s in group.samples)
            counts["groups_with_spread" if spread else "groups_without_spread"] += 1
            counts.update(events)
            groups += made
        return groups, counts

    def advantages(
        self, groups: Sequence[Sequence[Episode]], engine: Engine, chat: ToolChat, epoch: int
    ) -> list[list[list[float]]]:
        """The advantage of each token of each episode, by group. Raises ConfigError for a method that does
        not learn from episodes.
        """
        match self.method:
            case StepAgent():
                raise ConfigError("method.name: stepagent learns at an expert's states, not from episodes")
            case TurnCredit() as credit:
                return [turn_credit.token_advantages(group, credit) for group in groups]
            case BAO() as config:
                return [bao.token_advantages(group, config) for group in groups]
            case InfoPO() as config:
                flat = [episode for group in groups for episode in group]
                placeholder = engine.tokenizer(infopo.PLACEHOLDER, add_special_tokens=False)["input_ids"]
                gains = iter(infopo.information_gains(engine, flat, placeholder, frame(chat)) if flat else [])
                by_group = [[next(gains) for _ in group] for group in groups]
                gather = partial(engine.gather, phase="information")
                return infopo.token_advantages(groups, by_group, config, epoch, gather)
        raise AssertionError(f"{type(self.method).__name__} gives no advantages of this form")


def check_used(config: EpisodeConfig, method: Method) -> None:
    """Raise ConfigError for settings that would change nothing: a run would look as if they did."""
    if isinstance(method, AgentOmit) and method.cold_tasks and config.sft is None and config.start is None:
        raise ConfigError(
            f"method.options.cold_tasks: {method.cold_tasks}, and sft=null: what the cold start tries is "
            "learned in stage A; leave cold_tasks out or add sft"
        )
    if not isinstance(method, StepAgent) or method.reward != "implicit" or config.grpo is None:
        return
    unused = GRPO.model_fields.keys() - AdamW.model_fields.keys() - {"epochs"}
    for name in sorted(unused):
        value, default = getattr(config.grpo, name), type(config.grpo).model_fields[name].default
        if value != default:
            raise ConfigError(
                f"grpo.{name}={value}: stepagent by pairs (method.options.reward=implicit) has a loss of its "
                f"own, of grpo's the optimizer's settings and epochs alone; leave it at {default}"
            )


def compared(episodes: Sequence[Episode]) -> list[Episode]:
    """Those of a group that say something about the agent."""
    return [episode for episode in episodes if not episode.failed and episode.turns]


def frame(chat: ToolChat) -> tuple[int, int]:
    """How many tokens the template writes before, and after, the result of a call."""
    end = sorted(chat.template.end_ids)[:1]
    first, second = (
        chat.observation(end, [{"role": "tool", "tool_call_id": "call_0", "name": "x", "content": content}])
        for content in ("Q", "7")
    )

    def common(one: Sequence[int], two: Sequence[int]) -> int:
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))

    return common(first, second), common(first[::-1], second[::-1])
