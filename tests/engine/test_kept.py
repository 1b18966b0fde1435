"""What is kept of a decode set changes nothing but the time: pages alone give the same samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from proactor.engine import Engine, Sampling, decode_rows, kept
from tests.engine.engines import drawn, load, prompts, sampler

SHORT, LONG = prompts(3, length=5, seed=1), prompts(2, length=23, seed=2)


def work(engine: Engine) -> list[tuple[list[int], list[float]]]:
    """Sequences of several lengths and families, which join, leave and outgrow pages at different steps."""
    draws = [Sampling(n=1 + i % 3, max_tokens=5 + 6 * i, seed=i, ignore_eos=True) for i in range(5)]
    return [(row[0], row[1]) for row in drawn(engine.sample(SHORT + LONG, draws))]


@pytest.mark.parametrize("spare", [1, 3, 64])
def test_samples_are_those_of_the_pages(folder: Path, monkeypatch: pytest.MonkeyPatch, spare: int) -> None:
    gathered = []
    gather = kept.KeptBlock._gather
    monkeypatch.setattr(
        kept.KeptBlock, "_gather", lambda self, *rest: (gathered.append(1), gather(self, *rest))[1]
    )
    monkeypatch.setattr(decode_rows, "KEPT_BYTES", 0)
    expected = work(load(folder))
    assert not gathered
    monkeypatch.setattr(decode_rows, "KEPT_BYTES", 1 << 28)
    monkeypatch.setattr(decode_rows, "SPARE", spare)
    engine = load(folder)
    got = work(engine)
    assert gathered
    for (ids, logprobs), (other, others) in zip(got, expected, strict=True):
        assert ids == other
        assert logprobs == pytest.approx(others, abs=1e-4)
    assert sampler(engine).rows._decode is None, "an idle sampler keeps nothing"


def test_a_set_that_stays_is_gathered_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a layer, although the sequences get new pages meanwhile."""
    gathered: list[int] = []
    gather = kept.KeptBlock._gather
    monkeypatch.setattr(
        kept.KeptBlock,
        "_gather",
        lambda self, layer, store: (gathered.append(layer), gather(self, layer, store)),
    )
    monkeypatch.setattr(decode_rows, "SPARE", 64)
    engine = load(folder)
    engine.sample(SHORT, Sampling(max_tokens=20, ignore_eos=True))
    assert sorted(gathered) == list(range(engine.config.num_layers))
