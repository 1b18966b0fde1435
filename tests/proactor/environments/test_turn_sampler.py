"""What a turn is drawn after: goes on where it can, begins anew after an edit, under a noise of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from proactor.engine import Sample, Sampling
from proactor.environments.turn_sampler import KEYS, TurnSampler


class Session:
    """Draws one token a turn: 100, 101, … by policy versions 7, 8, …"""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def _turn(self, ids: Sequence[int]) -> Sample:
        place = len(self.calls)
        return Sample(list(ids), [100 + place], [-1.0], [-float(place + 1)], policy_version=7 + place)

    async def sample(self, ids: Sequence[int], sampling: Sampling, *, key: int | None, index: int) -> Sample:
        turn = self._turn(ids)
        self.calls.append(("sample", list(ids), key, index))
        return turn

    async def advance(self, sample: Sample, observation: Sequence[int], sampling: Sampling) -> Sample:
        turn = self._turn([*sample.prompt_ids, *sample.token_ids, *observation])
        self.calls.append(("advance", list(observation)))
        sample.extend(observation)
        sample.append(turn)
        return sample


def drawn(
    key: int | None, *steps: tuple[str, list[int]], seed: int | None = None
) -> tuple[Sample, list[tuple[Any, ...]]]:
    session, sampling = Session(), Sampling(seed=seed)

    async def go() -> Sample:
        sampler = TurnSampler(session, [1, 2], 1.0, key, 4)  # type: ignore[arg-type]
        for what, ids in steps:
            if what == "show":
                sampler.show(ids)
            else:
                await sampler.draw(ids or sampler.log.prompt_ids + sampler.log.token_ids, sampling)
        return sampler.log

    return asyncio.run(go()), session.calls


def test_a_turn_after_the_whole_log_costs_the_observation_alone() -> None:
    log, calls = drawn(5, ("draw", []), ("show", [3, 4]), ("draw", []))
    assert calls == [("sample", [1, 2], 5, 4), ("advance", [3, 4])]
    assert log.token_ids == [100, 3, 4, 101] and log.mask == [True, False, False, True]
    assert log.policy_logprobs == [-1.0, 0.0, 0.0, -2.0]
    assert log.policy_version == 7 and [log.token_versions()[i] for i in (0, 3)] == [7, 8]


def test_after_an_edit_it_begins_anew_with_another_noise_and_goes_on_from_there() -> None:
    edited = [1, 2, 100, 9, 101, 6]
    log, calls = drawn(
        5,
        ("draw", []),
        ("show", [3, 4]),
        ("draw", []),
        ("show", [6]),
        ("draw", edited),
        ("show", [7]),
        ("draw", [*edited, 102, 7]),
    )
    assert calls[2:] == [("sample", edited, 5 + KEYS, 4), ("advance", [7])]
    assert log.token_ids == [100, 3, 4, 101, 6, 102, 7, 103], "the log keeps what was edited"


def test_a_seed_without_a_key_has_another_noise_after_an_edit_too() -> None:
    steps = ("draw", []), ("show", [3]), ("draw", [1, 2, 9, 3])
    calls = {seed: drawn(None, *steps, seed=seed)[1] for seed in (None, 8)}
    assert [key for _, _, key, _ in calls[8]] == [0, KEYS]
    assert [key for _, _, key, _ in calls[None]] == [None, None], "the session gives each one of its own"


def test_given_turns_are_not_trained_and_have_no_noise() -> None:
    log, calls = drawn(None, ("show", [50]), ("show", [3]), ("draw", []))
    assert calls == [("sample", [1, 2, 50, 3], None, 4)]
    assert log.mask == [False, False, True] and log.policy_version == 7 and log.versions is None
