"""A training step of the whole model beside transformers and PEFT with gradient checkpointing.

The peer holds the very same bytes: bitsandbytes' `Linear4bit` over our NF4 codes where it is installed, else
dense bfloat16, and our adapter's factors. One sequence, loss on its second half; the losses and the adapter's
gradients are compared before anything is timed. Ours keeps what the backward pass needs, the peer computes
its layers twice, as its users do to fit.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.floors import RANK, rounding_gap, train_flops
from bench.gpu.model import Weights, random_engine, random_weights
from bench.gpu.peers import bnb_state
from bench.gpu.task import Job, Row, Setting, Task, figure
from bench.gpu.timing import Stopwatch
from bench.shapes import model_config
from proactor.engine.config import SFT
from proactor.engine.known_models import qwen2_keys
from proactor.engine.lora import LoRABuffer
from proactor.engine.loss import SFTLoss
from proactor.engine.types import Group, Sample
from proactor.kernels.nf4 import NF4Tensor
from proactor.kernels.op import ModelShape

ROWS, TINY_ROWS = 4096, 32
ROUNDS = 3
LEAST_COSINE = 0.8
"""Between gradients in bfloat16 that went through all layers in another order of sums."""
FLOOR = "the peer's time over that of its operations to ours: it computes every layer's forward twice"


def tasks(job: Job, setting: Setting) -> list[Task]:
    """One task."""
    rows = TINY_ROWS if setting.dry else ROWS
    name = f"training step, {rows} rows, beside transformers and PEFT"
    return [Task(name, partial(_measure, job, setting, rows), 120.0)]


def _measure(job: Job, setting: Setting, rows: int, watch: Stopwatch) -> list[Row]:
    device, shape = setting.torch_device, job.shape
    weights = random_weights(model_config(shape), device, setting.seed)
    shared = dict(weights)
    engine = random_engine(shape, device, setting.seed, 2 * rows, weights)
    lora = engine.decoder.lora
    assert lora is not None
    peer = _peer_model(shape, shared, lora, device)
    shared.clear()
    generator = torch.Generator().manual_seed(setting.seed)
    ids = torch.randint(shape.vocabulary, (rows,), generator=generator).tolist()
    prompt, answer = ids[: rows // 2], ids[rows // 2 :]
    group, loss = Group(prompt, [Sample(prompt, answer)]), SFTLoss(SFT())
    batch = torch.tensor([ids], device=device)
    labels = batch.clone()
    labels[:, : rows // 2] = -100

    def ours() -> float:
        engine.zero_grad()
        return engine.forward_backward([group], loss)["loss"] / len(answer)

    def theirs() -> Tensor:
        peer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            value: Tensor = peer(input_ids=batch, labels=labels, use_cache=False).loss
        value.backward()
        return value.detach()

    apart = abs(ours() - float(theirs()))
    if not apart <= (limit := 8 * rounding_gap(shape)):
        raise ValueError(f"the losses differ by {apart:.3f} nats a token, allowed are {limit:.3f}")
    likeness = least_cosine(lora, peer)
    if not likeness >= LEAST_COSINE:
        raise ValueError(f"an adapter's gradients point apart: cosine {likeness:.2f}")
    taken: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(ROUNDS):
        taken["ours"].append(watch.sample([ours], 0.0)[0])
        taken["theirs"].append(watch.sample([theirs], 0.0)[0])
    mine, other = (sorted(t)[ROUNDS // 2] for t in taken.values())
    pairs, head = rows * (rows + 1) // 2, rows // 2
    once = train_flops(shape, rows, pairs, head)
    twice = train_flops(shape, rows, pairs, rows, recompute=True)
    details = {
        "seconds": taken,
        "speedup": other / mine,
        "losses_apart": apart,
        "least_cosine": likeness,
        "linears": _linears(),
    }
    return [figure(mine * 1e3, "ms", other * 1e3 * once / twice, FLOOR, **details)]


def least_cosine(lora: LoRABuffer, peer: Any) -> float:
    """Least cosine between our gradient of one of the adapter's factors and the peer's."""
    found = 1.0
    for name, pair in lora.by_module([leaf.grad for leaf in lora.leaves if leaf.grad is not None]).items():
        layer = peer.base_model.model.get_submodule(name)
        for mine, theirs in zip(pair, (layer.lora_A, layer.lora_B), strict=True):
            a, b = (grad.double().flatten() for grad in (mine, theirs["default"].weight.grad))
            found = min(found, float(torch.nn.functional.cosine_similarity(a, b, dim=0)))
    return found


def _linears() -> str:
    """What the peer's linears are."""
    return "Linear4bit" if importlib.util.find_spec("bitsandbytes") else "bfloat16"


def _peer_model(shape: ModelShape, weights: Weights, lora: LoRABuffer, device: torch.device) -> Any:
    """transformers' Qwen2 with PEFT's adapters, of our values, training with gradient checkpointing."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config

    with torch.device("meta"):  # shapes alone: every parameter is ours
        config = Qwen2Config(**{k: v for k, v in qwen2_keys(shape).items() if k != "model_type"})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    for name, value in weights.items():
        _put(model, name, value)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peft = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=names)
    )
    with torch.no_grad():
        for name, (a, b) in lora.tensors().items():
            layer = peft.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
    peft.enable_input_require_grads()
    peft.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return peft.train()


def _put(model: Any, name: str, value: Tensor | NF4Tensor) -> None:
    """Let the parameter ``name`` have our ``value``; a quantised one in `Linear4bit` where there is one."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(value, NF4Tensor) and _linears() == "Linear4bit":
        import bitsandbytes

        packed, state = bnb_state(value, torch.bfloat16)
        linear = bitsandbytes.nn.Linear4bit(
            value.shape[1],
            value.shape[0],
            module.bias is not None,
            torch.bfloat16,
            quant_type="nf4",
            device="meta",
        )
        linear.weight = bitsandbytes.nn.Params4bit(
            packed, quant_state=state, quant_type="nf4", bnb_quantized=True, module=linear
        )
        linear.quant_state = state
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, linear)
        return
    dense = value.dequantize() if isinstance(value, NF4Tensor) else value
    setattr(module, leaf, torch.nn.Parameter(dense, requires_grad=False))
