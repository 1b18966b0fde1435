"""Turn rewards: acceptance tests T1.2, T1.6 and T1.7 of the methods, the registry, rewards that misbehave."""

from __future__ import annotations

import asyncio
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.dialogue import Action, Dialogue, Reference
from proactor.dialogue.board import Board
from proactor.dialogue.candidates import Candidates
from proactor.dialogue.catalog import Catalog, Effect, Parameter, Tool
from proactor.dialogue.matching import Timing
from proactor.dialogue.parse import Parsed, parse
from proactor.dialogue.prompt import unknowable
from proactor.rewards import (
    REGISTRY,
    RewardError,
    WeightedMetric,
    adaptive_ruler,
    load_reward,
    ruler_weight,
    run_reward,
    score_replay,
)
from proactor.rewards.schedule import TrainingProgress
from proactor.scoring.metrics import aggregate
from tests.proactor.dialogues import pending, ready, users, worked_example

BOOK = Reference(id="b", name="book", params={"day": "Monday", "time": "9"}, coverage=(2, 6), ready=(4, 5))
DIALOGUE = users(7, BOOK)
FULL, HALF = ready("book", day="Monday", time="9"), ready("book", day="Monday")
DONE = Board((), {"b": Timing.ON_TIME})
TOOLS = Catalog(tools=())


def no_prompts() -> list[str]:
    raise AssertionError("a built-in reward asks for no prompts")


def parts(
    turn: int, *actions: Action, board: Board | None = None, dialogue: Dialogue = DIALOGUE, **options: Any
) -> dict[str, float]:
    return WeightedMetric(**options).parts(dialogue, turn, Parsed(actions), board or Board())


def test_adaptive_ruler_schedule() -> None:
    """T1.2."""
    weights = [ruler_weight(u, 100) for u in (0, 50, 400)]
    assert weights == pytest.approx([0.0, 0.15, 0.3])
    assert [adaptive_ruler(0.6, 0.9, w) for w in weights] == pytest.approx([0.6, 0.645, 0.69])


def test_waiting() -> None:
    """T1.6."""
    assert (parts(1)["timing"], parts(1)["false"]) == (1.0, 0.0)
    assert [parts(u)["timing"] for u in range(2, 8)] == [1, 1, 1, 0, 1, 1]
    assert parts(5, board=DONE)["timing"] == 1.0


def test_an_empty_proposal_as_a_reward() -> None:
    """T1.7."""
    assert [parts(u)["rac"] for u in range(1, 8)] == [1, 0, 0, 0, 0, 0, 1]
    assert parts(1, ready("call"))["rac"] == 0.0
    assert parts(4, board=DONE)["rac"] == 1.0


def test_due_is_the_last_decision_turn_in_the_window() -> None:
    spoken = [{"index": i, "speaker": "agent" if i == 5 else "user", "text": "x"} for i in range(1, 8)]
    dialogue = Dialogue.model_validate({"id": "d", "turns": spoken, "references": (BOOK,)})
    assert parts(4, dialogue=dialogue)["timing"] == 0.0


@pytest.mark.parametrize(
    ("turn", "actions", "reward"),
    [
        (4, (FULL,), 0.5 + 0.4),
        (2, (HALF,), 0.25 + 0.4),  # early counts as in PT
        (6, (FULL,), 0.5),  # late: similar, no credit, no penalty
        (7, (FULL,), -0.1),
        (4, (ready("call"),), -0.1),
        (4, (FULL, ready("call")), (0.5 + 0.4 - 0.1) / 2),
        (4, (FULL, HALF), 0.375 + 0.2 - 0.05),  # the second fire on one reference is a repeat
        (2, (pending("book", day="Monday"),), 0.25),
    ],
)
def test_weighted_metric(turn: int, actions: tuple[Action, ...], reward: float) -> None:
    got = parts(turn, *actions)
    assert got["reward"] == pytest.approx(reward)
    assert got["reward"] == pytest.approx(0.5 * got["rac"] + 0.4 * got["timing"] - 0.1 * got["false"])


def test_coefficients_and_options() -> None:
    assert parts(4, FULL, consistency=1, timing=2)["reward"] == 3.0
    assert parts(7, FULL, false=0.7)["reward"] == pytest.approx(-0.7)
    assert parts(2, FULL, early=0.25)["timing"] == 0.25
    assert parts(2, FULL, early="linear")["timing"] == pytest.approx(1 / 3)
    assert [parts(u, waiting="ready")["rac"] for u in range(1, 8)] == [1, 1, 1, 0, 0, 1, 1]
    assert [parts(u, pending("book", day="Monday"), pending=0.5)["timing"] for u in (1, 2, 4)] == [0, 0.5, 0]


