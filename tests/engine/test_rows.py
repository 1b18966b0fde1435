"""The trunk runs once: the rows that enter each linear equal the tree's token count, forward and backward.

Counted below autograd, where every product that reads a weight's memory is seen, whoever asked for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from proactor.engine import GRPO, SFT, AdamW, Engine, Group, GRPOLoss, LoRA, Sample, Sampling
from proactor.engine.tree import Tree
from proactor.kernels import linear
from tests.engine.engines import outside, prompts, reward, shake, watching
from tests.tiny import save_tiny


@pytest.fixture(autouse=True)
def plain_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights row by row, whose products are told by their addresses; ordered ones have none."""
    monkeypatch.setattr("proactor.engine.base_linear.can_order", lambda weight: False)


PRODUCTS = ("mm", "addmm", "bmm", "linear", "matmul", "_linear_pointwise")
Reads = dict[int, list[int]]
"""Address of a weight's memory -> rows of each product that read it."""


class Recorder(TorchDispatchMode):
    """Rows of the other factor in every product that reads a watched weight."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.addresses = {w.untyped_storage().data_ptr() for w in weights}
        self.reads: Reads = defaultdict(list)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.rpartition("::")[2]
        tensors = [a for a in args if isinstance(a, Tensor)]
        for tensor in tensors:
            address = tensor.untyped_storage().data_ptr()
            if address in self.addresses and tensor.ndim == 2:
                assert name in (*PRODUCTS, "t", "transpose", "detach", "view", "as_strided", "alias"), name
                if name in PRODUCTS:
                    other = next(
                        t for t in tensors if t.ndim == 2 and t.untyped_storage().data_ptr() != address
                    )
                    self.reads[address].append(other.shape[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded(engine: Engine) -> Iterator[tuple[Recorder, dict[tuple[int, Any], int]]]:
    """The recorder, and the address of each (layer, targets) weight."""
    bases = {
        (i, group): base.weight()
        for i, layer in enumerate(engine.decoder.layers)
        for group, base in layer.linears.items()
    }
    addresses = {key: w.untyped_storage().data_ptr() for key, w in bases.items()}
    assert len(set(addresses.values())) == len(bases)
    with watching(engine, Recorder([*bases.values(), engine.decoder.head])) as recorder:
        yield recorder, addresses


def dialogue(seed: int = 0) -> list[Group]:
    """Eight decision points on one trunk, with boards of their own and four samples each."""
    (trunk,) = prompts(1, 90, seed=seed)
    groups = []
    for at in range(20, 91, 10):
        prompt = [*trunk[:at], at % 100, 3]
        samples = [outside(prompt, [at % 7 + 1, i, 5, i + 1], advantage=i - 1.5) for i in range(4)]
        groups.append(Group(prompt, samples, tree="dialogue"))
    return groups


@pytest.fixture(autouse=True)
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """No form of a product is tried first: trials read weights too."""
    monkeypatch.setattr(linear, "_fastest", lambda x, weight: linear.library_linear)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose head is a matrix of its own."""
    folder = tmp_path_factory.mktemp("rows") / "model"
    save_tiny(folder, hidden_size=32, intermediate_size=48, head_dim=8, tie_word_embeddings=False)
    return folder


def load(folder: Path, **changes: Any) -> Engine:
    engine = Engine.load(
        folder, **{"lora": LoRA(rank=3, alpha=6), "page_size": 4, "kv_tokens": 2048, **changes}
    )
    shake(engine)
    return engine


def test_each_linear_sees_each_row_once_forward_and_once_backward(untied: Path) -> None:
    engine, groups = load(untied), dialogue()
    tree = Tree(groups)
    assert tree.rows == 90 + 8 * (2 + 4 * 3)
    assert tree.flat_tokens > 10 * tree.rows / 4
    with recorded(engine) as (recorder, addresses):
        tallied = engine.forward_backward(groups, GRPOLoss(GRPO()))
    for (layer, group), address in addresses.items():
        first = (layer, group) == (0, ("q", "k", "v"))  # embeddings take no gradient
        assert recorder.reads[address] == ([tree.rows] if first else [tree.rows, tree.rows]), (layer, group)
    head = engine.decoder.head.untyped_storage().data_ptr()
    predicting = 8 + 8 * 4 * 3  # a branch point predicts the first token of all its children
    assert recorder.reads[head] == [predicting, predicting]
    assert tallied["rows"] == tree.rows and tallied["flat"] == tree.flat_tokens


