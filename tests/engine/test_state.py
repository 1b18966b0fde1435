"""Exact save and resume, and saves that a full disk or a cut cannot spoil."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from proactor.engine import GRPO, Engine, EngineError, LoRA, Sampling
from proactor.engine import state as state_io
from proactor.engine.state import read_state, write_state
from tests.engine.engines import adapter, drawn, load, prompts, reward
from tests.tiny import save_tiny

CONFIG = GRPO(lr=2e-2, warmup=3, total=8, decay="cosine", weight_decay=0.01)


def advance(engine: Engine, steps: int) -> list[Any]:
    """Train; returns everything that was sampled and reported."""
    out: list[Any] = []
    for _ in range(steps):
        groups = reward(engine.sample(prompts(2), Sampling(n=3, max_tokens=5)))
        out += [drawn(groups), engine.train(groups, CONFIG)]
    return out


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_resumed_run_gives_the_same_numbers(folder: Path, tmp_path: Path, deterministic: bool) -> None:
    whole = load(folder, deterministic=deterministic)
    first, rest = advance(whole, 2), advance(whole, 3)
    half = load(folder, deterministic=deterministic)
    assert advance(half, 2) == first
    half.save(tmp_path / "state", {"position": 17, "rng": [1, 2, 3]})
    resumed = load(
        folder, stir=False, seed=99, deterministic=deterministic
    )  # whatever it was, the save decides
    assert resumed.resume(tmp_path / "state") == {"position": 17, "rng": [1, 2, 3]}
    assert advance(resumed, 3) == rest
    assert torch.equal(adapter(resumed), adapter(whole))
    assert resumed.state_dict().keys() == whole.state_dict().keys()
    for key, value in whole.state_dict().items():
        assert (
            torch.equal(resumed.state_dict()[key], value)
            if isinstance(value, torch.Tensor)
            else value == resumed.state_dict()[key]
        )


def test_a_state_dict_is_a_copy(folder: Path) -> None:
    engine = load(folder)
    state = engine.state_dict()
    kept = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    advance(engine, 1)
    assert all(
        torch.equal(state[k], v) if isinstance(v, torch.Tensor) else state[k] == v for k, v in kept.items()
    )
    engine.load_state_dict(state)
    assert torch.equal(adapter(engine), kept["adapter"]) and engine.policy_version == kept["policy_version"]


def test_what_cannot_be_resumed_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    engine, path = load(folder), tmp_path / "state"
    before = adapter(engine)
    with pytest.raises(EngineError, match="state: no such save"):
        engine.resume(path)
    engine.save(path)
    data = path.read_bytes()
    for cut in (0, 7, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(
            EngineError, match=r"state: cannot be read as a saved engine state \(.*\)"
        ) as caught:
            engine.resume(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match=r"model\.safetensors: not a saved engine state"):
        engine.resume(folder / "model.safetensors")
    with pytest.raises(EngineError, match="cannot be read as a saved engine state"):
        engine.resume(tmp_path)
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"state: an adapter of rank 4, this engine's has rank 2"):
        load(folder, lora=LoRA(rank=2, alpha=4)).resume(path)
    assert torch.equal(adapter(engine), before)


SQUARE = {"num_key_value_heads": 4}
"""Projections q, k, v and o of one shape, so that adapters of other targets have equal sizes."""


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            LoRA(rank=4, alpha=800, targets=("q",)),
            r"an adapter of scale 2\.0, this engine's has scale 200\.0",
        ),
        (LoRA(rank=4, alpha=8, targets=("o",)), r"an adapter of targets \['q'\], this .* targets \['o'\]"),
        (LoRA(rank=2, alpha=4, targets=("q", "o")), r"an adapter of rank 4, this engine's has rank 2"),
    ],
)
def test_a_state_of_another_adapter_is_refused(tmp_path: Path, other: LoRA, words: str) -> None:
    """Its numbers may fit, but they mean something else."""
    save_tiny(tmp_path / "model", hidden_size=32, intermediate_size=64, head_dim=8, **SQUARE)
    mine = load(tmp_path / "model", lora=LoRA(rank=4, alpha=8, targets=("q",)))
    mine.save(tmp_path / "state")
    engine = load(tmp_path / "model", lora=other)
    before = engine.state_dict()
    assert before["adapter"].numel() == adapter(mine).numel()
    with pytest.raises(EngineError, match=f"^{tmp_path}/state: {words}$"):
        engine.resume(tmp_path / "state")
    with pytest.raises(EngineError, match=f"^state: {words}$"):
        engine.load_state_dict(mine.state_dict())
    assert all(torch.equal(engine.state_dict()[k], before[k]) for k in ("adapter", "m", "v"))
    same = load(tmp_path / "model", lora=LoRA(rank=4, alpha=4, targets=("q",), rslora=True))
    same.resume(tmp_path / "state")  # another spelling of the same scale
    assert torch.equal(adapter(same), adapter(mine))


def test_a_state_without_a_record_of_its_adapter_loads_where_it_fits(folder: Path) -> None:
    """Older versions saved none."""
    engine = load(folder)
    advance(engine, 1)
    state = {k: v for k, v in engine.state_dict().items() if k not in ("lora", "empty_steps")}
    other = load(folder, lora=LoRA(rank=4, alpha=80))
    other.load_state_dict(state)
    assert torch.equal(adapter(other), adapter(engine))
    small = load(folder, lora=LoRA(rank=2, alpha=4))
    before = adapter(small)
    with pytest.raises(EngineError, match=r"^state: adapter of \d+ numbers, this engine's has \d+$"):
        small.load_state_dict(state)
    with pytest.raises(EngineError, match=r"^state: v of 3 numbers, this engine's has \d+$"):
        small.load_state_dict({**small.state_dict(), "adapter": before + 1, "v": torch.zeros(3)})
    assert torch.equal(adapter(small), before), "nothing was taken over"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_keeps_the_earlier_save(folder: Path, small_disk: Path) -> None:
    engine = load(folder)
    engine.save(small_disk / "state", {"step": 1})
    engine.save_adapter(small_disk / "adapter")
    kept = {p: p.read_bytes() for p in small_disk.rglob("*") if p.is_file()}
    advance(engine, 1)
    left = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(b"x" * (left.f_bavail - 1) * left.f_bsize)
    with pytest.raises(
        EngineError,
        match=r"^/.*/disk/state: cannot save \(No space left on device\); "
        r"the earlier save, if any, is untouched$",
    ):
        engine.save(small_disk / "state", {"step": 2})
    with pytest.raises(EngineError, match=r"disk/adapter.*No space left") as caught:
        engine.save_adapter(small_disk / "adapter")
    assert "\n" not in str(caught.value)
    assert {
        p: p.read_bytes() for p in small_disk.rglob("*") if p.is_file() and p.name != "ballast"
    } == kept, "something was left or lost"
    (small_disk / "ballast").unlink()
    assert engine.resume(small_disk / "state") == {"step": 1}
    engine.save(small_disk / "state", {"step": 2})
    assert engine.resume(small_disk / "state") == {"step": 2}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_any_failing_call_keeps_the_earlier_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "deep" / "state"
    write_state(path, {"x": torch.ones(3)}, {"n": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    if call == "replace":
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(EngineError, match="cannot save"):
        write_state(path, {"x": torch.zeros(3)}, {"n": 2})
    monkeypatch.undo()
    tensors, record = read_state(path)
    assert record == {"n": 1} and tensors["x"].tolist() == [1, 1, 1]
    assert [p.name for p in path.parent.iterdir()] == ["state"]


# -- checked before anything is replaced ---


def spoiled(state: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """States that must not be taken over, each with what is said of it."""
    cases: dict[str, tuple[dict[str, Any], str]] = {}
    for key, value in state.items():
        without = {k: v for k, v in state.items() if k != key}
        if key not in ("lora", "empty_steps"):  # older versions saved none
            cases[f"{key} missing"] = without, f"state: {key} "
        if key == "lora":
            continue
        if not isinstance(value, torch.Tensor):
            for wrong in ("3", None, 1.5, True, [1]):
                cases[f"{key} {wrong!r}"] = {**state, key: wrong}, f"state: {key} "
            if key != "seed":
                cases[f"{key} below 0"] = {**state, key: -1}, f"state: {key} .* not -1"
            continue
        nan = value.clone()
        nan[len(nan) // 2] = float("nan")
        cases |= {
            f"{key} of one number": ({**state, key: value[:1]}, f"state: {key} of 1 numbers"),
            f"{key} a column": ({**state, key: value[:, None]}, f"state: {key} of"),
            f"{key} in float64": ({**state, key: value.double()}, f"state: {key} is float64, not float32"),
            f"{key} of integers": ({**state, key: value.int()}, f"state: {key} is int32"),
            f"{key} with NaN": ({**state, key: nan}, f"state: {key} holds values that are not finite"),
            f"{key} infinite": (
                {**state, key: value + float("inf")},
                f"state: {key} holds values that are not",
            ),
            f"{key} a number": ({**state, key: 0.0}, f"state: {key} should be a tensor, not a float"),
        }
    cases["v below 0"] = {**state, "v": state["v"] - 1}, "state: v holds negative numbers"
    cases["lora a number"] = {**state, "lora": 3}, "state: lora should be"
    return cases


def test_a_state_is_taken_over_whole_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    """Given as a dictionary, and from a file whose checksum is right."""
    trained, engine = load(folder), load(folder, seed=5)
    advance(trained, 2)
    before, cases = engine.state_dict(), spoiled(trained.state_dict())
    assert len(cases) > 40
    for name, (state, words) in cases.items():
        path = tmp_path / "state"
        state_io.save_state(path, state, {})
        with pytest.raises(EngineError, match=f"^{words}"):
            engine.load_state_dict(state)
        with pytest.raises(EngineError, match=f"^{tmp_path}/{words}") as caught:
            engine.resume(path)
        assert "\n" not in str(caught.value), name
        after = engine.state_dict()
        for key, value in before.items():
            same = torch.equal(after[key], value) if isinstance(value, torch.Tensor) else after[key] == value
            assert same, (name, key)
    engine.load_state_dict(trained.state_dict())


WRITER = """
import os, sys
one, two, link, path = sys.argv[1:]
while True:
    for each in (one, two):
        os.link(each, link)
        os.replace(link, path)
