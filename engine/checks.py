"""What is refused before anything is computed: groups whose columns do not fit, by group and sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

from proactor.engine.types import BASE_VERSION, EngineError, Group, Sample


def check_groups(groups: Sequence[Group], version: int, adapter: str) -> None:
    """Raise EngineError, naming group and sample, for what no loss can take at ``version`` of ``adapter``.

    That is: a prompt or a sample without tokens; masks, versions, log-probabilities, advantages or weights of
    another length than the tokens; advantages or weights that are not finite, weights below 0; samples of
    another adapter, and tokens of a version that has not been yet. A log-probability of NaN was not recorded.
    """
    for i, group in enumerate(groups):
        if not len(group.prompt_ids):
            raise EngineError(f"group {i}: prompt_ids: a prompt needs at least one token")
        for j, sample in enumerate(group.samples):
            try:
                _check(sample, version, adapter)
            except EngineError as error:
                raise EngineError(f"group {i}, sample {j}: {str(error).removeprefix('sample: ')}") from None


def _check(sample: Sample, version: int, adapter: str) -> None:
    count = len(sample.token_ids)
    if not count:
        raise EngineError("token_ids: a sample needs at least one token")
    for name in ("logprobs", "policy_logprobs"):
        if len(getattr(sample, name)) not in (0, count):
            raise EngineError(f"{name}: {len(getattr(sample, name))} log-probabilities for {count} tokens")
    if sample.adapter not in (None, adapter):
        raise EngineError(
            f"drawn by adapter {sample.adapter!r}, and {adapter!r} is trained; to train on it as on a "
            f"sample from elsewhere, set its adapter to None and its policy_version to {BASE_VERSION}"
        )
    drawn_by = sample.token_versions()
    if not BASE_VERSION <= min(drawn_by) <= max(drawn_by) <= version:
        raise EngineError(
            f"drawn by policy version {min(drawn_by)} to {max(drawn_by)}, and the policy is at {version}"
        )
    for value in sample.token_advantages():
        if not math.isfinite(value):
            raise EngineError(f"advantage is {value}; it should be a finite float32 number")
    for value in sample.token_weights():
        if not 0 <= value < math.inf:
            raise EngineError(f"weight is {value}; it should be a finite number of at least 0")
