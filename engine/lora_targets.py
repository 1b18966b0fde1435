"""Which linears an adapter is on, with which rank and scale: the rules by which PEFT matches names.

PEFT's own code is the source (`check_target_module_exists`, `get_pattern_key`);
`tests/engine/test_lora_targets.py` compares with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from proactor.engine.lora_config import ALL_TARGETS, LEAVES, LoRA, Target
from proactor.engine.types import EngineError

MODULE: dict[Target, str] = {
    target: f"{'self_attn' if target in ('q', 'k', 'v', 'o') else 'mlp'}.{LEAVES[target]}"
    for target in ALL_TARGETS
}
TARGETS: dict[str, Target] = {module: target for target, module in MODULE.items()}


class LowRank(NamedTuple):
    """Rank and scale of one linear's adapter."""

    rank: int
    scale: float


def module_name(layer: int, target: Target) -> str:
    """Hugging Face's name of a linear: ``model.layers.3.self_attn.q_proj``."""
    return f"model.layers.{layer}.{MODULE[target]}"


def low_rank(lora: LoRA, layer: int, target: Target) -> LowRank | None:
    """The adapter of one linear; None where it has none."""
    name = module_name(layer, target)
    if _named(lora.exclude_modules, name) or not _targeted(lora, layer, name):
        return None
    rank = next((rank for key, rank in lora.rank_pattern.items() if _fits(key, name)), lora.rank)
    alpha = next((alpha for key, alpha in lora.alpha_pattern.items() if _fits(key, name)), lora.alpha)
    return LowRank(rank, lora.scale_of(rank, alpha))


def adapted(lora: LoRA, layers: int) -> dict[tuple[int, Target], LowRank]:
    """Every adapted linear of a model of ``layers``, by layer, then as the model has them.

    Raises EngineError, naming the key, for a name, layer or pattern that fits none of its linears.
    """
    names = {(layer, target): module_name(layer, target) for layer in range(layers) for target in MODULE}
    found = {place: pair for place in names if (pair := low_rank(lora, *place)) is not None}
    for key, value in _unused(lora, layers, list(names.values()), [names[place] for place in found]):
        raise EngineError(
            f"lora.{key}: {value!r} fits none of the linears of this model's {layers} layers "
            f"({module_name(0, 'q')}, …)"
        )
    if not found:
        raise EngineError("lora: every linear that targets names is excluded by exclude_modules")
    return found


def total_rank(lora: LoRA, layers: int) -> int:
    """Ranks of all adapted linears together: numbers of x A that a row has. Raises as `adapted`."""
    return sum(pair.rank for pair in adapted(lora, layers).values())


def _targeted(lora: LoRA, layer: int, name: str) -> bool:
    if isinstance(lora.targets, str) or name in lora.targets:
        return _named(lora.targets, name)  # a module that is named whole is taken whatever its layer
    within = lora.layers_to_transform is None or layer in lora.layers_to_transform
    return within and _named(lora.targets, name)


def _named(names: tuple[str, ...] | str, name: str) -> bool:
    """Whether a regular expression fits a module's whole name, or one of several names its end."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(f".{name}".endswith(f".{LEAVES.get(end, end)}") for end in names)


def _fits(pattern: str, name: str) -> bool:
    """Whether a key of ``rank_pattern`` or ``alpha_pattern`` fits a module's name, or its end."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _unused(lora: LoRA, layers: int, names: list[str], found: list[str]) -> Iterator[tuple[str, object]]:
    """Keys and values of ``lora`` that fit nothing."""
    for key in ("targets", "exclude_modules"):
        given: tuple[str, ...] | str = getattr(lora, key)
        for one in [given] if isinstance(given, str) else given:
            if not any(_named(given if isinstance(given, str) else (one,), name) for name in names):
                yield key, one
    yield from (("layers_to_transform", layer) for layer in lora.layers_to_transform or () if layer >= layers)
    for key in ("rank_pattern", "alpha_pattern"):
        patterns: Iterable[str] = getattr(lora, key)
        yield from ((key, p) for p in patterns if found and not any(_fits(p, name) for name in found))