"""


def test_a_state_that_is_replaced_while_it_is_read_is_one_of_the_two(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "two", "link", "state")]
    for number, place in enumerate(places):
        if place.name != "link":
            write_state(place, {"values": torch.full((8,), float(number))}, {"number": number})
    with subprocess.Popen([sys.executable, "-c", WRITER, *map(str, places)]) as writer:
        try:
            for _ in range(2000):
                tensors, record = read_state(places[-1])
                assert (tensors["values"] == record["number"]).all()
        finally:
            writer.kill()


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_one_bit_changed_anywhere_is_damage(folder: Path, tmp_path: Path) -> None:
    engine, path = load(folder), tmp_path / "state"
    advance(engine, 1)
    engine.save(path, {"step": 1234})
    data = path.read_bytes()
    in_tensors = len(data) - 4 * engine.state_dict()["v"].numel() // 2
    for at in (in_tensors, len(data) - 1, data.index(b"1234") + 3, data.index(b"policy_version") + 18):
        flip(path, at)
        with pytest.raises(EngineError, match=r"state: damaged, it is not what was saved"):
            engine.resume(path)
        path.write_bytes(data)
    assert engine.resume(path) == {"step": 1234}


def test_a_state_without_a_checksum_loads_and_says_so(folder: Path, tmp_path: Path) -> None:
    engine, path, said = load(folder), tmp_path / "state", list[str]()
    state = engine.state_dict()
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    record = {"engine": {k: v for k, v in state.items() if k not in tensors}, "caller": {"step": 7}}
    path.write_bytes(save(tensors, {state_io.FORMAT: json.dumps(record)}))
    assert engine.resume(path, say=said.append) == engine.resume(path) == {"step": 7}
    assert len(said) == 1 and "older version without a checksum" in said[0] and str(path) in said[0]
    engine.save(path, {"step": 7})
    engine.resume(path, say=said.append)
    assert len(said) == 1


@pytest.mark.parametrize("record", ['{"engine": {}', "[]", '{"engine": {}}', '{"engine": 3, "caller": {}}'])
def test_a_record_that_is_none_is_one_line(folder: Path, tmp_path: Path, record: str) -> None:
    path = tmp_path / "state"
    path.write_bytes(save({}, {state_io.FORMAT: record}))
    with pytest.raises(EngineError, match=r"state: (damaged|holds no record)") as caught:
        load(folder).resume(path)
    assert "\n" not in str(caught.value)
