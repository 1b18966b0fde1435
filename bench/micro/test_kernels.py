"""The operations' forms for this processor, on the largest of their test cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.micro.conftest import Part
from proactor.kernels.op import Op
from proactor.kernels.registry import OPS

REFERENCE = "torch"


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_operation(op: Op, part: Part) -> None:
    cpu = torch.device("cpu")
    drawn = [case.make(torch.Generator().manual_seed(0), cpu, torch.float32) for case in op.cases]
    full = [given for given in drawn if all(t.numel() for t in given.values() if isinstance(t, Tensor))]
    arguments = max(full, key=lambda given: op.bytes(**given))
    given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with torch.no_grad():
        part(lambda: op.function(**given))
