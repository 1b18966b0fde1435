"""The pretended card itself: what it refuses, what it counts, and its bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from proactor.engine import SFT
from proactor.engine.paged import PagedCache
from proactor.engine.state import check_state
from proactor.kernels import paged_kernels
from proactor.kernels.swiglu import swiglu
from tests.card.card import CardTensor, on_card
from tests.card.counts import PLAIN, steps
from tests.card.engines import needs_card, open_engine, write
from tests.card.process import own_process
from tests.engine.engines import outside

pytestmark = needs_card


def there(*shape: int, **options: object) -> torch.Tensor:
    return torch.ones(shape, device="card", **options)  # type: ignore[call-overload,no-any-return]


# --- refusals ---


@own_process
def test_devices_do_not_mix() -> None:
    with on_card():
        ours, host = there(3), torch.ones(3)
        for work, name in [
            (lambda: ours + host, "add"),
            (lambda: ours.add_(host), "add_"),
            (lambda: torch.cat([ours, host]), "cat"),
            (lambda: host[ours.long()], "index"),
            (lambda: ours.index_select(0, torch.tensor([0])), "index_select"),
        ]:
            with pytest.raises(RuntimeError, match=rf"^{name} at .*expected all tensors to be on the same"):
                work()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device="card", generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            ours.numpy()
        assert (ours + torch.tensor(2.0)).tolist() == [3.0] * 3  # a single number may come from the CPU


@pytest.mark.parametrize("table", ["cos", "slots"])
@own_process
def test_a_table_on_the_cpu_is_refused(tmp_path: Path, table: str) -> None:
    with on_card():
        engine = open_engine(write(tmp_path / "model"))
        if table == "cos":
            engine.decoder.cos = engine.decoder.cos.cpu()
            expected = r"^index at engine/model\.py:\d+: .* card:0 and cpu \(\[128, 8\]\)"
        else:
            slots = PagedCache._slots
            PagedCache._slots = lambda self, runs: slots(self, runs).cpu()  # type: ignore[method-assign]
            expected = r"^index_select at engine/paged\.py:\d+: .* card:0 and cpu \(\[5\]\)"
        with pytest.raises(RuntimeError, match=expected):
            steps(engine, PLAIN)


@own_process
def test_a_pointer_of_the_host_is_refused(tmp_path: Path) -> None:
    with on_card():
        engine = open_engine(write(tmp_path / "model"))
        paged_kernels.to_device = lambda array, device: torch.from_numpy(
            np.ascontiguousarray(array, np.int32)
        )
        with pytest.raises(RuntimeError, match=r"^paged_attention_kernel at .*: tile_ptr is a CPU tensor \["):
            steps(engine, PLAIN)


# --- counts ---


@own_process
def test_what_is_counted() -> None:
    with on_card() as card:
        ours = there(4)
        cases = [
            (lambda: torch.arange(4).to("card"), 1, 0),
            (lambda: torch.tensor([1, 2], device="card"), 1, 0),
            (lambda: ours.copy_(torch.ones(4)), 1, 0),
            (lambda: ours[torch.tensor([0, 1])], 1, 0),
            (lambda: ours.add(1).to(torch.float64), 0, 0),
            (lambda: torch.zeros(4, device="card"), 0, 0),
            (lambda: ours.cpu(), 0, 1),
            (lambda: ours.tolist(), 0, 1),
            (lambda: ours.sum().item(), 0, 1),
            (lambda: bool(ours.any()), 0, 1),
            (lambda: torch.ones(4).copy_(ours), 0, 1),
            (lambda: ours[ours > 0], 0, 1),
            (lambda: ours.nonzero(), 0, 1),
            (lambda: torch.equal(ours, ours), 0, 1),
        ]
        for i, (work, uploads, waits) in enumerate(cases):
            card.reset()
            work()
            assert (card.uploads.total(), card.waits.total()) == (uploads, waits), f"case {i}"


@own_process
def test_counted_at_the_line_of_the_engine(tmp_path: Path) -> None:
    with on_card() as card:
        engine = open_engine(write(tmp_path / "model"))
        card.reset()
        engine.parameters()[0].data_ptr()
        swiglu(there(2, 8))
        assert not card.uploads and card.launches == {"swiglu_forward_kernel": 1}
        engine.zero_grad()
        assert not card.waits
        trainer = engine._trainer()
        check_state(engine.state_dict(), trainer.lora.identity(), trainer.lora.flat.shape)
        assert {line.split(":")[0] for line in card.waits} == {"engine/state.py"} and card.waits.total() == 4


# --- bytes ---


@own_process
def test_bytes_live_as_long_as_their_storage() -> None:
    with on_card() as card:
        ours = there(100)
        assert card.live_bytes == 400
        view = ours[10:]
        del ours
        assert card.live_bytes == 400, "a view keeps its storage"
        view.view(-1).add_(1)
        double = view.double()
        del double
        assert (card.live_bytes, card.peak_bytes) == (400, 400 + 720)
        del view
        card.reset()
        assert card.live_bytes == card.peak_bytes == 0


@own_process
def test_what_autograd_keeps_is_counted() -> None:
    with on_card() as card:
        x = there(256, requires_grad=True)
        y = x.exp().exp().sum()
        assert card.live_bytes == 3 * 1024 + 4
        y.backward()
        assert x.grad is not None and isinstance(x.grad, CardTensor)
        del y
        assert card.live_bytes == 2 * 1024


@own_process
def test_bytes_of_an_engine(tmp_path: Path) -> None:
    """The card's bytes are those that the engine names, and its small tables."""
    with on_card() as card:
        engine = open_engine(write(tmp_path / "model"))
        steps(engine, PLAIN)
        decoder, layer = engine.decoder, engine.decoder.layers[0]
        biases = [base.bias for base in layer.linears.values() if base.bias is not None]
        tables = sum(
            t.nbytes for t in (decoder.norm, layer.norm1, layer.norm2, decoder.cos, decoder.sin, *biases)
        )
        kept = card.live_bytes - sum(engine.memory().values()) - tables
        assert 0 < kept < 2048, "a decode set's tables, and what kernels keep by device"
        engine.train([outside([1, 2, 3], [4, 5, 6])], SFT())
        held = card.live_bytes
        card.reset()
        engine.train([outside([1, 2, 3], [4, 5, 6])], SFT())
        assert card.live_bytes == held, "a training step leaves nothing behind"
        assert card.peak_bytes > held + decoder.config.vocab_size * 4
