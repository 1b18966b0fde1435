"""The names of an engine's adapters, and what callers may say for one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from proactor.engine.arguments import instance, short
from proactor.engine.lora_config import LoRA
from proactor.engine.types import EngineError

POLICY = "policy"
"""The adapter that is given no name."""
BASE = "base"
"""The weights without an adapter: no adapter may have this name."""
NO_ADAPTER = "this engine has no adapter to train: load it with lora=LoRA(...)"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def named_adapters(lora: LoRA | Mapping[str, LoRA] | None, what: str = "lora") -> dict[str, LoRA]:
    """The adapters of ``lora`` by name, in its order; one alone is `POLICY`.

    Raises EngineError that begins with ``what`` for anything else, no adapter in a mapping, and a name that
    is no simple word, or `BASE`.
    """
    if lora is None:
        return {}
    if isinstance(lora, Mapping) and not lora:
        raise EngineError(f"{what}: names no adapter; leave it out for none")
    if not isinstance(lora, Mapping) or not any(isinstance(one, LoRA) for one in lora.values()):
        return {POLICY: instance(lora, LoRA, what)}
    for name, settings in lora.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == BASE:
            raise EngineError(
                f"{what}: {short(name)} cannot name an adapter: a letter, then letters, digits, - and _, and "
                f"not {BASE!r}"
            )
        instance(settings, LoRA, f"{what}: {name}")
    return dict(lora)


def chosen(adapter: object, names: Sequence[str]) -> str | None:
    """The adapter that a caller means by True (the first, if any), False (the base: None) or a name.

    Raises EngineError, with the known ``names``, for anything else.
    """
    if adapter is False or (adapter is True and not names):
        return None
    if adapter is True:
        return names[0]
    if adapter in names:
        return str(adapter)
    known = f"is none of {', '.join(map(repr, names))}" if names else "is unknown: this engine has none"
    raise EngineError(f"adapter {short(adapter)} {known}")


def trained(adapter: str | None, names: Sequence[str]) -> str:
    """The adapter that is trained, saved or loaded: by default the first. Errors as `chosen`."""
    if not names:
        raise EngineError(NO_ADAPTER)
    name = chosen(True if adapter is None else adapter, names)
    if name is None:
        raise EngineError(f"adapter {adapter!r}: the base is not trained; it is one of {', '.join(names)}")
    return name
