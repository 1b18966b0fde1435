"""Where the time of a call goes: the operations that take most of it, by torch's profiler."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.gpu.timing import Run, wait

MOST = 20
"""Operations in a table."""


def profiled(call: Run, device: torch.device) -> list[dict[str, Any]]:
    """The operations of one ``call``: name, count, seconds on the device (on a CPU its own) and share of all.

    On a GPU only kernels and copies, the time of which is not counted twice.
    """
    on_card = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with profile(activities=activities) as record:
        call()
        wait(device)
    rows = []
    for event in record.key_averages():
        if on_card and event.device_type.name != "CUDA":
            continue
        micro = event.self_device_time_total if on_card else event.self_cpu_time_total
        rows.append({"name": event.key[:120], "count": event.count, "seconds": micro * 1e-6})
    total = sum(row["seconds"] for row in rows) or 1.0
    rows.sort(key=lambda row: -row["seconds"])
    return [row | {"share": row["seconds"] / total} for row in rows[:MOST]]
