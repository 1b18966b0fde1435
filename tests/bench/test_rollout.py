"""Rollouts beside peers: end to end on a tiny model; sides that draw other tokens are not timed."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench import rollout
from bench.models import write_tiny_qwen2
from bench.rollout import Contender, choose, gate, summary
from bench.workloads import GROUP, Workload, ragged

TWO = Workload("two", (2, 3), samples=1, max_tokens=4, ragged=(3, 4))
TOKENS = [[5, 6, 7], [8, 9, 10, 11]]


class FakeSide:
    """Draws fixed tokens; ``seconds`` by size; tokens above 100 are ``gap`` nats less likely."""

    def __init__(
        self, tokens: list[list[int]], gap: float = 0.0, seconds: dict[int, float] | None = None
    ) -> None:
        self.tokens, self.gap, self.seconds = tokens, gap, seconds or {}
        self.scored: list[dict[str, Any]] = []
        self.sizes: list[int] = []

    def call(self, **command: Any) -> dict[str, Any]:
        if command["do"] == "gate":
            self.scored = command["batch"]
            return {"logprobs": [[-1.0 - self.gap * (s["completion"][0] > 100)] for s in command["batch"]]}
        self.sizes.append(command.get("size", 0))
        seconds = self.seconds.get(self.sizes[-1], 1.0)
        return {"tokens": self.tokens, "rows": 9, "seconds": seconds, "cpu_seconds": 2 * seconds}


def contender(*arguments: Any, **more: Any) -> Contender:
    return Contender("side", FakeSide(*arguments), **more)  # type: ignore[arg-type]


def test_equal_tokens_pass() -> None:
    found = gate(TWO, contender(TOKENS), contender(TOKENS), "float32")
    assert found == {"completions_equal": 1.0, "largest_tie": 0.0}


def test_tokens_that_part_are_scored_after_what_both_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rollout.WHOLE, "float32", 0.5)
    other = contender([TOKENS[0], [8, 9, 101, 7]])
    ours = contender(TOKENS, 1e-4)
    assert gate(TWO, ours, other, "float32")["largest_tie"] == pytest.approx(1e-4)
    before = TWO.prompts(-1)[1] + [8, 9]
    assert ours.side.scored == [  # type: ignore[attr-defined]
        {"prompt": before, "completion": [10]},
        {"prompt": before, "completion": [101]},
    ]
    with pytest.raises(SystemExit, match=r"^gate: side and ours draw other tokens"):
        gate(TWO, contender(TOKENS, 0.2), other, "float32")


def test_nan_is_no_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rollout.WHOLE, "float32", 0.5)
    with pytest.raises(SystemExit, match="nothing was timed"):
        gate(TWO, contender(TOKENS, math.nan), contender([TOKENS[0], [8, 9, 101, 7]]), "float32")


@pytest.mark.parametrize("arguments", [["--peer", "trl"], ["--workload", "group"]])
def test_groups_are_measured_beside_trl(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rollout.main(arguments)
    assert "one goes with the other" in capsys.readouterr().err


def test_too_few_equal_completions_are_refused() -> None:
    with pytest.raises(SystemExit, match="nothing was timed"):
        gate(TWO, contender(TOKENS), contender([TOKENS[0], [8, 9, 101, 7]]), "float32")


def test_completions_of_other_lengths_are_refused() -> None:
    with pytest.raises(SystemExit, match=r"^side: completions of \[3, 3\] tokens, \[3, 4\] were asked for$"):
        gate(TWO, contender(TOKENS), contender([[5, 6, 7], [8, 9, 10]]), "float32")


def test_a_peer_keeps_its_fastest_size() -> None:
    sizes: list[dict[str, Any]] = [{"size": 1}, {"size": 2}, {"size": 4}]
    peer = contender(TOKENS, 0.0, {1: 3.0, 2: 1.5, 4: 2.0}, ways=sizes)
    assert [row["seconds"] for row in choose(TWO, [peer], True)] == [3.0, 1.5, 2.0]
    assert peer.more == {"size": 2}
    assert peer.side.sizes == [1, 2, 4, 2], "ready for its rounds"  # type: ignore[attr-defined]
    row = summary(peer, [{"seconds": s, "cpu_seconds": s, "rows": 9} for s in (1.0, 4.0, 2.0)], 7)
    assert (row["seconds"], row["fastest"], row["slowest"], row["tokens_a_second"]) == (2.0, 1.0, 4.0, 3.5)


def test_workloads_are_what_they_say() -> None:
    work = ragged(128)
    assert len(work.prompts(0)) == len(work.counts) == 128
    for lengths in (work.lengths, work.counts):
        assert min(lengths) >= 8 and max(lengths) <= 128 and len(set(lengths)) > 50
    prompts = GROUP.prompts(2)
    assert len({tuple(ids[:600]) for ids in prompts}) == 1 and len({tuple(ids[600:]) for ids in prompts}) == 8
    assert [len(ids) for ids in prompts] == list(GROUP.lengths) and GROUP.counts == [32] * 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollout") / "small"
    return write_tiny_qwen2(folder, hidden_size=32, intermediate_size=32, num_hidden_layers=1)


def run(model: Path, results: Path, *arguments: str) -> dict[str, Any]:
    rollout.main(
        ["--model", str(model), "--dtypes", "float32", "--rounds", "2", "--results", str(results), *arguments]
    )
    (file,) = results.glob("*/rollout-*-small.json")
    record: dict[str, Any] = json.loads(file.read_text())
    return record


def test_beside_transformers(model: Path, tmp_path: Path) -> None:
    record = run(model, tmp_path, "--requests", "5", "--sizes", "2", "5")
    work, cell = ragged(5), record["cells"]["float32"]
    assert cell["sides"].keys() == {"ours", "continuous", "static"}
    assert cell["speedup"].keys() == cell["agreement"].keys() == {"continuous", "static"}
    assert {row["tokens_drawn"] for row in cell["sides"].values()} == {sum(work.counts)}
    rows = sum(work.lengths) + sum(work.counts) - len(work.counts)  # nothing follows a last token
    assert cell["sides"]["ours"]["rows_computed"] == cell["sides"]["continuous"]["rows_computed"] == rows
    assert cell["sides"]["static"]["rows_computed"] > rows
    assert [(row["name"], row["size"]) for row in cell["tried"]] == [
        ("continuous", 2),
        ("continuous", 5),
        ("static", 2),
        ("static", 5),
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="the peer is not installed (pip install -e .[bench])"
)
def test_beside_trl(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workload("group", (20, 22), samples=3, max_tokens=4, shared=18)
    monkeypatch.setattr(rollout, "GROUP", work)
    record = run(model, tmp_path, "--peer", "trl", "--workload", "group")
    sides = record["cells"]["float32"]["sides"]
    assert sides["ours"]["rows_computed"] == 18 + 2 + 4 + 6 * 3
    assert sides["generate"]["rows_computed"] == 6 * (22 + 3)


def test_one_conversation_beside_generate(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "LONE", Workload("lone", (9,), samples=1, max_tokens=5))
    record = run(model, tmp_path, "--workload", "lone")
    sides, tried = (record["cells"]["float32"][key] for key in ("sides", "tried"))
    assert {name: side["rows_computed"] for name, side in sides.items()} == {"ours": 13, "generate": 13}
    assert [way["cache"] for way in tried] == ["dynamic", "static"] and record["resident"] == "auto"


def test_trl_does_not_draw_ragged_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rollout.main(["--peer", "trl"])
    assert "--workload group" in capsys.readouterr().err
