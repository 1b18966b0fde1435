"""`Arena`: engine, gym and tasks of a run in an environment, and how episodes are played there."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from proactor.config_base import ConfigError
from proactor.endpoint_errors import EndpointSetupError
from proactor.engine import Engine, ToolChat
from proactor.environments.episode import Episode
from proactor.environments.errors import GymError
from proactor.environments.gyms.catalog import open_gym
from proactor.environments.host import Host, HostConfig
from proactor.environments.player import PlayConfig, Player
from proactor.environments.protocol import Gym
from proactor.environments.users import UserModel, build_user
from proactor.episode_config import EpisodeConfig
from proactor.event_loop import run_to_end
from proactor.methods.proactive_agent import AcceptReject
from proactor.methods.user_metrics import Outcome, metrics
from proactor.progress import Progress, Quiet
from proactor.training.episode_rows import sample_rows
from proactor.training.loading import load_engine
from proactor.training.method_credit import Credit
from proactor.training.provenance import check_environment
from proactor.training.runs import sample_order
from proactor.training.steps import Row, derive_seed

T = TypeVar("T")

EVALUATION = 2**32 - 2
"""The session's iteration in evaluations; those of training are its steps."""


@dataclass(frozen=True, slots=True)
class TaskParts:
    """Names of tasks: to ``train`` on, to select by (``dev``) and to report on (``test``)."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, gym: Gym, config: EpisodeConfig) -> TaskParts:
        """The parts of a gym. Raises ConfigError where nothing is left to train on."""
        options = config.environment
        drawn = sorted(gym.tasks("train"), key=lambda task: derive_seed("tasks", gym.name, task))
        dev, others = drawn[: options.dev], drawn[options.dev :]
        first, last = (round(share * len(others)) for share in options.share)
        if not others[first:last]:
            raise ConfigError(
                f"environment: {len(drawn)} training tasks of {gym.name}, {len(dev)} of them for dev: "
                f"share {list(options.share)} leaves none to train on"
            )
        test = tuple(gym.tasks("test"))
        return cls(tuple(others[first:last]), tuple(dev), test[: config.eval.limit])


def open_user(config: EpisodeConfig) -> UserModel | None:
    """The model that plays the users, if a config names one. Raises ConfigError for one that cannot be."""
    spec = config.environment.user
    try:
        judge = partial(AcceptReject, model=config.model, data=config.environment.path)
        return None if spec is None else build_user(spec, {"accept_reject": judge})
    except (GymError, EndpointSetupError) as error:
        raise ConfigError(f"environment.{error}") from None


def open_tasks(config: EpisodeConfig, user: UserModel | None = None) -> tuple[Gym, TaskParts]:
    """The gym of a config and its tasks. Raises ConfigError for options that it does not take, and where it
    needs a user.
    """
    try:
        gym = open_gym(config.environment.settings, user=user)
    except GymError as error:
        raise ConfigError(f"environment: {error}") from None
    return gym, TaskParts.of(gym, config)


@dataclass(slots=True)
class Arena:
    """What a run in an environment works with."""

    config: EpisodeConfig
    engine: Engine
    chat: ToolChat
    gym: Gym
    tasks: TaskParts
    credit: Credit
    user: UserModel | None = None
    ui: Progress = field(default_factory=Quiet)

    @classmethod
    def open(cls, config: EpisodeConfig, ui: Progress | None = None) -> Arena:
        """Open gym and method, which fail fast, then load the model. Raises ConfigError or EngineError."""
        ui = ui or Quiet()
        if config.pretrain is not None:
            check_environment(config.model, config.environment)
        credit = Credit.of(config.method)
        user = open_user(config)
        gym, tasks = open_tasks(config, user)
        engine = load_engine(config, ui)
        if user is not None:
            user.bind(engine)
        with engine.together("environment"):
            if engine.chat is None:
                raise ConfigError(f"model {config.model}: the folder holds no tokenizer")
            return cls(config, engine, ToolChat(engine.chat), gym, tasks, credit, user, ui)

    def play(
        self,
        tasks: Sequence[str],
        *,
        n: int,
        iteration: int,
        epoch: int,
        keys: Sequence[int] | None = None,
        evaluating: bool = False,
        name: str = "playing",
    ) -> tuple[list[list[Episode]], Row]:
        """``n`` episodes of each task, by task, all at once; and the counters of the host (``host/…``) and of
        the model that plays the user (``user/…``, ``seconds_user``).

        Tokens depend on (the run's seed, ``iteration``, the task's key, the episode's place), environments
        on (the run's seed, ``epoch``, the task): not on which ends first. ``keys``: of the tasks, which are
        then all this rank's; None: their places, and ranks share the tasks.
        ``evaluating``: with the reward line hidden, at the temperature of evaluations.
        """
        done, seed = 0, self.config.seed

        async def group(player: Player, key: int, task: str) -> list[Episode]:
            nonlocal done
            world = derive_seed(seed, "environment", epoch, task) % 2**31
            episodes = await player.group(task, world, n, key=key)
            done += 1
            self.ui.substep(name, done, len(tasks))
            return episodes

        async def played(player: Player) -> list[list[Episode]]:
            return list(await asyncio.gather(*(group(player, key, task) for key, task in places)))

        if keys is None:
            places = self.engine.share(list(enumerate(tasks)))
        else:
            places = list(zip(keys, tasks, strict=True))
        return self.playing(iteration, played, evaluating)

    def playing(
        self, iteration: int, work: Callable[[Player], Awaitable[T]], evaluating: bool = False
    ) -> tuple[T, Row]:
        """What ``work`` returns, given the method's player in a session; and the counters as `play`."""
        options = self.config.environment
        patience = self.user.patience if self.user is not None else 0.0
        host_config, play_config = options.host.patient(patience), options.play
        if evaluating:
            host_config, play_config = _evaluating(host_config, play_config, self.config.eval.temperature)

        async def worked() -> tuple[T, Counter[str]]:
            async with self.engine.session(iteration) as session, Host(self.gym, host_config) as host:
                make, context = self.credit.player, self.engine.context_length
                player = make(session, self.chat, host, play_config, context, self.credit.wording)
                return await work(player), host.counters

        before = self._asked()
        result, events = run_to_end(worked())
        counts = {f"host/{name}": float(count) for name, count in events.items()}
        return result, counts | {name: value - before[name] for name, value in self._asked().items()}

    def _asked(self) -> Counter[str]:
        """What the user was asked until now."""
        if self.user is None:
            return Counter()
        counts = {f"user/{name}": float(count) for name, count in self.user.counters.items()}
        return Counter(counts | {"seconds_user": self.user.seconds})

    def close(self) -> None:
        """End the connections of the user."""
        if self.user is not None:
            self.user.close()

    def evaluate(self, tasks: Sequence[str], name: str) -> tuple[Row, list[Outcome], list[Row]]:
        """Play each task once over all ranks: metrics under ``eval_*``, the outcomes, and the
        episodes as rows. Says how many failed, which are in no metric.
        """
        with self.engine.together("evaluation"):
            groups, events = self.play(tasks, n=1, iteration=EVALUATION, epoch=0, evaluating=True, name=name)
        success = self.config.eval.success
        mine = [Outcome.of(e, success=success) for group in groups for e in group]
        everyone = dealt_back(
            self.engine.gather(list(zip(mine, sample_rows(groups), strict=True)), "evaluation")
        )
        outcomes = [outcome for outcome, _ in everyone]
        episodes = [row for _, row in everyone]
        endings = Counter(row["ending"] for row in episodes)
        if failed := sum(outcome.failed for outcome in outcomes):
            why = next(filter(None, (row["error"] for row in episodes)), "")
            lost = f"{failed} of {len(episodes)} episodes failed and are in no metric"
            self.ui.say(f"{name}: {lost}{why and f' ({why})'}")
        asked = {name: count for name, count in events.items() if name.startswith("user/")}
        return (
            {
                **{f"eval_{key}": value for key, value in metrics(outcomes).items()},
                **{f"eval_ending/{ending}": float(count) for ending, count in sorted(endings.items())},
                **{f"eval_{name}": n for name, n in added(self.engine, asked, "evaluation").items()},
            },
            outcomes,
            sorted(episodes, key=sample_order),
        )


def dealt_back(ranks: Sequence[Sequence[T]]) -> list[T]:
    """What all ranks have of what `Engine.share` dealt, in the order before: a sum over it is the same to the
    last bit on any number of ranks.
    """
    longest = max(map(len, ranks))
    return [rank[i] for i in range(longest) for rank in ranks if i < len(rank)]


def added(engine: Engine, counts: Mapping[str, float], phase: str) -> Row:
    """Counters added over all ranks."""
    total = Counter[str]()
    for rank in engine.gather(dict(counts), phase):
        total.update(rank)
    return {name: float(count) for name, count in sorted(total.items())}


def _evaluating(host: HostConfig, play: PlayConfig, temperature: float) -> tuple[HostConfig, PlayConfig]:
    sampling = play.sampling.model_copy(update={"temperature": temperature})
    return (
        host.model_copy(update={"show_reward": False}),
        play.model_copy(update={"sampling": sampling}),
    )
