"""What `proactor evaluate` played, and the file of a run's folder that it writes.

``evaluate-<part>-<adapter>.json`` is the evaluation of a part as the run itself would play it. What differs
from the run's own config joins the name, so that no evaluation replaces that of something else:

    evaluate-test-best.json               the test split
    evaluate-test-train-best.json         data.test.split=train ("all" for null)
    evaluate-test-sgd-best.json           data.source=sgd
    evaluate-test-limit-50-best.json      data.test.limit=50 ("no-limit" for null)
    evaluate-test-1f2e3d4c-best.json      anything else of the data, prompt, model, reward or play

The files of `proactor calibrate` are named by the same rule: ``tradeoff.json`` is the run's own, the one that
its report shows, and ``tradeoff-dev-limit-400-test-limit-400-best.json`` is not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proactor.config import RunConfig
from proactor.config_base import ConfigError
from proactor.config_file import read_config
from proactor.training.adapters import OWN

NOT_PLAYED = {"metric", "resamples", "budget", "final"}
"""Keys of `eval` that change nothing in how dialogues are played and scored."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Names of the files in the folder of a run; ``here``: the config that is played, ``own``: the run's.

    Both with paths as they are written: those of the run may be another machine's.
    """

    folder: Path
    here: RunConfig
    own: RunConfig

    @classmethod
    def of(cls, settings: RunConfig, file: Path, overrides: Sequence[str] = ()) -> RunFiles:
        """Those of the run of ``settings``, which are ``file`` with ``overrides``.

        The run's own config is the ``config.yaml`` of its folder. Where there is none it is ``file`` without
        the overrides, or with them where it is none without. Raises ConfigError when ``config.yaml`` cannot
        be read.
        """
        written = settings.folder / "config.yaml"
        if written.exists():
            return cls(settings.folder, settings, read_config(written))
        here = read_config(file, overrides)
        try:
            own = read_config(file)
        except ConfigError:  # without a model, say
            own = here
        return cls(settings.folder, here, own)

    def evaluation(self, part: str, adapter: str) -> Path:
        """The file for an evaluation of ``part`` with ``adapter``."""
        names = _part_names(self.here, self.own, part)
        return self.folder / f"{'-'.join(['evaluate', *names, _adapter_name(adapter)])}.json"

    def calibration(self, parts: tuple[str, str], adapter: str, kind: str) -> Path:
        """The file ``kind`` ("tradeoff") of thresholds chosen on the first part and tried on the second."""
        names, of_run = (
            [name for part in read for name in _part_names(config, self.own, part)]
            for config, read in ((self.here, parts), (self.own, ("dev", "test")))
        )
        names = [] if (names, adapter) == (of_run, "best") else [*names, _adapter_name(adapter)]
        return self.folder / f"{'-'.join([kind, *names])}.json"


def _part_names(settings: RunConfig, own: RunConfig, part: str) -> list[str]:
    """The part, and what of it differs from the run's own."""
    here, there = played(settings, part), played(own, part)
    drawn_from = here["split"] or "all"
    names = [part, *([drawn_from] if drawn_from != part else [])]
    if here["source"] != there["source"]:
        names.append(here["source"])
    if here["limit"] != there["limit"]:
        names.append("no-limit" if here["limit"] is None else f"limit-{here['limit']}")
    rest = _other_settings(settings, part)
    if rest != _other_settings(own, part):
        names.append(_digest(json.dumps(rest, sort_keys=True, default=str)))
    return names


def played(settings: RunConfig, part: str) -> dict[str, Any]:
    """The source, split and limit of a part, for the record of an evaluation."""
    chosen = getattr(settings.data, part)
    return {"source": settings.data.source, "split": chosen.split, "limit": chosen.limit}


def _other_settings(settings: RunConfig, part: str) -> dict[str, Any]:
    """What else an evaluation depends on."""
    data = settings.data.model_dump(mode="json", exclude={"source", "train", "dev", "test", "labels"})
    scored_apart = settings.eval.reward is not None or bool(settings.eval.reward_options)
    return {
        "data": data | {"path": data["path"] and os.path.normpath(data["path"])},
        "share": list(getattr(settings.data, part).share),
        "model": os.path.normpath(settings.model),
        "prompt": settings.prompt.model_dump(mode="json"),
        "eval": settings.eval.model_dump(mode="json", exclude=NOT_PLAYED),
        "seed": settings.seed if settings.eval.temperature > 0 else None,
        "reward": None if scored_apart else [settings.reward, settings.reward_options],
    }


def _adapter_name(adapter: str) -> str:
    """The name of an adapter of the run; for a folder, its name with a digest of its place."""
    if adapter in OWN:
        return adapter
    folder = Path(adapter).resolve()
    return f"{folder.name}-{_digest(str(folder))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
