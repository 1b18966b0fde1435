"""The paper's rewards by name: their numbers, their options, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proactor.dialogue.catalog import Catalog
from proactor.dialogue.parse import Parsed
from proactor.rewards import (
    FAMILY,
    REGISTRY,
    GroupReward,
    Mixture,
    RewardError,
    TurnReward,
    WeightedMetric,
    load_reward,
)
from proactor.rewards.schedule import TrainingProgress
from proactor.ruler import RulerError
from tests.proactor.dialogues import ready
from tests.proactor.rewards.group_rewards import (
    CATALOG,
    DIALOGUE,
    FULL,
    HALF,
    WAIT,
    group,
    half_dropped,
    length,
)

RULE = {"judge": {"kind": "rule"}}
FIRST, MIDDLE, LAST = (TrainingProgress(u, 9) for u in (0, 4, 8))


def parts(
    spec: str, options: dict[str, Any], progress: TrainingProgress, *texts: str, turn: int = 4
) -> list[dict[str, float]]:
    scored = asyncio.run(load_reward(spec, options).score(group(*texts, turn=turn), progress))
    assert scored is not None
    return scored


def test_every_name_of_the_family_gives_a_reward() -> None:
    needs = {"general_ruler": RULE, "custom_ruler": RULE, "adaptive_ruler": RULE}
    needs["mixture"] = {"components": {"rac": {"weight": 1}}}
    for name in FAMILY:
        reward = load_reward(name, needs.get(name))
        turn, grouped = isinstance(reward, TurnReward), isinstance(reward, GroupReward)
        assert turn != grouped and grouped == (name not in (*REGISTRY, "utility")), name
    assert list(FAMILY) == [
        "weighted_metric",
        "rac",
        "max_rac",
        "adaptive_metric",
        "general_ruler",
        "custom_ruler",
        "adaptive_ruler",
        "utility",
        "mixture",
    ]


def test_adaptive_metric_by_thirds() -> None:
    # turn 4, the window is open: RAC 1, .5, 0 and T 1, 1, 1 (5 is still to come), so only alpha moves the
    # second and third
    for progress, alpha in ((FIRST, 0.3), (MIDDLE, 0.5), (LAST, 0.7)):
        scored = parts("adaptive_metric", {}, progress, FULL, HALF, WAIT)
        assert [p["reward"] for p in scored] == pytest.approx([1.0, alpha * 0.5 + 1 - alpha, 1 - alpha])
    for progress, false in ((FIRST, 0.05), (MIDDLE, 0.1), (LAST, 0.2)):
        (late,) = parts("adaptive_metric", {}, progress, FULL, turn=7)
        assert late["reward"] == pytest.approx(-false) and late["false"] == 1.0
    reward = load_reward("adaptive_metric")
    assert reward.coefficients(MIDDLE) == pytest.approx({"rac": 0.5, "timing": 0.5, "false": -0.1})
    assert not reward.concurrent and reward.judged == ()


def test_adaptive_metric_takes_its_own_schedules() -> None:
    options = {"alpha": {"schedule": "linear", "from": 1, "to": 0, "warm_up": 1}, "false": 0, "early": 0.0}
    reward = load_reward("adaptive_metric", options)
    assert reward.coefficients(TrainingProgress(25, 100)) == pytest.approx(
        {"rac": 0.75, "timing": 0.25, "false": 0.0}
    )
    (early,) = parts("adaptive_metric", options, TrainingProgress(0, 1), FULL, turn=2)
    assert early["timing"] == 0.0
    assert load_reward("adaptive_metric", {"alpha": 0.9, "timing": 0.4}).coefficients(FIRST)["timing"] == 0.4


def test_rulers_differ_by_their_rubric() -> None:
    (full, half, wait) = parts("custom_ruler", RULE, FIRST, FULL, HALF, WAIT)
    assert full["reward"] == full["ruler"] > half["reward"] and full["reward"] > wait["reward"]
    assert {"ruler/timing", "ruler/correctness", "ruler/restraint"} <= full.keys()
    general = parts("general_ruler", RULE, FIRST, FULL, HALF, WAIT)
    assert general[2]["reward"] == 0.0 and "ruler/timing" not in general[0]
    same = parts("general_ruler", RULE | {"rubric": "custom"}, FIRST, FULL, HALF, WAIT)
    assert same == [full, half, wait]


@pytest.mark.parametrize("metric", ["rac", "max_rac"])
def test_adaptive_ruler_mixes_its_metric_with_the_judge(metric: str) -> None:
    options = RULE | {"metric": metric, "lambda_max": 0.4, "warm_up": 0.5}
    both = '[{"READY":"book","day":"Monday","time":"9"},{"READY":"call"}]'
    reward = load_reward("adaptive_ruler", options)
    assert reward.coefficients(TrainingProgress(2, 8)) == pytest.approx({metric: 0.8, "ruler": 0.2})
    (mixed,) = parts("adaptive_ruler", options, TrainingProgress(2, 8), both)
    assert mixed[metric] == {"rac": 0.5, "max_rac": 1.0}[metric]
    assert mixed["reward"] == pytest.approx(0.8 * mixed[metric] + 0.2 * mixed["ruler"])
    (first,) = parts("adaptive_ruler", options, TrainingProgress(0, 8), both)
    assert first["reward"] == first[metric] and "ruler" not in first


def test_the_metric_of_adaptive_ruler_takes_options() -> None:
    options = RULE | {"metric_options": {"waiting": "ready"}}
    waits = [parts("adaptive_ruler", o, FIRST, WAIT, turn=2)[0]["rac"] for o in (RULE, options)]
    assert waits == [0.0, 1.0]
    assert load_reward("rac", {"waiting": "ready"}).parts(DIALOGUE, 2, Parsed())["reward"] == 1.0


def test_a_mixture_from_a_config() -> None:
    components: dict[str, Any] = {
        "rac": {"weight": "rest", "waiting": "ready"},
        "timing": {"weight": 0.1, "early": 2.0},
        "false": {"weight": -0.2},
        "custom_ruler": {"weight": {"schedule": "linear", "to": 0.3, "warm_up": 0.5}, **RULE},
        "tests.proactor.rewards.group_rewards:in_tens": {"weight": 0.2, "range": [0, 10]},
        "weighted_metric": {"weight": 0.1, "consistency": 1.0},
        "utility": {"weight": 0.05, "range": [-4, 4], "false_cost": 2.0},
    }
    reward = load_reward("mixture", {"components": components})
    weights = reward.coefficients(TrainingProgress(50, 200))
    assert weights["custom_ruler"] == pytest.approx(0.15) and sum(weights.values()) == pytest.approx(1.0)
    (early,) = parts("mixture", {"components": components}, TrainingProgress(50, 200), FULL, turn=2)
    assert early["timing"] == 1.0, "worth 2 of 0 to 2"
    assert early["tests.proactor.rewards.group_rewards:in_tens"] == pytest.approx(length(FULL))
    assert early["weighted_metric"] == pytest.approx((1.0 + 0.4 + 0.1) / (1.0 + 0.4 + 0.1))
    assert early["reward"] == pytest.approx(sum(weights[name] * early[name] for name in weights))
    assert early["utility"] == 0.5, "an early fire wins nothing and costs nothing"


def test_utility_learns_the_tools_that_need_assent() -> None:
    careful = Catalog(tools=(CATALOG.tools[0].model_copy(update={"confirm": True}),))
    plain, asking = load_reward("utility", {"false_cost": 3.0}), load_reward("utility", {"false_cost": 3.0})
    asking.bind(None, careful)
    early = Parsed((ready("book", day="Monday", time="9"),))
    assert [r.parts(DIALOGUE, 2, early)["reward"] for r in (plain, asking)] == [0.0, -3.0]
    assert plain.parts(DIALOGUE, 4, early) == pytest.approx(
        {
            "reward": 0.1,
            "utility/benefit": 0.1,
            "utility/false": 0,
            "utility/missed": 0,
            "utility/interrupt": 0,
        }
    )
    columns = {"dialogue": [DIALOGUE], "turn": [4]}
    assert plain(prompts=["p"], completions=[FULL], **columns) == pytest.approx([0.1])
    with pytest.raises(RewardError, match="'utility': costs: no tool 'nope' in the catalog"):
        load_reward("utility", {"tools": {"nope": {"false_cost": 1}}}).bind(None, CATALOG)


def test_a_group_reward_of_ones_own() -> None:
    assert load_reward("tests.proactor.rewards.group_rewards:half_dropped") is half_dropped
    with pytest.raises(RewardError, match="a mixture takes functions"):
        load_reward(
            "mixture", {"components": {"tests.proactor.rewards.group_rewards:half_dropped": {"weight": 1}}}
        )


MIX = "reward 'mixture': components"


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("custom_ruler", {}, "reward 'custom_ruler': judge: Field required"),
        ("custom_ruler", {"judge": {"kind": "oracle"}}, "'oracle' is not one of rule, engine, endpoint"),
        (
            "custom_ruler",
            {"judge": {"kind": "engine", "adaptor": 1}},
            "'custom_ruler': judge engine: .*'adaptor'",
        ),
        ("custom_ruler", {"judge": {"kind": "endpoint", "model": "m"}}, "variable OPENAI_API_KEY is not set"),
        (
            "custom_ruler",
            RULE | {"rubric": "cutsom"},
            "rubric 'cutsom' is neither one of general, custom nor a text",
        ),
        ("custom_ruler", RULE | {"timeout": -1}, "'custom_ruler': timeout: "),
        (
            "adaptive_ruler",
            RULE | {"lambda_mx": 1},
            r"'adaptive_ruler': unknown key 'lambda_mx' \(known: judge, rubric",
        ),
        (
            "adaptive_ruler",
            RULE | {"lambda_max": 2},
            "'adaptive_ruler': lambda_max: .*less than or equal to 1, got 2",
        ),
        (
            "adaptive_ruler",
            RULE | {"metric": "pri"},
            "'adaptive_ruler': metric: .*'rac' or 'max_rac', got 'pri'",
        ),
        ("adaptive_ruler", RULE | {"metric_options": {"x": 1}}, "unknown key 'metric_options.x'"),
        (
            "adaptive_ruler",
            RULE | {"metric_options": {"early": 0.0}},
            r"'adaptive_ruler': unknown key 'metric_options\.early'",
        ),
        *(
            (
                "mixture",
                {"components": {part: {"weight": 1, key: value}}},
                f"{MIX}.{part}: unknown key '{key}'",
            )
            for part, key, value in (
                ("rac", "early", 0.0),
                ("rac", "pending", 0.5),
                ("max_rac", "early", "linear"),
                ("timing", "waiting", "ready"),
                ("false", "waiting", "ready"),
                ("false", "early", 0.0),
                ("false", "pending", 0.5),
            )
        ),
        ("adaptive_metric", {"beta": 1}, "'adaptive_metric': unknown key 'beta'"),
        ("utility", {"benefit": 1}, "'utility': unknown key 'benefit'"),
        ("mixture", {}, "'mixture': components: Field required"),
        ("mixture", {"components": {}}, "components: .* at least 1 item"),
        ("mixture", {"components": {"rac": {}}}, f"{MIX}.rac: weight: Field required"),
        ("mixture", {"components": {"rac": {"weight": 1, "wait": 1}}}, f"{MIX}.rac: unknown key 'wait'"),
        ("mixture", {"components": {"utility": {"weight": 1}}}, f"{MIX}.utility: .*declare range"),
        (
            "mixture",
            {"components": {"math:sqrt": {"weight": 1, "x": 1}}},
            f"{MIX}.math:sqrt: unknown key 'x'",
        ),
        (
            "mixture",
            {"components": {"ruler": {"weight": 1}}},
            f"{MIX}.ruler: unknown; one of rac, .*or module:function",
        ),
        ("mixture", {"components": {"rac": {"weight": 1, "range": [1, 0]}}}, f"{MIX}.rac: range: .*reversed"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    spec: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(RewardError, match=message) as error:
        load_reward(spec, options)
    assert "\n" not in str(error.value)


def test_an_engine_judge_is_bound_or_told_why_not() -> None:
    class Bare:
        chat = None
        base_name = "bare"

    reward = load_reward("custom_ruler", {"judge": "engine"})
    assert isinstance(reward, Mixture) and not reward.concurrent
    with pytest.raises(RulerError, match="bare has no tokenizer"):
        reward.bind(Bare(), CATALOG)  # type: ignore[arg-type]
    with pytest.raises(RewardError, match=r"bind\(engine\) comes first"):
        asyncio.run(reward.score(group(), FIRST))


def test_the_default_weights_are_those_of_the_methods() -> None:
    metric = WeightedMetric()
    assert (metric.consistency, metric.timing, metric.false) == (0.5, 0.4, 0.1)
