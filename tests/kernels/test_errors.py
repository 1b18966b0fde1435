"""Refused arguments and dispatch modes raise KernelError."""

from __future__ import annotations

import pytest
import torch

from proactor.kernels import op
from proactor.kernels.errors import LONGEST_MESSAGE, KernelError, ProactorError
from proactor.kernels.swiglu import swiglu


def test_a_refused_argument_is_a_kernel_error_and_still_a_value_error() -> None:
    with pytest.raises(KernelError, match=r"^gate_up: ") as caught:
        swiglu(torch.zeros(2, 3))
    assert isinstance(caught.value, ProactorError) and isinstance(caught.value, ValueError)


def test_unknown_dispatch_modes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "cuda")
    with pytest.raises(KernelError, match="PROACTOR_KERNELS='cuda'"):
        swiglu(torch.zeros(2, 4))


def test_triton_mode_is_refused_where_kernels_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    monkeypatch.setattr(op, "HAS_TRITON", False)
    with pytest.raises(KernelError, match="PROACTOR_KERNELS=triton"):
        swiglu(torch.zeros(2, 4))


def test_a_message_is_one_line_whatever_stands_in_it() -> None:
    for name, shown in (
        ("a\nb", r"a\nb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\ud800", r"\ud800"),
        ("Ärger 🙂", "Ärger 🙂"),
    ):
        assert str(KernelError(f"{name}: missing")) == f"{shown}: missing"
    again = str(ProactorError(str(ProactorError("a\\b\n"))))  # a refusal that another one quotes
    assert again == r"a\b\n"
    long = str(ProactorError("x" * 10**6 + "the end"))
    assert len(long) < LONGEST_MESSAGE + 10 and long.endswith("the end") and " … " in long
