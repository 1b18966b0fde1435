"""Decode steps of a whole model: milliseconds a step by batch, eager, as one CUDA graph, and by the engine.

A step is the engine's own: token rows through all layers over paged keys and values, the head, one drawn
token a row. Its tables stand still, so the eager form has none of the scheduler's work, and the graph is the
same launches replayed. The keys and values are random and as many as `CONTEXT` tokens need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor

from bench.gpu.floors import decode_bytes, decode_flops
from bench.gpu.model import collect, random_decoder, random_engine
from bench.gpu.profile import profiled
from bench.gpu.task import Job, Row, Setting, Skipped, Task, available, figure
from bench.gpu.timing import Run, Stopwatch, steady
from proactor.engine.config import Sampling
from proactor.engine.kv import Sequence
from proactor.engine.model import Decoder
from proactor.engine.paged import PagedCache
from proactor.engine.prefix import PageNode, PrefixTree
from proactor.engine.step import Decode, Request
from proactor.engine.tables import DecodeTables, TableView
from proactor.kernels.sample import sample_tokens

PAGE = 16
SPARE = 6 << 30
"""Bytes left free beside keys and values: rows, logits, the graph's pool."""
FLOOR = "bytes of weights, keys, values and rows at the measured copy rate, or operations at that of products"


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Batches, context (tokens of each sequence), and the engine's samples behind one prompt."""

    batches: tuple[int, ...] = (1, 16, 64, 256)
    context: int = 2048
    samples: int = 64
    new_tokens: int = 32


TINY_SIZES = Sizes((1, 3), 40, 3, 4)


