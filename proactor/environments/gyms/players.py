"""The scripted players of a gym: the teachers of stage A, and lines beside which a policy is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proactor.environments.gyms import agentcf_scripts, taira_scripts
from proactor.environments.gyms.agentcf import AgentCFGym
from proactor.environments.gyms.function import FunctionGym
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.environments.gyms.function_scripts import lines
from proactor.environments.gyms.taira import TairaGym
from proactor.environments.protocol import Gym
from proactor.environments.scripted import Script


def players(gym: Gym) -> Mapping[str, Callable[[str], Script]]:
    """Scripts by name, each made for a task: ``expert``, ``hasty`` and ``random`` at least; none where the
    gym has no scripts.
    """
    if isinstance(gym, FunctionGym | FunctionFamily):
        return lines(gym)
    if isinstance(gym, TairaGym):
        return taira_scripts.PLAYERS
    return agentcf_scripts.PLAYERS if isinstance(gym, AgentCFGym) else {}
