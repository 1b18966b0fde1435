"""Correctness checks of the GPU benchmark, on a CPU: what is broken, and what is unchecked, is named."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest
import torch

from bench.gpu import check
from bench.gpu.rows import run_row
from bench.gpu.task import CardLost
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.norm import RMS_NORM
from proactor.kernels.registry import OPS
from tests.bench.gpu.fake import CPU, FakeWatch, off, op_row, raises, setting


def check_op(op: Any, seed: int) -> dict[str, Any]:
    *_, last = check.check_op(op, CPU, seed)
    return last


@pytest.mark.parametrize(
    ("function", "said"), [(off, "output 0 is off by"), (raises, "ValueError: x: a reason")]
)
def test_correctness_names_what_is_broken(function: Any, said: str) -> None:
    fine = check_op(dataclasses.replace(RMS_NORM, cases=RMS_NORM.cases[:2]), seed=11)
    assert (fine["failures"], fine["unchecked"]) == ([], "")
    assert fine["checks"] == fine["of"] == 2 * len(RMS_NORM.tolerance)
    assert 0 < fine["worst"]["bfloat16"] <= 1
    broken = dataclasses.replace(RMS_NORM, function=function, cases=RMS_NORM.cases[:2], gradients=())
    result = check_op(broken, seed=11)
    assert len(result["failures"]) == result["checks"] == 2 * len(RMS_NORM.tolerance)
    assert said in result["failures"][0]
    assert "1x8 float32 seed 11" in result["failures"][0]


def test_a_lost_card_ends_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", gone)
    result = check_op(dataclasses.replace(RMS_NORM, function=raises), seed=1)
    (failure,) = result["failures"]
    assert "the card is lost: ValueError: x: a reason" in failure
    assert (result["checks"], result["of"], result["unchecked"]) == (1, 15, "the card is lost")
    with pytest.raises(CardLost):
        run_row(op_row(dataclasses.replace(RMS_NORM, function=raises)), setting(), FakeWatch())


def test_what_compiles_most_begins_first_and_is_split() -> None:
    order = check.slowest_first(OPS)
    assert order[0] == "span_attention:float32"
    assert order.index("span_attention:bfloat16") < order.index("rms_norm") < order.index("keyed_uniforms")
    names = [part.partition(":")[0] for part in order]
    assert set(names) == {op.name for op in OPS}
    assert names.count("span_attention") == 3
    assert names.count("rms_norm") == 1


def test_one_dtype_of_an_operation() -> None:
    *_, last = check.check_op(RMS_NORM, CPU, 1, "float16")
    assert (list(last["worst"]), last["checks"], last["of"]) == (["float16"], 5, 5)


def test_parts_make_one_result() -> None:
    half = {"op": "a", "seed": 1, "checks": 2, "of": 2, "worst": {"float32": 0.5}, "failures": []}
    parts = [
        {**half, "unchecked": "", "seconds": 1.0},
        {
            **half,
            "worst": {"bfloat16": 0.25},
            "failures": ["off"],
            "unchecked": "late",
            "of": 4,
            "seconds": 2.0,
        },
    ]
    assert check.merged([*parts, {**parts[0], "op": "b"}]) == [
        {
            "op": "a",
            "seed": 1,
            "checks": 4,
            "of": 6,
            "worst": {"float32": 0.5, "bfloat16": 0.25},
            "failures": ["off"],
            "unchecked": "late",
            "seconds": 3.0,
        },
        {**parts[0], "op": "b"},
    ]


@pytest.mark.skipif(not HAS_TRITON or not interpreted(), reason="needs Triton's interpreter")
def test_children_answer_die_and_run_out_of_time() -> None:
    told: list[str] = []
    result = check.check_all(
        ["rms_norm", "no such operation"], "cpu", 7, 900.0, 2, lambda c: told.append(c["op"])
    )
    assert (result[0]["checks"], result[0]["failures"], result[0]["seed"]) == (15, [], 7)
    assert result[0]["unchecked"] == ""
    assert result[1]["failures"][0].startswith("process ended with 1 after 0 checks: ValueError")
    assert sorted(told) == ["no such operation", "rms_norm"]


def test_what_the_time_does_not_reach_is_unchecked_not_failed() -> None:
    (late,) = check.check_all(["rms_norm"], "cpu", 7, 0.0, 1, lambda c: None)
    assert (late["failures"], late["unchecked"]) == ([], "out of time")


def test_a_stopped_process_keeps_what_it_had_found(tmp_path: Any) -> None:
    with (tmp_path / "log").open("w+") as log:
        log.write(
            'noise\nrecord: {"checks": 4, "of": 9, "failures": ["1x8: off"], "unchecked": "running"}\nmore\n'
        )
        result = check._result("rms_norm", 7, -9, log, stopped=True)
        assert (result["checks"], result["failures"], result["unchecked"]) == (4, ["1x8: off"], "out of time")
    with (tmp_path / "log").open("w+") as log:
        log.write('record: {"checks": 9, "of": 9, "failures": [], "unchecked": ""}\n')
        assert check._result("rms_norm", 7, -9, log, stopped=True)["unchecked"] == ""


def test_packages_brought_along_stay_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/brought")
    assert check.python_path().split(os.pathsep)[1:] == ["/brought"]
