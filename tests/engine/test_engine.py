"""The public object: streams, admission, memory, log-probabilities, and what an import may not do."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from proactor.engine import EngineError, Group, LoRA, Sampling
from tests.engine.engines import (
    TRAIN,
    adapter,
    drawn,
    idle,
    load,
    outside,
    prompts,
    reward,
    rollout,
    sampler,
    shake,
)

LONG, SHORT = Sampling(n=2, max_tokens=20, ignore_eos=True), Sampling(n=2, max_tokens=2, ignore_eos=True)


def test_stream_yields_early_finishers_first(folder: Path) -> None:
    engine, ids = load(folder), prompts(3)

    async def collect() -> list[Group]:
        return [
            group
            async for group in engine.stream(ids, [LONG, SHORT, Sampling(max_tokens=9, ignore_eos=True)])
        ]

    order = asyncio.run(collect())
    assert [g.prompt_ids for g in order] == [ids[1], ids[2], ids[0]]
    assert [len(g.samples[0].token_ids) for g in order] == [2, 9, 20]
    assert idle(engine)


def test_stream_gives_the_same_samples_and_lets_others_work(folder: Path) -> None:
    engine, ids = load(folder, deterministic=True), prompts(3)
    seeded = Sampling(n=2, max_tokens=6, seed=4)
    ticks = []

    async def tick() -> None:
        while True:
            ticks.append(len(ticks))
            await asyncio.sleep(0)

    async def collect() -> dict[tuple[int, ...], Group]:
        other = asyncio.create_task(tick())
        streamed = {tuple(g.prompt_ids): g async for g in engine.stream(ids, seeded)}
        other.cancel()
        return streamed

    streamed = asyncio.run(collect())
    assert [streamed[tuple(i)] for i in ids] == engine.sample(ids, seeded)
    assert len(ticks) >= 3, "the event loop ran between groups"


def test_leaving_a_stream_frees_everything_at_once(folder: Path) -> None:
    engine, ids = load(folder), prompts(4)
    expected = drawn(load(folder).sample(ids, Sampling(n=2, max_tokens=5, seed=1)))

    async def leave() -> None:
        async for group in engine.stream(ids, [LONG, SHORT, LONG, LONG]):
            assert len(group.samples[0].token_ids) == 2
            break
        assert idle(engine), "before the event loop has had a chance to tidy up"
        with pytest.raises(RuntimeError, match="judge"):
            async for _ in engine.stream(ids, LONG):
                raise RuntimeError("judge")

    asyncio.run(leave())
    assert idle(engine)
    assert [d[0] for d in drawn(engine.sample(ids, Sampling(n=2, max_tokens=5, seed=1)))] == [
        e[0] for e in expected
    ]


def test_a_second_caller_is_served_and_the_first_goes_on(folder: Path) -> None:
    engine, ids = load(folder), prompts(2)

    async def run() -> int:
        count = 0
        async for _ in engine.stream(ids, [SHORT, LONG]):
            count += 1
            if count == 1:
                assert len(engine.sample(ids, SHORT)) == 2
        return count

    assert asyncio.run(run()) == 2 and idle(engine)


def test_what_can_never_fit_is_refused_and_nothing_stays_queued(folder: Path) -> None:
    engine = load(folder, kv_tokens=64)
    fits, never = prompts(1, length=20)[0], prompts(1, length=60)[0]
    for _ in range(2):
        with pytest.raises(
            EngineError,
            match=r"^prompt 1: 60 prompt tokens and 10 new ones need 18 pages .* the pool has 16; give",
        ):
            engine.sample([fits, never], Sampling(n=2, max_tokens=10))
        assert idle(engine)
    assert (
        len(engine.sample([fits] * 3, Sampling(n=8, max_tokens=20))) == 3
    )  # 24 sequences of 10 pages, 16 pages: one after the other


def test_admission_keeps_to_the_pages_it_has(folder: Path) -> None:
    expected = drawn(
        load(folder, deterministic=True).sample(prompts(6), Sampling(n=5, max_tokens=15, seed=2))
    )
    engine = load(folder, deterministic=True, kv_tokens=56, max_batch=7)
    run, most = sampler(engine), 0
    plan = run.scheduler.plan

    def watched() -> object:
        nonlocal most
        step = plan()
        run.scheduler.check()
        most = max(most, len(step.decodes) if step else 0)
        return step

    run.scheduler.plan = watched
    assert drawn(engine.sample(prompts(6), Sampling(n=5, max_tokens=15, seed=2))) == expected
    assert 1 < most <= 7


def test_a_hook_that_raises_leaves_a_usable_engine(folder: Path) -> None:
    engine = load(folder, deterministic=True)

    def broken(ids: list[int], position: int) -> torch.Tensor | None:
        if position == 3:
            raise ZeroDivisionError("hook")
        return None

    with pytest.raises(ZeroDivisionError):
        engine.sample(prompts(3), Sampling(n=2, max_tokens=8, ignore_eos=True, logit_mask=broken))
    assert idle(engine)
    with pytest.raises(EngineError, match="no token allowed at position 0"):
        engine.sample(
            prompts(1), Sampling(logit_mask=lambda ids, position: torch.zeros(101, dtype=torch.bool))
        )
    assert idle(engine)
    assert drawn(engine.sample(prompts(1), Sampling(seed=1, max_tokens=4))) == drawn(
        load(folder, deterministic=True).sample(prompts(1), Sampling(seed=1, max_tokens=4))
    )


def test_a_step_is_visible_to_the_next_token(folder: Path) -> None:
    engine = load(folder)
    before = drawn(engine.sample(prompts(2), Sampling(seed=1, max_tokens=4)))
    weights, version = adapter(engine), engine.policy_version
    engine.train(rollout(engine), TRAIN)
    after = engine.sample(prompts(2), Sampling(seed=1, max_tokens=4))
    assert not torch.equal(weights, adapter(engine)) and engine.policy_version == version + 1
    assert drawn(after) != before and {s.policy_version for g in after for s in g.samples} == {version + 1}


def test_logprobs_are_those_of_every_prefix(folder: Path) -> None:
    """Each list by itself, from the second id on; shared prefixes, spans and single tokens change nothing."""
    engine = load(folder)
    [ids] = prompts(1, length=12)
    lists = [ids, ids[:7], [*ids[:7], 3, 4], [5, 6], ids]
    logprobs = engine.logprobs(lists)
    assert [len(f) for f in logprobs] == [len(i) - 1 for i in lists]
    for one, several in zip(lists, logprobs, strict=True):
        assert torch.allclose(engine.logprobs([one])[0], several, atol=1e-5)
    assert torch.allclose(logprobs[0][:6], logprobs[1], atol=1e-5)
    cut = engine.logprobs(lists, spans=[(3, 5), (1, 7), (9, 9), (1, 2), (11, 12)])
    assert [len(c) for c in cut] == [2, 6, 0, 1, 1]
    assert torch.allclose(cut[0], logprobs[0][2:4], atol=1e-5) and torch.allclose(
        cut[4], logprobs[0][-1:], atol=1e-5
    )
    total = sum(float(engine.logprobs([[*ids[:5], t]], [(5, 6)])[0].exp()) for t in range(101))
    assert total == pytest.approx(1.0, abs=1e-4)
    bare, dressed = engine.logprobs([ids], adapter=False)[0], logprobs[0]
    assert float((bare - dressed).abs().max()) > 1e-2
    assert torch.allclose(load(folder, stir=False).logprobs([ids])[0], bare, atol=1e-5)


def test_nll_is_the_mean_over_trained_tokens(folder: Path) -> None:
    engine = load(folder)
    [ids] = prompts(1)
    sample = outside(ids[:4], ids[4:], mask=[True, False, True, True, False, True])
    expected = -engine.logprobs([ids])[0][3:][torch.tensor(sample.mask)].mean()
    before = adapter(engine)
    assert engine.nll([Group(ids[:4], [sample])]) == pytest.approx(float(expected), abs=1e-5)
    assert torch.equal(before, adapter(engine))


def test_memory_and_release(folder: Path) -> None:
    engine = load(folder)
    engine.train(rollout(engine), TRAIN)
    held = engine.memory()
    size = adapter(engine).numel() * 4
    assert held["adapter"] == held["optimizer"] == 2 * size
    assert held["kv"] == 1024 * 2 * 2 * 2 * 8 * 4  # tokens, layers, k and v, heads, head_dim, bytes
    assert held["nf4"] == 0 and held["embeddings"] == 101 * 32 * 4 * (
        1 if engine.config.tie_embeddings else 2
    )
    assert engine.trainer is not None
    moment = engine.trainer.optimizer.m
    watched = [engine.decoder.embed, engine.parameters()[0], sampler(engine).cache.k[0], moment]
    alive = [weakref.ref(t) for t in watched]
    del watched, moment
    engine.release()
    gc.collect()
    assert [a() for a in alive] == [None] * 4
    for use in (lambda: engine.sample([[1, 2]]), engine.memory, engine.zero_grad):
        with pytest.raises(EngineError, match="released"):
            use()


def test_an_adapter_travels_through_a_folder(folder: Path, tmp_path: Path) -> None:
    engine, other = load(folder), load(folder, stir=False)
    engine.save_adapter(tmp_path / "adapter")
    other.load_adapter(tmp_path / "adapter")
    assert torch.equal(adapter(engine), adapter(other))
    with pytest.raises(EngineError, match="q_proj has rank 4 and scale 2, this engine's adapter has 2 and 2"):
        load(folder, lora=LoRA(rank=2, alpha=4)).load_adapter(tmp_path / "adapter")
    with pytest.raises(EngineError, match="k_proj is not among this engine's targets q, v"):
        load(folder, lora=LoRA(rank=4, alpha=8, targets=("q", "v"))).load_adapter(tmp_path / "adapter")


def test_a_rank_stabilised_adapter_is_exported_with_its_scale(folder: Path, tmp_path: Path) -> None:
    engine = load(folder, lora=LoRA(rank=4, alpha=8, rslora=True))
    engine.save_adapter(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["r"], config["use_rslora"]) == (8, 4, True)
    other = load(folder, stir=False, lora=LoRA(rank=4, alpha=16))
    other.load_adapter(tmp_path / "adapter")
    [ids] = prompts(1)
    assert torch.equal(other.logprobs([ids])[0], engine.logprobs([ids])[0])


def test_loading_is_seeded(folder: Path) -> None:
    first, same, other = (adapter(load(folder, stir=False, seed=s)) for s in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


GLOBALS = """
import json, logging, os, signal, sys, warnings
import torch
import numpy as np

