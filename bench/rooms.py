"""The rooms of the three packages: how large each is, what it imports, and whether they form a circle.

    python -m bench.rooms           # a row per room, from the top; exit code 1 where rooms form a circle

A room is a folder of `proactor/`, or a file that stands beside them; `engine/` and `kernels/` are one each.
The floor of a room is the longest way down from it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
Imports = dict[str, set[str]]


def room_of(module: str) -> str:
    """`proactor.training.loop` stands in `training`, `proactor.config` in `config`."""
    return module.split(".")[1] if "." in module else "proactor"


def read_imports() -> Imports:
    """The rooms that each room imports, itself left out."""
    graph = grimp.build_graph("proactor", "proactor.kernels", cache_dir=None)
    imports: Imports = {room_of(module): set() for module in graph.modules if module != "proactor"}
    for module in graph.modules - {"proactor"}:
        targets = graph.find_modules_directly_imported_by(module) - {"proactor"}
        imports[room_of(module)] |= {room_of(target) for target in targets} - {room_of(module)}
    return imports


def floors_of(imports: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each room, 0 at the bottom. Raises CycleError with the rooms of a circle."""
    floors: dict[str, int] = {}
    for room in TopologicalSorter(imports).static_order():
        floors[room] = max((floors[below] + 1 for below in imports[room]), default=0)
    return floors


def count_lines(room: str) -> tuple[int, int]:
    """(files, lines) of a room."""
    place = ROOT / room if room in ("engine", "kernels") else ROOT / "proactor" / room
    files = list(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return len(files), sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def main() -> int:
    """Print the rooms; returns the exit code."""
    imports = read_imports()
    try:
        floors = floors_of(imports)
    except CycleError as error:
        print(f"a circle: {' -> '.join(error.args[1])}")
        return 1
    print(f"{'floor':>5}  {'room':<12} {'files':>5} {'lines':>6}  imports")
    for room in sorted(imports, key=lambda room: (-floors[room], room)):
        files, lines = count_lines(room)
        below = " ".join(sorted(imports[room], key=lambda other: (-floors[other], other)))
        print(f"{floors[room]:5}  {room:<12} {files:5} {lines:6}  {below}")
    print(f"{len(imports)} rooms, {max(floors.values()) + 1} floors, no circle")
    return 0


if __name__ == "__main__":
    sys.exit(main())
