"""A run of `bench.gpu`: what the card is, correctness, then jobs until the budget is spent."""

from __future__ import annotations

import argparse
import dataclasses
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from bench.gpu.card import readings, versions
from bench.gpu.check import check_all, merged, slowest_first
from bench.gpu.jobs import NAMES, model_names, plan, tasks_of
from bench.gpu.report import Report, failures, print_report
from bench.gpu.task import Job, Row, Setting
from bench.gpu.timing import Budget
from bench.gpu.workers import Workers
from bench.protocol import ROOT
from bench.records import say, today
from proactor.kernels.ceilings import Ceilings
from proactor.kernels.op import Op
from proactor.kernels.registry import OPS

CORRECTNESS_SHARE = 0.3
"""Largest share of the budget for correctness; of a quick run the double."""
ROW_SECONDS, QUICK_ROW_SECONDS = 1.5, 0.5
LEAST_JOB = 5.0
"""No job begins with less time left, in seconds."""
RESERVE = 3.0
"""The run is stopped this many seconds before the end of the budget, even inside a call."""
DRY_OPS = ("rms_norm", "nf4_linear")
"""Operations that a dry run checks in Triton's interpreter; tests check all of them there."""


def commit() -> str:
    """The checkout's commit, "-dirty" with changes; outside of git what $BENCH_COMMIT says, or "no-git"."""
    unknown = os.environ.get("BENCH_COMMIT") or "no-git"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return unknown
    return done.stdout.strip() or unknown


def chosen(options: argparse.Namespace) -> tuple[list[Op], list[str], list[str]]:
    """(operations, models, kinds of jobs) that the command line names; a wrong name ends it in one line."""
    ops = [name for name in options.ops.split(",") if name]
    # operations that are named are all that is wanted, unless jobs are named too
    kinds = [name for name in options.jobs.split(",") if name] or (["rows"] if ops else list(NAMES))
    for option, names, known in (("--ops", ops, [op.name for op in OPS]), ("--jobs", kinds, list(NAMES))):
        unknown = sorted(set(names) - set(known))
        if unknown:
            options.parser.error(f"{option} {', '.join(unknown)}: not one of {', '.join(known)}")
    try:
        models = model_names(options.model, options.dry)
    except ValueError as error:
        options.parser.error(f"--model {error}")
    return [op for op in OPS if not ops or op.name in ops], models, kinds


def run(options: argparse.Namespace) -> int:
    """The whole benchmark. Returns the exit code."""
    ops, models, kinds = chosen(options)
    budget = Budget(options.budget, time.monotonic, RESERVE)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    setting = Setting(
        device="cpu" if options.dry else "cuda:0",
        seed=seed,
        seconds=0.0 if options.dry else QUICK_ROW_SECONDS if options.quick else ROW_SECONDS,
        dry=options.dry,
        peers=not options.skip_peers,
    )
    with Workers(lambda: budget.left) as workers:
        found = look_at_card(workers, setting, Job("card", models[0], quick=options.quick))
        if "card" not in found:
            say(f"bench.gpu: {found.get('failed', 'no time for the card')}")
            return 1
        setting = dataclasses.replace(
            setting,
            cache=found["card"]["cache"],
            free=found["card"]["free"],
            ceilings=Ceilings(*found["rates"]),
        )
        report = Report(options.results, new_record(options, seed, found, budget))
        report.save()
        right = ops if options.skip_check else check(ops, options, setting, budget, report)
        jobs = plan(right, models, kinds, setting.peers, options.quick)
        time_jobs(jobs, setting, workers, budget, report)
    report.record["card"]["after"] = readings()
    report.save(finished=not report.record["skipped"], seconds=round(budget.spent, 1))
    return finish(report)


def look_at_card(workers: Workers, setting: Setting, job: Job) -> Row:
    """The row of the job "card", or one that says why there is none."""
    rows: list[Row] = []
    workers.run(job, setting, tasks_of(job, setting), rows.extend)
    return rows[0] if rows else {}


def new_record(options: argparse.Namespace, seed: int, found: Row, budget: Budget) -> dict[str, Any]:
    """The record before the first row."""
    return {
        "finished": False,
        "commit": commit(),
        "date": today(),
        "quick": options.quick,
        "budget": budget.seconds,
        "seconds": 0.0,
        "seed": seed,
        "card": found["card"] | {"after": None},
        "versions": versions(),
        "correctness": [],
        "ceilings": found["ceilings"],
        "rows": [],
        "skipped": [],
    }


def check(
    ops: Sequence[Op], options: argparse.Namespace, setting: Setting, budget: Budget, report: Report
) -> list[Op]:
    """Check the operations; returns those without a failure, in their order."""
    wanted = [op for op in ops if not options.dry or op.name in DRY_OPS]
    share = 1 if options.dry else CORRECTNESS_SHARE * (2 if options.quick else 1)
    say(f"{report.record['card']['name']}: correctness of {len(wanted)} operations, seed {setting.seed}")
    results = check_all(
        slowest_first(wanted),
        setting.device,
        setting.seed,
        min(share * budget.seconds, budget.left),
        max(1, min(12, (os.cpu_count() or 2) - 2)),
        lambda c: say(
            f"  [{budget.spent:4.0f} s] {c['op']}: {c['checks']} checks, {len(c['failures'])} failed, worst "
            f"{c['worst']}{', unchecked: ' * bool(c['unchecked'])}{c['unchecked']}"
        ),
    )
    results = merged(results)
    report.save(correctness=results)
    wrong = {result["op"] for result in results if result["failures"]}
    return [op for op in ops if op.name not in wrong]


def time_jobs(
    jobs: Sequence[Job], setting: Setting, workers: Workers, budget: Budget, report: Report
) -> None:
    """Run jobs in order while the budget lasts; saves after every row, and names those that did not fit."""

    def each(rows: Sequence[Row]) -> None:
        report.record["rows"].extend(rows)
        report.save(seconds=round(budget.spent, 1))

    for job in jobs:
        tasks = tasks_of(job, setting)
        if not budget.allows(LEAST_JOB):
            report.record["skipped"] += [task.name for task in tasks]
            continue
        say(f"  [{budget.spent:4.0f} s] {job.name}: {len(tasks)} rows")
        report.record["skipped"] += workers.run(job, setting, tasks, each)
        report.save()
    if report.record["skipped"]:
        say(f"out of time: {len(report.record['skipped'])} rows left out")


def finish(report: Report) -> int:
    """Print the report; returns the exit code."""
    print_report(report)
    return 1 if failures(report.record) else 0
