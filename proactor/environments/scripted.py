"""Players without a model: experts that teach, and lines beside which a trained agent is read.

episode = play(gym, "func-1", FunctionExpert())
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from proactor.engine import Sample
from proactor.environments.episode import Ending, Episode, Turn, last_info
from proactor.environments.host import HostConfig
from proactor.environments.protocol import Call, Gym, Opening


@dataclass(frozen=True, slots=True)
class Move:
    """What a script does, and for a teacher why: its text in three parts."""

    call: Call
    memory: str = ""
    hypotheses: str = ""
    plan: str = ""

    @property
    def thought(self) -> str:
        """The three parts that come before the call."""
        return f"Known: {self.memory}\nRules left: {self.hypotheses}\nPlan: {self.plan}"


class Script(Protocol):
    """Plays one task: `move` says what to do next, `see` takes in what the gym answered."""

    def move(self) -> Move | None:
        """The next call; None to give up."""
        ...

    def see(self, call: Call, observation: str) -> None:
        """What the gym answered to a call of `move`."""
        ...


@runtime_checkable
class Reader(Protocol):
    """A script that also takes in what an agent sees before its first turn."""

    def read(self, opening: Opening) -> None:
        """What the gym says at the beginning."""
        ...


@dataclass(slots=True)
class Played:
    """An episode, whose sample holds no token, and the move of each turn."""

    episode: Episode
    moves: list[Move]


def play(gym: Gym, task: str, script: Script, seed: int = 0, host: HostConfig | None = None) -> Played:
    """Play a task to its end, or until the script gives up (`Episode.ending` "cancelled").

    ``host``: as an agent plays there, with its turns at most and its reward line in what is recorded; the
    script itself sees none.
    """
    host = host or HostConfig()
    world, most = gym.make(task), host.turns(gym)
    opening = world.reset(seed)
    if isinstance(script, Reader):
        script.read(opening)
    moves: list[Move] = []
    turns: list[Turn] = []
    ending: Ending | None = None
    while ending is None:
        move = script.move()
        if move is None:
            ending = "cancelled"
            break
        outcome = world.step(move.call)
        script.see(move.call, outcome.observation)
        moves.append(move)
        involved = move.call.verb in world.user_verbs
        told, reward = host.shown(outcome.observation, outcome.reward), outcome.reward
        turns.append(Turn((move.call,), (0, 0), (0, 0), told, reward, involved, outcome.info))
        if outcome.ended:
            ending = "terminated" if outcome.terminated else "truncated"
        elif len(turns) >= most:
            ending = "turns"
    nothing, info = Sample([], []), last_info(turns)
    return Played(Episode(gym.name, task, seed, nothing, turns, ending, most, info=info), moves)
