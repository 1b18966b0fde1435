"""Information gains on an engine: equal to whole forwards of the edited sequences, in few rows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from proactor.engine import GRPO, Engine, Group, Sample, Sampling
from proactor.environments.episode import Episode, Turn
from proactor.environments.protocol import Call
from proactor.methods.infopo import information_gains, masked
from tests.engine.engines import load, prompts, write_folder

PLACEHOLDER = [11, 12, 13]
OBSERVATIONS = ([31, 32, 33, 34, 35], [41, 42], [11, 12, 51, 52])
"""Longer and shorter than the placeholder, and one that begins like it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder)


def rollouts(engine: Engine, temperature: float = 1.0) -> list[Episode]:
    """Two episodes of one prompt, of four sampled turns with the OBSERVATIONS between."""
    (prompt,) = prompts(1, 9)
    episodes = []
    for seed in range(2):
        sample, turns = Sample(prompt, [], temperature=temperature), []
        for t, observation in enumerate([*OBSERVATIONS, []]):
            sampling = Sampling(n=1, max_tokens=3 + t, ignore_eos=True, temperature=temperature)
            (drawn,) = engine.sample([prompt + sample.token_ids], sampling)[0].samples
            drawn.policy_version = engine.policy_version
            start = len(sample.token_ids)
            if start:
                sample.append(drawn)
            else:
                sample = drawn
            end = len(sample.token_ids)
            if observation:
                sample.extend(observation)
            calls = (Call("action"),)
            turns.append(
                Turn(calls, (start, end), (end, len(sample.token_ids)), "said" if observation else "")
            )
        episodes.append(Episode("toy", "one", seed, sample, turns, "turns", 4))
    return episodes


def brute_force(engine: Engine, episode: Episode, turn: int) -> float:
    """Two forwards over whole sequences, of which nothing is shared."""
    ids, before = episode.sample.token_ids, len(episode.sample.prompt_ids)
    start, end = episode.turns[turn].observation
    edited = [*ids[:start], *masked(end - start, PLACEHOLDER), *ids[end:]]
    begin, stop = (before + x for x in episode.turns[turn + 1].action)
    values = [
        engine.logprobs([episode.sample.prompt_ids + tokens])[0][begin - 1 : stop - 1].double()
        for tokens in (ids, edited)
    ]
    return float((values[0] - values[1]).mean())


def test_gains_equal_whole_forwards(engine: Engine) -> None:
    episodes = rollouts(engine)
    gains = information_gains(engine, episodes, PLACEHOLDER)
    for episode, found in zip(episodes, gains, strict=True):
        assert found[3] is None
        assert found[:3] == pytest.approx([brute_force(engine, episode, t) for t in range(3)], abs=1e-4)
    assert max(abs(g) for found in gains for g in found[:3] if g is not None) > 0.05


