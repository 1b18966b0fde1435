"""The compile check reads registers, spills and shared memory, and fails if its control does not spill."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proactor.kernels import compile_check as checker
from proactor.kernels.compile_check import CONTROL, check_all, table, tasks
from proactor.kernels.compile_launch import Compiled, amd_needs, problem
from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.norm import RMS_NORM

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")

SCRIPT = """
import dataclasses, json, sys
from proactor.kernels import compile_check as c
from proactor.kernels.compile_launch import build, opcodes
from proactor.kernels.norm import RMS_NORM
from proactor.kernels.op import Launch
import proactor.kernels.registry as registry

def show(results):
    print(json.dumps([dataclasses.asdict(r) for r in results]))

kernels = {w.kernel for op in registry.OPS for w in op.launches}
STEPPING = next(w for op in registry.OPS for w in op.launches if w.kernel.__name__ == "keyed_uniforms_kernel")
small = dataclasses.replace(RMS_NORM, launches=RMS_NORM.launches[:1])
show(c.check_all(c.tasks([small], ["sm_90", "gfx942"]), jobs=2))
show(c.check_all([("control", c.CONTROL, t) for t in ("sm_90", "gfx942")], quick=True, jobs=2))
wide = Launch(c.CONTROL.kernel, c.CONTROL.types, {"TILE": 64, "STEP": 512}, warps=8)
missing = Launch(c.CONTROL.kernel, {}, {})
show(c.check_all([("wide", wide, "sm_86"), ("missing", missing, "sm_86")], quick=True, jobs=2))
print(json.dumps(opcodes(c.CONTROL, "sm_90")))
registry.OPS = (dataclasses.replace(RMS_NORM, name="spilling", launches=[c.CONTROL]),)
code = c.main(["--quick", "--targets", "sm_90"])
registry.OPS = (small,)
c.CONTROL = small.launches[0]
print(json.dumps([code, c.main(["--quick", "--targets", "sm_90"])]))
print(json.dumps({k.__name__: [p.name for p in k.params if p.do_not_specialize] for k in kernels}))
loose = build(STEPPING, "sm_90", True).asm["ttir"], build(STEPPING, "sm_90", False).asm["ttir"]
print(json.dumps([["rows", *(text.count("tt.divisibility = 16") for text in loose)]]))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Output of the script: one process for all tests, since it cannot run under the interpreter."""
    root = Path(__file__).resolve().parents[2]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    return [
        *(json.loads(line) for line in lines if line.startswith(("[{", "{", "[1", "[0", "[["))),
        done.stdout,
    ]


@needs_triton
def test_rms_norm_is_fit(seen: list[Any]) -> None:
    nvidia, amd = seen[0]
    for result in (nvidia, amd):
        assert result["reason"] == ""
        assert 8 <= result["needs"]["registers"] <= 128
        assert result["needs"]["spills"] == result["unaligned"]["spills"] == 0
    assert (nvidia["target"], amd["target"]) == ("sm_90", "gfx942")


@needs_triton
def test_control_spills(seen: list[Any]) -> None:
    for result in seen[1]:
        assert result["reason"].startswith("spills"), result
        assert result["needs"]["spills"] > 0
        assert result["needs"]["registers"] >= 255


@needs_triton
def test_shared_memory_and_broken_launches_fail(seen: list[Any]) -> None:
    wide, missing = seen[2]
    assert "KiB of shared memory, the device has 99" in wide["reason"]
    assert wide["needs"]["spills"] == 0
    assert "KernelError" in missing["reason"]
    assert "a_ptr, b_ptr, c_ptr, depth, TILE, STEP" in missing["reason"]


@needs_triton
def test_opcodes_count_spills(seen: list[Any]) -> None:
    assert seen[3]["STL"] > 100
    assert seen[3]["LDL"] > 100
    assert seen[3]["HGMMA"] > 0


@needs_triton
def test_command_fails_on_a_spill_and_when_blind(seen: list[Any]) -> None:
    assert seen[4] == [1, 1]
    assert "FAILED spilling on sm_90: oversized_kernel" in seen[-1]
    assert "control passed, the check sees no spills on sm_90" in seen[-1]
    assert "1 ok, 0 failed; control spills on 0 of 1 targets" in seen[-1]


STEPPED = {
    "paged_attention_kernel": ["pages", "split", "part0", "parts"],
    "merge_parts_kernel": ["parts"],
    "nf4_linear_kernel": ["M"],
    "sum_parts_kernel": ["M"],
    "lora_down_kernel": ["M"],
    "lora_add_kernel": ["M"],
    "keyed_uniforms_kernel": ["rows"],
    "logprob_values_kernel": ["start"],
    "logprob_slopes_kernel": ["start"],
    "policy_loss_kernel": ["count", "programs"],
    "policy_statistics_kernel": ["count", "programs"],
    "ragged_advantages_kernel": ["count"],
    "span_forward_kernel": ["origin"],
    "span_query_gradient_kernel": ["origin"],
    "span_key_gradient_kernel": ["origin"],
}
"""Arguments that change from step to step, by kernel."""


@needs_triton
def test_what_changes_by_the_step_does_not_compile_anew(seen: list[Any]) -> None:
    assert {kernel: names for kernel, names in seen[5].items() if names} == STEPPED
    ((_, aligned, unaligned),) = seen[6]
    assert aligned == unaligned == 2, "the two pointers, and not the integer"


def test_problems_are_named() -> None:
    fit = Compiled(255, 0, 0, 99 * 1024)
    assert problem(fit, "sm_86") == ""
    assert "64" in problem(fit, "gfx942")
    assert "spills 8 bytes" in problem(Compiled(64, 8, 8, 0), "sm_80")
    assert problem(Compiled(64, 8, 8, 0), "sm_80", spills=False) == ""
    assert "tensor memory" in problem(Compiled(64, 0, 0, 0, 1024), "sm_100")


def test_amd_metadata() -> None:
    text = (
        "  - .agpr_count:     0\n    .private_segment_fixed_size: 324\n    .sgpr_spill_count: 2\n"
        "    .vgpr_count:     512\n    .vgpr_spill_count: 240\n"
    )
    assert amd_needs(text, 16) == Compiled(512, 242, 324, 16)


def test_a_launch_goes_only_where_it_says() -> None:
    launch = RMS_NORM.launches[0]
    only = dataclasses.replace(RMS_NORM, launches=[dataclasses.replace(launch, targets=("sm_90",)), launch])
    assert [(t, w is launch) for _, w, t in tasks([only], ["sm_80", "sm_90"])] == [
        ("sm_90", False),
        ("sm_80", True),
        ("sm_90", True),
    ]


def test_table_shows_the_worst_of_an_operation() -> None:
    from rich.console import Console

    fine = checker.Result("op", "a", "sm_80", Compiled(10, 0, 0, 2048), Compiled(12, 4, 4, 1024), "")
    bad = checker.Result("op", "b", "sm_80", Compiled(99, 8, 8, 1024), None, "spills")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table([fine, bad], every=False))
    (row,) = [line.split() for line in console.export_text().splitlines() if "sm_80" in line]
    assert [cell for cell in row if cell != "│"] == [
        "op",
        "sm_80",
        "2",
        "99",
        "8",
        "4",
        "2",
        "of",
        "163",
        "FAILED",
        "(1)",
    ]


@pytest.mark.skipif(not interpreted(), reason="only under the interpreter")
def test_refuses_to_compile_under_the_interpreter() -> None:
    with pytest.raises(KernelError, match="TRITON_INTERPRET"):
        check_all([("control", CONTROL, "sm_90")])
