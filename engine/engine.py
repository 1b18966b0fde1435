"""The public object: one process that owns the frozen weights, the KV cache, the adapter and its
gradients.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Generator, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from proactor.engine.adapter_io import read_peft, write_peft
from proactor.engine.chat import ChatFormat
from proactor.engine.config import GRPO, SFT, AdamW, LoRA, Sampling
from proactor.engine.loading import build
from proactor.engine.lora import MODULE
from proactor.engine.loss import GRPOLoss, Loss, SFTLoss
from proactor.engine.model import Decoder
from proactor.engine.model_config import ModelConfig
from proactor.engine.paged import PagedCache
from proactor.engine.parallel import Parallel
from proactor.engine.sampler import GroupStream, Job, Sampler
from proactor.engine.scoring import sequence_logprobs, total_nll
from proactor.engine.state import read_state, write_state
from proactor.engine.trainer import Tally, Trainer
from proactor.engine.tree import Tree
from proactor.engine.types import BASE_VERSION, EngineError, Group, Sample
from proactor.engine.update import Batch, means, prepare, statistics

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
KV_BYTES = {"cpu": 1 << 30, "cuda": 16 << 30}
"""Most bytes of the cache when ``kv_tokens`` is not given, by device. A CPU gives them only as pages are
written; of a GPU's, half of what is free at most.
"""


class Engine:
    """Sampler and trainer on one copy of the weights; see the module `proactor.engine` for the whole public
    surface. Made by `Engine.load`.
    """

    def __init__(
        self,
        config: ModelConfig,
        decoder: Decoder,
        tokenizer: Any,
        seed: int,
        kv_tokens: int | None,
        page_size: int,
        token_budget: int,
        max_batch: int,
    ) -> None:
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        self._decoder: Decoder | None = decoder
        self.chat = ChatFormat(tokenizer) if tokenizer is not None else None
        self.parallel = Parallel(decoder.device)
        self.trainer = Trainer(decoder, self.parallel, token_budget) if decoder.lora else None
        self.policy_version = 0
        self.samplings = 0
        self._epoch = 0
        self._kv_tokens, self._page_size, self._token_budget, self._max_batch = (
            kv_tokens,
            page_size,
            token_budget,
            max_batch,
        )
        self._sampler: Sampler | None = None
        self.eos_ids = frozenset(config.eos_ids) | (
            {tokenizer.eos_token_id} - {None} if tokenizer is not None else frozenset()
        )
        self.vocabulary = (
            min(config.vocab_size, len(tokenizer)) if tokenizer is not None else config.vocab_size
        )
        self.base_name = ""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        lora: LoRA | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        quantization: Literal["auto", "nf4", "none"] = "auto",
        resident: Literal["auto", "dense", "nf4"] = "auto",
        deterministic: bool = False,
        seed: int = 0,
        kv_tokens: int | None = None,
        page_size: int = 16,
        token_budget: int = 8192,
        max_batch: int = 256,
        revision: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Engine:
        """Load a Hugging Face folder or hub id.

        device: "auto" takes CUDA when there is one. dtype: of activations and dense weights; "auto" is
        float32 on a CPU, bfloat16 on a GPU.
        quantization: "auto" keeps what is stored, "nf4" quantises while streaming in, "none" dequantises.
        resident: whether 4-bit linears stay 4-bit ("nf4", what "auto" means where the fused kernels run) or
        keep a dense copy for speed ("dense", elsewhere); `memory` reports both.
        deterministic: see the README.
        kv_tokens: tokens the KV cache holds. token_budget: rows of one forward. max_batch: sequences decoding
        at once. Raises EngineError (CheckpointError) with one line naming file and tensor for anything that
        cannot be loaded.
        """
        model = build(
            path, lora, device, dtype, quantization, resident, deterministic, seed, revision, progress
        )
        engine = cls(
            model.config, model.decoder, model.tokenizer, seed, kv_tokens, page_size, token_budget, max_batch
        )
        engine.base_name = str(path)
        return engine

    # -- readings ---

    @property
    def decoder(self) -> Decoder:
        """The model. Raises EngineError after `release`."""
        if self._decoder is None:
            raise EngineError("this engine was released; load another one")
        return self._decoder

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its completion."""
        return self.config.context_length

    @property
    def rank(self) -> int:
        """This process among `world_size`."""
        return self.parallel.rank

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return self.parallel.world_size

    @property
    def deterministic(self) -> bool:
        """Whether results are bitwise independent of batching and ranks."""
        return self.decoder.form.exact

    def memory(self) -> dict[str, int]:
        """Bytes held: dense and nf4 linears, embeddings and head, adapter with gradient, optimizer, KV
        cache.
        """
        optimizer = 2 * self.trainer.m.nbytes if self.trainer else 0
        return {
            **self.decoder.nbytes(),
            "optimizer": optimizer,
            "kv": self._sampler.cache.nbytes if self._sampler else 0,
        }

    def counters(self) -> dict[str, int]:
        """Totals since loading: rows through the model, tokens sampled, prompt tokens that sharing avoided,
        cache events.
        """
        found = {
            "rows_computed": self.decoder.rows_computed,
            "skipped_steps": self.trainer.skipped_steps if self.trainer else 0,
        }
        if self._sampler is not None:
            found |= {"tokens_sampled": self._sampler.tokens_sampled, **self._sampler.scheduler.counters()}
        return found

    # -- sampling ---

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: text (no template), messages (with the generation prompt), or ids as they
        are.
        """
        if isinstance(prompt, str):
            return list(self._chat().encode_text(prompt))
        if len(prompt) and isinstance(prompt[0], Mapping):
            return self._chat().encode(prompt, add_generation_prompt=True)  # type: ignore[arg-type]
        return [int(i) for i in prompt]  # type: ignore[arg-type]

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        keys: Sequence[int] | None = None,
    ) -> list[Group]:
        """Groups of samples in the order of ``prompts``; one ``sampling`` for all, or one a prompt.

        ``keys`` name the groups for noise (their index otherwise): equal keys, seed and step draw the same.
        """
        groups: dict[int, Group] = dict(self._run(prompts, sampling, keys))
        return [groups[i] for i in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        keys: Sequence[int] | None = None,
    ) -> AsyncIterator[Group]:
        """``async for`` over groups, each given the moment its last member ends, so that judging overlaps
        sampling. Leaving the loop frees the rest.
        """
        return GroupStream(self._run(prompts, sampling, keys))

    def _run(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None,
        keys: Sequence[int] | None,
    ) -> Generator[tuple[int, Group]]:
        settings = (
            [sampling or Sampling()] * len(prompts)
            if isinstance(sampling, Sampling | None)
            else list(sampling)
        )
        names = range(len(prompts)) if keys is None else keys
        if len(names) != len(prompts) or len(settings) != len(prompts):
            raise EngineError(
                f"sample: {len(prompts)} prompts with {len(names)} keys and {len(settings)} settings"
            )
        if self.tokenizer is None and any(s.stop for s in settings):
            raise EngineError("stop: stop strings need a tokenizer; use stop_ids")
        jobs = []
        for i, (prompt, chosen, key) in enumerate(zip(prompts, settings, names, strict=True)):
            seed, step = (self.seed, self.samplings) if chosen.seed is None else (chosen.seed, 0)
            jobs.append(self._job(i, self.encode(prompt), chosen, (seed & 0xFFFFFFFFFFFFFFFF, step, key)))
        self.samplings += 1
        return self._ready_sampler().run(jobs)

    def _job(self, index: int, ids: list[int], sampling: Sampling, noise: tuple[int, int, int]) -> Job:
        if not ids or min(ids) < 0 or max(ids) >= self.config.vocab_size:
            raise EngineError(f"prompt {index}: empty, or with ids outside 0 … {self.config.vocab_size - 1}")
        room = self.context_length - len(ids)
        if room < 1:
            raise EngineError(
                f"prompt {index}: {len(ids)} tokens leave no room in a context of {self.context_length}"
            )
        ends = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else self.eos_ids)
        adapter = sampling.adapter and self.decoder.lora is not None
        namespace: Hashable = (
            ("adapter", self._epoch, self.decoder.dtype) if adapter else ("base", self.decoder.dtype)
        )
        version = self.policy_version if adapter or self.decoder.lora is None else BASE_VERSION
        return Job(ids, sampling, noise, namespace, version, min(sampling.max_tokens, room), ends)

    def _ready_sampler(self) -> Sampler:
        if self._sampler is None:
            size, dtype = self._page_size, self.decoder.dtype
            if self._kv_tokens is not None:
                pages = -(-self._kv_tokens // size)
            else:
                most = self._max_batch * -(-self.context_length // size)
                room = KV_BYTES[self.decoder.device.type]
                if self.decoder.device.type == "cuda":
                    room = min(room, torch.cuda.mem_get_info(self.decoder.device)[0] // 2)
                pages = max(1, min(most, room // PagedCache.page_bytes(self.config, size, dtype)))
            rows = max(self._token_budget, self._max_batch)
            self._sampler = Sampler(
                self.decoder, self.tokenizer, pages, size, rows, self._max_batch, self.vocabulary
            )
        return self._sampler

    def _chat(self) -> ChatFormat:
        if self.chat is None:
            raise EngineError(
                f"{self.base_name}: no tokenizer in the model folder, so prompts must be token ids"
            )
        return self.chat

    # -- training ---

    def train(self, data: Sequence[Group] | Sequence[Sample], config: GRPO | SFT) -> dict[str, float]:
        """One call of the trainer: GRPO on groups (rewards, or advantages where a sample has one), or SFT on
        samples with masks.

        Returns statistics summed over ranks; `policy_version` has advanced and the next sampled token uses
        the new weights. Raises EngineError for a missing or NaN reward, and for greedy samples.
        """
        if not data and self.world_size == 1:
            raise EngineError("train: nothing to train on")
        if isinstance(config, SFT):
            if not all(isinstance(x, Sample | Group) for x in data):
                raise EngineError("train: SFT takes samples or groups")
            groups = [Group(x.prompt_ids, [x]) if isinstance(x, Sample) else x for x in data]
            return self._update([(groups, None)], SFTLoss(config), config, {})
        if not all(isinstance(g, Group) for g in data):
            raise EngineError("train: GRPO takes groups")
        batches, sums = prepare([g for g in data if isinstance(g, Group)], config, self.decoder.device)
        return self._update(batches, GRPOLoss(config), config, sums)

    def _update(
        self, batches: list[Batch], loss: Loss, config: AdamW, sums: dict[str, float]
    ) -> dict[str, float]:
        trainer = self._trainer()
        trainer.zero_grad()  # a call that raised half-way may have left some
        tally, stepped = Tally(), {}
        tally.add(sums)
        for groups, normalizer in batches:
            part = trainer.forward_backward(groups, loss, normalizer, self.policy_version)
            tally.add(part.sums)
            for name, value in part.maxima.items():
                tally.top(name, value)
            stepped = self.step(config)
        found, top = self.parallel.reduce(statistics(tally), {"ratio_max_error": 0.0, **tally.maxima})
        return {**means(found), **top, **stepped, "policy_version": float(self.policy_version)}

    def forward_backward(self, trees: Sequence[Tree] | Sequence[Group], loss: Loss) -> dict[str, float]:
        """Add the gradient of ``loss`` over trees (or groups) to the adapter's; returns this rank's sums.
        Follow with `step`, or `reduce_gradients`.
        """
        groups = [g for t in trees for g in (t.groups if isinstance(t, Tree) else [t])]
        tally = self._trainer().forward_backward(groups, loss, version=self.policy_version)
        return {**tally.sums, **tally.maxima}

    def reduce_gradients(self) -> float:
        """Make ``.grad`` of `parameters` final: summed over ranks and divided by the normaliser, which is
        returned. For a caller's own optimizer.
        """
        return self._trainer().reduce()

    def step(self, config: AdamW | None = None) -> dict[str, float]:
        """Reduce, clip and apply one AdamW step; the policy version advances unless the gradient was not
        finite.
        """
        found = self._trainer().step(config or AdamW())
        if not found["nonfinite_gradient"]:
            self.weights_changed()
        return found

    def weights_changed(self) -> None:
        """Declare that the adapter was changed (a caller's own optimizer calls this): cached KV of the old
        one is dropped.
        """
        self.policy_version += 1
        self._open_epoch()

    def _open_epoch(self) -> None:
        old = ("adapter", self._epoch, self.decoder.dtype)
        self._epoch += 1
        if self._sampler is not None:
            self._sampler.scheduler.drop_namespace(old)

    def zero_grad(self) -> None:
        """Forget accumulated gradients."""
        self._trainer().zero_grad()

    def parameters(self) -> list[Tensor]:
        """The adapter's leaves (float32 views of one flat buffer), for a caller's own optimizer."""
        return self._trainer().lora.leaves

    def logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        spans: Sequence[tuple[int, int]] | None = None,
        adapter: bool = True,
        trees: Sequence[Hashable] | None = None,
    ) -> list[Tensor]:
        """Log-probabilities at temperature 1 of each list's ids from the second on, or of ids[start:end] for
        ``spans`` (start at least 1).

        One float32 tensor a list, on the CPU. ``trees`` names, one a list, those that belong together
        (`Group.tree`): what they share before their spans is computed once, in deterministic mode too.
        """
        cuts = spans if spans is not None else [(1, len(ids)) for ids in sequences]
        return sequence_logprobs(self.decoder, sequences, cuts, adapter, self._token_budget, trees)

    def nll(self, groups: Sequence[Group]) -> float:
        """Mean negative log-likelihood (nats) of the groups' trained tokens over all ranks; nothing is
        updated.
        """
        total, count = total_nll(self.decoder, groups, self._token_budget)
        sums, _ = self.parallel.reduce({"total": total, "count": count}, {})
        return sums["total"] / max(sums["count"], 1.0)

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This rank's part of a list of whole units (groups, dialogues)."""
        return self.parallel.share(items)

    def _trainer(self) -> Trainer:
        self.decoder  # noqa: B018  # after release, that is what to say
        if self.trainer is None:
            raise EngineError("this engine has no adapter to train: load it with lora=LoRA(...)")
        return self.trainer

    # -- saving ---

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter as a PEFT folder, atomically."""
        lora = self._trainer().lora
        targets = [MODULE[t].split(".")[1] for t in lora.lora.targets]
        write_peft(
            folder,
            lora.tensors(),
            lora.lora.rank,
            lora.lora.scale * lora.lora.rank,
            targets,
            self.base_name or None,
        )

    def load_adapter(self, folder: str | Path) -> None:
        """Read a PEFT folder into the adapter. Raises EngineError naming what does not fit (rank, scale,
        targets, shapes).
        """
        lora = self._trainer().lora
        tensors, rank, alpha, _ = read_peft(folder)
        scale = alpha / rank
        if rank != lora.lora.rank or not math.isclose(scale, lora.lora.scale, rel_tol=1e-6):
            raise EngineError(
                f"{folder}: rank {rank} and scale {scale:g}, this engine's adapter has {lora.lora.rank} and "
                f"{lora.lora.scale:g}"
            )
        try:
            lora.load(tensors)
        except EngineError as error:
            raise EngineError(f"{folder}: {error}") from error
        self.weights_changed()

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes: tensors (adapter, both moments) and counters."""
        t = self._trainer()
        return {
            "adapter": t.lora.flat.detach().clone(),
            "m": t.m.clone(),
            "v": t.v.clone(),
            "steps": t.steps,
            "skipped_steps": t.skipped_steps,
            "policy_version": self.policy_version,
            "samplings": self.samplings,
            "seed": self.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`; opens a new weights epoch. Raises EngineError when its adapter has
        another size.
        """
        t = self._trainer()
        if state["adapter"].shape != t.lora.flat.shape:
            raise EngineError(
                f"state: adapter of {state['adapter'].numel()} numbers, this engine's has "
                f"{t.lora.flat.numel()}"
            )
        with torch.no_grad():
            for mine, name in ((t.lora.flat, "adapter"), (t.m, "m"), (t.v, "v")):
                mine.copy_(state[name])
        t.zero_grad()
        t.steps, t.skipped_steps = int(state["steps"]), int(state["skipped_steps"])
        self.policy_version, self.samplings, self.seed = (
            int(state["policy_version"]),
            int(state["samplings"]),
            int(state["seed"]),
        )
        self._open_epoch()

    def save(self, path: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Write the state and the caller's JSON-able ``record`` to one file, atomically (the first rank
        writes).
        """
        state = self.state_dict()
        tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        numbers = {k: v for k, v in state.items() if not isinstance(v, Tensor)}
        if self.rank == 0:
            write_state(path, tensors, {"engine": numbers, "caller": dict(record or {})})
        self.parallel.barrier()

    def resume(self, path: str | Path) -> dict[str, Any]:
        """Read a save back, exactly; returns the caller's record."""
        tensors, record = read_state(path)
        self.load_state_dict({**tensors, **record["engine"]})
        caller: dict[str, Any] = record["caller"]
        return caller

    def release(self) -> None:
        """Give memory back: cache, weights, optimizer. Using the engine afterwards is an EngineError."""
        self.parallel.release()
        self._sampler = self.trainer = self._decoder = None
        if self.parallel.device.type == "cuda":
            torch.cuda.empty_cache()
