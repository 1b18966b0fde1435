"""Memory of deterministic mode's linear over many row counts: as they come, and padded.

python -m bench.row_counts            # a process each; prints MB of resident memory
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from bench.forked import Child
from bench.records import add_results, say, stamp, write_record
from proactor.kernels.linear import exact_linear, padded_rows

SHAPES = ((256, 256), (384, 256), (1024, 256), (256, 512), (2000, 256))
"""(outputs, inputs) of the weights."""


def resident() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def grow(most: int, padded: bool) -> None:
    """Print the memory that products at every second row count up to ``most`` leave."""
    import torch

    torch.set_num_threads(1)
    weights = [torch.ones(shape) for shape in SHAPES]
    inputs = {k: torch.ones(padded_rows(most), k) for _, k in SHAPES}
    exact_linear(inputs[256][:8], weights[0])
    before = resident()
    for rows in range(2, most + 1, 2):
        for weight in weights:
            exact_linear(inputs[weight.shape[1]][: padded_rows(rows) if padded else rows], weight)
    print(resident() - before)


def main(argv: list[str] | None = None) -> int:
    """Measure both and write the record."""
    parser = argparse.ArgumentParser(prog="python -m bench.row_counts", description=__doc__.split("\n")[0])
    parser.add_argument("--most", type=int, default=600, help="largest row count")
    add_results(parser)
    options = parser.parse_args(argv)
    grown = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("as they come", "padded"):
            end = Child(Path(scratch) / name, partial(grow, options.most, name == "padded")).end(600)
            if end.code:
                raise SystemExit(end.errors)
            grown[name] = float(end.output)
            print(f"{name}: {grown[name]:.0f} MB more after {options.most // 2} row counts")
    record = {**stamp(), "row_counts": options.most // 2, "grown_mb": grown}
    say(f"record: {write_record(options.results, 'row-counts', record)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
