"""Every operation against its float64 reference: forward and gradients, all dtypes, odd shapes."""

from __future__ import annotations

import pytest
import torch

from proactor.kernels.check import check
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.op import Case, Op
from proactor.kernels.registry import OPS

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
DEVICE = torch.device("cpu" if interpreted() else "cuda")
RUNS = [(op, case, dtype) for op in OPS for case in op.cases for dtype in op.tolerance]


@pytest.mark.parametrize(
    ("op", "case", "dtype"), RUNS, ids=[f"{o.name}-{c.name}-{str(d)[6:]}" for o, c, d in RUNS]
)
def test_kernels_agree_with_the_reference(
    op: Op, case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    for error in check(op, case, dtype, DEVICE):
        assert error.passed, error


@pytest.mark.parametrize(("op", "case"), [(o, c) for o in OPS for c in o.cases], ids=lambda v: v.name)
def test_torch_forms_agree_with_the_reference(op: Op, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "reference")
    for error in check(op, case, torch.float32, DEVICE):
        assert error.passed, error