def test_gains_equal_transformers(folder: Path) -> None:
    """The base model alone, by transformers in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    engine = load(folder, lora=None)
    (episode, _) = rollouts(engine)
    found = information_gains(engine, [episode], PLACEHOLDER)[0]
    ids, before = episode.sample.token_ids, len(episode.sample.prompt_ids)
    for t in range(3):
        start, end = episode.turns[t].observation
        begin, stop = (before + x for x in episode.turns[t + 1].action)
        sums = []
        for tokens in (ids, [*ids[:start], *masked(end - start, PLACEHOLDER), *ids[end:]]):
            whole = torch.tensor([episode.sample.prompt_ids + tokens])
            with torch.no_grad():
                logp = model(whole).logits[0].log_softmax(-1)
            sums.append(logp[begin - 1 : stop - 1].gather(1, whole[0, begin:stop, None]).mean())
        assert found[t] == pytest.approx(float(sums[0] - sums[1]), abs=1e-4)


def trunk(episodes: list[Episode]) -> int:
    """Rows of the episodes up to their last observation, prompt once, less what the samples share."""
    starts = [e.sample.token_ids[: e.turns[2].observation[0]] for e in episodes]
    first, second = starts
    shared = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
    return len(episodes[0].sample.prompt_ids) + len(first) + len(second) - shared


def next_actions(episodes: list[Episode]) -> int:
    """|a_{t+1}| over the valid turns."""
    return sum(end - start for e in episodes for start, end in (turn.action for turn in e.turns[1:]))


def added(episodes: list[Episode]) -> int:
    """|o_t| + |a_{t+1}| over the valid turns."""
    return len(episodes) * sum(map(len, OBSERVATIONS)) + next_actions(episodes)


def test_masked_passes_add_feedback_and_next_action(engine: Engine, scored_rows: list[int]) -> None:
    episodes = rollouts(engine)
    scored_rows.clear()
    information_gains(engine, episodes, PLACEHOLDER)
    assert len(scored_rows) == 1
    assert trunk(episodes) < scored_rows[0] <= trunk(episodes) + added(episodes)


def test_in_deterministic_mode_each_episode_is_a_tree(folder: Path, scored_rows: list[int]) -> None:
    """And what the sampler recorded equals what is scored again, to the bit."""
    engine = load(folder, deterministic=True)
    episodes = rollouts(engine)
    scored_rows.clear()
    gains = information_gains(engine, episodes, PLACEHOLDER)
    whole = sum(len(e.sample.prompt_ids) + e.turns[2].observation[0] for e in episodes)
    assert len(scored_rows) == 2 and whole < sum(scored_rows) <= whole + added(episodes)
    for episode in episodes:
        episode.sample.policy_logprobs = []
    assert information_gains(engine, episodes, PLACEHOLDER) == gains


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_values_serve_only_at_temperature_one(engine: Engine, temperature: float) -> None:
    episodes = rollouts(engine, temperature)
    expected = [brute_force(engine, e, t) for e in episodes for t in range(3)]
    before = information_gains(engine, episodes, PLACEHOLDER)
    assert [g for found in before for g in found[:3]] == pytest.approx(expected, abs=1e-4)
    for episode in episodes:
        episode.sample.policy_logprobs = [0.0] * len(episode.sample.token_ids)
    after = information_gains(engine, episodes, PLACEHOLDER)
    assert (after == before) == (temperature != 1.0)
    for unknown in ([], [math.nan]):
        for episode in episodes:
            episode.sample.policy_logprobs = unknown * len(episode.sample.token_ids)
        nothing = information_gains(engine, episodes, PLACEHOLDER)
        assert [g for found in nothing for g in found[:3]] == pytest.approx(expected, abs=1e-4)


def test_old_recordings_are_scored_again(folder: Path, scored_rows: list[int]) -> None:
    engine = load(folder)
    episodes = rollouts(engine)
    for episode, reward in zip(episodes, (0.0, 1.0), strict=True):
        episode.sample.reward = reward
    engine.train([Group(episodes[0].sample.prompt_ids, [e.sample for e in episodes])], GRPO(lr=0.05))
    scored_rows.clear()
    gains = information_gains(engine, episodes, PLACEHOLDER)
    assert trunk(episodes) < sum(scored_rows) <= trunk(episodes) + added(episodes) + next_actions(episodes)
    expected = [brute_force(engine, e, t) for e in episodes for t in range(3)]
    assert [g for found in gains for g in found[:3]] == pytest.approx(expected, abs=1e-4)


def test_feedback_equal_to_the_placeholder_has_no_gain_and_no_pass(
    engine: Engine, scored_rows: list[int]
) -> None:
    (episode, _) = rollouts(engine)
    start, end = episode.turns[0].observation
    episode.sample.token_ids[start:end] = masked(end - start, PLACEHOLDER)
    scored_rows.clear()
    gains = information_gains(engine, [episode], PLACEHOLDER)
    assert gains[0][0] == 0.0 and gains[0][1] != 0.0
    only = Episode("toy", "one", 0, episode.sample, episode.turns[:2], "turns", 4)
    scored_rows.clear()
    assert information_gains(engine, [only], PLACEHOLDER) == [[0.0, None]] and not sum(scored_rows)
