"""The engine on this GPU: correctness, ceilings, whole steps, every operation beside its peers.

    python -m bench.gpu --model 14b    8 minutes; `bench/GPU.md` plans a session around it
    python -m bench.gpu --quick        correctness and a row an operation, in under 90 seconds
    python -m bench.gpu --dry          every path of it at tiny sizes, on a CPU: no time means anything

Correctness comes first: all cases of every record, in all dtypes, on fresh inputs. Then the ceilings of the
card in this run, then rows, most worth first, until the budget is spent. An operation that failed is not
timed. Jobs run in processes of their own: a kernel that breaks the card or hangs costs a row. Exit code 0:
nothing failed; 1: something failed; 2: no GPU.

The record, ``<results>/<card>/<date>-<commit>.json``, is written again after every row:

    finished      whether the run came to its end; "skipped" names the rows that did not fit
    commit, date, quick, budget, seconds, seed
    card          name, capability, multiprocessors, memory, free, cache (bytes); before and after: driver,
                  clocks (MHz), power, temperature, where readable
    versions      of torch, CUDA or ROCm, triton and every peer; null where not installed
    correctness   for each operation: seed, checks done and of how many, failures, worst error by dtype as a
                  share of the allowed error, unchecked (why some checks are not done; else empty)
    ceilings      copy {bytes_per_second, …}, product N {flop_per_second, …}
    rows          all have a name. Of an operation: op, model, case, pass ("forward" or "forward+backward"),
                  dtype, seed, copies (sets of inputs in rotation), size_error (relative, against the
                  reference in float32 at this size; null: too large for memory) and size_limit; median, low,
                  high (seconds on the device, 20th and 80th percentile), samples, calls (in a sample), host
                  (seconds to queue a call). Forward rows also have bytes, flops, bound ("memory" or
                  "arithmetic"), floor (seconds at the ceilings) and share (floor over median). peers: name,
                  and either the same times with speedup (theirs over ours) or "skipped" with the reason.
                  Figures: value and unit beside target and target_from (how it is computed), and details.
                  Profiles: the operations of one call. Or "failed" or "skipped", with the reason, and with
                  "log", the end of what the process printed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

BUDGET, QUICK_BUDGET, DRY_BUDGET = 480.0, 85.0, 3600.0


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; see the module."""
    from bench.records import add_results

    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="correctness of all and a row an operation, under 90 seconds"
    )
    parser.add_argument(
        "--dry", action="store_true", help="tiny sizes on a CPU: every path, no meaningful time"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=None,
        help=f"seconds for everything ({BUDGET:.0f}; with --quick {QUICK_BUDGET:.0f})",
    )
    parser.add_argument("--model", default="all", help="14b, 7b, 0.5b, or all (the default), 14b first")
    parser.add_argument("--ops", default="", help="names of operations, with commas between")
    parser.add_argument(
        "--jobs", default="", help="decode, train, rows, gap, tree, tiles, step-peer, with commas between"
    )
    parser.add_argument("--skip-peers", action="store_true", help="time no library beside ours")
    parser.add_argument("--skip-check", action="store_true", help="leave out correctness: checked before")
    add_results(parser)
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        help="seed of all inputs; default: a fresh one, named in the record",
    )
    options = parser.parse_args(argv)
    usual = DRY_BUDGET if options.dry else QUICK_BUDGET if options.quick else BUDGET
    options.budget = options.budget or usual
    options.parser = parser
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run; see the module for exit codes."""
    options = read_options(argv)
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined, which is below
    import torch

    from bench.records import say
    from proactor.kernels.jit import HAS_TRITON

    if not options.dry and (not HAS_TRITON or not torch.cuda.is_available()):
        missing = "a CUDA or ROCm card that torch sees" if HAS_TRITON else "triton"
        say(
            f"bench.gpu needs {missing}; here is torch {torch.__version__} without. On a CPU: make bench, "
            "make compile-check, or --dry"
        )
        return 2
    from bench.gpu.run import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
