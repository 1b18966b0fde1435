"""Jobs: prompts, validated, each with its settings and noise."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from proactor.engine.adapter_names import chosen
from proactor.engine.arguments import short
from proactor.engine.config import Sampling
from proactor.engine.grammars import Grammar, Grammars
from proactor.engine.lora import LoRABuffer
from proactor.engine.model_config import ModelConfig
from proactor.engine.prompts import Prompt, check_keys, check_prompts
from proactor.engine.types import BASE_VERSION, EngineError, Sample

UINT64 = 0xFFFFFFFFFFFFFFFF


@dataclass(slots=True)
class Job:
    """A prompt to sample from.

    ``noise``: (unsigned 64-bit seed, iteration, group key), which with sample index and position decides
    every token. ``limit``: most tokens of a sample, ``sampling.max_tokens`` or what the context leaves.
    ``index``: place of the prompt in the call, for errors. ``grammar``: its constraint, compiled.
    ``adapter``: the name of its adapter, None for the base; its ``lora``, ``namespace`` (cache key of its KV)
    and ``version`` (of what it draws) are set when sampling starts; ``renewals``: updates that it has gone on
    through since.

    Where the prompt is a trajectory so far: ``first`` is the noise's index of the first sample, ``offset``
    the position of the first token from the trajectory's root, ``known`` how many tokens of the prompt were
    computed before, ``lease`` the name of the pages kept for it (`Parking`).
    """

    prompt_ids: list[int]
    sampling: Sampling
    noise: tuple[int, int, int]
    limit: int
    end_ids: frozenset[int]
    index: int = 0
    grammar: Grammar | None = None
    first: int = 0
    offset: int = 0
    known: int = 0
    lease: int | None = None
    adapter: str | None = None
    lora: LoRABuffer | None = None
    namespace: Hashable = None
    version: int = BASE_VERSION
    renewals: int = 0
    samples: list[Sample] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class JobMaker:
    """Prompts to jobs for one model.

    ``encode`` gives a prompt's token ids. ``grammars`` compiles constraints. ``stop_strings``: whether a
    tokenizer can find them. ``adapters``: their names.
    """

    encode: Callable[[Prompt], list[int]]
    config: ModelConfig
    eos_ids: frozenset[int]
    stop_strings: bool
    grammars: Grammars
    adapters: Sequence[str]

    def make(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None,
        keys: Sequence[int] | None,
        noise: tuple[int, int],
    ) -> list[Job]:
        """A job for each prompt; ``prompts``, ``sampling``, ``keys`` and errors as `Engine.sample`.

        ``noise``: (seed, iteration) of the settings that have no seed of their own.
        """
        check_prompts(prompts)
        settings = _settings(sampling, len(prompts))
        if keys is None:
            keys = range(len(prompts))
        elif not hasattr(keys, "__len__"):
            raise EngineError(f"sample: keys should be a list of one integer per prompt, not {short(keys)}")
        if len(keys) != len(prompts) or len(settings) != len(prompts):
            raise EngineError(
                f"sample: {len(prompts)} prompts with {len(keys)} keys and {len(settings)} settings"
            )
        check_keys(keys)
        if not self.stop_strings and any(s.stop for s in settings):
            raise EngineError("stop: stop strings need a tokenizer; use stop_ids")
        jobs = []
        for i, (prompt, setting, key) in enumerate(zip(prompts, settings, keys, strict=True)):
            seed, step = noise if setting.seed is None else (setting.seed, 0)
            end_ids = frozenset(setting.stop_ids)
            if not setting.ignore_eos:
                end_ids |= self.eos_ids
            grammar = None
            try:
                adapter = chosen(setting.adapter, self.adapters)
                ids = self.encode(prompt)
                limit = _limit(ids, setting, self.config)
                if setting.constraint is not None:
                    grammar = self.grammars.compile(setting.constraint, end_ids)
            except EngineError as error:
                raise type(error)(f"prompt {i}: {error}") from error
            noise_key = seed & UINT64, step, int(key)
            jobs.append(Job(ids, setting, noise_key, limit, end_ids, i, grammar, adapter=adapter))
        return jobs


def _limit(ids: list[int], sampling: Sampling, config: ModelConfig) -> int:
    """Most tokens of a sample. Raises EngineError for ids outside the vocabulary and a prompt too long."""
    size, context = config.vocab_size, config.context_length
    if not ids:
        raise EngineError("empty; it needs at least one token")
    if min(ids) < 0 or max(ids) >= size:
        place = next(i for i, token in enumerate(ids) if not 0 <= token < size)
        raise EngineError(f"id {ids[place]} at position {place} is outside 0 … {size - 1}")
    room = context - len(ids)
    if room < 1:
        raise EngineError(f"{len(ids)} tokens leave no room in a context of {context}")
    if max(sampling.stop_ids, default=0) >= size:
        raise EngineError(f"stop_ids outside 0 … {size - 1}")
    return min(sampling.max_tokens, room)


def _settings(sampling: Sampling | Sequence[Sampling] | None, prompts: int) -> list[Sampling]:
    """The settings of each prompt. Raises EngineError for anything but a Sampling or a list of them."""
    if isinstance(sampling, Sampling | None):
        return [sampling or Sampling()] * prompts
    settings = list(sampling) if isinstance(sampling, Sequence) else [sampling]
    if not all(isinstance(s, Sampling) for s in settings):
        raise EngineError(
            f"sample: sampling should be a Sampling, or a list of one per prompt, not {short(sampling)}"
        )
    return settings
