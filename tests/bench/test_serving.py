"""The load on the server, in seconds: every kind of client, and what its results are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import serving, serving_requests
from bench.serving_clients import Clients, answers_of

SLOW = {"at least 90% of Engine.sample"}
"""A check that a busy machine cannot meet."""


def test_every_kind_of_request_has_its_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        serving, "SMALL", {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    )
    for module in (serving, serving_requests):
        monkeypatch.setattr(module, "STALL", 0.5)
    monkeypatch.setattr(serving_requests, "CASES", 12)
    monkeypatch.setattr(serving, "KINDS", dict.fromkeys(serving.KINDS, 1))
    small = [
        "--requests",
        "90",
        "--concurrent",
        "12",
        "--mixed-tokens",
        "6",
        "--tokens",
        "8",
        "--repeats",
        "1",
    ]
    serving.main([*small, "--results", str(tmp_path)])
    (file,) = tmp_path.glob("*/serving.json")
    record = json.loads(file.read_text())
    for part in ("mixed", "throughput"):
        failed = {name for name, passed in record[part]["checks"].items() if not passed}
        assert failed <= SLOW, record["mixed"]
    outcomes = record["mixed"]["outcomes"]
    assert all(outcomes.values()) and sum(sum(counts.values()) for counts in outcomes.values()) == 90
    assert "tokens a second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ({}, "right"),
        ({"token_ids": [5, 7]}, "wrong"),
        ({"logprobs": {"token_logprobs": [-1.0, -2.5]}}, "wrong"),
        ({"text": "other"}, "wrong"),
    ],
)
def test_another_answer_is_seen(answer: dict[str, Any], outcome: str) -> None:
    expected = [[{"token_ids": [5, 6], "logprobs": [-1.0, -2.0], "text": "ab"}]]
    clients = Clients({"requests": [], "expected": expected})
    whole = {"index": 0, "token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0, -2.0]}, "text": "ab"}
    body = json.dumps({"choices": [whole | answer]}).encode()
    assert clients._judge({"expect": 0}, 200, body) == outcome
    assert clients._judge({"expect": 0}, 500, body) == "500"


def test_a_stream_counts_when_it_is_done() -> None:
    def event(ids: list[int], text: str) -> str:
        logprobs = {"content": [{"logprob": -float(i)} for i in ids]}
        choice = {"index": 0, "token_ids": ids, "delta": {"content": text}, "logprobs": logprobs}
        return f"data: {json.dumps({'choices': [choice]})}\n\n"

    events = event([1], "a") + event([2, 3], "bc")
    assert answers_of(f"{events}data: [DONE]\n\n".encode()) == [([1, 2, 3], [-1.0, -2.0, -3.0], "abc")]
    assert answers_of(events.encode()) == []