def state():
    return dict(
        dtype=str(torch.get_default_dtype()),
        device=str(torch.get_default_device()),
        threads=torch.get_num_threads(),
        grad=torch.is_grad_enabled(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        precision=torch.get_float32_matmul_precision(),
        mkldnn=torch.backends.mkldnn.enabled,
        tf32=torch.backends.cuda.matmul.allow_tf32,
        rng=torch.get_rng_state().tolist(),
        numpy=[str(x) for x in np.random.get_state()],
        environment=dict(os.environ),
        warnings=[str(f) for f in warnings.filters],
        handlers=[str(h) for h in logging.getLogger().handlers],
        signals=[str(signal.getsignal(s)) for s in (2, 15)],
        path=list(sys.path),
    )

before = state()
import proactor.engine as e
assert "transformers" not in sys.modules
[getattr(e, name) for name in e.__all__]
imported = state()
engine = e.Engine.load(sys.argv[1], lora=e.LoRA(rank=4), deterministic=True)
groups = engine.sample([[1, 2, 3]], e.Sampling(n=2, max_tokens=3))
groups[0].rewards = [0.0, 1.0]
engine.train(groups, e.GRPO())
used = state()
changed = {"import": imported, "use": used}
print(json.dumps({when: [k for k in before if before[k] != now[k]] for when, now in changed.items()}))
"""


def test_the_layer_above_imports_public_names_alone(repo_root: Path) -> None:
    below = re.compile(r"^\s*(from|import) proactor\.(kernels|engine\.)", re.MULTILINE)
    files = (repo_root / "proactor").rglob("*.py")
    above = [file for file in files if file.parent.name not in ("engine", "kernels")]  # the two links
    assert len(above) > 50
    assert [str(file) for file in above if below.search(file.read_text())] == []


def test_importing_and_using_change_no_global_state(folder: Path, repo_root: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", GLOBALS, str(folder)],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(repo_root)},
    )
    assert json.loads(child.stdout) == {"import": [], "use": []}


def test_two_engines_do_not_collide(folder: Path) -> None:
    first, second = load(folder), load(folder, stir=False, page_size=8)
    shake(second, 3)
    solo = load(folder)
    draw = Sampling(n=2, max_tokens=5, seed=6)
    mixed = [drawn(first.sample(prompts(2), draw))]
    second.train(reward(second.sample(prompts(2), draw)), TRAIN)
    mixed.append(drawn(first.sample(prompts(2), draw)))
    assert mixed == [drawn(solo.sample(prompts(2), draw)) for _ in range(2)]
