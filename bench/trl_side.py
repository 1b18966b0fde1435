"""TRL's side: `GRPOTrainer` with PEFT, driven one step or rollout at a time; timers wrap its methods.

Everything that would cost it time is off: logging, saving, evaluation, reference model, gradient
checkpointing, old-policy pass, tokenising. With turns it is the trainer as it comes, with an
``environment_factory``, its way for several turns.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad

from bench.models import PAD
from bench.probes import MESSAGES, TOOL, Probes, arguments, describe, episode_config, tasks_of
from bench.protocol import Channel
from bench.transformers_side import continuous_options
from bench.workloads import Workload, reward
from proactor.environments.calls import read_call
from proactor.environments.gyms.function import FunctionWorld

STEPS = 200
"""Steps of prompts in the dataset: more than any run makes."""


class IdTrainer(GRPOTrainer):
    """Takes prompts as JSON lists of token ids, which spares TRL the tokenising."""

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [json.loads(prompt) for prompt in prompts], None, {}


class OnCommand(TrainerCallback):
    """Begins a step on command and replies when it has ended. The first step's command is already read."""

    def __init__(self, channel: Channel, reply: Callable[[], dict[str, Any]]) -> None:
        self.channel, self.reply, self.commanded = channel, reply, True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.commanded:
            assert self.channel.receive()["do"] == "step"
        self.commanded = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.channel.send(**self.reply())


class ProbeTokenizer(PreTrainedTokenizerFast):
    """Reads every reply as a probe, where TRL asks its tokenizer for the calls in one."""

    def parse_response(self, ids: list[int], **_: Any) -> dict[str, Any]:
        """The probe that the ids are."""
        call = {"type": "function", "function": {"name": TOOL, "arguments": arguments(ids)}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}


class TrlWorld:
    """A world of the probes as an environment of TRL: its public method is a tool."""

    def __init__(self, gym: Probes) -> None:
        self._gym, self._earned = gym, 0.0
        self._world: FunctionWorld | None = None

    def reset(self, task: str, **_: Any) -> None:
        self._world, self._earned = self._gym.make(task), 0.0
        self._world.reset(0)

    def interact_with_env(self, choice: str, content: str) -> str:
        assert self._world is not None, "reset comes first"
        outcome = self._world.step(read_call(TOOL, {"choice": choice, "content": content}))
        self._earned += outcome.reward
        return f"{outcome.observation} next"  # a word in place of the end token with which we close a reply

    def get_reward(self) -> float:
        return self._earned


describe(TrlWorld.interact_with_env)


def id_task(workload: Workload, model: str) -> dict[str, Any]:
    """The trainer's arguments for prompts of ids, each answered once."""
    rows = [{"prompt": json.dumps(ids)} for step in range(STEPS) for ids in workload.prompts(step)]
    return {
        "reward_funcs": lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
        "train_dataset": Dataset.from_list(rows),
        "processing_class": PreTrainedTokenizerFast.from_pretrained(model),  # nosec B615 # a local folder
    }


def probe_task(workload: Workload, model: str) -> dict[str, Any]:
    """The trainer's arguments for the probes: an environment for each episode, which owns the reward."""
    config, gym = episode_config(workload), Probes(workload.turns)
    tokenizer = ProbeTokenizer.from_pretrained(model)  # nosec B615 # a local folder
    tokenizer.response_template = {}  # it reads replies itself
    tasks = [task for step in range(STEPS) for task in tasks_of(config, gym, step)]
    return {
        "environment_factory": lambda: TrlWorld(gym),
        "train_dataset": Dataset.from_list([{"prompt": MESSAGES, "task": task} for task in tasks]),
        "processing_class": tokenizer,
    }


def make_trainer(setup: dict[str, Any], workload: Workload, scratch: str) -> GRPOTrainer:
    """GRPOTrainer with ``setup["micro"]`` sequences per micro-batch and one generation per step."""
    total = len(workload.lengths) * workload.samples
    base = AutoModelForCausalLM.from_pretrained(  # nosec B615 # a local folder
        setup["model"], dtype=getattr(torch, setup.get("dtype", "float32"))
    )
    model = PeftModel.from_pretrained(base, setup["adapter"], is_trainable=True, autocast_adapter_dtype=False)
    config = GRPOConfig(
        output_dir=scratch,
        per_device_train_batch_size=setup["micro"],
        gradient_accumulation_steps=total // setup["micro"],
        generation_batch_size=total,
        num_generations=workload.samples,
        max_completion_length=len(workload.mask),
        max_tool_calling_iterations=workload.turns - 1,
        generation_kwargs={"min_new_tokens": workload.max_tokens, "max_new_tokens": workload.max_tokens},
        use_transformers_continuous_batching=setup.get("continuous", False),
        transformers_continuous_batching_config=continuous_options(workload, total),
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        num_iterations=1,
        beta=0.0,
        loss_type="dapo",
        epsilon=0.2,
        scale_rewards="group",
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_steps=STEPS,
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_completions=False,
        seed=0,
    )
    kind, task = (IdTrainer, id_task) if workload.turns == 1 else (GRPOTrainer, probe_task)
    return kind(model=model, args=config, **task(workload, setup["model"]))


