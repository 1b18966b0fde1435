"""The fixture that times a part beside its reference, and the comparison with the baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.micro.baseline import (
    ALLOWED,
    FOLDER,
    REFERENCES,
    RETRIES,
    least_seconds,
    read_baseline,
    save_baseline,
    slower,
)
from proactor.training.origin import processor

RATIOS = pytest.StashKey[dict[str, float]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--save-baseline``, ``--baselines``."""
    parser.addoption("--save-baseline", action="store_true", help="this run's ratios become the baseline")
    parser.addoption("--baselines", type=Path, default=FOLDER, help="folder of baselines")


def pytest_configure(config: pytest.Config) -> None:
    """One thread, as the parts are small."""
    torch.set_num_threads(1)
    config.stash[RATIOS] = {}


Part = Callable[[Callable[[], object]], None]


@pytest.fixture
def part(request: pytest.FixtureRequest, benchmark: Any) -> Part:
    """Time a call; a regression fails the test. The module's ``REFERENCE`` says beside which reference."""
    reference = REFERENCES[request.module.REFERENCE]
    saved = read_baseline(processor(), request.config.getoption("--baselines")).get(request.node.name)
    saving = request.config.getoption("--save-baseline")

    def measure(call: Callable[[], object]) -> None:
        before = least_seconds(reference)
        benchmark(call)
        least = min(before, least_seconds(reference))
        ratio = benchmark.stats.stats.min / least
        for _ in range(RETRIES):
            if not saving and not slower(ratio, saved):
                break
            ratio = min(ratio, least_seconds(call, 0.1) / least_seconds(reference))
        benchmark.extra_info["ratio"] = ratio
        request.config.stash[RATIOS][request.node.name] = ratio
        if not saving and slower(ratio, saved):
            pytest.fail(f"{ratio:.3g} of the reference, {saved:.3g} at the baseline: over {ALLOWED}x", False)

    return measure


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save the baseline where it was asked for."""
    config = session.config
    if config.getoption("--save-baseline"):
        save_baseline(processor(), config.stash[RATIOS], config.getoption("--baselines"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was compared."""
    saved = read_baseline(processor(), config.getoption("--baselines"))
    known = len(config.stash[RATIOS].keys() & saved.keys())
    missing = "" if saved else "; make bench-micro SAVE=1 saves them"
    terminalreporter.write_line(
        f"{len(config.stash[RATIOS])} parts, {known} with a baseline for {processor()}{missing}"
    )