def test_the_adapter_sees_each_row_once(untied: Path) -> None:
    """A is read once forward, once backward for its input's gradient, and never for absent rows."""
    engine, groups = load(untied), dialogue()
    rows = Tree(groups).rows
    assert engine.trainer is not None
    flat = engine.trainer.lora.flat.untyped_storage().data_ptr()
    seen: list[int] = []

    class Sizes(Recorder):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            name = func._schema.name.rpartition("::")[2]
            tensors = [a for a in args if isinstance(a, Tensor) and a.ndim == 2]
            if name in PRODUCTS and any(t.untyped_storage().data_ptr() == flat for t in tensors):
                seen.extend(t.shape[0] for t in tensors if t.untyped_storage().data_ptr() != flat)
            return func(*args, **(kwargs or {}))

    with watching(engine, Sizes([])):
        engine.forward_backward(groups, GRPOLoss(GRPO()))
    assert seen and set(seen) == {rows}


@pytest.mark.parametrize("budget", [60, 1])
def test_trees_cut_by_the_budget_add_up(untied: Path, budget: int) -> None:
    engine, groups = load(untied, token_budget=budget, chunk_rows=1 << 20), dialogue()
    with recorded(engine) as (recorder, addresses):
        tallied = engine.forward_backward(groups, GRPOLoss(GRPO()))
    reads = recorder.reads[addresses[1, ("down",)]]
    assert sum(reads) == 2 * tallied["rows"] and len(reads) > 2
    assert tallied["rows"] > Tree(groups).rows


def test_a_reference_pass_is_one_more_forward(untied: Path) -> None:
    engine, groups = load(untied), dialogue()
    rows = Tree(groups).rows
    with recorded(engine) as (recorder, addresses):
        engine.forward_backward(groups, GRPOLoss(GRPO(beta=0.1)))
    assert recorder.reads[addresses[1, ("gate", "up")]] == [rows] * 3


def test_supervised_training_shares_the_trunk_too(untied: Path) -> None:
    engine, groups = load(untied), dialogue()
    rows = Tree(groups).rows
    with recorded(engine) as (recorder, addresses):
        stats = engine.train(groups, SFT(lr=1e-3))
    assert recorder.reads[addresses[0, ("o",)]] == [rows, rows]
    assert stats["tokens_computed"] == rows
    assert stats["tokens_avoided"] == Tree(groups).flat_tokens - rows


def test_sampling_and_training_together_compute_no_old_policy_pass(untied: Path) -> None:
    """The sampler computes the shared prompt once for all groups and samples; the trainer's one forward is
    all that follows.
    """
    engine = load(untied)
    (trunk,) = prompts(1, 60)
    ids = [[*trunk[:at], 7] for at in (16, 32, 60)]
    with recorded(engine) as (recorder, addresses):
        groups = reward(engine.sample(ids, Sampling(n=4, max_tokens=5, ignore_eos=True)))
    sampled = sum(recorder.reads[addresses[1, ("down",)]])
    tree = Tree(groups)
    assert tree.rows == 60 + 3 * (1 + 4 * 4)
    assert sampled == tree.rows, "the prompts' distinct tokens, and each sampled token but the last"
    with recorded(engine) as (recorder, addresses):
        stats = engine.train(groups, GRPO(lr=1e-4))
    assert recorder.reads[addresses[1, ("down",)]] == [tree.rows, tree.rows]
    assert stats["tokens_computed"] == tree.rows and stats["ratio_max_error"] < 1e-5


def test_counters_say_the_same(untied: Path) -> None:
    engine, groups = load(untied), dialogue()
    before = engine.counters()["rows_computed"]
    engine.forward_backward(groups, GRPOLoss(GRPO()))
    assert engine.counters()["rows_computed"] - before == Tree(groups).rows
    engine.step(AdamW(lr=1e-4))
    engine.logprobs([[1, 2, 3, 4], [1, 2, 3, 5]])
    assert engine.counters()["rows_computed"] - before == Tree(groups).rows + shared_rows()


def shared_rows() -> int:
    """Two lists scored from the second id on: the common first id, and two leaves less their last tokens."""
    return Tree([Group([1], [Sample([1], [2, 3, 4])]), Group([1], [Sample([1], [2, 3, 5])])]).rows
