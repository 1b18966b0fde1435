"""Which device, what is said where it cannot be used, and the allocator, left to a caller who chose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import EngineError
from proactor.engine import device as device_module
from proactor.engine.device import LEAST_TRITON, check_kernels, choose_device, prepare_allocator
from proactor.kernels.jit import HAS_TRITON

GPU = torch.device("cuda:0")
SETTING = "PYTORCH_CUDA_ALLOC_CONF"


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A torch for CUDA that has not started it."""
    for name in ("PYTORCH_ALLOC_CONF", SETTING, "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    yield monkeypatch


def test_segments_grow_unless_the_caller_chose(cuda_build: pytest.MonkeyPatch) -> None:
    import os

    prepare_allocator()
    assert os.environ[SETTING] == "expandable_segments:True"
    for chosen in ("PYTORCH_ALLOC_CONF", SETTING):
        cuda_build.delenv(SETTING, raising=False)
        cuda_build.setenv(chosen, "max_split_size_mb:64")
        prepare_allocator()
        assert os.environ.get(SETTING, "max_split_size_mb:64") == "max_split_size_mb:64"
        cuda_build.delenv(chosen)
    cuda_build.setattr(torch.cuda, "is_initialized", lambda: True)  # too late
    prepare_allocator()
    assert SETTING not in os.environ


def test_the_allocator_is_set_before_cuda_starts(cuda_build: pytest.MonkeyPatch) -> None:
    import os

    seen: list[str | None] = []
    cuda_build.setattr(torch.cuda, "is_available", lambda: True)
    cuda_build.setattr(torch.cuda, "device_count", lambda: 2)
    cuda_build.setattr(torch.cuda, "set_device", lambda device: seen.append(os.environ.get(SETTING)))
    cuda_build.setattr(torch.cuda, "current_device", lambda: seen.append(os.environ.get(SETTING)) or 1)
    cuda_build.delenv("LOCAL_RANK", raising=False)
    assert choose_device("cuda") == torch.device("cuda:1")
    assert seen == ["expandable_segments:True"] * 2
    with pytest.raises(EngineError, match=r"^device='cuda:2': this machine has 2 CUDA devices"):
        choose_device("cuda:2")


def test_why_there_is_no_gpu(cuda_build: pytest.MonkeyPatch) -> None:
    cuda_build.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"

    def init() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040).\nPlease update"
        )

    cuda_build.setattr(torch.cuda, "init", init)
    words = (
        r"^device='cuda': this machine has no CUDA device \(The NVIDIA driver .* too old .* Please update\)$"
    )
    with pytest.raises(EngineError, match=words):
        choose_device("cuda")
    cuda_build.setattr(torch.version, "cuda", None)
    cuda_build.setattr(torch.version, "hip", None)
    with pytest.raises(
        EngineError, match=r"is built for CPUs: install a CUDA build, or set device to cpu\)$"
    ):
        choose_device("cuda:0")


@pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
def test_kernels_that_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernels(torch.device("cpu"))
    # the probe's tensors stay on the CPU, where its kernel is made to fail
    empty, ones = torch.empty, torch.ones
    monkeypatch.setattr(torch, "empty", lambda *size, **_: empty(*size))
    monkeypatch.setattr(torch, "ones", lambda *size, **_: ones(*size))
    monkeypatch.setattr(device_module, "use_triton", lambda tensor: True)
    check_kernels(GPU)

    def fail(*_: Any) -> None:
        raise RuntimeError(
            "Triton Error [CUDA]: the provided PTX was compiled\nwith an unsupported toolchain."
        )

    monkeypatch.setattr(device_module, "rms_norm", fail)
    words = (
        r"^cuda:0: the first kernel failed \(Triton Error .* toolchain\.\): update the driver .* or triton \("
    )
    with pytest.raises(EngineError, match=words):
        check_kernels(GPU)
    monkeypatch.setattr(device_module.triton, "__version__", "3.2.0+git")
    with pytest.raises(
        EngineError, match=r"^triton 3.2.0\+git: the kernels need 3.3 or later: update it, or set"
    ):
        check_kernels(GPU)


def test_the_least_triton_is_the_project_s(repo_root: Path) -> None:
    text = (repo_root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'"triton>=(\d+)\.(\d+);', text)
    assert found is not None and (int(found[1]), int(found[2])) == LEAST_TRITON
