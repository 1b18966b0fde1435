"""A reward of one's own, in TRL's signature. Any config takes it by name:

proactor train configs/demo.yaml reward=examples.reward:calm
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proactor.rewards import WeightedMetric

TIMING = WeightedMetric()


def calm(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """The built-in timing reward, less a little for every character beyond 200: say what is needed and no more.

    ``columns`` hold one value a completion: ``dialogue``, ``turn`` and ``board``. Returns one finite number a completion.
    """
    timing = TIMING(prompts, completions, **columns)
    return [value - 0.002 * max(0, len(text) - 200) for value, text in zip(timing, completions, strict=True)]
