"""Judges from a config: kinds and fields, each mistake named."""

from __future__ import annotations

from typing import Any

import pytest

from proactor.endpoint_errors import EndpointSetupError
from proactor.ruler import EndpointJudge, EngineJudge, RuleJudge, RulerError, build_judge


def test_kinds() -> None:
    assert isinstance(build_judge("rule"), RuleJudge)
    engine = build_judge({"kind": "engine", "adapter": "runs/judge/best"})
    assert isinstance(engine, EngineJudge) and engine.adapter == "runs/judge/best" and not engine.concurrent
    endpoint = build_judge(
        {"kind": "endpoint", "model": "m", "base_url": "http://localhost:1/v1", "timeout": 5}
    )
    assert isinstance(endpoint, EndpointJudge) and endpoint.endpoint.timeout == 5 and endpoint.concurrent


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("human", "'human' is not one of rule, engine, endpoint"),
        ({"model": "m"}, "None is not one of"),
        ({"kind": "endpoint"}, "judge endpoint: missing 1 required"),
        ({"kind": "endpoint", "model": "m", "temprature": 1}, "judge endpoint: .*'temprature'"),
        ({"kind": "rule", "strict": True}, "judge rule: .*'strict'"),
    ],
)
def test_mistakes(spec: Any, said: str) -> None:
    with pytest.raises(RulerError, match=said):
        build_judge(spec)


def test_an_impossible_value() -> None:
    with pytest.raises(EndpointSetupError, match="concurrency=0"):
        build_judge({"kind": "endpoint", "model": "m", "concurrency": 0})


def test_a_judges_name_tells_settings_apart() -> None:
    """What a judge said is kept under its name."""
    specs: list[dict[str, Any]] = [
        {"kind": "endpoint", "model": "m"},
        {"kind": "endpoint", "model": "n"},
        {"kind": "endpoint", "model": "m", "base_url": "http://x"},
        {"kind": "endpoint", "model": "m", "options": {"temperature": 0}},
        {"kind": "engine"},
        {"kind": "engine", "adapter": "a"},
        {"kind": "engine", "forced": False},
        {"kind": "engine", "forced": False, "temperature": 1.0},
        {"kind": "rule"},
    ]
    assert len({build_judge(spec).name for spec in specs}) == len(specs)
