"""BAO: worked values, the local term, and stage A's filter."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.engine import EngineError, ProactorError
from proactor.environments.protocol import Call
from proactor.methods import bao
from proactor.methods.bao import BAO, DemonstrationFilter
from proactor.methods.turn_credit import TurnCredit
from proactor.methods.turn_credit import token_advantages as userrl_advantages
from tests.proactor.methods.episodes import episode

near = pytest.approx
FREE = BAO(user_price=0.0, information_seeking=0.0, over_thinking=0.0)


def test_consecutive_user_turns() -> None:
    verbs = episode([0.0] * 7, "euueuuu")
    assert verbs.user_actions == 5
    assert bao.consecutive(verbs) == [False, False, True, False, False, True, True]
    only = BAO(user_price=0.0, information_seeking=0.1)
    assert sum(bao.penalties(verbs, only)) == near(0.3)
    assert bao.objective(episode([0, 0, 0, 0, 1.0], "uuuuu"), 0.05) == near(0.75)


def test_calls_in_one_reply_are_paid_one_by_one() -> None:
    """Eight answers in a reply cost what eight replies would; turns in a row stay a matter of turns."""
    one = episode([0.0, 1.0], "uu")
    one.turns = [one.turns[0], replace(one.turns[1], user_involved=8)]
    config = BAO(user_price=0.05, information_seeking=0.1)
    assert bao.objective(one, 0.05) == near(1 - 9 * 0.05)
    assert bao.penalties(one, config) == near([0.05, 8 * 0.05 + 0.1])
    assert bao.consecutive(one) == [False, True] and sum(bao.hits(one, config)) == 1


GROUP = [episode([0.0, 0.0, 1.0], "euu"), episode([0.0, 0.0, 1.0], "eeu")]
"""Action, wrong answer, right answer beside action, action, right answer: the same reward of the task."""


def test_two_episodes_of_equal_reward_differ_by_their_questions() -> None:
    config = BAO(kappa=0.5)
    assert [bao.shaped(e, config) for e in GROUP] == [near([0, -0.05, 0.85]), near([0, 0, 0.95])]
    assert [config.credit.scored(bao.shaped(e, config)) for e in GROUP] == near([0.504, 0.608])
    assert bao.local_terms(GROUP, config) == [near([1 / 12, 1 / 12, -5 / 12]), near([1 / 12] * 3)]
    first, second = bao.turn_advantages(GROUP, config)
    assert first == near([-0.6238, -0.6238, -1.1238], abs=1e-4)
    assert second == near([0.7904] * 3, abs=1e-4)
    tokens = bao.token_advantages(GROUP, config)[0]
    assert tokens == near([-0.6238, -0.6238, 0, 0, -0.6238, -0.6238, 0, 0, -1.1238, -1.1238], abs=1e-4)


def test_turn_weights_are_of_the_unshaped_rewards() -> None:
    """R2G of (0, 0, 1) is (0.64, 0.8, 1) in both, whatever the turns cost."""
    config = BAO(kappa=0.0, credit=TurnCredit(turns="r2g"))
    for turns, sign in zip(bao.turn_advantages(GROUP, config), (-1, 1), strict=True):
        assert turns == near([sign * 0.70711 * w * 3 / 2.44 for w in (0.64, 0.8, 1.0)], abs=1e-4)


def test_a_dear_user_does_not_turn_the_sign_around() -> None:
    """Shaped rewards of both episodes add up to less than 0; the one that asks less is still the better."""
    config = BAO(user_price=2.0, kappa=0.0, credit=TurnCredit(turns="r2g"))
    worse, better = bao.turn_advantages(GROUP, config)
    assert max(worse) < 0 < min(better)


def test_the_user_price_is_not_charged_turn_by_turn() -> None:
    """The right answer of an episode without consecutive questions stays level with its other turns."""
    config = BAO(user_price=0.2, information_seeking=0.0)
    assert bao.turn_advantages([GROUP[1], episode([0.0] * 3)], config)[0] == near([0.70711] * 3, abs=1e-4)


@pytest.mark.parametrize(
    ("turns", "solved", "ending", "charged"),
    [
        (10, False, "tokens", 0.05),
        (3, False, "tokens", 0.2),
        (10, False, "context", 0.05),
        (10, True, "tokens", 0.0),
        (10, False, "turns", 0.0),
        (15, False, "tokens", 0.0),
        (16, False, "tokens", 0.0),
    ],
)
def test_over_thinking(turns: int, solved: bool, ending: str, charged: float) -> None:
    cut = episode([0.0] * (turns - 1) + [float(solved)], ending=ending, horizon=15)  # type: ignore[arg-type]
    config = BAO(user_price=0.0, information_seeking=0.0)
    assert bao.penalties(cut, config) == near([0.0] * (turns - 1) + [charged])
    assert bao.hits(cut, config) == [False] * (turns - 1) + [charged > 0]


def test_an_episode_without_turns_is_charged_nothing() -> None:
    empty = episode([], ending="context")
    assert bao.penalties(empty, BAO()) == [] == bao.hits(empty, BAO())


def test_only_terms_with_a_price_are_local() -> None:
    assert not any(any(bao.hits(e, BAO(information_seeking=0.0))) for e in GROUP)
    cut = episode([0.0] * 3, ending="tokens")
    assert not any(bao.hits(cut, BAO(over_thinking=0.0)))


def test_without_prices_it_is_userrls_grpo() -> None:
    group = [episode([0.2, 0.0, 1.0], "uuu"), episode([0.0, 0.5], "ue", ending="tokens")]
    assert bao.token_advantages(group, FREE) == [near(v) for v in userrl_advantages(group, FREE.credit)]


def test_impossible_prices_are_refused() -> None:
    with pytest.raises(EngineError, match="BAO: user_price"):
        BAO(user_price=-0.1)
    with pytest.raises(EngineError, match=r"BAO\.kappa cannot be set"):
        BAO().kappa = 1.0


kinds = st.text("eu", min_size=1, max_size=6)


@given(st.lists(kinds, min_size=1, max_size=5), st.floats(0, 2), st.booleans())
def test_the_local_term_adds_up_to_nothing(users: list[str], kappa: float, cut: bool) -> None:
    group = [episode([0.0] * len(u), u, ending="tokens" if cut else "turns") for u in users]
    terms = bao.local_terms(group, BAO(kappa=kappa))
    assert sum(map(sum, terms)) == near(0.0, abs=1e-9)
    assert [len(t) for t in terms] == [len(u) for u in users]


@given(kinds, st.floats(0, 1), st.floats(0, 1))
def test_more_questions_never_score_better(users: str, price: float, seeking: float) -> None:
    config = BAO(user_price=price, information_seeking=seeking)
    rewards = [0.0] * (len(users) - 1) + [1.0]
    quiet, asked = episode(rewards), episode(rewards, users)
    assert sum(bao.shaped(asked, config)) <= sum(bao.shaped(quiet, config))
    assert sum(bao.penalties(asked, config)) >= price * asked.user_actions - 1e-9


# --- stage A ---

FULL = "<memory>m</memory><hypotheses>a + b: open</hypotheses><plan>3 left</plan><query>1 2 3 4</query>call"


def test_what_a_demonstration_is_left_out_for() -> None:
    config = DemonstrationFilter()
    good, failed = episode([0.0, 1.0]), episode([0.0, 0.0])
    asked = episode([0.0, 1.0], calls=[Call("search", "The  test"), Call("search", " the test")])
    again = replace(asked, turns=[replace(turn, feedback="1 2 3 4") for turn in asked.turns])
    other = episode([0.0, 1.0], calls=[Call("action", "1 2 3 4"), Call("answer", "1 2 3 4")])
    thin = FULL.replace("<plan>3 left</plan>", "<plan> </plan>")
    demonstrations = [
        (good, [FULL, FULL]),
        (failed, [FULL, FULL]),
        (good, [FULL, thin]),
        (good, [FULL, FULL.replace("</query>", "")]),
        (again, [FULL, FULL]),
        (asked, [FULL, FULL]),  # the world has answered something else
        (other, [FULL, FULL]),
    ]
    kept, left_out = bao.kept_demonstrations(demonstrations, config)
    assert [id(e) for e in kept] == [id(good), id(asked), id(other)]
    assert left_out == Counter(failed=1, sections=2, repeated=1)


def test_a_section_may_be_missing_in_a_fifth_of_the_turns() -> None:
    five = episode([0.0] * 4 + [1.0])
    assert bao.fault(five, [FULL] * 4 + ["call"], DemonstrationFilter()) == ""
    assert bao.fault(five, [FULL] * 3 + ["call"] * 2, DemonstrationFilter()) == "sections"


def test_replies_and_turns_must_match() -> None:
    with pytest.raises(ProactorError, match="'a task', seed 7: 1 replies for 2 turns"):
        bao.fault(episode([0.0, 1.0]), [FULL], DemonstrationFilter())


def test_sections_span_lines() -> None:
    read = bao.read_sections("<memory>\nx\ny </memory><plan>p", ["memory", "plan"])
    assert read == {"memory": "x\ny", "plan": ""}
