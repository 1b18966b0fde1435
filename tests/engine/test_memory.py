"""Budgets: whatever the shapes and the free bytes, what they allow fits; sampling and training share it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.memory_budgets import CARDS, SIZES, planner
from proactor.engine import GRPO, Engine, EngineConfig, EngineError, Group, GRPOLoss, LoRA, Sampling
from proactor.engine import loading as loading_module
from proactor.engine.footprint import Footprint
from proactor.engine.memory import (
    LEAST_ROWS,
    LEAST_TOKENS,
    Budgets,
    Memory,
    Planner,
    device_memory,
    naming_shortage,
    reserve_bytes,
)
from proactor.engine.model_config import ModelConfig
from proactor.engine.plan import card
from proactor.engine.scheduler import Scheduler
from tests.engine.engines import drawn, gradient, load, outside, prompts, rollout, sampler

REFUSED = {("32B", 24), ("72B", 24), ("72B", 48)}


def most_used(plans: Planner, budgets: Budgets) -> tuple[int, int]:
    """Bytes beside the model at the height of sampling, and of the largest tree."""
    f, batch = plans.footprint, plans.options.max_batch
    assert budgets.tokens is not None
    cache = budgets.tokens * f.token + min(budgets.tokens, plans.context) * batch * f.parts // 512
    step = f.product + max(f.head, batch * f.logits) + budgets.step_rows * f.row
    most = budgets.most_rows(plans.trains)
    assert most is not None
    return cache + step, budgets.tree_bytes(most, most, plans.trains)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gigabytes", CARDS)
def test_qwen25_on_each_card(size: str, gigabytes: int) -> None:
    plans, memory = planner(size), card(gigabytes)
    if (size, gigabytes) in REFUSED:
        with pytest.raises(EngineError, match=rf"^Qwen2.5-{size}: needs at least .* GiB are free: take a sm"):
            plans.plan(memory)
        return
    budgets = plans.plan(memory)
    for used in most_used(plans, budgets):
        assert plans.footprint.held + used + reserve_bytes(memory.total) <= memory.free
    assert budgets.tokens is not None and budgets.tokens >= LEAST_TOKENS and budgets.rows >= LEAST_ROWS


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Footprint, int]:
    """(footprint, context) of a model of random shapes."""
    heads = draw(st.sampled_from([1, 2, 8, 40, 64]))
    config = ModelConfig.from_dict(
        {
            "model_type": draw(st.sampled_from(["qwen2", "qwen3", "llama"])),
            "hidden_size": 64 * draw(st.integers(1, 128)),
            "intermediate_size": 64 * draw(st.integers(1, 512)),
            "num_hidden_layers": draw(st.integers(1, 80)),
            "num_attention_heads": heads,
            "num_key_value_heads": draw(st.sampled_from([n for n in (1, 2, 8) if heads % n == 0])),
            "head_dim": draw(st.sampled_from([64, 128])),
            "vocab_size": draw(st.integers(100, 200_000)),
            "max_position_embeddings": draw(st.sampled_from([128, 2048, 32768, 131072])),
        }
    )
    lora = draw(st.sampled_from([None, LoRA(rank=8), LoRA(rank=64)]))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float32]))
    return Footprint.of(config, lora, draw(st.booleans()), dtype), config.context_length


@settings(deadline=None, max_examples=200)
@given(
    shapes(),
    st.integers(1, 300 << 30),
    st.integers(0, 40 << 30),
    st.sampled_from([1, 16, 256, 1000]),
    st.sampled_from([1, 16, 128]),
)
def test_whatever_is_allowed_fits_and_more_memory_allows_no_less(
    shape: tuple[Footprint, int], free: int, more: int, batch: int, page: int
) -> None:
    footprint, context = shape
    plans = Planner(footprint, EngineConfig(max_batch=batch, page_size=page), context, "model")
    total = 400 << 30
    try:
        small = plans.plan(Memory(free, total))
    except EngineError as error:
        assert "\n" not in str(error) and free < footprint.held + plans.least_arena() + reserve_bytes(total)
        return
    large = plans.plan(Memory(free + more, total))
    for budgets, room in ((small, free), (large, free + more)):
        for used in most_used(plans, budgets):
            assert footprint.held + used + reserve_bytes(total) <= room
        assert budgets.tokens is not None and budgets.tokens % page == 0 and budgets.step_rows >= batch
        most = budgets.most_rows(plans.trains)
        assert most is not None and min(LEAST_ROWS, context) <= budgets.rows <= most
        assert budgets.tokens >= min(LEAST_TOKENS, context)
    assert small.tokens is not None and large.tokens is not None
    assert (small.tokens, small.step_rows, small.rows) <= (large.tokens, large.step_rows, large.rows)
    assert small.step_rows <= large.step_rows and small.rows <= large.rows


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(["0.5B", "7B", "14B"]), st.integers(1, 200_000), st.integers(1, 20_000))
def test_explicit_settings_win_or_are_refused(size: str, tokens: int, rows: int) -> None:
    memory, free = card(24), planner(size).plan(card(24))
    plans = planner(size, kv_tokens=tokens, token_budget=rows)
    assert free.footprint is not None and free.tokens is not None
    most = free.footprint.most_rows(free.arena, gradient=True)  # in one pass, which is what a budget is for
    try:
        budgets = plans.plan(memory)
    except EngineError as error:
        assert rows > most or tokens > free.tokens
        assert str(error).startswith((f"kv_tokens={tokens}: ", f"token_budget={rows}: "))
        return
    assert rows <= most and (budgets.tokens, budgets.rows) == (tokens, rows)
    assert all(
        plans.footprint.held + used + reserve_bytes(memory.total) <= memory.free
        for used in most_used(plans, budgets)
    )


def test_a_refusal_says_what_to_set() -> None:
    plans, f = planner("14B"), planner("14B").footprint
    with pytest.raises(
        EngineError, match=r"^Qwen2.5-14B: needs .*weights 9.3 GiB, adapter .* others hold the"
    ):
        plans.plan(Memory(6 << 30, 80 << 30))
    dense = Planner(
        Footprint(**{**{n: getattr(f, n) for n in f.__slots__}, "product": 0}), plans.options, 32768, "m"
    )
    with pytest.raises(EngineError, match=r"are free: keep it in 4 bits \(quantization and resident: nf4\)"):
        dense.plan(Memory(10 << 30, 11 << 30))
    most = r"set at most (\d+), or leave it out$"
    for option in ("kv_tokens", "token_budget"):
        with pytest.raises(
            EngineError, match=rf"^{option}=10000000: .*Qwen2.5-14B leaves .*{most}"
        ) as caught:
            planner("14B", **{option: 10_000_000}).plan(card(80))
        limit = int(str(caught.value).split("at most ")[1].split(",")[0])
        planner("14B", **{option: limit}).plan(card(80))
        with pytest.raises(EngineError, match=option):
            planner("14B", **{option: limit + 16}).plan(card(80))


def test_free_memory_counts_what_the_allocator_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 << 30, 24 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7 << 30)
    assert device_memory(torch.device("cuda:0")) == (7 << 30, 24 << 30)
    assert device_memory(torch.device("cpu")) is None


def test_a_shortage_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proactor.engine.memory.device_memory", lambda device: Memory(3 << 30, 24 << 30))
    words = r"^a pass: out of memory on cuda:1 \(3.0 GiB of 24.0 GiB are free\): set less$"
    with (
        pytest.raises(EngineError, match=words),
        naming_shortage(torch.device("cuda:1"), "a pass", "set less"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


# --- an engine on a pretended card: a CPU that says how much memory it has ---


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, rows: int, tokens: int, **options: Any) -> Engine:
    """An engine whose memory holds a trained tree of ``rows``, or ``tokens`` of KV beside a step."""
    monkeypatch.setattr("proactor.engine.memory.LEAST_ROWS", 1)
    monkeypatch.setattr("proactor.engine.footprint.KEEP_BYTES", 0)
    monkeypatch.setattr("proactor.engine.footprint.CHUNK_BYTES", 0)
    monkeypatch.setattr("proactor.engine.footprint.SPAN_PARTS", 0)
    config = ModelConfig.from_folder(folder)
    f = Footprint.of(config, LoRA(rank=4), False, torch.float32)
    total = 64 << 30
    # a step needs no memory of note beside a cache: the arena is the larger of the two
    monkeypatch.setattr(Planner, "_step_bytes", lambda self, arena: 0)
    monkeypatch.setattr(Planner, "least_arena", lambda self: 0)
    arena = max(f.pass_bytes(rows, True) + f.trained_row - 1, tokens * f.token)
    calls = iter([f.held, f.optimizer])  # before loading, and with weights and adapter there

    def memory(device: torch.device) -> Memory:
        return Memory(next(calls) + arena + reserve_bytes(total), total)

    monkeypatch.setattr(loading_module, "device_memory", memory)
    return load(folder, kv_tokens=None, max_batch=8, **options)


def wide_group(samples: int = 6, length: int = 20) -> Group:
    prompt = prompts(1, length=30)[0]
    return Group(
        prompt,
        [outside(prompt, [3 + j] * length, advantage=j - 2.5, temperature=1.0) for j in range(samples)],
    )


@pytest.mark.parametrize("chunks", [True, False])
def test_a_group_that_does_not_fit_has_the_same_gradient(
    folder: Path, monkeypatch: pytest.MonkeyPatch, chunks: bool
) -> None:
    """It is recomputed by turns; where what is kept for that does not fit either, it is split."""
    whole = load(folder)
    expected = whole.forward_backward([wide_group()], GRPOLoss(GRPO()))
    assert expected["rows"] == 30 + 6 * 19
    if not chunks:
        keep_nothing(monkeypatch)
    split = pretend(monkeypatch, folder, rows=90, tokens=64)
    before = split.decoder.rows_computed
    stats = split.forward_backward([wide_group()], GRPOLoss(GRPO()))
    assert stats["rows"] == (expected["rows"] if chunks else 2 * 30 + 6 * 19)  # two trees of three samples
    assert split.decoder.rows_computed - before == 2 * 30 + 6 * 19, "the prompt runs twice"
    assert {n: stats[n] for n in ("tokens", "samples")} == {n: expected[n] for n in ("tokens", "samples")}
    assert stats["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    difference = gradient(split).double() - gradient(whole).double()
    assert float(difference.norm() / gradient(whole).double().norm()) < 1e-5


def keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept keys and values take more memory than there is."""
    monkeypatch.setattr(Footprint, "kept_row", property(lambda self: 1 << 40))


