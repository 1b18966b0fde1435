"""For every loss: the same groups over 1, 2 and 4 calls and over 1, 2 and 4 ranks, with unequal and empty
shares, give one gradient to the bit (in deterministic mode) and one set of statistics.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.losses import CONFIGS
from tests.engine.rank_losses import WORLDS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked")
Found = dict[int, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Found:
    """By number of ranks, what they found; all ranks of a run the same."""
    out = tmp_path_factory.mktemp("losses")
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("rank_losses.py")
    run = subprocess.run(
        [sys.executable, str(script), str(folder), str(out)],
        cwd=repo_root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    by_world: Found = {}
    for world in WORLDS:
        ranks = [(out / f"{world}-{rank}.json").read_text() for rank in range(world)]
        assert all(text == ranks[0] for text in ranks), "ranks ended with different numbers"
        by_world[world] = json.loads(ranks[0])
    return by_world


def all_ways(found: Found, name: str, kind: str) -> dict[str, Any]:
    return {
        f"{world} ranks, {way}": value
        for world, losses in found.items()
        for way, value in losses[name].items()
        if way.startswith(kind)
    }


@pytest.mark.parametrize("name", [*CONFIGS, "own"])
def test_one_gradient_however_groups_are_split(found: Found, name: str) -> None:
    ways = all_ways(found, name, "" if name == "own" else "gradient")
    assert len(ways) == 3 + 2 + 2
    gradient, divisor, sums, maxima = next(iter(ways.values()))
    assert divisor > 0 and sums["tokens"] > 20
    for way, (other, same, theirs, tops) in ways.items():
        assert other == gradient and same == divisor, way
        assert theirs == pytest.approx(sums, rel=1e-6, abs=1e-9) and tops == maxima, way


@pytest.mark.parametrize("name", CONFIGS)
def test_each_minibatch_has_one_gradient_on_any_number_of_ranks(found: Found, name: str) -> None:
    ways = all_ways(found, name, "steps")
    assert len(ways) == len(WORLDS)
    after, adapter, stats = next(iter(ways.values()))
    assert len(after) == len(set(after)) == (1 if name.startswith("sft") else 3)
    for way, (others, weights, theirs) in ways.items():
        assert others == after and weights == adapter, way
        assert theirs == pytest.approx(stats, rel=1e-6, abs=1e-9), way


def test_losses_differ(found: Found) -> None:
    """Each name is another loss: none of the options is without effect."""
    gradients = {name: found[1][name]["gradient, 1 calls"][0] for name in CONFIGS}
    assert len(set(gradients.values())) == len(gradients)
