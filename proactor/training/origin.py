"""What a run was made with: the program's version and commit, the machine. Kept in `summary.json`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import proactor

CHECKOUT = Path(proactor.__file__).resolve().parents[1]
"""The folder that holds the package: the root of a checkout, or site-packages."""


def origin() -> dict[str, str | None]:
    """``version``, ``commit`` and ``machine`` of this process; ``commit`` None outside a checkout."""
    return {"version": proactor.__version__, "commit": commit(CHECKOUT), "machine": machine()}


def commit(checkout: Path) -> str | None:
    """The commit of ``checkout``, with ``+changes`` where tracked files differ from it.

    None where it is no checkout (its own ``.git``, not one of a folder above), or without git.
    """
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None

    def told(*arguments: str) -> str | None:
        done = subprocess.run(
            [git, "-C", str(checkout), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    head = told("rev-parse", "HEAD")
    return f"{head} +changes" if head and told("status", "--porcelain", "--untracked-files=no") else head


def machine() -> str:
    """The GPU, or the processor where there is none; Python and torch."""
    import torch  # processor() and commit() do without

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"{device}; Python {platform.python_version()}, torch {torch.__version__}"


BFLOAT16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
"""Flags of /proc/cpuinfo under which bfloat16 products have instructions of their own, the widest first."""


def bfloat16_products() -> str:
    """The processor's instructions for bfloat16 products; "" where there are none, or no /proc/cpuinfo."""
    flags = _cpuinfo("flags").split()
    return next((name for flag, name in BFLOAT16.items() if flag in flags), "")


def processor() -> str:
    """The processor's model, its instructions for bfloat16 if any, and the cores this process may use."""
    model, wide = _cpuinfo("model name") or platform.machine(), bfloat16_products()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}{f' with {wide}' if wide else ''}, {cores} cores"


def _cpuinfo(key: str) -> str:
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    found = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""
