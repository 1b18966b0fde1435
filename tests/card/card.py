"""A pretended GPU: tensors on the device ``card:0`` whose values lie on the CPU, and what a GPU would refuse.

`register` makes PyTorch know the device, for the whole process (`process.own_process` keeps that away from
other tests). Inside `on_card` the engine loads there. Operations that mix devices are refused by name, and so
are kernels that are handed a CPU tensor. `CARD` counts copies to the card, waits for it, kernel launches, and
bytes.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "card"
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
"""Whether this PyTorch can make a device out of Python (2.11 to 2.13 can)."""


def register() -> None:
    """Make the device known to PyTorch: once a process, and before its first backward pass."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)


class Allocation:
    """The bytes of one storage on the card, counted from its first tensor to its last."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        CARD.live_bytes += nbytes
        CARD.peak_bytes = max(CARD.peak_bytes, CARD.live_bytes)

    def __del__(self) -> None:
        CARD.live_bytes -= self.nbytes


class PretendedCard:
    """What was done to the card. Counters are keyed by source line, as "engine/sampler.py:119".

    uploads: copies from the host. waits: reads by the host (`item`, `tolist`, `cpu`, bool of a tensor) and
    operations whose output's shape depends on values, which a GPU's host waits for. launches: kernels, by
    name. live_bytes, peak_bytes: of all storages, without an allocator's rounding.
    """

    def __init__(self) -> None:
        self.uploads: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.live_bytes = self.peak_bytes = 0
        self.allocations: WeakValueDictionary[int, Allocation] = WeakValueDictionary()

    def reset(self) -> None:
        """Start the counters anew, and the peak from the bytes that live now."""
        for counter in (self.uploads, self.waits, self.launches):
            counter.clear()
        self.peak_bytes = self.live_bytes

    def allocation(self, inner: Tensor) -> Allocation:
        """The allocation that ``inner`` lies in: what its storage already has, or a new one."""
        storage = inner.untyped_storage()
        found = self.allocations.get(storage._cdata)
        if found is None:
            found = self.allocations[storage._cdata] = Allocation(storage.nbytes())
        return found


CARD = PretendedCard()


class CardTensor(Tensor):
    """A tensor that says it is on the card; its values are those of ``inner``, on the CPU."""

    inner: Tensor
    allocation: Allocation

    @staticmethod
    def __new__(cls, inner: Tensor) -> CardTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
        )
        made.inner, made.allocation = inner, CARD.allocation(inner)
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    # torch offers these for no subclass
    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert card:0 device type tensor to numpy")

    def __repr__(self, **kwargs: Any) -> str:
        return f"CardTensor({list(self.shape)}, {self.dtype})"


class CardMode(TorchDispatchMode):
    """Catches what makes a tensor on the card out of none: factories and copies."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
READS = {"_local_scalar_dense", "equal"}
SHAPED = set(
    "nonzero masked_select bincount repeat_interleave _unique2 unique_dim unique_consecutive".split()
)
"""Operations whose output's shape depends on values."""


def dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the values of its tensors. RuntimeError, as on a GPU, where devices are mixed."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_card = [x for x in tensors if isinstance(x, CardTensor)]
    device = kwargs.get("device")
    made_there = device is not None and torch.device(device).type == NAME
    if not on_card and not made_there:
        return func(*args, **kwargs)
    name = func.overloadpacket.__name__
    _refuse_mixture(name, args, [x for x in tensors if x.dim() and not isinstance(x, CardTensor)])
    if made_there:
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != NAME:
            raise RuntimeError(f"{name}: expected a 'card' device type for generator but found 'cpu'")
        kwargs = {**kwargs, "device": torch.device("cpu")}
    values = tree_map(lambda x: x.inner if isinstance(x, CardTensor) else x, (args, kwargs))
    out = func(*values[0], **{k: v for k, v in values[1].items() if k != "pin_memory"})
    if name == "copy_":
        _count_copy(isinstance(args[0], CardTensor), isinstance(args[1], CardTensor))
        return args[0]
    if name == "_to_copy":
        source = isinstance(args[0], CardTensor)
        target = source if device is None else made_there
        _count_copy(target, source)
        return CardTensor(out) if target else out
    if name in READS or name in SHAPED:
        CARD.waits[source_line()] += 1
    elif name in INDEXING:
        _count_indices([x for x in args[1] if x is not None])
    if not isinstance(out, Tensor | tuple | list):
        return out
    wrapped = tree_map(lambda x: CardTensor(x) if type(x) is Tensor else x, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _refuse_mixture(name: str, args: Any, on_host: list[Tensor]) -> None:
    """``on_host``: the CPU tensors among the arguments, but for single numbers, which a GPU takes."""
    if name in INDEXING and isinstance(args[0], CardTensor):
        indices = [id(x) for x in args[1] if x is not None]  # may be on the CPU: copied
        on_host = [x for x in on_host if id(x) not in indices]
    if on_host and name not in COPIES:
        shapes = ", ".join(str(list(x.shape)) for x in on_host)
        raise RuntimeError(
            f"{name} at {source_line()}: expected all tensors to be on the same device, but found at least "
            f"two devices, card:0 and cpu ({shapes})"
        )


def _count_copy(target: bool, source: bool) -> None:
    """Count a copy between tensors that are on the card, or not."""
    if target != source:
        (CARD.uploads if target else CARD.waits)[source_line()] += 1


def _count_indices(indices: list[Tensor]) -> None:
    """Count what indexing costs: a copy an index on the CPU, and a wait where masks decide the shape."""
    CARD.uploads.update([source_line()] * sum(not isinstance(x, CardTensor) for x in indices))
    CARD.waits.update([source_line()] * any(x.dtype == torch.bool for x in indices))


def source_line() -> str:
    """The innermost line of the engine or the kernels that is running; "autograd" where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(("proactor.engine.", "proactor.kernels.")):
            folder, file = frame.f_code.co_filename.split("/")[-2:]
            return f"{folder}/{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "autograd"


@contextmanager
def on_card() -> Iterator[PretendedCard]:
    """In the block ``device="cuda"`` is the card, and kernels run in Triton's interpreter on its tensors."""
    from triton.runtime.interpreter import InterpretedFunction

    from proactor.engine import loading, owner
    from proactor.kernels import op

    serve = owner._serve

    def serve_on_card(*arguments: Any) -> None:  # a mode is a thread's own
        with CardMode():
            serve(*arguments)

    run, plain = InterpretedFunction.run, torch.tensor

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        name = self.fn.__name__
        for argument, value in [*zip(self.arg_names, args), *kwargs.items()]:
            if isinstance(value, Tensor) and not isinstance(value, CardTensor):
                raise RuntimeError(
                    f"{name} at {source_line()}: {argument} is a CPU tensor {list(value.shape)}, whose "
                    "pointer is an illegal address on a card"
                )
        CARD.launches[name] += 1
        args, kwargs = tree_map(lambda x: x.inner if isinstance(x, CardTensor) else x, (args, kwargs))
        return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    def tensor(data: Any, *, device: Any = None, **rest: Any) -> Tensor:  # PyTorch hides its copy from modes
        made = plain(data, **rest)
        return made if device is None else made.to(device)

    CARD.reset()
    with (
        mock.patch.dict(os.environ, {"PROACTOR_KERNELS": "auto"}),
        mock.patch.object(InterpretedFunction, "run", launch),
        mock.patch.object(torch, "tensor", tensor),
        mock.patch.object(loading, "choose_device", lambda name: torch.device(NAME, 0)),
        mock.patch.object(owner, "_serve", serve_on_card),
        mock.patch.object(op, "GPUS", (*op.GPUS, NAME)),
        CardMode(),
    ):
        yield CARD