def test_a_fire_that_an_unknown_window_may_make_right_earns_no_less_than_waiting() -> None:
    known = BOOK.model_copy(update={"coverage": (1, 2), "ready": (1, 2)})
    unknown = BOOK.model_copy(update={"id": "u", "coverage": (3, 5), "ready": None})
    dialogue = users(7, known, unknown)
    assert [unknowable(dialogue, turn) for turn in range(1, 7)] == [False, False, True, True, True, False]
    for turn in (3, 4, 5):
        assert parts(turn, FULL, dialogue=dialogue) == parts(turn, dialogue=dialogue)
    assert parts(6, FULL, dialogue=dialogue)["reward"] == pytest.approx(-0.1)


BOOKING = Tool(name="book", parameters=(Parameter(name="day"), Parameter(name="time")))


@pytest.mark.parametrize("effect", ["write", "irreversible"])
@pytest.mark.parametrize("waiting", ["open", "ready"])
@given(
    st.integers(1, 7),
    st.dictionaries(st.sampled_from(("day", "time", "hall")), st.sampled_from(("Monday", "9", "10"))),
    st.booleans(),
)
def test_with_exact_values_a_wrong_value_earns_less_than_waiting(
    effect: Effect, waiting: str, turn: int, params: dict[str, str], done: bool
) -> None:
    metric = WeightedMetric(waiting=waiting, values="exact")
    metric.bind(None, Catalog(tools=(BOOKING.model_copy(update={"effect": effect}),)))  # type: ignore[arg-type]
    board = DONE if done else Board()
    fire = metric.parts(DIALOGUE, turn, Parsed((ready("book", **params),)), board)["reward"]
    wait = metric.parts(DIALOGUE, turn, Parsed(()), board)["reward"]
    right = BOOK.params.items() <= params.items()
    if right and 2 <= turn <= 6 and not done:
        share = 2 / len(params)
        assert fire == pytest.approx(0.5 * share + 0.4 * (turn < 6))
    else:
        assert fire == pytest.approx(-0.1) and fire < wait


def test_exact_values_of_tools_that_read_and_before_the_catalog_is_known() -> None:
    exact, half = WeightedMetric(values="exact"), Parsed((HALF,))
    assert exact.parts(DIALOGUE, 4, half)["reward"] == pytest.approx(-0.1)
    exact.bind(None, Catalog(tools=(BOOKING.model_copy(update={"effect": "read"}),)))  # type: ignore[arg-type]
    assert exact.parts(DIALOGUE, 4, half) == parts(4, HALF)
    optional = Parameter(name="time", required=False)
    tool = Tool(name="book", parameters=(Parameter(name="day"), optional))
    exact.bind(None, Catalog(tools=(tool,)))  # type: ignore[arg-type]
    assert exact.parts(DIALOGUE, 4, half)["reward"] == pytest.approx(0.25 + 0.4)
    assert exact.parts(DIALOGUE, 2, Parsed((pending("book", day="Monday"),)))["rac"] == 0.5


def test_exact_values_reach_the_metric_inside_a_mixture() -> None:
    mixture = load_reward("mixture", {"components": {"weighted_metric": {"weight": 1, "values": "exact"}}})
    mixture.bind(None, Catalog(tools=(BOOKING,)))  # type: ignore[attr-defined]
    group = Candidates(DIALOGUE, 4, ('[{"READY":"book","day":"Monday"}]', "[]"), TOOLS)
    wrong, wait = asyncio.run(mixture.score_all([group], TrainingProgress()))[0]  # type: ignore[attr-defined]
    assert wrong["reward"] < wait["reward"]


def test_a_repeat_is_false_and_an_early_one_masked() -> None:
    assert parts(4, FULL, board=DONE)["reward"] == pytest.approx(-0.1)
    assert parts(4, FULL, board=Board((), {"b": Timing.EARLY})) == parts(4, board=DONE)


def test_masked_actions_leave_the_turn_as_if_not_proposed() -> None:
    dialogue = users(7, BOOK, Reference(id="u", name="call", params={}))
    for turn in range(1, 8):
        assert parts(turn, ready("call"), dialogue=dialogue) == parts(turn)
    assert parts(4, FULL, ready("call"), dialogue=dialogue) == parts(4, FULL)


def test_unread_output_gets_the_floor() -> None:
    floor = WeightedMetric().parts(DIALOGUE, 4, parse("I think so."))
    assert (floor["reward"], floor["unread"]) == (pytest.approx(-0.1), 1.0)
    half = WeightedMetric().parts(DIALOGUE, 4, parse('[{"READY":"book","day":"Monday","time":"9"},"x"]'))
    assert half["reward"] == pytest.approx((0.5 + 0.4 - 0.1) / 2)


@given(st.text(max_size=40), st.integers(1, 7), st.booleans())
def test_every_reward_is_finite_and_bounded(text: str, turn: int, done: bool) -> None:
    answer = Candidates(DIALOGUE, turn, (text,), TOOLS, DONE if done else Board())
    for name, factory in REGISTRY.items():
        (got,) = run_reward(name, factory(), answer, no_prompts)
        assert all(math.isfinite(v) for v in got.values()) and -0.1 <= got["reward"] <= 1.0


