"""AgentCF's choices: the order of a pair, what memories hold after a choice, and the scripted players."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.environments.errors import GymError
from proactor.environments.gyms.agentcf import AgentCFGym, Memory, Shelf, chosen_place
from proactor.environments.gyms.items import COLOURS, MATERIALS
from proactor.environments.gyms.players import players
from proactor.environments.protocol import Call, Outcome
from proactor.environments.scripted import play
from proactor.methods.user_metrics import Outcome as Result
from proactor.methods.user_metrics import intervals
from proactor.training.episode_pairs import scripted_outcomes

GYM = AgentCFGym(train=1, test=300)

WORLDS = [(task, 0) for task in GYM.tasks("test")]


def played(right: Callable[[int], bool], rounds: int = 4) -> list[Outcome]:
    """An episode whose choice in round i is right as said."""
    world = AgentCFGym(train=1, test=1, rounds=rounds).make("test-0")
    world.reset(3)
    outcomes = []
    for number in range(rounds):
        place = world.round.taken if right(number) else 1 - world.round.taken
        outcomes.append(world.step(Call("answer", f"{place + 1}: it is like what I took")))
    return outcomes


def test_a_policy_that_goes_by_position_is_right_half_of_the_time() -> None:
    results = scripted_outcomes(GYM, WORLDS, players(GYM)["first"])
    found = intervals(results, ["score"])["score"]
    assert found.low < 0.5 < found.high and found.high - found.low < 0.1


def test_the_order_is_drawn_for_each_round_and_seed() -> None:
    drawn, shelf = random.Random(0), Shelf(0)
    places = Counter(shelf.draw(drawn, ("red", "wool")).taken for _ in range(2000))
    assert abs(places[0] / 2000 - 0.5) < 0.04
    world = GYM.make("test-0")
    openings = {str(world.reset(seed).messages[-1]["content"]) for seed in range(5)}
    assert len(openings) > 1 and world.reset(0) == world.reset(0)


def test_popularity_does_not_tell_what_was_taken() -> None:
    """What is taken is drawn by the same weights as what is left, and users like each word alike."""
    drawn, shelf = random.Random(1), Shelf(0)
    popular = {item for item, weight in zip(shelf.items, shelf.weights, strict=True) if weight > 0.2}
    taken = left = 0
    for _ in range(4000):
        one = shelf.draw(drawn, (drawn.choice(COLOURS), drawn.choice(MATERIALS)))
        taken += one.items[one.taken] in popular
        left += one.items[1 - one.taken] in popular
    assert taken > 1000 and 0.75 < taken / left < 1.33


def test_choices_that_are_always_right_need_no_reflection() -> None:
    outcomes = played(lambda number: True)
    assert outcomes[-1].info | {"solved": True} == {
        "score": 1.0,
        "solved": True,
        "reflections": 0,
        "reinforced": 4,
    }
    assert [o.reward for o in outcomes] == [1.0] * 4 and outcomes[-1].truncated


def test_a_wrong_choice_is_reflected_on() -> None:
    outcomes = played(lambda number: number > 0)
    assert outcomes[0].observation.startswith("Wrong.\nLikes: ") and outcomes[0].reward == 0
    last = outcomes[-1].info
    assert (last["reflections"], last["reinforced"], last["score"]) == (1, 3, 0.75) and last["solved"]


def test_memories_of_users_and_items_are_rewritten() -> None:
    memory = Memory()
    memory.reflect(("red", "wool"), ("blue", "silk"))
    assert memory.text == "Likes: known-red-wool\nNot: known-blue-silk"
    memory.reflect(("red", "silk"), ("green", "wool"))  # wool was left, so it is not what the user likes
    assert memory.text == "Likes: known-red\nNot: known-blue-silk-green-wool"
    world = AgentCFGym(train=1, test=1, rounds=50).make("test-0")
    world.reset(0)
    for _ in range(49):
        shown = world.step(Call("answer", "1")).observation
    assert ": taken-" in shown or ": left-" in shown


@given(
    likes=st.tuples(st.sampled_from(COLOURS), st.sampled_from(MATERIALS)),
    seed=st.integers(0, 999),
    rounds=st.integers(1, 20),
)
def test_a_memory_never_rules_out_what_is_liked(likes: Any, seed: int, rounds: int) -> None:
    drawn, shelf, memory = random.Random(seed), Shelf(seed), Memory()
    for _ in range(rounds):
        one = shelf.draw(drawn, likes)
        taken, left = one.items[one.taken], one.items[1 - one.taken]
        assert set(taken) & set(likes) and not set(left) & set(likes)
        memory.reflect(taken, left)
    assert not set(memory.others) & set(likes) and not set(memory.others) & set(memory.liked)
    assert set(memory.liked) & set(likes)


@pytest.mark.parametrize(
    ("call", "place"),
    [
        (Call("answer", "1"), 0),
        (Call("answer", " 2: red, which I like"), 1),
        (Call("answer", "2 because it is red"), 1),
        (Call("answer", "12"), None),
        (Call("answer", "red"), None),
        (Call("answer", ""), None),
        (Call("action", "1"), None),
    ],
)
def test_how_a_choice_is_read(call: Call, place: int | None) -> None:
    assert chosen_place(call) == place


def test_what_is_no_choice_is_wrong_and_teaches_nothing() -> None:
    world = GYM.make("test-0")
    opening = world.reset(0)
    outcome = world.step(Call("action", "1"))
    assert outcome.reward == 0 and outcome.observation.startswith("Answer with 1 or 2.\nLikes: unknown")
    assert (outcome.info["reflections"], outcome.info["reinforced"]) == (0, 0)
    assert str(opening.messages[-1]["content"]).count(": new-") == 2 and not outcome.ended


def test_the_scripted_players() -> None:
    scores: dict[str, list[Result]] = {
        name: scripted_outcomes(GYM, WORLDS, script) for name, script in players(GYM).items()
    }
    mean = {name: sum(o.score for o in outcomes) / 300 for name, outcomes in scores.items()}
    assert mean["expert"] > 0.8 > 0.75 > mean["hasty"] > 0.6 and abs(mean["random"] - 0.5) < 0.06
    by_round = Counter[int]()
    for task in GYM.tasks("test"):
        episode = play(GYM, task, players(GYM)["expert"](task)).episode
        by_round.update({place: int(reward) for place, reward in enumerate(episode.rewards)})
    assert abs(by_round[0] / 300 - 0.5) < 0.1 and by_round[5] / 300 > 0.9  # it knows nothing, then the user


@pytest.mark.parametrize(
    ("options", "said"), [({"rounds": 0}, "agentcf: rounds=0 is no number from 1"), ({"test": -1}, "test=-1")]
)
def test_what_is_refused(options: Any, said: str) -> None:
    with pytest.raises(GymError, match=said):
        AgentCFGym(**options)
    with pytest.raises(GymError, match="agentcf: no task 'test-300'"):
        GYM.make("test-300")
