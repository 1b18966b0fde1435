"""Shared by all tests: the folder of real data, and few threads, as several processes share the cores."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: it reads this once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would download something is a mistake
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
# without a GPU Triton's kernels run on CPU tensors, which is decided when they are defined
os.environ.setdefault("TRITON_INTERPRET", str(int(not Path("/dev/nvidiactl").exists())))

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background jobs; Ctrl-C is tested
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: no collection of garbage looks through it again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else Triton's bindings complain of leaks at exit


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real dialogues and tokenizer: $PROACTOR_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("PROACTOR_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set PROACTOR_DATA)")
    return folder


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT
