"""Everything that training changes, of all adapters of an engine: as one flat dictionary, and back.

The first adapter's part has plain keys, as that of an engine with one always had; the others' begin with
their name and a point. ``adapters`` names them; without it there is `POLICY` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proactor.engine.adapter_names import POLICY
from proactor.engine.state import check_counts, check_state
from proactor.engine.trainer import Trainer
from proactor.engine.types import EngineError
from proactor.engine.weights import Weights

Adapters = Mapping[str, tuple[Trainer, Weights]]


def training_state(adapters: Adapters) -> dict[str, Any]:
    """Copies of adapters, moments and counters (`Optimizer.state`), and the versions."""
    state: dict[str, Any] = {}
    for name, (trainer, weights) in adapters.items():
        part = {**trainer.optimizer.state(), "policy_version": weights.version}
        state |= {f"{name}.{key}": value for key, value in part.items()} if state else part
    return state if [*adapters] == [POLICY] else {**state, "adapters": [*adapters]}


def check_training(
    state: Mapping[str, Any], adapters: Adapters, where: str = "state"
) -> dict[str, Mapping[str, Any]]:
    """Each adapter's part of a `training_state`, with the keys of `Optimizer.state` and ``policy_version``.

    Raises EngineError, beginning with ``where``, for other names of adapters, and as `check_state` does.
    """
    names = state.get("adapters", [POLICY])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise EngineError(f"{where}: adapters should be names, not {names!r}")
    if sorted(names) != sorted(adapters):
        raise EngineError(
            f"{where}: holds adapters {', '.join(names)}; this engine's are {', '.join(adapters)}"
        )
    parts: dict[str, Mapping[str, Any]] = {}
    for i, name in enumerate(names):
        begin = f"{name}." if i else ""
        part = {key.removeprefix(begin): value for key, value in state.items() if key.startswith(begin)}
        label = where if len(names) == 1 else f"{where}: adapter {name}"
        lora = adapters[name][0].lora
        check_counts(part, ("policy_version",), where=label)
        check_state(part, lora.identity(), lora.flat.shape, label)
        parts[name] = part
    return parts
