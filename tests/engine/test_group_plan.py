"""A plan of groups says what the step then computes, row by row; operations and sharing by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proactor.engine import (
    GRPO,
    SFT,
    Engine,
    EngineConfig,
    EngineError,
    Group,
    GRPOLoss,
    Sample,
    Tree,
    plan_here,
    plan_model,
)
from proactor.engine.known_models import FAMILY
from proactor.engine.lora_config import LoRA
from proactor.engine.memory import AGAIN, Budgets
from proactor.engine.operations import Operations, Work
from proactor.engine.plan import read_shapes
from tests.engine.engines import load
from tests.engine.trees import ancestors, groups, long_tokens

CONFIGS = (GRPO(), GRPO(beta=0.1), GRPO(ratio="sequence"), GRPO(beta=0.1, ratio="sequence", epochs=2), SFT())


def caterpillar(context: int, turns: int, samples: int, tokens: int) -> list[Group]:
    trunk = [1 + i % 90 for i in range(context)]
    ends = [context * (turn + 1) // turns for turn in range(turns)]
    leaf = [3] * tokens
    return [Group(trunk[:e], [Sample(trunk[:e], leaf) for _ in range(samples)], tree="d") for e in ends]


@pytest.fixture(scope="module")
def engines(folder: Path) -> dict[int, Engine]:
    return {rows: load(folder, token_budget=rows) for rows in (6, 64)}


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups(long_tokens, parents=False), st.sampled_from((6, 64)), st.sampled_from(CONFIGS))
def test_rows_are_those_that_the_step_computes(
    engines: dict[int, Engine], several: list[Group], rows: int, config: GRPO | SFT
) -> None:
    engine = engines[rows]
    for group in several:
        for i, sample in enumerate(group.samples):
            sample.advantage = float(i + 1)
    planned, before = engine.plan(several, config), engine.counters()["rows_computed"]
    assert planned.masked == sum(g.masked for g in several)
    if planned.masked == len(several):
        assert planned.tokens == planned.chunks == 0 and planned.peak == planned.held
        return
    stats = engine.train(several, config)
    assert planned.tokens == stats["tokens_computed"]
    assert planned.flat == stats["tokens_computed"] + stats["tokens_avoided"]
    assert planned.epochs * sum(tree.trained for tree in planned.trees) == stats["tokens_trained"]
    computed = engine.counters()["rows_computed"] - before
    assert computed == planned.tokens + planned.again + planned.reference


@settings(deadline=None, max_examples=60)
@given(groups(parents=False))
def test_operations_count_the_keys_that_a_row_sees(several: list[Group]) -> None:
    """Attention, against each row's ancestors one by one; linears by rows."""
    model = plan_model("qwen2.5-0.5b", 24)
    for group in several:
        group.samples[0].mask = None  # nothing is left out
    (tree_work,), per = model.groups(several).trees, model.operations
    tree, pairs = Tree(several), 0
    for node in tree.nodes:
        above = sum(len(tree.nodes[a].ids) for a in ancestors(tree, node.parent))
        pairs += sum(above + i + 1 for i in range(len(node.ids)))
    counts = tree_work.operations
    assert counts["forward", "attention"] == per.pair * pairs
    assert counts["backward", "linears"] == (per.linear + 2 * per.adapter) * tree.rows
    planned = model.groups(several, GRPO(epochs=3))
    assert counts.total() * 3 == planned.operations
    for shares in (planned.shares(), planned.model_shares()):
        assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("size", "linear", "adapter", "pair", "head"),
    [
        ("7B", 6_525_288_448, 40_370_176, 28 * 3584, 152_064 * 3584),
        ("14B", 13_212_057_600, 68_812_800, 48 * 5120, 152_064 * 5120),
    ],
)
def test_operations_of_known_models(size: str, linear: int, adapter: int, pair: int, head: int) -> None:
    """Weights by hand: frozen linears twice, the adapter three times, attention 3.5 times, the head twice."""
    config, _ = read_shapes(FAMILY[size].name)
    per, work = Operations.of(config, LoRA(rank=16)), Work(rows=1000, pairs=77_000, heads=300)
    total = sum(per.forward(work).values()) + sum(per.backward(work).values())
    expected = 2 * (2 * linear + 3 * adapter) * 1000 + 3.5 * 4 * pair * 77_000 + 2 * 2 * head * 300
    assert total == pytest.approx(expected, rel=1e-6)


