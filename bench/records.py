"""Records of benchmarks: where they lie, their common fields and options, and how they are written."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from pathlib import Path
from typing import Any

from bench.protocol import ROOT
from proactor.engine import atomic_file
from proactor.training.origin import processor

RESULTS = ROOT / "bench" / "results"


def say(text: str) -> None:
    """Print progress on stderr; stdout ends with the record."""
    print(text, file=sys.stderr, flush=True)


def today() -> str:
    """The date in UTC, YYYY-MM-DD."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def stamp() -> dict[str, str]:
    """The fields of every record: machine and date."""
    return {"machine": processor(), "date": today()}


def slug(name: str) -> str:
    """A name as a folder: lower case, dashes between words."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def record_file(results: Path, machine: str, name: str) -> Path:
    """The file of the record ``name`` on ``machine``."""
    return results / slug(machine) / f"{name}.json"


def write_json(file: Path, record: Any) -> None:
    """Write a record as indented JSON, atomically."""
    atomic_file(file, (json.dumps(record, indent=2) + "\n").encode())


def write_record(results: Path, name: str, record: dict[str, Any]) -> Path:
    """Write a record that names its machine; returns its file."""
    file = record_file(results, record["machine"], name)
    write_json(file, record)
    return file


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the option --results."""
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON record")


def run_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser for benchmarks of runs: a config, overrides (key=value), --results.

    Use `parse_intermixed_args`: overrides may stand between options.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    add_results(parser)
    return parser


def decimal(value: float | None) -> str:
    """Three decimals; – when undefined."""
    return "–" if value is None else f"{value:.3f}"
