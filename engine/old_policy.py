"""What the ratio of an update compares with: what the sampler recorded, or what the trainer computed itself
before the first step. With `GRPO.importance_cap` auto, the trainer's own where sampler and trainer differ.

A single update needs no pass for it: its own, with gradient, computes the policy before the step. Of several
the first measures the gap at no cost; only where that is above `LARGE_GAP` are the tokens of the later ones
computed anew, before anything has changed. So the choice is one of a call: no state, equal on all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from proactor.engine.config import GRPO, LARGE_GAP
from proactor.engine.logprobs import scored_samples
from proactor.engine.parallel import Parallel
from proactor.engine.policy import Policy
from proactor.engine.trainer import Tally
from proactor.engine.tree_gradient import OldPolicy
from proactor.engine.types import Sample
from proactor.engine.update import Batch
from proactor.engine.weights import Weights


class OldPolicies:
    """The old policy of each update of a call of `Engine.train`.

    ``present``: that of the next update; None: what was recorded. ``cap``: the importance cap of all updates,
    0 where they have none.
    """

    def __init__(self, policy: Policy, weights: Weights, batches: Sequence[Batch], config: GRPO) -> None:
        self._policy, self._weights, self._batches, self._version = policy, weights, batches, weights.version
        self._each, self._measuring = config.minibatches, False
        self.cap = config.truncation or 0.0
        self.present: OldPolicy | None = None
        first = batches[: config.minibatches]
        if config.old_policy == "recomputed":
            self.present = {} if len(batches) == 1 else self._scored(first)
        elif config.importance_cap == "auto":
            self.present = self._recorded_earlier(first)
            self._measuring = len(batches) > 1

    def measured(self, at: int, tally: Tally, parallel: Parallel) -> None:
        """Choose for the updates after number ``at``, whose gradient is computed and whose step is not yet
        made; ``tally``: of all updates until now. Every rank must call this.
        """
        if not self._measuring:
            return
        mine = bool(self._batches[at][0]), tally.sums["gap"], tally.sums["gap_tokens"]
        ranks = parallel.gather(mine, "sampler-trainer gap")
        if not any(some for some, _, _ in ranks):
            return  # nothing was measured, and the step changes nothing
        self._measuring = False
        if sum(gap for _, gap, _ in ranks) <= LARGE_GAP * sum(tokens for _, _, tokens in ranks):
            self.present, self.cap = None, 0.0
            return
        later = self._batches[at + 1 : at + 1 + self._each]
        with parallel.together("train: old policy"):
            scored, earlier = self._scored(later), self._recorded_earlier(later)
            kept = {key: torch.where(values.isnan(), scored[key], values) for key, values in earlier.items()}
            self.present = {**scored, **kept}

    def _scored(self, batches: Sequence[Batch]) -> dict[int, Tensor]:
        """The trainer's log-probabilities of the tokens of ``batches``, now."""
        groups = [group for members, _ in batches for group in members]
        with torch.no_grad():
            return {
                id(sample): values for sample, values in scored_samples(self._policy, self._weights, groups)
            }

    def _recorded_earlier(self, batches: Sequence[Batch]) -> dict[int, Tensor]:
        """What was recorded of tokens that an earlier policy drew, of the samples that have some; NaN for the
        others of their trained tokens.
        """
        samples = [sample for members, _ in batches for group in members for sample in group.samples]
        device = self._policy.decoder.device
        return {
            id(sample): torch.tensor(self._earlier(sample), device=device)
            for sample in samples
            if sample.policy_logprobs and any(version != self._version for version in _versions(sample))
        }

    def _earlier(self, sample: Sample) -> list[float]:
        rows = zip(sample.trained_mask(), sample.token_versions(), sample.policy_logprobs, strict=True)
        return [math.nan if version == self._version else value for on, version, value in rows if on]


def _versions(sample: Sample) -> Sequence[int]:
    """Those of its tokens, each at least once."""
    return [sample.policy_version] if sample.versions is None else sample.versions
