"""The expert for FunctionGym: its grammar, its elimination, and what it says as a teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.environments.gyms.arithmetic import Expression, parse
from proactor.environments.gyms.function import FunctionGym, FunctionTask, FunctionWorld, value_of
from proactor.environments.gyms.function_expert import PROBES, FunctionExpert, all_rules, shown


def play(task: FunctionTask, max_turns: int = 16) -> tuple[FunctionExpert, list[str], bool]:
    """The expert's verbs on a task, and whether it solved it."""
    world, expert, verbs = FunctionWorld(task, max_turns, parity=False), FunctionExpert(), []
    world.reset(0)
    while (move := expert.move()) is not None:
        outcome = world.step(move.call)
        expert.see(move.call, outcome.observation)
        verbs.append(move.call.verb)
        if outcome.ended:
            return expert, verbs, outcome.reward == 1
    return expert, verbs, False


def task(rule: str, test_case: tuple[int, ...] = (4, 6, 9, 5)) -> FunctionTask:
    expression = parse(rule, "abcd")
    value = value_of(expression, test_case)
    assert value is not None
    return FunctionTask("t", rule, expression, test_case, value)


@settings(max_examples=12, deadline=None)
@given(st.permutations("abcd"), st.lists(st.sampled_from("+-*/"), min_size=3, max_size=3), st.integers(0, 6))
def test_it_solves_rules_of_its_grammar_with_one_answer(
    names: list[str], signs: list[str], square: int
) -> None:
    parts = [f"{name} ** 2" if place == square else name for place, name in enumerate(names)]
    inner = f"({parts[0]} {signs[0]} {parts[1]})" + (" ** 2" if square == 4 else "")
    rule = f"{inner} {signs[1]} {parts[2]} {signs[2]} {parts[3]}"
    expert, verbs, solved = play(task(rule))
    assert solved and verbs.count("answer") == 1 and verbs[0] == "search"
    assert len(expert.seen) <= 5


def test_values_of_the_rules_are_the_gyms() -> None:
    rules = all_rules()
    assert len(rules.expressions) == len(rules.values) > 50_000
    for place in range(0, len(rules.expressions), 997):
        for probe, value in zip(PROBES, rules.values[place]):
            want = value_of(rules.expressions[place], probe)
            if want is None or not np.isfinite(want):
                assert np.isnan(value)
            else:
                assert value == pytest.approx(want, rel=1e-9)


def test_no_two_rules_behave_alike() -> None:
    shortened = np.round(np.nan_to_num(all_rules().values[::50], nan=-1e9), 3)
    assert len(np.unique(shortened, axis=0)) > 0.999 * len(shortened)


def test_a_rule_outside_the_grammar_makes_it_give_up() -> None:
    expert, _, solved = play(task("a + b + c + d + 7"))
    assert not solved and len(expert.left) == 0 and expert.move() is None


def test_a_wrong_answer_rules_out_what_gave_it() -> None:
    expert = FunctionExpert()
    world = FunctionWorld(task("a + b + c + d"), 16, parity=False)
    world.reset(0)
    for _ in range(2):
        move = expert.move()
        assert move is not None
        expert.see(move.call, world.step(move.call).observation)
    before = len(expert.left)
    expert.see(type(move.call)("answer", "24"), "Your answer is wrong.")
    assert 0 < len(expert.left) < before and expert.wrong == [24.0]


def test_the_teachers_text() -> None:
    expert = FunctionExpert()
    world = FunctionWorld(task("(a + b) * c - d"), 16, parity=False)
    world.reset(0)
    thoughts = []
    while not world.over:
        move = expert.move()
        assert move is not None
        thoughts.append(move.thought)
        expert.see(move.call, world.step(move.call).observation)
    assert thoughts[0].startswith("Known: nothing\nRules left: ")
    assert "f(2, 3, 5, 7) = 18; the test case is 4, 6, 9, 5" in thoughts[2]
    assert thoughts[-1].endswith("Plan: all rules left agree on the test case: answer")
    assert "Rules left: 1, such as" in thoughts[-1]


@pytest.mark.parametrize(
    ("rule", "text"),
    [("(a + b) * c", "(a + b) * c"), ("-(a - 2)", "-(a - 2)"), ("a ** b ** 2", "a ** (b ** 2)")],
)
def test_expressions_are_shown(rule: str, text: str) -> None:
    expression: Expression = parse(rule, "abcd")
    assert shown(expression) == text


def test_it_solves_userrls_rules(data_dir: Path) -> None:
    gym = FunctionGym(data_dir / "userrl")
    played = [play(gym.task(name)) for name in gym.tasks("all")[::10]]
    assert all(solved and verbs.count("answer") == 1 for _, verbs, solved in played)