def tasks(job: Job, setting: Setting) -> list[Task]:
    """By batch: eager, then the graph; then the engine, and where the time of an eager step goes."""
    sizes = TINY_SIZES if setting.dry else Sizes()
    steps = DecodeSteps(job, setting, sizes)
    out = []
    for batch in sizes.batches:
        for name, form in (("eager", steps.eager), ("one CUDA graph", steps.graph)):
            label = f"decode step, B = {batch}, context {sizes.context}, {name}"
            out.append(Task(label, partial(form, batch), 60.0))
    middle = sizes.batches[len(sizes.batches) // 2 - 1]
    out.append(Task(f"decode step, B = {middle}, profile", partial(steps.profile, middle), 60.0))
    label = f"engine, {sizes.samples} samples behind one prompt of {sizes.context}, a step"
    return [*out, Task(label, steps.engine, 90.0)]


class DecodeSteps:
    """The model and its cache, made when the first task needs them."""

    def __init__(self, job: Job, setting: Setting, sizes: Sizes) -> None:
        self.job, self.setting, self.sizes = job, setting, sizes
        self.device = setting.torch_device
        self.pages = -(-(sizes.context + 1) // PAGE)

    @cached_property
    def decoder(self) -> Decoder:
        return random_decoder(self.job.shape, self.device, self.setting.seed)

    @cached_property
    def cache(self) -> PagedCache:
        """Pages for the largest batch that fits, filled at random."""
        config, decoder = self.decoder.config, self.decoder
        each = self.pages * PagedCache.page_bytes(config, PAGE, decoder.dtype)
        room = available(self.setting) - (0 if self.setting.dry else SPARE)
        fitting = [batch for batch in self.sizes.batches if batch * each <= room]
        if not fitting:
            raise Skipped(f"{each / 1e9:.1f} GB of keys and values a sequence, {room / 1e9:.1f} GB are free")
        cache = PagedCache(config, max(fitting) * self.pages, PAGE, decoder.dtype, self.device)
        for tensor in (*cache.k, *cache.v):
            tensor.normal_()
        return cache

    def step(self, batch: int) -> Callable[[], Tensor]:
        """A step of ``batch`` sequences that gives the drawn ids [B]. Raises Skipped without room."""
        decoder, cache, device = self.decoder, self.cache, self.device
        held = cache.k[0].shape[1] // PAGE
        if batch * self.pages > held:
            raise Skipped(f"{batch * self.pages} pages needed, memory has room for {held}")
        order = torch.randperm(held, generator=torch.Generator().manual_seed(self.setting.seed)).tolist()
        decodes = [self._sequence(i, order[i * self.pages : (i + 1) * self.pages]) for i in range(batch)]
        tables = DecodeTables(decodes, PAGE, device)
        where, slots = (torch.from_numpy(x).to(device) for x in tables.refresh())
        view = TableView(cache.k, cache.v, slots, tables, None, decoder.config.head_dim**-0.5)
        ids = torch.arange(batch, device=device) % decoder.config.vocab_size
        temperature = torch.ones(batch, device=device)
        uniforms = torch.rand(batch, dtype=torch.float64, device=device)

        @torch.no_grad()
        def step() -> Tensor:
            hidden = decoder.final_norm(decoder.hidden(ids, where, view))
            logits = decoder.head_linear(hidden, decoder.head)
            return sample_tokens(logits, temperature, uniforms, checked=False)[0]

        return step

    def _sequence(self, index: int, pages: list[int]) -> Decode:
        """A sequence of `Sizes.context` tokens in ``pages``, of a request of its own."""
        prompt = [0] * self.sizes.context
        tree = PrefixTree(PageNode(None, (), -1))
        sequence = Sequence(tree, prompt, [], pages, [None] * len(pages), len(prompt))
        return Decode(
            id=(index, 0),
            request=Request(index, "bench", prompt),
            seq=sequence,
            length=len(prompt),
            input_id=0,
            shared_pages=0,
            capacity=len(pages) * PAGE,
            left=1,
        )

    def eager(self, batch: int, watch: Stopwatch) -> list[Row]:
        return [self._figure(batch, watch, self.step(batch))]

    def graph(self, batch: int, watch: Stopwatch) -> list[Row]:
        step = self.step(batch)
        expected = step().clone()
        replay, drawn = captured(step, self.device)
        replay()
        if not torch.equal(drawn(), expected):
            raise ValueError("the replayed graph draws other tokens than the step that it was captured from")
        return [self._figure(batch, watch, replay)]

    def _figure(self, batch: int, watch: Stopwatch, call: Run) -> Row:
        timing = steady(watch, call, self.setting.seconds)
        shape, context = self.job.shape, self.sizes.context
        work = decode_bytes(shape, batch, context), decode_flops(shape, batch, context)
        floor, bound = self.setting.ceilings.floor(*work)
        details = {**dataclasses.asdict(timing), "bound": bound, "tokens_per_second": batch / timing.median}
        return figure(timing.median * 1e3, "ms", floor * 1e3, FLOOR, **details)

    def profile(self, batch: int, watch: Stopwatch) -> list[Row]:
        step = self.step(batch)
        step()
        return [{"profile": profiled(step, self.device)}]

    def engine(self, watch: Stopwatch) -> list[Row]:
        """Milliseconds a step of `Engine.sample`, scheduler and copies included; the prompt is cached."""
        self.__dict__.pop("decoder", None)
        self.__dict__.pop("cache", None)
        collect()
        s, shape = self.sizes, self.job.shape
        rows = s.context + s.samples * (s.new_tokens + PAGE) + PAGE
        engine = random_engine(shape, self.device, self.setting.seed, max(rows, 8192))
        prompt = [[i % shape.vocabulary for i in range(s.context)]]
        sampling = Sampling(n=s.samples, max_tokens=s.new_tokens, ignore_eos=True)
        engine.sample(prompt, sampling)  # compiles, and leaves the prompt in the cache
        taken = sorted(watch.sample([lambda: engine.sample(prompt, sampling)], 0.0)[0] for _ in range(3))
        each = taken[1] / s.new_tokens
        # the prompt is read once for all samples: one sequence of it, and the samples' own tokens
        own = s.new_tokens // 2
        least = decode_bytes(shape, s.samples, own) + decode_bytes(shape, 1, s.context)
        least -= decode_bytes(shape, 1, 0)
        floor, bound = self.setting.ceilings.floor(least, decode_flops(shape, s.samples, s.context + own))
        return [figure(each * 1e3, "ms", floor * 1e3, f"{FLOOR}; the prompt read once", bound=bound)]


def captured(call: Callable[[], Tensor], device: torch.device) -> tuple[Run, Callable[[], Tensor]]:
    """(a replay of ``call`` as one CUDA graph, what gives its last result). On a CPU the call itself.

    ``call`` must neither wait for the device nor make tensors of new sizes, and runs before on a stream of
    its own, as capturing demands.
    """
    results: list[Tensor] = []

    def keep() -> None:
        results[:] = [call()]

    if device.type != "cuda":
        return keep, lambda: results[0]
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        keep()
    return graph.replay, lambda: results[0]
