"""Correctness checks of the GPU benchmark, on a CPU: what is broken is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from bench import gpu_check
from bench.gpu.rows import CardLost, run_job
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.norm import RMS_NORM
from tests.bench.fake_gpu import CEILING, CPU, FakeWatch, job, machine, off, raises


@pytest.mark.parametrize(
    ("function", "said"), [(off, "output 0 is off by"), (raises, "ValueError: x: a reason")]
)
def test_correctness_names_what_is_broken(function: Any, said: str) -> None:
    fine = gpu_check.check_op(dataclasses.replace(RMS_NORM, cases=RMS_NORM.cases[:2]), CPU, seed=11)
    assert fine["failures"] == []
    assert fine["checks"] == 2 * len(RMS_NORM.tolerance)
    assert 0 < fine["worst"]["bfloat16"] <= 1
    broken = dataclasses.replace(RMS_NORM, function=function, cases=RMS_NORM.cases[:2], gradients=())
    result = gpu_check.check_op(broken, CPU, seed=11)
    assert len(result["failures"]) == result["checks"] == 2 * len(RMS_NORM.tolerance)
    assert said in result["failures"][0]
    assert "1x8 float32 seed 11" in result["failures"][0]


def test_a_lost_card_ends_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", gone)
    result = gpu_check.check_op(dataclasses.replace(RMS_NORM, function=raises), CPU, seed=1)
    assert result["failures"] == ["the card is lost, 15 checks not done: ValueError: x: a reason\nand more"]
    with pytest.raises(CardLost):
        run_job(
            job(dataclasses.replace(RMS_NORM, function=raises)), FakeWatch(), CEILING, machine(), 0.0, seed=3
        )


@pytest.mark.skipif(not HAS_TRITON or not interpreted(), reason="needs Triton's interpreter")
def test_children_answer_die_and_run_out_of_time() -> None:
    told: list[str] = []
    result = gpu_check.check_all(
        ["rms_norm", "no such operation"], "cpu", 7, 120.0, 2, lambda c: told.append(c["op"])
    )
    assert (result[0]["checks"], result[0]["failures"], result[0]["seed"]) == (15, [], 7)
    assert result[1]["failures"][0].startswith("process ended with 1: ValueError")
    assert sorted(told) == ["no such operation", "rms_norm"]
    (late,) = gpu_check.check_all(["rms_norm"], "cpu", 7, 0.0, 1, lambda c: None)
    assert late["failures"] == ["not checked: out of time"]
