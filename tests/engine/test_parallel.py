"""Two gloo processes against one: the same gradients, in deterministic mode the same bits, and refusals on
all ranks or on none.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import (
    GRPO,
    SFT,
    AdamW,
    Engine,
    EngineError,
    Group,
    GRPOLoss,
    LoRA,
    Sample,
    Sampling,
    SFTLoss,
)
from proactor.engine.parallel import Parallel
from proactor.engine.trainer import Tally

SETTINGS: dict[str, Any] = {"lora": LoRA(rank=4, alpha=8), "page_size": 4, "kv_tokens": 512}


def data(engine: Engine) -> list[Group]:
    """Five rewarded groups (odd number, unlike lengths, one without spread); this rank samples its part."""
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
    """One rank: fast-mode gradients for each normaliser, three deterministic steps, a save and a resume."""
    record: dict[str, Any] = {}
    fast = stirred(model, deterministic=False)
    groups = data(fast)
    for group in groups:
        for i, sample in enumerate(group.samples):
            sample.advantage = float(i) - 1.0
    assert fast.trainer is not None
    for normalizer in ("tokens", "samples", "constant"):
        for part in (groups[:1], groups[1:]):
            fast.forward_backward(part, GRPOLoss(GRPO(normalizer=normalizer, constant=64.0)))
        record[f"normalizer {normalizer}"] = fast.reduce_gradients()
        record[f"gradient {normalizer}"] = fast.trainer.lora.grad.tolist()
        fast.zero_grad()
    record["nll"] = fast.nll(groups)
    exact = stirred(model, deterministic=True)
    config = GRPO(lr=1e-2, max_norm=0.05, minibatches=1)
    record["stats"] = [exact.train(data(exact), config) for _ in range(2)]
    exact.save(out / "state", {"ranks": exact.world_size})
    record["stats"].append(exact.train(data(exact), config))
    assert exact.trainer is not None
    record["adapter"] = exact.trainer.lora.flat.tolist()
    record["record"] = exact.resume(out / "state")
    exact.train(data(exact), config)
    record["resumed"] = exact.trainer.lora.flat.tolist()
    only = [g for g in data(exact) if exact.rank == 0][:1]
    record["sft"] = exact.train(only, SFT(lr=1e-2))  # a rank without data takes part all the same
    record["sft adapter"] = exact.trainer.lora.flat.tolist()
    record["minibatches"] = {str(minibatches): in_steps(exact, minibatches) for minibatches in (2, 3, 7)}
    record["masked"] = masked_on_the_last_rank(exact)
    record["adapters"] = of_two_adapters(model)
    record["refusals"] = refusals(exact, out)
    record["after"] = exact.trainer.lora.flat.tolist()
    record["reduced"] = exact.parallel.reduce({"sum": exact.rank + 1.0}, {"top": exact.rank + 5.0})
    record["gathered"] = exact.parallel.gather(exact.rank)
    (out / f"rank{exact.rank}.json").write_text(json.dumps(record))
    exact.release()
    fast.release()


def in_steps(engine: Engine, minibatches: int) -> list[Any]:
    """Statistics and weights after two epochs of minibatches, once with the groups shared and once with
    nearly all of them on rank 0, in another order. When there are many, the flat group makes an empty one.
    """
    config = GRPO(lr=1e-2, epochs=2, minibatches=minibatches, normalizer="constant", constant=32.0)
    start, ends = engine.state_dict(), []
    assert engine.trainer is not None
    for lopsided in (False, True):
        engine.load_state_dict(start)
        groups = data(engine)
        if lopsided:
            everything = [g for part in engine.gather(groups) for g in part]
            groups = everything[:0:-1] if engine.rank == 0 else []
            if engine.rank == engine.world_size - 1:
                groups += everything[:1]
        stats = engine.train(groups, config)
        stats.pop("tokens_avoided")  # groups on one rank may share a prompt
        stats.pop("tokens_computed")
        ends.append([stats, engine.trainer.lora.flat.tolist()])
    engine.load_state_dict(start)
    return ends


def masked_on_the_last_rank(engine: Engine) -> list[Any]:
    """A rank whose only group has no trained token takes part as if it had none."""
    sample, masked = Sample([1, 2], [3, 4]), Sample([1, 2], [3, 4], mask=[False, False])
    last = [masked] if engine.rank == engine.world_size - 1 else []
    stats = engine.train([*([sample] if engine.rank == 0 else []), *last], SFT(lr=1e-2))
    alone = engine.train(last, SFT(lr=1e-2))
    nll = engine.nll([Group([1, 2], last)] if last else [])
    return [
        stats["masked_groups"],
        stats["tokens_trained"],
        alone["masked_groups"],
        alone["zero_gradient"],
        nll,
    ]


def of_two_adapters(model: str) -> list[Any]:
    """Both adapters after a step each, the judge's on trees of rank 0 alone; and what ranks that come with
    different adapters hear.
    """
    loras = {"policy": LoRA(rank=4, alpha=8), "judge": LoRA(rank=2, alpha=4)}
    engine = Engine.load(model, deterministic=True, **{**SETTINGS, "lora": loras})
    mine = [[Sample([1, 2 + i], [3, 4 + i])] for i in range(4)]
    stats = [engine.train([s for part in engine.share(mine) for s in part], SFT(lr=1e-2))]
    stats.append(engine.train(mine[0] if engine.rank == 0 else [], SFT(lr=1e-2), "judge"))
    ends = [engine._trainer(name).lora.flat.tolist() for name in loras]
    other, heard = ("policy", "judge")[engine.rank], "nothing"
    engine.forward_backward([Group([1], [Sample([1], [2])])], SFTLoss(SFT()), other)
    try:
        engine.reduce_gradients(other)
    except EngineError as error:
        heard = str(error)
    versions = engine.versions
    engine.release()
    return [ends, stats, versions, heard]


def refusals(engine: Engine, out: Path) -> dict[str, str]:
    """What each rank raises when only the last one has something to refuse, and nothing of it stays."""
    last = engine.rank == engine.world_size - 1

    def grpo(reward: float) -> None:
        samples = [Sample([1, 2], [3 + i], reward=r) for i, r in enumerate((0.0, reward if last else 1.0))]
        engine.train([Group([1, 2], samples)], GRPO(minibatches=2))

    def sft(token: int) -> None:
        engine.train([Sample([1, 2], [3, token if last else 4])], SFT())

    def own_loss() -> None:
        def broken(logprobs: torch.Tensor, batch: object) -> torch.Tensor:
            raise ZeroDivisionError("no luck")

        with suppress(ZeroDivisionError):
            engine.forward_backward([Group([1], [Sample([1], [2])])], broken if last else SFTLoss(SFT()))
        engine.step(AdamW())

    def normalizers() -> None:
        engine.zero_grad()
        loss = SFTLoss(SFT(normalizer="samples" if last else "tokens"))
        engine.forward_backward([Group([1], [Sample([1], [2])])], loss)
        engine.reduce_gradients()

    def in_flight() -> None:
        def step(ids: list[int], position: int) -> None:
            engine.step(AdamW())

        if last:
            engine.sample([[1, 2]], Sampling(logit_mask=step))
        else:
            engine.step(AdamW())

    (out / "file").write_text("")
    before = engine.state_dict()
    raised = {}
    for name, call in {
        "nan reward": lambda: grpo(float("nan")),
        "no data": lambda: engine.train([], SFT()),
        "id": lambda: sft(101),
        "nll": lambda: engine.nll([Group([1], [Sample([1], [101 if last else 3])])]),
        "own loss": own_loss,
        "normalizers": normalizers,
        "in flight": in_flight,
        "save": lambda: engine.save(out / "file" / "state"),
    }.items():
        try:
            call()
            raised[name] = "nothing"
        except EngineError as error:
            raised[name] = str(error)
        engine.zero_grad()
    after = {**engine.state_dict(), "samplings": before["samplings"]}
    changed = [
        k for k, v in before.items() if not (v.equal(after[k]) if k in "adapter m v" else v == after[k])
    ]
    assert not changed, changed
    grpo(2.0)
    return raised


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
    refused = [one.pop("refusals")], [first.pop("refusals"), second.pop("refusals")]
    assert first.pop("gathered") == second.pop("gathered") == [0, 1] and one.pop("gathered") == [0]
    assert json.dumps(first) == json.dumps(second), "ranks ended with different numbers"
    one["refusals"], first["refusals"] = refused
    return one, first


@pytest.mark.parametrize("normalizer", ["tokens", "samples", "constant"])
def test_gradients_agree(results: tuple[dict[str, Any], dict[str, Any]], normalizer: str) -> None:
    one, two = results
    assert one[f"normalizer {normalizer}"] == two[f"normalizer {normalizer}"]
    a, b = (torch.tensor(r[f"gradient {normalizer}"], dtype=torch.float64) for r in results)
    assert float(a.norm()) > 1e-3
    assert float((a - b).norm() / a.norm()) < 1e-5  # float32; ranks choose their linear by its speed
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
    assert one["masked"] == two["masked"] == [1.0, 2.0, 1.0, 1.0, 0.0]
    assert one["reduced"] == [{"sum": 1.0}, {"top": 5.0}] and two["reduced"] == [{"sum": 3.0}, {"top": 6.0}]


def test_each_adapter_is_reduced_by_itself(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    one, two = (result["adapters"] for result in results)
    assert one[0] == two[0] and any(one[0][0]) and any(one[0][1]), "bitwise"
    for a, b in zip(one[1], two[1], strict=True):
        assert a == pytest.approx(b, rel=1e-6) and a["policy_version"] == 1
    assert one[2] == two[2] == {"policy": 1, "judge": 1} and one[3] == "nothing"
    assert two[3] == "ranks met for different things: normaliser of policy, normaliser of judge"


@pytest.mark.parametrize("minibatches", ["2", "3", "7"])
def test_minibatches_are_the_same_on_any_number_of_ranks(
    results: tuple[dict[str, Any], dict[str, Any]], minibatches: str
) -> None:
    (stats, weights), *others = [end for result in results for end in result["minibatches"][minibatches]]
    assert len(others) == 3 and weights != results[0]["adapter"]
    assert stats["normalizer"] == 32 and stats["step"] + stats["zero_gradient"] > 2 * int(minibatches)
    assert stats["zero_gradient"] == {"2": 0, "3": 0, "7": 6}[minibatches], "of five groups one is flat"
    for other, same in others:
        assert same == weights and other == pytest.approx(stats, rel=1e-6)


def test_all_ranks_refuse_or_none(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    [alone], [first, last] = results[0]["refusals"], results[1]["refusals"]
    assert alone == {
        "nan reward": "group 0, sample 1: reward is nan; all samples of a group need a finite float32 "
        "reward, or all an advantage",
        "no data": "train: nothing to train on",
        "id": "tree: ids outside 0 … 100",
        "nll": "tree: ids outside 0 … 100",
        "own loss": "rank 0: forward_backward raised (ZeroDivisionError: no luck), so the gradient is "
        "incomplete; zero_grad first",
        "normalizers": "nothing",
        "in flight": alone["in flight"],
        "save": alone["save"],
    }
    assert alone["in flight"].startswith("step: called from inside a step")
    assert "cannot save (" in alone["save"]
    assert last.pop("normalizers") == first.pop("normalizers")
    assert alone.pop("normalizers") == "nothing"
    for name, reason in alone.items():
        if name == "no data":
            assert first[name] == last[name] == reason
        elif name == "own loss":
            assert first[name] == last[name] == reason.replace("rank 0", "rank 1")
        elif name == "save":  # rank 0 writes
            assert "cannot save (" in first[name] and first[name].startswith("rank 0: ")
            assert last[name] == first[name]
        else:
            assert last[name] == first[name] == f"rank 1: {reason}"


def test_a_maximum_that_is_not_a_number_stays_one() -> None:
    """Log-probabilities that are NaN must not read as no error at all."""
    nan, tally = float("nan"), Tally()
    for value in (1.0, nan, 2.0):
        tally.top("error", value)
    other = Tally(maxima={"error": 3.0})
    other.merge(tally)
    lone = Parallel(torch.device("cpu"))
    lone.gather = lambda value, phase="": [({}, {"error": x}) for x in (1.0, nan, 3.0)]  # type: ignore[method-assign]
    found = [tally.maxima["error"], other.maxima["error"], lone.reduce({}, {})[1]["error"]]
    assert all(math.isnan(x) for x in found)


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
