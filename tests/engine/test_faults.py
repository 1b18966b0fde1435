"""A run killed (SIGKILL) twenty times, while sampling, in the backward, inside a save and before its rename,
ends with the bits of one that was not.

One process imports torch once and forks a child for every life of the run: a child is killed, the next one
resumes from what it finds on disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from proactor.engine import GRPO, Engine, LoRA, Sampling, faults

STEPS = 6
# (point, the passing of it at which to die, counted from the start of that life). A life has, a step: some
# ten `sampling`, three `backward`, one `save.write`, one `save.rename`. Some die at once, some late, some
# again and again at the same place.
KILLS = [
    ("sampling", 1),
    ("sampling", 4),
    ("backward", 1),
    ("save.write", 1),
    ("save.rename", 1),
    ("save.rename", 1),
    ("save.write", 2),
    ("sampling", 14),
    ("backward", 2),
    ("sampling", 6),
    ("backward", 5),
    ("save.write", 1),
    ("save.rename", 2),
    ("backward", 3),
    ("sampling", 2),
    ("save.write", 2),
    ("save.rename", 1),
    ("backward", 2),
    ("sampling", 7),
    ("save.write", 1),
]


def life(model: str, folder: Path) -> None:
    """Train from the folder's save to the last step, saving each step, as a user's script does."""
    engine = Engine.load(model, lora=LoRA(rank=2, alpha=4), deterministic=True, page_size=4, kv_tokens=256)
    save, metrics = folder / "state", []
    if save.exists():
        metrics = engine.resume(save)["metrics"]
    while len(metrics) < STEPS:
        ids = [[len(metrics) + i, 5, 9, 3 * i] for i in range(3)]
        groups = engine.sample(ids, Sampling(n=2, max_tokens=7, ignore_eos=True))
        for group in groups:
            group.rewards = [sum(s.token_ids) / 100 for s in group.samples]
        metrics.append(engine.train(groups, GRPO(lr=1e-2, warmup=2)))
        engine.save(save, {"metrics": metrics})
    engine.save_adapter(folder / "adapter")
    (folder / "metrics.json").write_text(json.dumps(metrics))


def in_a_child(model: str, folder: Path, plan: str) -> int:
    """Fork, live, and return how the child ended: 0, or minus a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            faults._plan = plan
            life(model, folder)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def drive(model: str, folder: Path) -> dict[str, Any]:
    """Both runs. Every life but the last must have been killed, and by its fault point."""
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    outcome: dict[str, Any] = {"whole": in_a_child(model, folder / "whole", ""), "lives": [], "saved": []}
    for point, count in KILLS:
        outcome["lives"].append(in_a_child(model, folder / "killed", f"{point}:{count}"))
        outcome["saved"].append((folder / "killed" / "state").exists())
    outcome["last"] = in_a_child(model, folder / "killed", "")
    return outcome


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_twenty_kills_change_no_bit(folder: Path, tmp_path: Path, repo_root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), str(tmp_path)]
    done = subprocess.run(
        command, cwd=repo_root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert len(KILLS) == 20 and outcome["lives"] == [-9] * 20
    assert outcome["whole"] == outcome["last"] == 0
    assert outcome["saved"][0] is False and outcome["saved"][-1] is True
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole.keys() == killed.keys() >= {"state", "adapter/adapter_model.safetensors", "metrics.json"}
    assert whole == killed
    assert len(json.loads(whole["metrics.json"])) == STEPS


def test_a_point_costs_nothing_without_a_plan(monkeypatch: Any) -> None:
    monkeypatch.setattr(faults, "_plan", "")
    monkeypatch.setattr(faults, "_passed", None)
    faults.fault_point("sampling")  # would fail to count


if __name__ == "__main__":
    print(json.dumps(drive(sys.argv[1], Path(sys.argv[2]))))
