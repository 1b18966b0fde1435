"""Scripted players of FunctionGym's sub-family: what they do, and what they must not know."""

from __future__ import annotations

import pytest

from proactor.environments.episode import Episode
from proactor.environments.gyms.function_expert import FunctionExpert, rules_of
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.environments.gyms.function_scripts import Hasty, lines
from proactor.environments.host import HostConfig
from proactor.environments.protocol import Call
from proactor.environments.scripted import Move, play

GYM = FunctionFamily(signs="+-", largest=3, train=300, test=20, max_turns=8)


def played(name: str) -> list[Episode]:
    """A line's episodes of the test tasks."""
    script = lines(GYM)[name]
    return [play(GYM, task, script(task)).episode for task in GYM.tasks("test")]


def verbs(episode: Episode) -> list[str]:
    return [turn.verb for turn in episode.turns]


def test_the_expert_knows_the_sub_family_and_needs_one_probe() -> None:
    assert len(rules_of(GYM).expressions) == 15  # a sign for each name, not all minus
    for episode in played("expert"):
        assert episode.score == 1.0 and episode.user_actions == 1 and episode.ending == "terminated"
        assert verbs(episode) in (["search", "action", "answer"], ["search", "answer"])


def test_lines_stay_what_they_are_named() -> None:
    for episode in played("guess only"):
        assert set(verbs(episode)) == {"answer"} and len(episode.turns) <= 8
    assert {turn.calls[0].content for e in played("guess only") for turn in e.turns[:1]} == {
        max(results := [f"{GYM.task(t).expected:g}" for t in GYM.tasks("train")], key=results.count)
    }
    for episode in played("never answer"):
        assert verbs(episode) == ["search", *["action"] * 7]
        assert episode.score == 0 and episode.user_actions == 0 and episode.ending == "truncated"
    assert {verb for e in played("random") for verb in verbs(e)} == {"search", "action", "answer"}


def test_the_hasty_teacher_reckons_and_has_no_plan() -> None:
    episodes = [play(GYM, task, Hasty(GYM, task)).episode for task in GYM.tasks("train")]
    again = [play(GYM, task, Hasty(GYM, task)).episode for task in GYM.tasks("train")]
    assert list(map(verbs, episodes)) == list(map(verbs, again))
    assert {verbs(e)[1] for e in episodes} == {"action", "answer"}
    assert any(e.user_actions > 1 for e in episodes)
    probes = {turn.calls[0].content for e in episodes for turn in e.turns if turn.verb == "action"}
    assert len(probes) == 4 and "2 4 1 10" in probes  # whose result tells every rule
    for episode in episodes:
        answers = [turn.calls[0].content for turn in episode.turns if turn.verb == "answer"]
        assert len(set(answers)) == len(answers)  # a wrong one is ruled out
        if verbs(episode).count("action") >= 4 and verbs(episode)[-1] == "answer":
            assert episode.score == 1.0  # four probes leave one rule


def test_a_script_that_gives_up_ends_its_episode() -> None:
    class Quitter:
        def move(self) -> Move | None:
            return None

        def see(self, call: Call, observation: str) -> None:
            raise AssertionError("nothing was asked")

    episode = play(GYM, "test-0", Quitter()).episode
    assert episode.ending == "cancelled" and not episode.turns and episode.horizon == 8


def test_a_script_is_held_to_the_hosts_turns_and_never_sees_its_reward_line() -> None:
    heard: list[str] = []

    class Listening(FunctionExpert):
        def see(self, call: Call, observation: str) -> None:
            heard.append(observation)
            super().see(call, observation)

    host = HostConfig(max_turns=2, show_reward=True)
    episode = play(GYM, "test-0", Listening(rules_of(GYM)), host=host).episode
    assert (len(episode.turns), episode.ending, episode.horizon) == (2, "turns", 2)
    assert [turn.feedback for turn in episode.turns] == [f"{said}\nReward: 0.0" for said in heard]
    assert (
        play(GYM, "test-0", FunctionExpert(rules_of(GYM)), host=HostConfig(max_turns=99)).episode.horizon == 8
    )


def test_moves_say_why_only_where_a_script_does() -> None:
    told = play(GYM, "test-0", FunctionExpert(rules_of(GYM))).moves
    assert told[0].plan == "ask for the test case first" and told[0].hypotheses == "15"
    with pytest.raises(AttributeError):
        told[0].call = Call("finish")  # type: ignore[misc]
