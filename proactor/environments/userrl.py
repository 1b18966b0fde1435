"""UserRL's own gyms, unmodified, where their packages are installed (``pip install -e gyms/FunctionGym`` in a
copy of SalesforceAIResearch/UserRL). Constructor options are those of a gym's config class.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from proactor.environments.calls import VERBS
from proactor.environments.errors import GymError
from proactor.environments.foreign import ForeignGym, Prompt, Score, total

MAX_TURNS = 16
"""UserRL's, in training and evaluation."""


@dataclass(frozen=True, slots=True)
class Package:
    """A gym's package, its classes, the verbs that need its user, and what an episode has reached."""

    module: str
    environment: str
    config: str
    user_verbs: Collection[str] = VERBS
    score: Score | None = None


PACKAGES = {
    "function": Package("functiongym", "FunctionEnv", "FunctionGymConfig", ("answer",)),
    "intention": Package("intentiongym", "IntentionEnv", "IntentionGymConfig", score=total),
    "persuade": Package("persuadegym", "PersuadeEnv", "PersuadeGymConfig", score=total),
    "search": Package("searchgym", "SearchEnv", "SearchGymConfig", ("answer",)),
    "tau": Package("taugym", "TauEnv", "TauGymConfig", ("action",)),
    "telepathy": Package("telepathygym", "TelepathyEnv", "TelepathyGymConfig", score=total),
    "travel": Package("travelgym", "TravelEnv", "TravelGymConfig", ("action", "answer")),
    "turtle": Package("turtlegym", "StoryEnv", "TurtleGymConfig", score=total),
}


def userrl_gym(
    kind: str,
    tasks: Sequence[str],
    max_turns: int = MAX_TURNS,
    prompt: Prompt | None = None,
    sync: bool = False,
    score: Score | None = None,
    **options: Any,
) -> ForeignGym:
    """UserRL's gym of a kind. Raises GymError for a kind that there is not; a package or key that is missing
    ends each episode with one line that names it. ``score``: by default the sum of the rewards where a gym
    pays what is new or better, else the largest one; Travel's own metric, the mean over its aspects, needs
    their number, which its class does not tell.
    """
    if kind not in PACKAGES:
        raise GymError(f"UserRL has no gym {kind!r}: there are {', '.join(PACKAGES)}")
    settings = {"max_steps": max_turns, **options}
    build = _Builder(kind, settings)
    package = PACKAGES[kind]
    scored = score or package.score
    return ForeignGym(f"userrl-{kind}", build, tasks, max_turns, package.user_verbs, prompt, sync, scored)


@dataclass(frozen=True)
class _Builder:
    """Builds a task's environment; it can be sent to a process, which a function inside another cannot."""

    kind: str
    settings: dict[str, Any]

    def __call__(self, task: str) -> Any:
        package = PACKAGES[self.kind]
        try:
            module = import_module(package.module)
        except ImportError as error:
            raise GymError(f"UserRL's {self.kind} gym cannot be imported: {error}") from error
        config = getattr(module, package.config)(data_mode="single", data_source=task, **self.settings)
        return getattr(module, package.environment)(config)
