"""At the size of a 14B model a GPU takes every launch, and a layer keeps to its budget of launches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from proactor.kernels.jit import HAS_TRITON
from tests.card.driver import Refused, pretend, run_script

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")

SCRIPT = """
import dataclasses, json
import torch
from proactor.engine import model as engine_model
from proactor.kernels import lora_kernels, nf4_linear_kernels, swiglu
from proactor.kernels.nf4 import NF4_CODE
from tests.card import launches
from tests.card.driver import META, Recorder, pretend

driver = pretend()
phases = launches.measure(driver, repeats=1)
launched = [dataclasses.asdict(one) for phase in phases.values() for one in phase.launched]
print(json.dumps({"launched": launched, "over": launches.over_budget(phases)}))

with Recorder(driver):
    models = {layers: launches.model(layers) for layers in (1, launches.LAYERS)}

def answer(run):
    try:
        print(json.dumps(run()))
    except Exception as error:
        print(json.dumps([f"{type(error).__name__}: {error}"]))

def planted(module, name, wrong):
    right = getattr(module, name)
    setattr(module, name, wrong(right))
    answer(lambda: launches.over_budget({"decode 16": launches.decode(driver, models, 16, 1)}))
    setattr(module, name, right)

planted(engine_model, "swiglu", lambda right: lambda x: (right(x), right(x))[1])
planted(engine_model, "swiglu", lambda right: lambda x: right(x) * 1)
idle = lambda: None
planted(engine_model, "swiglu", lambda right: lambda x: ([idle() for _ in range(500)], right(x))[1])
planted(nf4_linear_kernels, "level_table", lambda right: lambda dtype, device: NF4_CODE.to(dtype))
for change in ({"stages": 20}, {"warps": 64}):
    planted(lora_kernels, "DOWN", lambda right: {16: {"default": right[16]["default"] | change}})
x = torch.empty(1, 2 << 26, dtype=torch.bfloat16, device=META)
answer(lambda: swiglu.swiglu(x))
answer(lambda: swiglu.swiglu_forward_kernel[(0, 1)](x, x, 16, 16, BLOCK=1024))
"""


@pytest.fixture(scope="module")
def seen(repo_root: Path) -> list[Any]:
    return run_script(SCRIPT, repo_root)


def test_every_launch_is_one_that_a_gpu_takes(seen: list[Any]) -> None:
    launched = seen[0]["launched"]
    for one in launched:
        x, y, z = one["grid"]
        assert 0 < x < 2**31
        assert 0 < y <= 65535
        assert 0 < z <= 65535
        assert one["warps"] in (1, 2, 4, 8, 16, 32)
        assert 0 <= one["shared"] <= 227 * 1024
    kernels = {one["kernel"] for one in launched}
    assert {
        "nf4_linear_kernel",
        "sample_kernel",
        "span_forward_kernel",
        "span_key_gradient_kernel",
    } <= kernels
    assert max(one["shared"] for one in launched) > 64 * 1024


def test_a_layer_keeps_to_its_budget(seen: list[Any]) -> None:
    assert seen[0]["over"] == []


def test_faults_are_caught(seen: list[Any]) -> None:
    kernel, operation, calls, host, shared, warps, large, empty = seen[1:]
    assert kernel[-1].startswith("decode 16, a layer: 23 launches of kind triton, the budget is 22: ")
    assert "swiglu_forward_kernel 2" in kernel[-1]
    assert operation[-1] == "decode 16, a layer: 1 launches of kind torch, the budget is 0: mul 1"
    assert re.fullmatch(
        r"decode 16, a layer: 2[0-9]{3} calls of Python functions, the budget is 1900", calls[0]
    )
    assert host == ["Refused: nf4_linear_kernel: argument 6 is on cpu"]
    assert shared[0].startswith("OutOfResources: out of resource: shared memory, Required: ")
    assert warps[0].startswith("OutOfResources: out of resource: threads, Required: 2048")
    assert large[0].startswith("Refused: swiglu_forward_kernel: grid (1, 65536, 1), ")
    assert empty[0].startswith("Refused: swiglu_forward_kernel: grid (0, 1, 1), ")


def test_refuses_under_the_interpreter() -> None:
    with pytest.raises(Refused, match="TRITON_INTERPRET"):
        pretend()
