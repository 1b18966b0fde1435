"""Peers of the parity tests: transformers and PEFT on padded, separate sequences, losses by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from proactor.engine import GRPO, Engine, Group, Sample
from proactor.engine.forward import tree_view
from proactor.engine.layout import layout
from proactor.engine.tree import Tree


def padded_logits(model: Any, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits [len, V] of each sequence, computed side by side with padding on the right."""
    width = max(len(s) for s in sequences)
    ids, mask = (torch.zeros(len(sequences), width, dtype=torch.int64) for _ in range(2))
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)], mask[i, : len(sequence)] = torch.tensor(sequence), 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return [logits[i, : len(s)] for i, s in enumerate(sequences)]


def padded_logprobs(model: Any, sequences: Sequence[Sequence[int]], temperature: float = 1.0) -> list[Tensor]:
    """Log-probabilities of each sequence's ids from the second on."""
    out = []
    for sequence, logits in zip(sequences, padded_logits(model, sequences), strict=True):
        wide = logits[:-1] if logits.dtype == torch.float64 else logits[:-1].float()
        logp = (wide / temperature).log_softmax(-1)
        out.append(logp.gather(1, torch.tensor(sequence[1:])[:, None])[:, 0])
    return out


def tree_logits(engine: Engine, groups: Sequence[Group]) -> list[Tensor]:
    """Logits of all rows of each group's prompt, from one forward over their tree."""
    tree = Tree(list(groups))
    flat = layout(tree)
    view = tree_view(engine.decoder, tree, flat.start)
    with torch.no_grad():
        hidden = engine.decoder.hidden(flat.ids, flat.positions, view)
        logits = engine.decoder.head_linear(engine.decoder.final_norm(hidden), engine.decoder.head)
    out = []
    for end in tree.prompt_end:
        rows: list[int] = []
        node = end
        while node >= 0:
            rows = [*range(flat.start[node], flat.start[node] + len(tree.nodes[node].ids)), *rows]
            node = tree.nodes[node].parent
        out.append(logits[rows])
    return out


def with_adapter(folder: Path, adapter: Path, model: Any = None, dtype: torch.dtype = torch.float32) -> Any:
    """The folder's model in ``dtype`` with a PEFT folder on it, trainable."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype) if model is None else model
    return PeftModel.from_pretrained(base, adapter, is_trainable=True).to(dtype).eval()


def grpo_by_hand(model: Any, groups: Sequence[Group], config: GRPO) -> Tensor:
    """The differentiable GRPO loss of a PEFT model over separate sequences, token by token as published."""
    samples = [s for g in groups for s in g.samples]
    total, count = torch.zeros(()), 0
    for sample in samples:
        sequence = [*sample.prompt_ids, *sample.token_ids]
        new = _completion(model, sample, sequence)
        terms = []
        with torch.no_grad(), model.disable_adapter():
            reference = _completion(model, sample, sequence) if config.beta else new.detach()
        for t, (trained, advantage) in enumerate(
            zip(sample.trained_mask(), sample.token_advantages(), strict=True)
        ):
            if not trained:
                continue
            ratio = (
                new[t] - (sample.policy_logprobs[t] if sample.policy_logprobs else new[t].detach())
            ).exp()
            high = config.epsilon if config.epsilon_high is None else config.epsilon_high
            bounded = ratio.clamp(1 - config.epsilon, 1 + high)
            term = -torch.minimum(ratio * advantage, bounded * advantage)
            if config.beta:
                d = reference[t] - new[t]
                term = term + config.beta * (d.exp() - d - 1)
            if isinstance(config.importance_cap, float):  # auto: none without a measured gap
                shift = torch.tensor(sample.policy_logprobs[t] - sample.logprobs[t]).exp()
                term = term * shift.clamp(max=config.importance_cap)
            terms.append(term)
        if terms:
            share = torch.stack(terms)
            total = total + (share.mean() if config.normalizer == "samples" else share.sum())
            count += 1 if config.normalizer == "samples" else len(terms)
    return total / (config.constant if config.normalizer == "constant" else count)


def _completion(model: Any, sample: Sample, sequence: list[int]) -> Tensor:
    return padded_logprobs(model, [sequence], sample.temperature)[0][len(sample.prompt_ids) - 1 :]


def engine_gradients(engine: Engine) -> dict[str, tuple[Tensor, Tensor]]:
    """{module: (gradient of A, gradient of B)} after `Engine.reduce_gradients`, in Hugging Face's names."""
    assert engine.trainer is not None
    lora = engine.trainer.lora
    grads = [leaf.grad for leaf in engine.parameters() if leaf.grad is not None]
    return {name: (a.clone(), b.clone()) for name, (a, b) in lora.by_module(grads).items()}


def peft_gradients(model: Any, loss: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The same from a PEFT model."""
    model.zero_grad()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    names = {n.split(".lora_")[0] for n in gradients}
    return {
        n.removeprefix("base_model.model."): (
            gradients[f"{n}.lora_A.default.weight"],
            gradients[f"{n}.lora_B.default.weight"],
        )
        for n in names
    }


def largest_error(ours: dict[str, tuple[Tensor, Tensor]], theirs: dict[str, tuple[Tensor, Tensor]]) -> float:
    """Largest relative error of any module's A or B gradient, by norms; a zero gradient on the other side is
    an error of the test.
    """
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for name, pair in ours.items():
        for mine, reference in zip(pair, theirs[name], strict=True):
            assert float(reference.norm()) > 0, name
            worst = max(worst, float((mine - reference).norm() / reference.norm()))
    return worst
