"""Everything that is worth a card's minutes, in order of worth, each step with its own time: one command.

    python -m bench.gpu.session --out FOLDER [--minutes 9.5] [--wheels FOLDER] [--from STEP] [--dry]

`bench/GPU.md` plans the minutes. Written under FOLDER, and again after every step, so that what ends early
keeps what it had: ``session.log`` (all output), ``session.json`` (each step's seconds, exit code, command)
and the records of `bench.gpu`, in a folder a step. A step that fails, hangs or is missing here costs its own
time alone. Exit code 0: every step that ran ended with 0.

Needs nothing but Python itself: packages may come as wheels, installed first into a folder of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 9.5
DRY_PATIENCE = 20
"""A dry run waits so much longer for a step: its machine may be slow."""
GRACE = 3.0
"""Seconds between asking a step to end and ending it."""
DECISIVE = (
    *("nf4_linear", "span_attention", "paged_attention", "shared_prefix_attention", "paged_rows_attention"),
    *("logprob", "logprob_loss"),
)
"""Operations that decide a step; what follows are the others."""
OTHERS = (
    *("lora_linear", "lora_add", "sample", "swiglu", "add_rms_norm", "rms_norm", "rope_into_pages", "rope"),
    *("clipped_adamw", "adamw", "nf4_dequantize", "nf4_quantize", "policy_loss", "ragged_advantages"),
    "keyed_uniforms",
)


@dataclass(frozen=True, slots=True)
class Step:
    """A command of at most ``seconds``; ``needs``: a program without which it is left out."""

    name: str
    seconds: float
    command: tuple[str, ...]
    needs: str = ""


def steps(out: Path, dry: bool) -> list[Step]:
    """The steps behind the packages, most worth first."""
    python = sys.executable

    def bench(name: str, seconds: float, *arguments: str) -> Step:
        where = ("--results", str(out / name), "--seed", "1", *(("--dry",) if dry else ("--model", "14b")))
        budget = () if dry else ("--budget", f"{seconds - 5:.0f}")
        return Step(name, seconds, (python, "-m", "bench.gpu", *where, *budget, *arguments))

    def sanitized(part: str) -> Step:
        tool = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9")
        name = f"memcheck-{part.partition(':')[0]}"
        return Step(name, 50, (*tool, python, "-m", "bench.gpu.check", part), "compute-sanitizer")

    tests = ("tests/engine/test_kernels.py", "tests/engine/test_bf16.py")
    collect = ("--collect-only",) if dry else ()
    return [
        Step("card", 10, ("nvidia-smi",), "nvidia-smi"),
        bench("steps", 270, "--jobs", "decode,train,gap", "--skip-peers"),
        bench("rows", 150, "--jobs", "rows", "--ops", ",".join(DECISIVE), "--skip-check"),
        Step("tests", 60, (python, "-m", "pytest", "-q", "-n", "0", *collect, *tests)),
        sanitized("nf4_linear:bfloat16"),
        sanitized("span_attention:bfloat16"),
        bench("tiles", 75, "--jobs", "tiles", "--skip-check"),
        bench("peers", 130, "--jobs", "tree,step-peer", "--skip-check"),
        bench("rest", 150, "--jobs", "rows", "--ops", ",".join(OTHERS), "--skip-check"),
    ]


def install(wheels: Path, target: Path) -> Step:
    """Install all ``wheels`` into ``target``; each must be there with what it needs."""
    files = tuple(map(str, sorted(wheels.glob("*.whl"))))
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile")
    return Step("packages", 60, (*pip, "--no-cache-dir", "--target", str(target), *files))


class Session:
    """Runs steps until the time is up; ``record`` is written after each."""

    def __init__(self, out: Path, seconds: float, packages: Path, patience: float = 1.0) -> None:
        self.out, self.patience = out, patience
        self.end = time.monotonic() + seconds
        self.record: list[dict[str, Any]] = []
        paths = (str(ROOT), str(packages), os.environ.get("PYTHONPATH", ""))
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, step: Step) -> None:
        """Run a step, or note why it is left out."""
        left = self.end - time.monotonic()
        note = ""
        if step.needs and shutil.which(step.needs) is None:
            note = f"{step.needs} is not installed"
        elif left < min(step.seconds, 30.0):
            note = "no time left"
        entry: dict[str, Any] = {"step": step.name, "command": " ".join(step.command)}
        if note:
            entry["left_out"] = note
        else:
            entry |= self._follow(step, min(step.seconds * self.patience, left))
        self.record.append(entry)
        result = entry.get("left_out") or f"exit code {entry['code']} after {entry['seconds']:.0f} s"
        print(f"[{max(0.0, self.end - time.monotonic()):4.0f} s left] {step.name}: {result}", flush=True)
        (self.out / "session.json").write_text(json.dumps(self.record, indent=1) + "\n")

    def _follow(self, step: Step, limit: float) -> dict[str, Any]:
        environment = dict(self.environment)
        if step.needs == "compute-sanitizer":  # a cached block hides what is read behind a tensor's end
            environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        begun = time.monotonic()
        with (self.out / "session.log").open("ab") as log:
            log.write(f"\n===== {step.name}: {' '.join(step.command)}\n".encode())
            log.flush()
            code = _run(step.command, limit, log, environment)
        return {"code": code, "seconds": round(time.monotonic() - begun, 1), "limit": limit}

    @property
    def failed(self) -> list[str]:
        """Names of steps that ended with another code than 0; None stands for one that was stopped."""
        return [entry["step"] for entry in self.record if entry.get("code", 0) != 0]


def _run(command: Sequence[str], limit: float, log: IO[bytes], environment: dict[str, str]) -> int | None:
    """The exit code of a command; None where it was stopped, with all its processes, after ``limit``."""
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    except OSError as error:
        log.write(f"{error}\n".encode())
        return 127
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.session", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the log and the records")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"time for everything ({MINUTES})")
    parser.add_argument("--wheels", type=Path, default=None, help="folder of wheels to install first")
    parser.add_argument("--from", dest="first", default="card", help="the step to begin with")
    parser.add_argument("--only", default="", help="names of the steps to run, with commas between")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU: tries the commands")
    options = parser.parse_args(argv)
    out: Path = options.out.resolve()
    plan = steps(out, options.dry)
    names = [step.name for step in plan]
    only = [name for name in options.only.split(",") if name]
    for name in (options.first, *only):
        if name not in names:
            parser.error(f"no step {name}: {', '.join(names)}")
    chosen = [s for s in plan[names.index(options.first) :] if not only or s.name in only]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-packages-") as packages:
        patience = DRY_PATIENCE if options.dry else 1
        session = Session(out, 60 * options.minutes * patience, Path(packages), patience)
        if options.wheels is not None:
            session.run(install(options.wheels.resolve(), Path(packages)))
        for step in chosen:
            session.run(step)
    print(f"{out}: session.json, session.log; failed: {', '.join(session.failed) or 'none'}")
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
