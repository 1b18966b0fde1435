"""Environments of other forms on the host: gymnasium's tuples, coroutines, plain classes, garbage."""

from __future__ import annotations

import asyncio
import sys
import types
from typing import Any

import numpy as np
import pytest

from proactor.environments.errors import GymError
from proactor.environments.foreign import ForeignEnvironment, ForeignGym, feedback_of, outcome_of, total
from proactor.environments.host import Answer, Host, HostedEpisode
from proactor.environments.protocol import Call, Outcome
from proactor.environments.userrl import PACKAGES, userrl_gym


class Upstream:
    """The form of UserRL's environments, with an asynchronous step that tells itself apart."""

    def __init__(self, task: str) -> None:
        self.task, self.seed = task, None

    def reset(self, seed: int | None = None) -> tuple[dict, dict]:
        self.seed = seed
        return {"feedback": f"Find {self.task}.", "step_count": 0}, {"secret": self.task}

    def step(self, text: str) -> tuple[dict, float, bool, bool, dict]:
        info = {"raw": text, "history": [text], "total": 1.0}
        return {"feedback": f"sync {text}"}, 0.5, np.bool_(False), True, info

    async def step_async(self, text: str) -> tuple[dict, float, bool, bool, dict]:
        observation, *rest = self.step(text)
        return {"feedback": observation["feedback"].replace("sync", "async")}, *rest


class Plain:
    """The least that a class needs."""

    def reset(self) -> str:
        return "Say it."

    def step(self, text: str) -> tuple[str, int, bool]:
        return f"you said {text}", 1, "end" in text


def test_userrls_form() -> None:
    world = ForeignEnvironment(Upstream("it"), ["answer"])
    opening = world.reset(3)
    assert opening.messages == ({"role": "user", "content": "Find it."},) and world.world.seed == 3
    assert opening.tools[0]["function"]["name"] == "interact_with_env"
    outcome = world.step(Call("answer", "42"))
    assert outcome == Outcome("async [answer] 42", 0.5, False, True, {"raw": "[answer] 42", "total": 1.0})
    synchronous = ForeignEnvironment(Upstream("it"), sync=True)
    assert synchronous.step(Call("answer", "42")).observation == "sync [answer] 42"


def test_a_plain_class_on_the_host() -> None:
    async def play() -> tuple[HostedEpisode, list[Answer]]:
        gym = ForeignGym("plain", lambda task: Plain(), ["one"], prompt=lambda told: [{"content": told * 2}])
        episode = await Host(gym).begin(gym.tasks("train")[0], 0)
        return episode, [await episode.step([Call("action", text)]) for text in ("go", "end")]

    episode, answers = asyncio.run(play())
    assert episode.opening.messages == ({"content": "Say it.Say it."},)
    assert [a.feedback for a in answers] == ["you said [action] go", "you said [action] end"]
    assert [a.ending for a in answers] == [None, "terminated"] and answers[0].user_involved


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "NoneType"),
        (("a", 1.0), "2 values"),
        (("a", "much", True), "'much', no number"),
        (("a", 1.0, "yes"), "'yes' where a bool"),
        ((3, 1.0, True), r"\(int\) has no text"),
        (({"text": "a"}, 1.0, False, False, {}), "no feedback"),
        (({"feedback": None}, 1.0, False, False, {}), "no feedback"),
    ],
)
def test_garbage_is_named(answer: Any, said: str) -> None:
    with pytest.raises(GymError, match=said):
        outcome_of(answer)


def test_feedback() -> None:
    assert feedback_of({"feedback": "a"}) == feedback_of("a") == "a"


def hosted(gym: Any, task: str) -> HostedEpisode:
    async def begin() -> HostedEpisode:
        return await Host(gym).begin(task, 0)

    return asyncio.run(begin())


def test_a_missing_package_or_key_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "intentiongym", None)
    episode = hosted(userrl_gym("intention", ["a"]), "a")
    assert episode.ending == "error" and "intention gym cannot be imported" in episode.error

    def config(**options: Any) -> None:
        raise ValueError("OpenAI API key not configured.")

    package = types.SimpleNamespace(IntentionEnv=None, IntentionGymConfig=config)
    monkeypatch.setitem(sys.modules, "intentiongym", package)
    episode = hosted(userrl_gym("intention", ["a"]), "a")
    assert episode.error == "a: ValueError: OpenAI API key not configured."
    with pytest.raises(GymError, match="no gym 'chess'"):
        userrl_gym("chess", [])


def test_what_an_episode_has_reached_may_be_the_sum_of_its_rewards() -> None:
    class Paying:
        def reset(self) -> str:
            return "go"

        def step(self, text: str) -> tuple[str, float, bool]:
            return "on", float(text[-1]), False

    world = ForeignEnvironment(Paying(), score=total)
    for _ in range(2):
        world.reset(0)
        calls = [Call("action", "1"), Call("action", "3"), Call("action", "0")]
        assert [world.step(call).info["score"] for call in calls] == [1, 4, 4]
    assert PACKAGES["intention"].score is total and PACKAGES["tau"].score is None


def test_which_verbs_need_the_user() -> None:
    assert PACKAGES["function"].user_verbs == ("answer",) and PACKAGES["tau"].user_verbs == ("action",)
