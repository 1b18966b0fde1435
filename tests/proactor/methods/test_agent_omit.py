"""Agent-Omit: rewards, the format, what a turn is trained after, partial samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.engine import GRPO, Engine, Group, ToolChat
from proactor.environments.episode import Episode
from proactor.environments.host import Host
from proactor.environments.player import PlayConfig
from proactor.environments.protocol import Opening
from proactor.methods import agent_omit
from proactor.methods.agent_omit import AgentOmit, groups_of, partials, rewards
from proactor.methods.omit_format import (
    INSTRUCTION,
    OmittingPlayer,
    OmitTurn,
    OmitWording,
    edited,
    marker,
    omission,
    omit_turns,
    read_omissions,
)
from tests.engine.sessions import run
from tests.proactor.methods.episodes import episode
from tests.proactor.methods.omitting import CONTEXT, LONG, WorldGym, said, saying, world_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return world_engine(tmp_path_factory.mktemp("chat") / "model")


def played(
    engine: Engine, *scripts: Sequence[str], instruct: bool = False, gym: Any = None, **options: Any
) -> list[Episode]:
    """An episode for each script, one after the other."""

    async def go() -> list[Episode]:
        found = []
        async with engine.session() as session, Host(gym or WorldGym()) as host:
            for index, script in enumerate(scripts):
                assert engine.chat is not None
                config = PlayConfig(sampling=saying(engine, script), max_tokens=CONTEXT)
                chat, wording = ToolChat(engine.chat), OmitWording(instruct)
                player = OmittingPlayer(session, chat, host, config, CONTEXT, wording)
                found.append(await player.play("a", 0, key=5, index=index, **options))
        return found

    return run(go())


OMITTING = [said("1"), said("2"), omission(1) + said("3", None), said("right", "")]
"""Takes the first result out in its third turn; the fourth has no thought."""


# --- rewards ---


def test_success_is_paid_for_what_it_left_out_and_failure_is_not() -> None:
    share = agent_omit.omit_share(thoughts=30, observations=50, tokens=400)
    assert agent_omit.reward(1.0, share, 0.2, solved=True) == pytest.approx(0.84)
    assert agent_omit.reward(1.0, 0.0, 0.2, solved=True) == pytest.approx(0.8)
    assert agent_omit.reward(0.0, share, 0.2, solved=False) == 0
    assert agent_omit.reward(0.5, share, 0.2, solved=False) == pytest.approx(0.4)


def turned(one: Episode, omits: int = 0, observed: int = 0, thoughts: Sequence[int] = ()) -> Episode:
    """An episode whose turns omit ``omits`` thoughts, and whose history lost ``observed`` tokens."""
    turns = []
    for number, turn in enumerate(one.turns):
        reads = [*one.sample.prompt_ids, *one.sample.token_ids[: turn.action[0]]]
        if number == len(one.turns) - 1:
            reads = reads[: len(reads) - observed]
        plain = {name: getattr(turn, name) for name in type(turn).__slots__} | {"context": tuple(reads)}
        written = thoughts[number] if thoughts else 0
        turns.append(OmitTurn(**plain, no_thought=number < omits, thought=written))
    return replace(one, turns=turns)


def test_the_share_counts_tokens_and_the_group_s_median_thought() -> None:
    """370 tokens in the log, 50 of them omitted, a thought of 30 (median of 20, 30, 90): 80 of 400."""
    first = turned(episode([0.0, 1.0], lengths=[100, 200], observation=70), omits=1, observed=50)
    other = turned(episode([0, 0, 1.0], lengths=[100, 100, 100]), thoughts=[20, 90, 30])
    failed = turned(episode([0.0, 0.0], lengths=[100, 200], observation=70), omits=1, observed=50)
    assert len(first.sample.token_ids) == 370 and first.tokens == 320
    assert rewards([first, other, failed], AgentOmit()) == pytest.approx([0.84, 0.8, 0.0])
    assert rewards([first, other], AgentOmit(mu=0.0)) == [1.0, 1.0]


def test_the_relative_form_compares_with_the_group_before_omissions() -> None:
    first = turned(episode([0.0, 1.0], lengths=[100, 200], observation=100), observed=100)
    other = turned(episode([0.0, 1.0], lengths=[100, 200], observation=300))
    found = rewards([first, other], AgentOmit(omit_reward="relative"))  # 400 and 600: 500 is usual
    assert found == pytest.approx([0.8 + 0.2 * (500 - 300) / 500, 0.8])


# --- the format ---


def turn(omits: tuple[int, ...] = ()) -> OmitTurn:
    return OmitTurn((), (0, 0), (0, 0), omits=omits)


@given(st.lists(st.integers(0, 9)), st.integers(0, 6), st.sets(st.integers(1, 6)))
def test_each_number_takes_effect_once_or_is_counted(named: list[int], shown: int, gone: set[int]) -> None:
    before = [turn() for _ in range(shown)]
    gone = {n for n in gone if n <= shown}
    if before:
        before[-1] = turn(tuple(gone))
    omits, unknown, repeated = read_omissions("".join(map(omission, named)), before)
    assert len(omits) + unknown + repeated == len(named)
    assert set(omits) == {n for n in named if 1 <= n <= shown} - gone and len(set(omits)) == len(omits)
    assert unknown == sum(not 1 <= n <= shown for n in named)


def test_a_tag_edits_its_message_alone_and_a_repeat_does_nothing(engine: Engine) -> None:
    again = [said("1"), said("2"), said("3"), omission(2) + omission(2) + said("4")]
    [one] = played(engine, again)
    assert engine.chat is not None
    turns = omit_turns(one)
    before, after = (edited(one.sample.prompt_ids, one.sample.token_ids, ts) for ts in (turns[:3], turns))
    text = engine.chat.tokenizer.decode
    for number in (1, 2, 3):
        assert f"<tool_response_{number}>{LONG}{number}</tool_response_{number}>" in text(before)
    assert f"<tool_response_2>{LONG}" not in text(after) and text(after).count(marker(2)) == 1
    assert f"<tool_response_1>{LONG}1" in text(after) and f"<tool_response_3>{LONG}3" in text(after)
    assert turns[3].omits == (2,) and turns[3].repeated == 1 and turns[3].unknown == 0
    twice = edited(one.sample.prompt_ids, one.sample.token_ids, [*turns[:3], replace(turns[3], omits=(2, 2))])
    assert twice == after


def test_later_turns_read_the_edited_history_and_numbers_without_a_message_are_counted(
    engine: Engine,
) -> None:
    [one] = played(
        engine, [said("1"), omission(1) + omission(7) + omission(2) + said("2"), said("3"), said("4")]
    )
    turns = omit_turns(one)
    assert engine.chat is not None
    texts = [engine.chat.tokenizer.decode(turn.context or ()) for turn in turns]
    assert [f"{LONG}1" in text for text in texts] == [False, True, False, False]
    assert [marker(1) in text for text in texts] == [False, False, True, True]
    assert (turns[1].omits, turns[1].unknown) == ((1,), 2)
    assert one.tokens < len(one.sample.token_ids)
    [plain] = played(engine, [said("1"), said("2"), said("3"), said("4")])
    assert plain.tokens == len(plain.sample.token_ids) and len(plain.pieces()) == 1
    _, counts = groups_of([one, plain], AgentOmit(), "a")
    assert (counts["omit/observations"], counts["omit/unknown"], counts["omit/repeated"]) == (1, 2, 0)


def test_thoughts_are_measured_in_tokens_and_empty_tags_omit_them(engine: Engine) -> None:
    assert engine.chat is not None
    [one] = played(
        engine, [said("1", "four words of thought"), said("2", " "), said("3", None), said("right")]
    )
    turns = omit_turns(one)
    assert [turn.no_thought for turn in turns] == [False, True, False, False]
    first = one.sample.token_ids[slice(*turns[0].action)]
    assert engine.chat.tokenizer.decode(first[: turns[0].thought]).endswith("thought</think>")
    assert turns[1].thought == turns[2].thought == 0 < turns[3].thought < turns[0].thought


def test_the_instruction_stands_in_the_system_message() -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "go"}
    told = OmitWording().opening(Opening([system, user]))
    assert told.messages[0]["content"] == f"Be brief.\n{INSTRUCTION}" and told.messages[1] == user
    assert [m["role"] for m in OmitWording().opening(Opening([user])).messages] == ["system", "user"]
    assert OmitWording(instruct=False).opening(Opening([user])).messages == [user]


# --- training ---


def stats(engine: Engine, groups: Sequence[Group]) -> dict[str, float]:
    state = engine.state_dict()
    found = engine.train(list(groups), GRPO(lr=1e-3))
    engine.load_state_dict(state)
    return found


def test_each_turn_is_trained_after_what_it_was_drawn_after(engine: Engine) -> None:
    """The ratio of the first step is exactly 1, which it is not on the log that was never edited."""
    episodes = played(engine, OMITTING, [said("1"), said("2"), said("3"), said("4")])
    groups, counts = groups_of(episodes, AgentOmit(), "a")
    assert counts["omit/observations"] == 1 and counts["omit/thoughts"] == 1 and counts["omit/partials"] == 2
    found = stats(engine, groups)
    assert found["ratio_max_error"] == 0 and found["sampler_trainer_gap"] == 0 and found["grad_norm"] > 0
    drawn = sum(sum(e.sample.trained_mask()) for e in episodes)
    alone = sum(sum(sample.trained_mask()) for e in episodes for _, sample in partials(e))
    assert found["tokens_trained"] == drawn + alone
    log = [Group(e.sample.prompt_ids, [e.sample]) for e in episodes]
    assert stats(engine, log)["ratio_max_error"] > 1e-4


def test_pieces_hold_each_trained_token_once_with_its_records(engine: Engine) -> None:
    [one] = played(engine, OMITTING)
    pieces = one.pieces()
    assert len(pieces) == 2 and len(pieces[0].turns()) == 3, "the third turn's omission shows in the fourth"
    kept = [
        (t, p) for s in pieces for t, p, on in zip(s.token_ids, s.policy_logprobs, s.trained_mask()) if on
    ]
    sample = one.sample
    assert kept == [
        (t, p)
        for t, p, on in zip(sample.token_ids, sample.policy_logprobs, sample.trained_mask(), strict=True)
        if on
    ]
    assert all(
        sum(piece.trained_mask()) and piece.policy_version == engine.policy_version for piece in pieces
    )


def test_two_omission_turns_give_two_partial_samples_of_half_the_weight(engine: Engine) -> None:
    script = [said("1"), omission(1) + said("2"), omission(2) + said("3"), said("right")]
    [one] = played(engine, script)
    found = partials(one)
    assert [weight for weight, _ in found] == [0.5, 0.5] and engine.chat is not None
    for number, (_, sample) in enumerate(found, start=1):
        read, drawn = (engine.chat.tokenizer.decode(ids) for ids in (sample.prompt_ids, sample.token_ids))
        assert f"<tool_response_{number}>{LONG}{number}" in read and omission(number) in drawn
        assert all(sample.trained_mask()), "the decision alone"
    [failed] = played(engine, [said("1"), said("2"), said("3"), said("4")])
    assert partials(failed) == []
    groups, _ = groups_of([one, failed], AgentOmit(), "a")
    values = [sample.advantage for group in groups for sample in group.samples]
    alone = sorted(v for v in values if isinstance(v, float))
    assert alone[1:3] == pytest.approx([0.5 * max(alone)] * 2), (
        "R_task's advantage is r's here, at half weight"
    )
    without, counts = groups_of([one, failed], AgentOmit(partial=False), "a")
    assert counts["omit/partials"] == 0
    assert sum(len(g.samples) for g in without) == sum(len(g.samples) for g in groups) - 2
