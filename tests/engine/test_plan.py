"""Plans from shapes: what fits, how a dialogue is trained, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proactor.engine import EngineConfig, EngineError, Group, Sample, Tree, plan_model
from proactor.engine.known_models import FAMILY, TIED, known_model, qwen2_keys
from proactor.engine.plan import tree_plan

TURNS, SAMPLES, TOKENS, CONTEXT = 21, 8, 100, 4096
ROWS = CONTEXT + TURNS * SAMPLES * TOKENS


def test_a_dialogue_of_a_14b_on_a_card_of_24_gb() -> None:
    """In one pass 1,872 rows fit; by turns the whole dialogue does, its context computed twice."""
    plan = plan_model("qwen2.5-14b", 24)
    assert plan.one_pass < ROWS and plan.in_chunks < ROWS, "if every row were kept it would not"
    tree = plan.tree(ROWS, CONTEXT)
    assert plan.one_pass > tree.chunk >= 512 and tree.kept == CONTEXT and tree.chunks >= ROWS // tree.chunk
    assert tree.bytes <= plan.budgets.arena
    whole = plan_model("qwen2.5-14b", 141).tree(ROWS, CONTEXT)
    assert (whole.chunk, whole.kept, whole.chunks) == (ROWS, 0, 1), "what fits at once is not recomputed"


def test_chunk_rows_asks_for_less_memory() -> None:
    large, small = (
        plan_model("Qwen/Qwen2.5-7B-Instruct", 80, options=EngineConfig(chunk_rows=rows)).tree(ROWS, CONTEXT)
        for rows in (4096, 1024)
    )
    assert (large.chunk, small.chunk) == (4096, 1024) and small.bytes < large.bytes / 2


def test_float32_takes_twice_the_room_of_bfloat16() -> None:
    half, full = (plan_model("qwen2.5-7b", 80, options=EngineConfig(dtype=d)) for d in ("auto", "float32"))
    assert full.footprint.token == 2 * half.footprint.token and full.one_pass < half.one_pass


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        EngineError, match=r"^Qwen2.5-32B: needs at least .* take a smaller model or a larger"
    ):
        plan_model("Qwen2.5-32B", 24)
    with pytest.raises(EngineError, match=r"^qwen2.5-14b: a tree of 900,000 rows, 900,000 of them seen"):
        plan_model("qwen2.5-14b", 24).tree(900_000, 900_000)
    with pytest.raises(EngineError, match=r"^model 'gpt-9': neither a folder nor a known name \(Qwen2.5-14B"):
        plan_model("gpt-9", 24)


@pytest.mark.parametrize("size", FAMILY)
def test_known_names(size: str) -> None:
    config = known_model(f"Qwen/Qwen2.5-{size}-Instruct")
    assert config.num_layers == FAMILY[size].layers and config.tie_embeddings == (size in TIED)


def test_a_folder_is_read_as_it_is(tmp_path: Path) -> None:
    """Dense weights of a folder without quantisation, 4-bit where asked for."""
    (tmp_path / "config.json").write_text(json.dumps(qwen2_keys(FAMILY["0.5B"], tie_word_embeddings=True)))
    dense = plan_model(tmp_path, 24)
    small = plan_model(tmp_path, 24, options=EngineConfig(quantization="nf4"))
    assert dense.footprint.weights > 1.5 * small.footprint.weights
    assert small.footprint.weights == plan_model("qwen2.5-0.5b", 24).footprint.weights


def test_kept_rows_of_a_tree_are_its_trunk() -> None:
    """What the plan takes as kept is what the tree's budgets count."""
    trunk = list(range(100))
    tree = Tree([Group(trunk[:u], [Sample(trunk[:u], [1] * 9)] * 2, tree=1) for u in (40, 70, 100)])
    budgets = plan_model("qwen2.5-7b", 24, options=EngineConfig(chunk_rows=64)).budgets
    assert budgets.kept(tree) == 100 and budgets.chunk_of(tree) == 64
    assert tree_plan(budgets, tree.rows, 100).chunk == 64
