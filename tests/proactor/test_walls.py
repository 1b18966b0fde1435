"""The walls between rooms: the contracts of pyproject.toml hold here, and one climbing import breaks each."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench.rooms import floors_of, read_imports

PLANTS = {
    "kernels/rope.py": ["proactor.engine.kv"],
    "engine/kv.py": ["proactor.dialogue.parse"],
    "proactor/dialogue/state_graph.py": ["proactor.engine.lora", "proactor.kernels.swiglu"],
}
"""Imports that climb out of kernels and engine, or reach behind the engine's public names."""


def layers(root: Path) -> list[list[str]]:
    """The floors of proactor/ as pyproject.toml lists them, from the top; rooms of one floor together."""
    tool = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    return [floor.split(" | ") for floor in tool["contracts"][0]["layers"]]


def climbing_imports(root: Path) -> dict[str, list[str]]:
    """A file of each floor that imports the floor above, and one of a room that imports its neighbour."""
    floors = [floor for floor in layers(root) if not {"engine", "kernels"} & set(floor)]
    plants: dict[str, list[str]] = {}
    for above, below in itertools.pairwise(floors):
        plants.setdefault(file_in(root, below[0]), []).append(f"proactor.{above[0]}")
    for floor in floors:
        for room, neighbour in itertools.pairwise(floor):
            plants.setdefault(file_in(root, room), []).append(f"proactor.{neighbour}")
    return plants


def file_in(root: Path, room: str) -> str:
    """A module of the room, relative to the root."""
    place = root / "proactor" / room
    file = next(f for f in sorted(place.glob("*.py")) if f.stem != "__init__") if place.is_dir() else place
    return str(file.relative_to(root).with_suffix(".py"))


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the tree at ``root``."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-logo", "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(repo_root: Path, tmp_path: Path) -> Path:
    """A copy of the packages, the links to engine/ and kernels/ kept."""
    for name in ("proactor", "engine", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repo_root / name, tmp_path / name, symlinks=True, ignore=ignored)
    shutil.copy(repo_root / "pyproject.toml", tmp_path)
    return tmp_path


def test_each_contract_bites(copy: Path) -> None:
    clean = lint(copy)
    assert clean.returncode == 0, clean.stdout
    plants = climbing_imports(copy)
    for file, targets in PLANTS.items():
        plants.setdefault(file, []).extend(targets)
    for file, targets in plants.items():
        with (copy / file).open("a") as stream:
            stream.write("".join(f"\nimport {target}" for target in targets) + "\n")
    (copy / "proactor" / "attic.py").write_text("")
    planted = lint(copy)
    assert planted.returncode == 1
    assert planted.stdout.count("BROKEN") == planted.stdout.count("KEPT") + 3 == 3, planted.stdout
    for file, targets in plants.items():
        module = file.removesuffix(".py").replace("/", ".")
        module = module if module.startswith("proactor") else f"proactor.{module}"
        for target in targets:
            assert f"{module} -> {target} " in planted.stdout, f"{module} may import {target}"
    assert "proactor.attic" in planted.stdout, "a room without a floor passes"


def test_the_contract_of_public_names_has_every_room(repo_root: Path) -> None:
    tool = tomllib.loads((repo_root / "pyproject.toml").read_text())["tool"]["importlinter"]
    rooms = {f"proactor.{room}" for floor in layers(repo_root) for room in floor}
    sources = tool["contracts"][2]["source_modules"]
    assert set(sources) == rooms - {"proactor.engine", "proactor.kernels"} and len(set(sources)) == len(
        sources
    )


def test_rooms_form_no_circle_and_a_planted_one_is_seen() -> None:
    imports = read_imports()
    floors = floors_of(imports)
    assert floors["kernels"] == 0 and floors["cli"] == max(floors.values())
    with pytest.raises(ValueError, match="cycle"):
        floors_of({**imports, "files": {"training"}})