def gate(trainer: GRPOTrainer, command: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of the batch; with old ones in it, loss and gradients, by TRL's own functions."""
    batch, model = command["batch"], trainer.model
    prompts, completions = ([torch.tensor(s[key]) for s in batch] for key in ("prompt", "completion"))
    inputs = {
        "prompt_ids": pad(prompts, padding_value=PAD, padding_side="left"),
        "prompt_mask": pad([torch.ones_like(p) for p in prompts], padding_value=0, padding_side="left"),
        "completion_ids": torch.stack(completions),
        "completion_mask": torch.ones(len(batch), len(completions[0]), dtype=torch.long),
        "tool_mask": torch.tensor([s["mask"] for s in batch], dtype=torch.long),
    }
    inputs["num_items_in_batch"] = inputs["tool_mask"].sum()
    if "old" not in batch[0]:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad():
            logps = trainer._get_per_token_logps_and_entropies(
                model, ids, mask, len(completions[0]), batch_size=8
            )[0]
        return {"logprobs": logps.tolist()}
    model.train()
    model.zero_grad()
    loss, total = 0.0, len(batch)
    # As in a step: the loss of all parts is one mean.
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    for start in range(0, total, 8):
        part = {k: v[start : start + 8] if v.dim() else v for k, v in inputs.items()}
        part["advantages"] = torch.tensor([s["advantage"] for s in batch[start : start + 8]])
        part["old_per_token_logps"] = torch.tensor([s["old"] for s in batch[start : start + 8]])
        value = trainer.compute_loss(model, part)
        value.backward()
        loss += value.item()
    grads = {
        n.replace(".default", ""): p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }
    Path(command["out"]).mkdir()
    save_file(grads, Path(command["out"]) / "adapter_model.safetensors")
    model.zero_grad()
    return {"loss": loss}


def rollout(trainer: GRPOTrainer, workload: Workload, command: dict[str, Any]) -> dict[str, Any]:
    """The completions that the trainer generates for a step's prompts."""
    prompts = [ids for ids in workload.prompts(command["step"]) for _ in range(workload.samples)]
    trainer.generation_config.do_sample = not command["greedy"]
    tokens, _ = trainer._generate_single_turn(prompts, None, {}, workload.samples)
    return {"tokens": tokens}


def instrument(trainer: GRPOTrainer) -> Callable[[], dict[str, Any]]:
    """Wrap TRL's phases with timers, count rows through the first layer and the samples' tokens; returns
    their reader.

    Calling the reader resets them.
    """
    seconds: dict[str, float] = defaultdict(float)
    tokens: dict[str, int] = defaultdict(int)
    work: dict[str, int] = {}
    generate = trainer._generate

    def generate_counted(prompts: list[Any]) -> Any:
        prompt_ids, completion_ids, mask, *rest = generate(prompts)
        length = sum(map(len, completion_ids))
        drawn = length if mask is None else sum(map(sum, mask))
        work.update(prompt=sum(map(len, prompt_ids)), completion=length, drawn=drawn)
        return prompt_ids, completion_ids, mask, *rest

    trainer._generate = generate_counted

    def time_method(owner: Any, method: str, phase: str) -> None:
        plain = getattr(owner, method)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = plain(*args, **kwargs)
            seconds[phase] += time.perf_counter() - start
            return result

        setattr(owner, method, wrapper)

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        tokens["train" if torch.is_grad_enabled() else "generate"] += args[0].shape[0] * args[0].shape[1]

    time_method(trainer, "_generate_single_turn", "generate")
    time_method(trainer, "compute_loss", "forward")
    time_method(trainer.accelerator, "backward", "backward")
    trainer.model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(count)

    def read() -> dict[str, Any]:
        measured = {"phases": dict(seconds), "tokens": dict(tokens), "work": dict(work)}
        seconds.clear()
        tokens.clear()
        return measured

    return read


def main() -> None:
    """Set up, answer gates and rollouts, then train step by step until the parent goes away."""
    channel = Channel()
    setup = channel.receive()
    workload = Workload.from_json(setup["workload"])
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(setup, workload, scratch)
        if trainer.use_transformers_continuous_batching:
            trainer.generation_config.eos_token_id = -1  # it knows no min_new_tokens
        read = instrument(trainer)
        channel.send(ready=True)
        while (command := channel.receive())["do"] != "step":
            reply = gate(trainer, command) if command["do"] == "gate" else rollout(trainer, workload, command)
            channel.send(**reply, rows=read()["tokens"].get("generate", 0))
        trainer.add_callback(OnCommand(channel, read))
        trainer.train()


if __name__ == "__main__":
    main()
