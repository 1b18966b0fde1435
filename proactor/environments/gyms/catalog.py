"""The gyms by name, as a config chooses them.

    gym = open_gym({"name": "function", "path": "data/userrl", "split": "official"})

Keys are those of each gym's class: ``path`` (the file or folder of its tasks), ``split`` ("official" keeps
UserRL's test ids out of training), ``max_turns`` and its own. Telepathy, Turtle and the streams of events
need a model as user and judge: the caller gives it (`environments.users`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from proactor.environments.errors import GymError
from proactor.environments.gyms.agentcf import AgentCFGym
from proactor.environments.gyms.event_streams import EventsGym
from proactor.environments.gyms.function import FunctionGym
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.environments.gyms.intention import IntentionGym
from proactor.environments.gyms.questions import QuestionsGym
from proactor.environments.gyms.taira import TairaGym
from proactor.environments.gyms.tau import TauGym
from proactor.environments.gyms.telepathy import telepathy_gym
from proactor.environments.gyms.turtle import turtle_gym
from proactor.environments.protocol import Gym
from proactor.files import settings_problem

GYMS: dict[str, Callable[..., Gym]] = {
    "agentcf": AgentCFGym,
    "function": FunctionGym,
    "function_family": FunctionFamily,
    "intention": IntentionGym,
    "questions": QuestionsGym,
    "taira": TairaGym,
    "tau": TauGym,
    "telepathy": telepathy_gym,
    "turtle": turtle_gym,
    "events": EventsGym,
}
FROM_CALLER = ("user", "customer")
"""What is no option: the caller gives it."""


def open_gym(settings: Mapping[str, Any], **given: Any) -> Gym:
    """The gym that ``settings`` names, with its other keys as options and ``given`` as what no config can
    hold (None: not given). Raises GymError for an unknown name or key, a missing one or a value of the wrong
    type, SourceError for its data.
    """
    options = dict(settings)
    name = options.pop("name", None)
    if name not in GYMS:
        raise GymError(f"gym.name: no gym {name!r}: there are {', '.join(GYMS)}")
    known = inspect.signature(GYMS[name]).parameters
    keys = [key for key in known if key not in FROM_CALLER]
    for key in options:
        if key not in keys:
            near = get_close_matches(str(key), keys, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(keys)}"
            raise GymError(f"gym.{key}: unknown key of the {name} gym ({hint})")
    _check_types(name, options)
    for key, value in given.items():
        if value is not None and key not in known:
            raise GymError(f"gym.{key}: the {name} gym takes none")
    options.update({key: value for key, value in given.items() if value is not None})
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in options:
            raise GymError(f"gym.{key}: the {name} gym needs it")
    return GYMS[name](**options)


def _check_types(name: str, options: Mapping[str, Any]) -> None:
    """Raise GymError for an option that is not of the type that the gym's class declares."""
    gym = GYMS[name]
    declared = get_type_hints(gym.__init__ if inspect.isclass(gym) else gym)
    fields: Any = {key: (declared.get(key, Any), ...) for key in options}
    model = create_model(name, __config__=ConfigDict(strict=True, allow_inf_nan=False), **fields)
    try:
        model.model_validate(dict(options))
    except ValidationError as error:
        _, problem = settings_problem(error, lambda _: "")
        raise GymError(f"gym.{problem} (the {name} gym)") from None