def test_built_in_rewards_take_trl_calls() -> None:
    columns = {"dialogue": [DIALOGUE] * 2, "turn": [4, 7]}
    text = '[{"READY":"book","day":"Monday","time":"9"}]'
    for completions in (
        [text, "[]"],
        [[{"role": "assistant", "content": text}], [{"role": "assistant", "content": "[]"}]],
    ):
        assert load_reward("weighted_metric")(
            prompts=["p"] * 2, completions=completions, **columns
        ) == pytest.approx([0.9, 0.9])
        assert load_reward("rac")(
            prompts=["p"] * 2, completions=completions, trainer_state=None, **columns
        ) == [
            1.0,
            1.0,
        ]
    assert load_reward("max_rac").parts(DIALOGUE, 4, Parsed((FULL, HALF)))["reward"] == 1.0  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match="needs the column 'turn'"):
        load_reward("rac")(prompts=["p"], completions=["[]"], dialogue=[DIALOGUE])


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("nonsense", {}, r"'nonsense' is unknown: one of weighted_metric, .*, or module:function"),
        ("no_such_module_xyz:f", {}, "No module named 'no_such_module_xyz'"),
        ("math:nothing", {}, "math has no function 'nothing'"),
        ("math:pi", {}, "math has no function 'pi'"),
        ("math:sqrt", {"a": 1}, r"options \['a'\] are only taken by built-in rewards"),
        ("weighted_metric", {"timming": 1}, "'weighted_metric'.*timming"),
        ("weighted_metric", {"early": "later"}, "'weighted_metric': early.*number, .*got 'later'"),
        (
            "weighted_metric",
            {"waiting": "closed"},
            "waiting: Input should be 'open' or 'ready', got 'closed'",
        ),
        ("weighted_metric", {"consistency": "much"}, "consistency: .*number, .*got 'much'"),
        ("rac", {"early": 0.0}, r"reward 'rac': unknown key 'early' \(known: theta, waiting\)"),
        ("max_rac", {"theta": None}, "'max_rac': theta: "),
    ],
)
def test_wrong_specs_are_refused_in_one_line(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message) as error:
        load_reward(spec, options)
    assert "\n" not in str(error.value)


def test_a_function_of_ones_own_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_scoring_module.py").write_text(
        "def fn(prompts, completions, turn, **columns):\n    return [t / 2 for t in turn]\n"
    )
    monkeypatch.chdir(tmp_path)
    function = load_reward("my_scoring_module:fn")
    answers = Candidates(DIALOGUE, 1, ("[]", "[]"), TOOLS)
    assert run_reward("mine", function, answers, lambda: ["p"] * 2) == [{"reward": 0.5}] * 2


def test_a_module_that_exits_is_no_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_exiting_module.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match="the module exits when it is imported"):
        load_reward("my_exiting_module:fn")
    for spec in (".x:fn", "a b:fn", "a\0:fn"):
        with pytest.raises(RewardError, match="is no name of a module"):
            load_reward(spec)


def broken(value: Any) -> Any:
    return lambda prompts, completions, **columns: [1.0, value]


def test_a_reward_that_misbehaves_gives_one_line_that_names_it() -> None:
    def raises(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        raise ValueError("two\nlines")

    def leaves(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        sys.exit(0)

    for function, message in [
        (broken(math.nan), "reward 'mine' gave nan for completion 1: 'second'"),
        (broken(math.inf), "gave inf"),
        (broken(None), "gave None"),
        (broken("0.5"), "gave '0.5'"),
        (lambda prompts, completions, **columns: [1.0], "gave 1 values for 2 completions"),
        (broken(10**400), "gave 1000"),
        (broken(np.zeros(2)), "gave array"),
        (raises, "reward 'mine' raised ValueError: two lines"),
        (leaves, "reward 'mine' raised SystemExit: 0"),
    ]:
        with pytest.raises(RewardError, match=message) as error:
            run_reward(
                "mine", function, Candidates(DIALOGUE, 1, ("first", "second"), TOOLS), lambda: ["p"] * 2
            )
        assert "\n" not in str(error.value)


def test_an_exception_of_a_built_in_reward_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(*args: object) -> None:
        raise TypeError("planted")

    monkeypatch.setattr(WeightedMetric, "parts", planted)
    with pytest.raises(TypeError, match="planted"):
        run_reward("weighted_metric", WeightedMetric(), Candidates(DIALOGUE, 1, ("[]",), TOOLS), no_prompts)


def test_replay_scores_on_the_agents_own_board() -> None:
    contribution, rewards = score_replay(DIALOGUE, {4: (FULL,), 5: Parsed((FULL,), unread={"bad_value": 1})})
    # Waits, the fire, the repeat with an unread value, done.
    assert list(rewards.values()) == pytest.approx([0.9, 0.4, 0.4, 0.9, -0.1, 0.9, 0.9])
    m = aggregate([contribution])
    assert m["reward"] == pytest.approx(sum(rewards.values()) / 7)
    assert m["unparsed"] == 1
    dialogue, outputs = worked_example()
    assert aggregate([score_replay(dialogue, outputs)[0]])["pri"] == pytest.approx(0.7830, abs=5e-5)
