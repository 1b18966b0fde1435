"""Deterministic mode: a request's bits depend neither on its batch nor on how its prompt was computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import Engine, EngineError, Sampling
from proactor.kernels.linear import onednn_available
from tests.engine.engines import TRAIN, adapter, drawn, load, prompts, reward, sampler

PROMPT = prompts(1, length=23, shared=9)[0]
MATES = prompts(5, length=7, seed=4, shared=0)
SIBLINGS = [PROMPT[:17] + mate for mate in MATES[:3]]
DRAW = Sampling(n=3, max_tokens=12, seed=11, temperature=1.2, top_p=0.95)


def alone(engine: Engine) -> list[tuple[Any, ...]]:
    return drawn(engine.sample([PROMPT], DRAW, keys=[7]))


def with_mates(engine: Engine) -> list[tuple[Any, ...]]:
    draws = [Sampling(n=1 + i, max_tokens=4 + i, temperature=0.5 + i) for i in range(5)]
    return drawn(engine.sample([*MATES, PROMPT], [*draws, DRAW], keys=[1, 2, 3, 4, 5, 7])[-1:])


def with_siblings(engine: Engine) -> list[tuple[Any, ...]]:
    sampled = engine.sample([SIBLINGS[0], PROMPT, *SIBLINGS[1:]], DRAW, keys=[1, 7, 2, 3])
    return drawn(sampled[1:2])


def twin(engine: Engine) -> list[tuple[Any, ...]]:
    return drawn(engine.sample([PROMPT, PROMPT], DRAW, keys=[1, 7])[1:])


def hot(engine: Engine) -> list[tuple[Any, ...]]:
    alone(engine)
    before = engine.counters()["tokens_avoided_prefix"]
    sample = alone(engine)
    assert engine.counters()["tokens_avoided_prefix"] > before, "the prefix cache was cold"
    return sample


def chunked(rows: int) -> Callable[[Engine], list[tuple[Any, ...]]]:
    def run(engine: Engine) -> list[tuple[Any, ...]]:
        sampler(engine).scheduler.prefill_chunk = rows
        return with_mates(engine)

    return run


def beside_the_bare_model(engine: Engine) -> list[tuple[Any, ...]]:
    bare = Sampling(n=2, max_tokens=12, adapter=False)
    return drawn(engine.sample([PROMPT, PROMPT], [bare, DRAW], keys=[1, 7])[1:])


WAYS: dict[str, tuple[Callable[[Engine], list[tuple[Any, ...]]], dict[str, Any]]] = {
    "mates": (with_mates, {}),
    "siblings": (with_siblings, {}),
    "twin": (twin, {}),
    "hot cache": (hot, {}),
    "chunks of 1": (chunked(1), {}),
    "chunks of 5": (chunked(5), {}),
    "chunks of 16": (chunked(16), {}),
    "one at a time": (with_mates, {"max_batch": 1}),
    "few rows a step": (with_mates, {"max_batch": 4, "token_budget": 6}),
    "few pages": (with_siblings, {"kv_tokens": 56}),
    "pages of 16": (with_siblings, {"page_size": 16}),
    "pages of 1": (with_siblings, {"page_size": 1}),
    "adapter off beside it": (beside_the_bare_model, {}),
}


no_bfloat16 = pytest.mark.skipif(not onednn_available(torch.bfloat16), reason="no bfloat16 on this processor")
DTYPES = ["float32", pytest.param("bfloat16", marks=no_bfloat16)]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[tuple[Any, ...]]:
    return alone(load(folder, deterministic=True))


@pytest.fixture(scope="module", params=DTYPES)
def by_dtype(folder: Path, request: pytest.FixtureRequest) -> tuple[str, list[tuple[Any, ...]]]:
    """A dtype and what it gives a request alone."""
    return request.param, alone(load(folder, deterministic=True, dtype=request.param))


@pytest.mark.parametrize("way", WAYS)
def test_tokens_do_not_depend_on_the_batch(
    folder: Path, by_dtype: tuple[str, list[tuple[Any, ...]]], way: str
) -> None:
    run, settings = WAYS[way]
    dtype, expected = by_dtype
    assert run(load(folder, deterministic=True, dtype=dtype, **settings)) == expected


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_other_families(tmp_path: Path, family: str) -> None:
    from tests.tiny import save_tiny

    save_tiny(tmp_path / "model", family)
    path = tmp_path / "model"
    first = alone(load(path, deterministic=True))
    assert (
        first
        == with_mates(load(path, deterministic=True))
        == with_siblings(load(path, deterministic=True, page_size=8))
    )
    engine = load(path, deterministic=True)
    assert engine.train(reward(engine.sample([PROMPT, *SIBLINGS], DRAW)), TRAIN)["ratio_max_error"] == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_train_to_the_same_bits(folder: Path, dtype: str) -> None:
    ends = []
    for order in (1, -1):
        engine = load(folder, deterministic=True, dtype=dtype)
        for _ in range(3):
            ids = [PROMPT, *SIBLINGS, *MATES]
            groups = reward(
                engine.sample(ids[::order], Sampling(n=2, max_tokens=6), keys=list(range(len(ids)))[::order])
            )
            assert engine.train(groups, TRAIN)["ratio_max_error"] == 0.0
        ends.append(adapter(engine))
    assert torch.equal(*ends), "the order of groups changed the sum of their gradients"
    assert not torch.equal(ends[0], adapter(load(folder, deterministic=True, dtype=dtype)))


def test_the_other_mode_may_differ_but_agrees(folder: Path, expected: list[tuple[Any, ...]]) -> None:
    sample = alone(load(folder))
    assert [f[0] for f in sample] == [e[0] for e in expected]
    for f, e in zip(sample, expected, strict=True):
        assert f[2] == pytest.approx(e[2], abs=1e-5)


def test_where_it_cannot_be_kept_it_is_refused(folder: Path) -> None:
    with pytest.raises(EngineError, match="float32 or bfloat16: not float16 on this cpu"):
        load(folder, deterministic=True, dtype="float16")


def test_linears_see_few_row_counts(folder: Path) -> None:
    """For each count oneDNN keeps a kernel, and the allocator memory."""
    engine, counts = load(folder, deterministic=True), set()
    linear = engine.decoder.form.linear

    def counting(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        counts.add(x.shape[0])
        return linear(x, weight, bias)

    engine.decoder.form.linear = counting
    for length in range(2, 41):
        engine.logprobs([[token % 100 for token in range(length)]])
        engine.sample([[1] * length], Sampling(n=1 + length % 3, max_tokens=2, ignore_eos=True))
    least = engine.decoder.form.min_rows  # 8; 16 with torch 2.11
    assert counts == {rows for rows in (8, 16, 24, 32, 40) if rows >= least}
