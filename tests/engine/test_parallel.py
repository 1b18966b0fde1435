"""Two gloo processes against one: the same gradients, and in deterministic mode the same bits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import GRPO, SFT, Engine, Group, GRPOLoss, LoRA, Sampling
from proactor.engine.parallel import Parallel

SETTINGS: dict[str, Any] = {"lora": LoRA(rank=4, alpha=8), "page_size": 4, "kv_tokens": 512}


def data(engine: Engine) -> list[Group]:
    """Five rewarded groups (an odd number, of unlike lengths, one without spread), this rank's part sampled
    here.
    """
    ids = [[7 * i + 1, 3, 5 * i + 2, 9, 4][: 3 + i % 3] for i in range(5)]
    keys = list(range(5))
    groups = engine.sample(engine.share(ids), Sampling(n=3, max_tokens=6), keys=engine.share(keys))
    for key, group in zip(engine.share(keys), groups, strict=True):
        group.rewards = [1.0 if key == 3 else float(sum(s.token_ids) % 13) for s in group.samples]
    return groups


def stirred(model: str, deterministic: bool) -> Engine:
    engine = Engine.load(model, deterministic=deterministic, **SETTINGS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for leaf in engine.parameters():
            leaf.add_(torch.randn(leaf.shape, generator=generator) * 0.2)
    engine.weights_changed()
    return engine


def work(model: str, out: Path) -> None:
    """One rank: gradients in the fast mode for each normaliser, three steps in the deterministic one, a save
    and a resume.
    """
    found: dict[str, Any] = {}
    fast = stirred(model, deterministic=False)
    groups = data(fast)
    for group in groups:
        for i, sample in enumerate(group.samples):
            sample.advantage = float(i) - 1.0
    assert fast.trainer is not None
    for normalizer in ("tokens", "samples", "constant"):
        fast.forward_backward(groups, GRPOLoss(GRPO(normalizer=normalizer, constant=64.0 / fast.world_size)))
        found[f"normalizer {normalizer}"] = fast.reduce_gradients()
        found[f"gradient {normalizer}"] = fast.trainer.lora.grad.tolist()
        fast.zero_grad()
    found["nll"] = fast.nll(groups)
    exact = stirred(model, deterministic=True)
    config = GRPO(lr=1e-2, max_norm=0.05, minibatches=1)
    found["stats"] = [exact.train(data(exact), config) for _ in range(2)]
    exact.save(out / "state", {"ranks": exact.world_size})
    found["stats"].append(exact.train(data(exact), config))
    assert exact.trainer is not None
    found["adapter"] = exact.trainer.lora.flat.tolist()
    found["record"] = exact.resume(out / "state")
    exact.train(data(exact), config)
    found["resumed"] = exact.trainer.lora.flat.tolist()
    only = [g for g in data(exact) if exact.rank == 0][:1]
    found["sft"] = exact.train(only, SFT(lr=1e-2))  # a rank without data takes part all the same
    found["sft adapter"] = exact.trainer.lora.flat.tolist()
    found["reduced"] = exact.parallel.reduce({"sum": exact.rank + 1.0}, {"top": exact.rank + 5.0})
    found["gathered"] = exact.parallel.gather(exact.rank)
    (out / f"rank{exact.rank}.json").write_text(json.dumps(found))
    exact.release()
    fast.release()


def run(model: Path, out: Path, ranks: int, root: Path) -> list[dict[str, Any]]:
    """Start ``ranks`` processes as torchrun does (its environment variables; its agent would cost another
    import of torch).
    """
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        if ranks > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, str(model), str(out)],
                cwd=root,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def results(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, repo_root: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one process found, and what both of two found."""
    base = tmp_path_factory.mktemp("ranks")
    [one] = run(folder, base / "one", 1, repo_root)
    first, second = run(folder, base / "two", 2, repo_root)
    assert first.pop("gathered") == second.pop("gathered") == [0, 1] and one.pop("gathered") == [0]
    assert json.dumps(first) == json.dumps(second), "ranks ended with different numbers"
    return one, first


@pytest.mark.parametrize("normalizer", ["tokens", "samples", "constant"])
def test_gradients_agree(results: tuple[dict[str, Any], dict[str, Any]], normalizer: str) -> None:
    one, two = results
    assert one[f"normalizer {normalizer}"] == two[f"normalizer {normalizer}"]
    a, b = (torch.tensor(r[f"gradient {normalizer}"], dtype=torch.float64) for r in results)
    assert float(a.norm()) > 1e-3 and float((a - b).norm() / a.norm()) < 1e-6
    assert one["nll"] == pytest.approx(two["nll"], abs=1e-6)


def test_deterministic_adapters_are_bitwise_equal(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    one, two = results
    assert one["adapter"] == two["adapter"] and any(one["adapter"])
    assert one["resumed"] == one["adapter"] and two["resumed"] == two["adapter"]
    assert one["record"] == {"ranks": 1} and two["record"] == {"ranks": 2}
    assert one["sft adapter"] == two["sft adapter"] != one["adapter"]


def test_statistics_are_those_of_all_ranks(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    one, two = results
    for a, b in zip([*one["stats"], one["sft"]], [*two["stats"], two["sft"]], strict=True):
        assert a == pytest.approx(b, rel=1e-6)
        assert a["ratio_max_error"] == 0.0
    assert one["stats"][0]["zero_spread_share"] == 0.2
    assert one["reduced"] == [{"sum": 1.0}, {"top": 5.0}] and two["reduced"] == [{"sum": 3.0}, {"top": 6.0}]


def test_sharing_deals_every_item_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = Parallel(torch.device("cpu"))
    assert (
        lone.share([1, 2, 3]) == [1, 2, 3]
        and lone.gather("x") == ["x"]
        and lone.reduce({"a": 1.0}, {}) == ({"a": 1.0}, {})
    )
    shares = []
    for rank in range(3):
        lone.rank, lone.world_size = rank, 3
        shares.append(lone.share(range(8)))
    assert (
        sorted(i for s in shares for i in s) == list(range(8))
        and max(map(len, shares)) - min(map(len, shares)) <= 1
    )


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
