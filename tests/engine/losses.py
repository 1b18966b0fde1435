"""Every loss that training takes, by name, for the tests that must hold for each of them."""

from __future__ import annotations

from torch import Tensor

from proactor.engine import GRPO, SFT, GRPOLoss, SFTLoss, TokenBatch
from proactor.engine.loss import Loss

CONFIGS: dict[str, GRPO | SFT] = {
    "grpo": GRPO(normalizer="samples"),
    "grpo, kl": GRPO(beta=0.3),
    "dr. grpo": GRPO(normalizer="constant", constant=16.0, advantages="mean"),
    "dapo": GRPO(epsilon_high=0.28),
    "gspo": GRPO(ratio="sequence", normalizer="samples", epsilon=0.05),
    "gspo, kl": GRPO(ratio="sequence", beta=0.2),
    "cispo": GRPO(clip="cispo", epsilon_high=0.5),
    "cispo of sequences": GRPO(ratio="sequence", clip="cispo"),
    "rloo, k1": GRPO(advantages="rloo", beta=0.3, kl="k1"),
    "reinforce++, k2": GRPO(advantages="reinforce", beta=0.3, kl="k2"),
    "reinforce++ with a baseline": GRPO(advantages="reinforce_baseline"),
    "by turns": GRPO(normalizer="turns"),
    "truncated importance": GRPO(importance_cap=1.05),
    "masked importance": GRPO(importance_cap=1.05, importance="masked"),
    "own old policy, truncated": GRPO(old_policy="recomputed", importance_cap=1.2),
    "entropy": GRPO(entropy_bonus=0.1),
    "entropy, gspo, kl, by turns": GRPO(entropy_bonus=0.1, ratio="sequence", beta=0.2, normalizer="turns"),
    "sft": SFT(),
    "sft, by samples": SFT(normalizer="samples"),
    "sft, by turns": SFT(normalizer="turns"),
}


def loss_of(config: GRPO | SFT) -> Loss:
    """The built-in loss of a config."""
    return GRPOLoss(config) if isinstance(config, GRPO) else SFTLoss(config)


def couple(logprobs: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of one's own that couples the tokens of a sample, and depends on their entropies."""
    sums = logprobs.new_zeros(len(batch.samples)).index_add(0, batch.sample, logprobs)
    spread = (batch.entropy**2 * batch.weight).sum() / 10
    return (sums**2).sum() / 100 + spread, {"longest": -sums.detach().sum()}
