"""Commands on a disk that fills up while they write."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bench.tiny_run import refused
from bench.trials import Tally, Trials

COMMANDS = ("train", "evaluate", "calibrate", "report", "annotate", "catalog", "compare")
MOST_ROOM = {"train": 120_000, "catalog": 2_000, "compare": 8_000}
"""Bytes left, at most: about what a command writes. Others: 24,000."""


def disks(trials: Trials, count: int) -> Tally:
    """Each command in turn with a few bytes left on its disk: it ends with one line, and works with room."""
    place = trials.scratch / "disk"
    mounted = mount(place)
    how = "a tmpfs that is filled" if mounted else "RLIMIT_FSIZE: every file is limited"
    tally = Tally(f"a full disk ({how}) in each command")
    try:
        for i in range(count):
            _full_disk(trials, COMMANDS[i % len(COMMANDS)], place, mounted, tally)
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=False)
    return tally


def _full_disk(trials: Trials, name: str, place: Path, mounted: bool, tally: Tally) -> None:
    runs = place / f"{tally.trials}"
    if name in ("evaluate", "calibrate", "report", "compare"):
        trials.tiny.copy(trials.reference, runs)
    words = _words(trials, name, runs)
    room = trials.random.randrange(MOST_ROOM.get(name, 24_000))
    before = contents(runs)
    filler = place / "filler"
    if mounted:
        fill(filler, room)
    end = trials.tiny.command(*words, limit=None if mounted else room).end()
    between = contents(runs)
    filler.unlink(missing_ok=True)
    tally.trials += 1
    if end.code != 0 and not refused(end):
        tally.fail(f"{name} with {room} bytes left: exit code {end.code}: {end.errors[-400:]}")
    else:
        tally.note(f"{name} fitted" if end.code == 0 else f"{name} refused")
    if name == "train":
        trials.compare(runs, trials.tiny.train(runs).end(), tally)
        return
    again = trials.tiny.command(*words, *(["--force"] if name == "catalog" else [])).end()
    if again.code != 0:
        tally.fail(f"{name} with room again: exit code {again.code}: {again.errors[-400:]}")
    after = contents(runs)
    half = [file for file, size in between.items() if size not in (before.get(file), after.get(file))]
    if half and name != "annotate":  # which appends
        tally.fail(f"{name} with {room} bytes left: neither old nor new: {', '.join(half)}")
    shutil.rmtree(runs)


def contents(runs: Path) -> dict[str, int]:
    """The files in a folder, and their sizes."""
    return {str(f.relative_to(runs)): f.stat().st_size for f in runs.rglob("*") if f.is_file()}


def _words(trials: Trials, name: str, runs: Path) -> tuple[str | Path, ...]:
    config, run = trials.tiny.config(runs), runs / "tiny"
    return {
        "train": ("train", config, "--resume"),
        "evaluate": ("evaluate", config),
        "calibrate": ("calibrate", config),
        "report": ("report", run),
        "annotate": ("annotate", "synthetic", "--limit", "4", "--out", runs / "annotated"),
        "catalog": ("catalog", trials.tiny.tools, "-o", runs / "catalog.json"),
        "compare": ("compare", run, run, "--json", runs / "compared.json"),
    }[name]


def mount(place: Path) -> bool:
    """Mount a tmpfs of 8 MiB; False where this user may not."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def fill(filler: Path, room: int) -> None:
    """Fill a file system but for about ``room`` bytes."""
    space = os.statvfs(filler.parent)
    with filler.open("wb") as file:
        file.write(bytes(max(0, space.f_bavail * space.f_frsize - room)))
