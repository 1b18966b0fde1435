"""The arms of `bench.frontier`: which method trains each, from which start, and what they are compared by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proactor.episode_config import EpisodeConfig

SFT = "sft"
"""Stage A alone: where the other arms of its seed begin."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to train: ``method`` of GRPO (None: stage A alone), and whether it begins at stage A's end."""

    says: str
    method: Mapping[str, Any] | None = None
    stage_a: bool = True

    def overrides(self, base: EpisodeConfig, name: str, seed: int) -> list[str]:
        """The overrides that make a run of the base config this arm's."""
        same = [f"name={base.name}-{name}-s{seed}", f"seed={seed}", "eval.adapter=last"]
        if self.method is None:
            return [*same, "grpo=null"]
        start = [f"start={Path(base.runs) / f'{base.name}-{SFT}-s{seed}' / 'best'}"] if self.stage_a else []
        return [*same, "sft=null", f"method={json.dumps(self.method)}", *start]


@dataclass(frozen=True, slots=True)
class Experiment:
    """``reference``: the arm that each other arm is compared with. ``new`` pushes the frontier of ``old``
    where its hypervolume is larger, with the whole interval above 0; ``also``: further pairs of such sides.
    """

    arms: Mapping[str, Arm]
    reference: str
    new: tuple[str, ...] = ()
    old: tuple[str, ...] = ()
    also: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)


def bao(price: float, seeking: float = 0.0, thinking: float = 0.0, **more: float) -> dict[str, Any]:
    """BAO with these prices of the user, of consecutive questions and of running out of tokens."""
    options = {"user_price": price, "information_seeking": seeking, "over_thinking": thinking, **more}
    return {"name": "bao", "options": options}


def userrl(**options: str) -> dict[str, Any]:
    """UserRL's GRPO; by default Equalized credits with reward-to-go scores."""
    return {"name": "userrl", "options": options}


PRICES = (0.02, 0.05, 0.1, 0.2)
PRICE, SEEKING, THINKING = BAO = (0.02, 0.02, 0.1)
"""Of the arms with BAO's terms: chosen on dev tasks with one seed (bench/NOTES.md)."""
SWEEP = ("userrl", *(f"w{price:g}" for price in PRICES))

FRONTIER = Experiment(
    arms={
        SFT: Arm("stage A only"),
        "userrl": Arm("GRPO, w 0 (UserRL, Equalized/R2G)", userrl()),
        **{f"w{price:g}": Arm(f"GRPO, w {price:g}", bao(price)) for price in PRICES},
        "seeking": Arm(f"w {PRICE:g}, information seeking", bao(PRICE, seeking=SEEKING)),
        "thinking": Arm(f"w {PRICE:g}, over-thinking", bao(PRICE, thinking=THINKING)),
        "bao": Arm("BAO: both, local term", bao(*BAO)),
        "bao-trajectory": Arm("BAO without local term (kappa 0)", bao(*BAO, kappa=0.0)),
        "bao-cold": Arm("BAO without stage A", bao(*BAO), stage_a=False),
    },
    reference="userrl",
    new=("bao",),
    old=SWEEP,
    also={
        "bao, same w": (("bao",), (f"w{PRICE:g}",)),
        "bao without local term": (("bao-trajectory",), SWEEP),
        "stage A only": ((SFT,), SWEEP),
    },
)

INFOPO = Experiment(
    arms={
        SFT: Arm("stage A only"),
        "grpo": Arm("GRPO (Equalized/Sum)", userrl(turns="equalized", score="sum")),
        "infopo": Arm("InfoPO, paper form", {"name": "infopo", "options": {}}),
        "infopo-code": Arm(
            "InfoPO, code form", {"name": "infopo", "options": {"info_norm": "token", "bounded": True}}
        ),
    },
    reference="grpo",
)

EXPERIMENTS = {"frontier": FRONTIER, "infopo": INFOPO}