def test_a_sample_that_does_not_fit_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_nothing(monkeypatch)
    engine = pretend(monkeypatch, folder, rows=48, tokens=64)
    groups = [wide_group(length=5), wide_group(length=20)]
    for sample in groups[0].samples:
        sample.mask = [False] * 5  # left out, and still counted
    words = r"^group 1, sample 0: 49 tokens with its prompt, and the GPU has memory for 48 in a pass: shorten"
    for call in (
        lambda: engine.train(groups, GRPO()),
        lambda: engine.forward_backward(groups, GRPOLoss(GRPO())),
    ):
        with pytest.raises(EngineError, match=words):
            call()
    assert not gradient(engine).any()
    engine.logprobs([[1] * 100])  # without gradient more fits
    assert engine.nll(groups) > 0


def test_training_frees_the_cache_when_it_needs_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And draws what it would have drawn with the memory of both."""
    plenty = load(folder, max_batch=8, deterministic=True)
    engine = pretend(monkeypatch, folder, rows=330, tokens=2000, deterministic=True)
    small, bare = [wide_group(samples=2, length=3)], Sampling(n=2, max_tokens=4, seed=1, adapter=False)
    for step in range(2):
        assert drawn(rollout(engine)) == drawn(rollout(plenty))
        # a training step drops the adapter's KV; that of the bare model would outlive the memory it is in
        assert drawn(engine.sample(prompts(2), bare)) == drawn(plenty.sample(prompts(2), bare))
        assert engine.memory()["kv"] > 0
        rows = engine.counters()["tokens_sampled"]
        engine.train(small, GRPO(lr=1e-2))
        plenty.train(small, GRPO(lr=1e-2))
        assert engine.memory()["kv"] > 0, "a small tree fits beside the cache"
        wide = [wide_group(samples=15, length=20)]
        engine.train(wide, GRPO(lr=1e-2))
        plenty.train(wide, GRPO(lr=1e-2))
        assert engine.memory()["kv"] == 0
        sampler(engine).scheduler.check()
        counters = engine.counters()
        assert counters["tokens_sampled"] == rows and counters["pages_cached"] == 0, f"step {step}"


def test_samples_in_flight_keep_their_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Sampling(n=2, max_tokens=6, ignore_eos=True, seed=1)
    expected = drawn(load(folder, deterministic=True).sample(prompts(2), draw))
    engine = pretend(monkeypatch, folder, rows=330, tokens=2000, deterministic=True)
    assert drawn(engine.sample(prompts(2), draw)) == expected
    wide = [wide_group(samples=15, length=20)]
    with monkeypatch.context() as busy:
        busy.setattr(Scheduler, "resting", property(lambda _: False))
        with pytest.raises(EngineError, match=r"^a pass over \d+ rows: samples still run, and their KV"):
            engine.forward_backward(wide, GRPOLoss(GRPO()))
    engine.zero_grad()
    engine.forward_backward(wide, GRPOLoss(GRPO()))
    assert engine.memory()["kv"] == 0
    assert drawn(engine.sample(prompts(2), draw)) == expected


def test_a_long_sequence_is_refused_by_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = pretend(monkeypatch, folder, rows=1, tokens=1)
    most = engine._policy.budgets.most_rows(gradient=False)
    assert most is not None and most < 100
    with pytest.raises(
        EngineError, match=rf"^logprobs: sequence 1 needs a pass over 119 tokens, and one of {most}"
    ):
        engine.logprobs([[1, 2], [1] * 120])


def test_a_model_that_cannot_fit_is_refused_before_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading_module, "device_memory", lambda device: Memory(1 << 20, 1 << 30))

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading_module, "load_weights", read)
    with pytest.raises(EngineError, match=r"^model on cpu: needs at least .* 0.0 GiB of 1.0 GiB are free: "):
        load(folder)


def test_a_cpu_keeps_its_defaults(folder: Path) -> None:
    engine = load(folder, kv_tokens=None, max_batch=256)
    assert engine._policy.budgets == Budgets(8192, 8192, chunk=8192)
    assert sampler(engine).scheduler.max_rows == 8192
    pages = sampler(engine).scheduler.pool.num_pages
    assert pages == 256 * 128 // 4
    assert load(folder, token_budget=6, max_batch=4)._policy.budgets == Budgets(6, 6, 1024, chunk=6)


def test_a_cpu_without_memory_is_one_line_too() -> None:
    cpu = torch.device("cpu")
    with (
        pytest.raises(EngineError, match=r"a KV cache: out of memory on cpu.*: set kv_tokens to fewer"),
        naming_shortage(cpu, "a KV cache", "set kv_tokens to fewer"),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shapes"), naming_shortage(cpu, "", ""):
        torch.ones(2, 3) @ torch.ones(2, 3)
