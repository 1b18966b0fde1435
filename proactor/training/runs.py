"""A run's folder: its files, the order in which they are written, and how a resumed run picks them up.

    runs/<name>/
      config.yaml                    the whole config, defaults included
      catalog.json                   the tools of its dialogues
      metrics.jsonl                  one row per training step (`kind` sft, grpo) or evaluation (eval), in
                                     order; `step` counts over phases
      tensorboard/                   the same numbers as scalars
      samples/<phase>-<step>.jsonl   every sample: dialogue, turn, text, reward, parts, advantage,
                                     finish_reason, ok; reward null where the group has no verdict.
                                     In an environment every episode: task, score, ending, turns
      start/ best/ last/             adapters (PEFT): where GRPO began, best on dev, latest
      state.safetensors              the exact state to resume from
      evaluations.json               the test dialogues, and how start (`before`), best (`after`) and the
                                     trivial policies played them
      episodes.json                  the same for the test tasks of a run in an environment
                                     (`training.episode_rows`)
      summary.json                   their metrics side by side, paired intervals, seconds
      evaluate-*.json                written by `proactor evaluate` (`training.evaluation_files`)
      scores/, thresholds.json, tradeoff.json, probabilities.json
                                     written by `proactor calibrate`, for one of the adapters

Rows are appended first, then the state is saved with the length of the file, then adapters are exported. A
run killed in between goes back to its last state: later rows and samples are dropped, and the resumed run
writes the same ones again.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from proactor.catalogs import write_catalog
from proactor.catalogs.proactor import NAME as CATALOG
from proactor.config import RunConfig
from proactor.config_base import ConfigError
from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog
from proactor.engine import append, atomic_file, fault_point, remove, sweep
from proactor.episode_config import EpisodeConfig
from proactor.evaluation.play import Evaluation
from proactor.evaluation.store import save_evaluations
from proactor.files import SourceError, parse_json, read_bytes, valid_utf8
from proactor.training.config_change import refused_change
from proactor.training.scalars import Scalars

CLOCKS = (
    "seconds",
    "seconds_sampling",
    "seconds_judging",
    "seconds_waiting",
    "seconds_reduction",
    "seconds_user",
    "tokens_per_second",
)
"""Keys of a row that depend on the clock. In deterministic mode all other values of a resumed run equal those
of an undisturbed one, except counts of the judge's cache (``judge/requests``, ``judge/cache_hits``): a cache
without a file starts empty. Scores do not depend on it.
"""

CALIBRATION = ("thresholds.json", "tradeoff.json", "probabilities.json")
"""Files of `proactor calibrate`, besides the folder `scores`."""

FILES = (
    "state.safetensors",
    "metrics.jsonl",
    "summary.json",
    "evaluations.json",
    "episodes.json",
    CATALOG,
    *CALIBRATION,
)
FOLDERS = ("tensorboard", "samples", "start", "best", "last", "scores")
SAMPLES = re.compile(r"\w+-(\d+)\.jsonl")


class RunError(ConfigError):
    """A run folder that cannot be used as asked. The message is one line and names the folder or file."""


class Run:
    """The folder of a run. Only the first rank is a ``writer``: on others, methods that write do nothing."""

    def __init__(self, folder: str | Path, writer: bool = True) -> None:
        self.folder, self.writer = Path(folder), writer
        self.config, self.state = self.folder / "config.yaml", self.folder / "state.safetensors"
        self.start, self.best, self.last = (self.folder / name for name in ("start", "best", "last"))
        self._metrics = self.folder / "metrics.jsonl"
        self._scalars: Scalars | None = None

    # -- beginning ---

    @property
    def begun(self) -> bool:
        """Whether a run has written here."""
        return self._metrics.exists() or self.state.exists()

    def check(self, config: RunConfig | EpisodeConfig, *, resume: bool, fresh: bool) -> None:
        """Raise RunError when the folder holds a run that is neither to be resumed nor replaced, or is to be
        both, or was begun with another config; where a link leads out of it, and where the run is to start
        with an adapter of its own. Writes nothing.
        """
        if resume and fresh:
            raise RunError(f"{self.folder}: a run is resumed or replaced (fresh), not both")
        if link := next((n for n in (*FILES, *FOLDERS) if (self.folder / n).is_symlink()), None):
            raise RunError(
                f"{self.folder / link}: is a link; a run writes and deletes in its own folder only (that "
                "folder may be a link)"
            )
        if self.begun and not (resume or fresh):
            raise RunError(
                f"{self.folder}: holds a run; --resume continues it, --fresh replaces it, name=… starts "
                "another"
            )
        if self.begun and resume and (problem := refused_change(self.config, config)) is not None:
            raise RunError(problem)
        if config.start is not None and (name := self._own_folder(Path(config.start))) is not None:
            raise RunError(
                f"start: {config.start}: the run itself writes into {self.folder / name}; name=… starts "
                "another run with this adapter"
            )

    def _own_folder(self, path: Path) -> str | None:
        """The one of `FOLDERS` that ``path`` lies in."""
        place = path.resolve()
        return next((n for n in FOLDERS if place.is_relative_to((self.folder / n).resolve())), None)

    def begin(self, config: RunConfig | EpisodeConfig, *, resume: bool, fresh: bool) -> None:
        """Replace the run in the folder where ``fresh``, and write the config: a run's first writes.

        Called once everything else that the config names has been opened: a run that ended is not given up
        for one that cannot run. Raises RunError as `check`, and where the folder cannot be written.
        """
        if not self.writer:
            return
        self.check(config, resume=resume, fresh=fresh)
        if self.folder.is_dir():
            sweep(self.folder)
        if fresh:
            self.clear()
        _write(
            self.config,
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        )

    def keep_catalog(self, catalog: Catalog) -> None:
        """Write the tools that the run is trained with, for an agent at work without its dialogues."""
        if self.writer:
            write_catalog(catalog, self.folder / CATALOG)

    def clear(self) -> None:
        """Delete the files of a run, the state first: after a kill in between, nothing looks resumable."""
        for name in (*FILES, *FOLDERS, *(file.name for file in self.folder.glob("evaluate-*.json"))):
            remove(self.folder / name)

    # -- metrics ---

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row; its numbers go to TensorBoard as ``<kind>/<key>`` at step ``row["step"]``.

        Numbers that are not finite become null. Raises RunError when the file cannot be written.
        """
        if not self.writer:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with _writing(self._metrics):
            append(self._metrics, valid_utf8(json.dumps(clean, ensure_ascii=False)).encode() + b"\n")
        with _writing(self.folder / "tensorboard"):
            if self._scalars is None:  # hides what an earlier process wrote from this step on
                self._scalars = Scalars(self.folder / "tensorboard", int(row["step"]))
            self._scalars.add(scalars_of(clean), int(row["step"]))

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far; see `read_rows`."""
        return read_rows(self._metrics) if self._metrics.exists() else []

    def flush(self) -> int:
        """Sync the rows to disk; returns the length of the file in bytes, for the state to keep."""
        if not self.writer or not self._metrics.exists():
            return 0
        with _writing(self._metrics), self._metrics.open("rb") as file:
            os.fsync(file.fileno())
        fault_point("metrics")
        return self._metrics.stat().st_size

    def rewind(self, length: int, step: int) -> None:
        """Drop rows beyond ``length`` bytes, and samples of steps after ``step``.

        Raises RunError when the file is shorter: rows that the state counts on are missing.
        """
        if not self.writer:
            return
        size = self._metrics.stat().st_size if self._metrics.exists() else 0
        if size < length:
            raise RunError(
                f"{self._metrics}: {size} bytes, the saved state had written {length}: rows are missing"
            )
        if size > length:
            os.truncate(self._metrics, length)
        for file in (self.folder / "samples").glob("*.jsonl"):
            if (name := SAMPLES.fullmatch(file.name)) and int(name[1]) > step:
                file.unlink()

    # -- samples, evaluations ---

    def write_samples(self, phase: str, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the samples of training step ``step`` as one file."""
        if self.writer:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            _write(self.folder / "samples" / f"{phase}-{step:06d}.jsonl", text)

    def write_evaluations(self, dialogues: Sequence[Dialogue], evaluations: Mapping[str, Evaluation]) -> None:
        """Write `evaluations.json`: the dialogues, and how each system played them."""
        if self.writer:
            file = self.folder / "evaluations.json"
            with _writing(file):
                save_evaluations(file, dialogues, evaluations)

    def write_episodes(self, episodes: Mapping[str, Any]) -> None:
        """Write ``episodes.json``: how start and end played the test tasks (`episode_rows.BeforeAfter`)."""
        if self.writer:
            _write(self.folder / "episodes.json", json.dumps(episodes, ensure_ascii=False) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        if self.writer:
            _write(self.folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``, without a last line that was cut off.

    Raises SourceError for a missing file, and, naming the line, for one that is not a JSON object.
    """
    rows = []
    for number, line in enumerate(read_bytes(file).split(b"\n")[:-1], start=1):
        row = parse_json(line, file, number)
        if not isinstance(row, dict):
            raise SourceError(f"{file}:{number}: not an object")
        rows.append(row)
    return rows


def sample_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a row stands in its file of samples."""
    return tuple(row[key] for key in ("dialogue", "task", "turn", "sample") if key in row)


def scalars_of(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's numbers as ``<kind>/<key>``, its step left out."""
    return {
        f"{row['kind']}/{key.removeprefix('eval_')}": value
        for key, value in row.items()
        if isinstance(value, int | float) and key != "step"
    }


def _write(file: Path, text: str) -> None:
    """Write a file atomically: readers see the old or the new one. Raises RunError when that fails."""
    with _writing(file):
        atomic_file(file, valid_utf8(text).encode())


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Raise RunError where ``file`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{file}: cannot be written ({error.strerror or error})") from None