def test_a_dialogue_above_the_budget_is_recomputed_where_that_is_cheaper() -> None:
    """21 turns x 8 x 100 tokens on a 4,096-token context, 14B on 24 GB: cut up, its trunk is computed for
    each part; by turns, once more without gradient.
    """
    several = caterpillar(4096, 21, 8, 100)
    planned = plan_model("qwen2.5-14b", 24).groups(several)
    rows = Tree(several).rows
    assert [tree.rows for tree in planned.trees] == [rows] and planned.again < 4096
    assert planned.chunks == pytest.approx(rows / planned.trees[0].chunk, rel=0.15)
    assert 0.05 < planned.shares()["computed again"] < 0.1
    coupled = plan_model("qwen2.5-14b", 24).groups(several, GRPO(ratio="sequence", beta=0.1))
    assert coupled.again == coupled.reference == rows, "samples run twice, and once with the adapter off"


def test_groups_that_share_little_are_cut_apart() -> None:
    """Two long prompts of one key with a short common beginning, which is cheaper to compute twice."""
    several = [
        Group([1] * 20 + [i] * 800, [Sample([1] * 20 + [i] * 800, [5] * 9)] * 2, tree="d") for i in (2, 3)
    ]
    budgets = Budgets.fixed(EngineConfig(token_budget=1000))
    assert [tree.rows for tree in budgets.pack(several, gradient=True, exact=False)] == [836, 836]
    assert [t.rows for t in budgets.pack(several[:1] * 2, gradient=True, exact=False)] == [820 + 4 * 8]


@settings(deadline=None, max_examples=100)
@given(groups(long_tokens, parents=False), st.integers(1, 60))
def test_what_is_kept_whole_costs_no_more_than_its_parts(several: list[Group], rows: int) -> None:
    budgets = Budgets.fixed(EngineConfig(token_budget=rows))
    for tree in budgets.pack([g for g in several if not g.masked], gradient=True, exact=True):
        assert budgets.cost(tree) == tree.rows + AGAIN * budgets.kept(tree) * (tree.rows > rows)
        if tree.rows > rows and len(tree.groups) > 1:
            half = len(tree.groups) // 2
            parts = [Tree(tree.groups[:half]), Tree(tree.groups[half:])]
            assert budgets.cost(tree) <= sum(map(budgets.cost, parts))


def test_sampling_computes_a_shared_prompt_once() -> None:
    model = plan_model("qwen2.5-0.5b", 24, options=EngineConfig(max_batch=8))
    several = caterpillar(30, 3, 4, 5)
    found = model.sampling(several)
    assert (found.prompts, found.drawn, found.steps) == (30, 60, 8)  # 60 tokens by 8 sequences at a time
    assert model.sampling(several, in_turn=100).steps == 100
    per = model.operations
    pairs = sum(4 * (5 * end + 15) for end in (10, 20, 30))
    assert found.decode == (per.linear + per.adapter + per.head) * 60 + per.pair * pairs
    assert found.prefill == (per.linear + per.adapter) * 30 + per.pair * 30 * 31 // 2 + per.head * 3
    weights = model.footprint.weights + model.footprint.adapter / 2
    moved = sum(5 * end + 4 * 15 for end in (10, 20, 30)) * model.footprint.token
    assert found.moved == 8 * weights + moved


def test_a_small_cache_lets_fewer_decode() -> None:
    several = caterpillar(3000, 3, 8, 100)
    wide, narrow = (
        plan_model("qwen2.5-0.5b", 24, options=EngineConfig(kv_tokens=tokens)).sampling(several)
        for tokens in (100_000, 2700)
    )
    assert wide.steps == 100 and narrow.steps == 200


def test_this_machine(folder: Path) -> None:
    """A CPU's plan is the loaded engine's."""
    several = caterpillar(60, 3, 2, 5)
    engine = load(folder, chunk_rows=24)
    here = plan_here(folder, LoRA(rank=4, alpha=8), EngineConfig(chunk_rows=24, device="cpu"))
    assert here.memory is None and here.budgets.chunk == 24
    assert here.groups(several) == engine.plan(several)
    held = engine.memory()
    assert here.footprint.held >= sum(held.values()) - held["kv"]
    with pytest.raises(EngineError, match="this machine has no CUDA device"):
        plan_here(folder, options=EngineConfig(device="cuda:7"))


def test_what_cannot_be_planned(folder: Path) -> None:
    engine = load(folder)
    with pytest.raises(EngineError, match="temperature: 0"):
        engine.plan([Group([1], [Sample([1], [2, 3], temperature=0.0)])])
    with pytest.raises(EngineError, match="plan"):
        engine.plan([[1, 2]])  # type: ignore[list-item]
    assert engine.plan([]).tokens == 0
    custom = engine.plan(caterpillar(9, 1, 2, 3), GRPOLoss(GRPO(beta=0.1)))
    assert custom.reference == custom.tokens == 9 + 2 * 2
