"""Dense weights in oneDNN's order: the products of the plain weight, one copy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from proactor.kernels.linear import library_linear, onednn_available, onednn_linear
from proactor.kernels.lora import lora_linear
from proactor.kernels.lora_update import Adapter
from proactor.kernels.ordered import can_order, order, ordered_linear, worth_ordering

SHAPES = [(96, 64), (576, 1536), (33, 20)]
Drawn = Callable[..., torch.Tensor]


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def drawn(request: pytest.FixtureRequest) -> Drawn:
    if not onednn_available(request.param):
        pytest.skip("this processor's oneDNN does not take it")

    def draw(*shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(request.param)

    return draw


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 32, 300])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_those_of_the_plain_weight(
    drawn: Drawn, shape: tuple[int, int], rows: int, biased: bool
) -> None:
    weight, x = drawn(*shape), drawn(rows, shape[1], seed=1)
    bias = drawn(shape[0], seed=2) if biased else None
    found = ordered_linear(x, order(weight), bias)
    plain = onednn_linear(x, weight, bias)
    assert found.shape == (rows, shape[0])
    if rows == 1 and x.dtype == torch.float32:  # a plain lone row is summed in another order
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-4)
    else:
        assert torch.equal(found, plain)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_weight_comes_back_bit_by_bit(drawn: Drawn, shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    held = order(weight)
    assert torch.equal(held.dense(), weight)
    assert held.shape == shape and held.nbytes == weight.nbytes
    assert torch.equal(order(weight.t().contiguous().t()).dense(), weight), "a view with strides"


def test_what_can_be_ordered(drawn: Drawn) -> None:
    assert can_order(drawn(4, 4))
    assert not can_order(drawn(4, 4).half()) and not can_order(drawn(4, 4).double())


def test_it_is_measured_where_it_may_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    worth_ordering.cache_clear()
    library = [2.0] * 4
    seconds = iter([[1.0, 1.0, 3.0, 1.0, *library], [1.0, 1.0, 9.0, 1.0, *library]])
    monkeypatch.setattr("proactor.kernels.ordered.shortest", lambda calls, tries: next(seconds))
    assert worth_ordering((4, 4), torch.bfloat16) and not worth_ordering((4, 4), torch.float32)
    if onednn_available():
        assert worth_ordering((512, 256), torch.float32) and worth_ordering((512, 256), torch.float32)
        assert not worth_ordering((256, 512), torch.float32)
    worth_ordering.cache_clear()


def test_gradients_of_a_linear_with_an_adapter(drawn: Drawn) -> None:
    weight, x = drawn(96, 64), drawn(40, 64, seed=1)
    found = []
    for held in (weight, order(weight)):
        a, b = (torch.randn(*s, generator=torch.Generator().manual_seed(3)) for s in ((4, 64), (96, 4)))
        leaves = [t.requires_grad_() for t in (x.clone(), a, b)]
        adapter = Adapter(leaves[1], [leaves[2]], [(0, 96)], [4], [2.0])
        y = lora_linear(leaves[0], lambda held=held: held, None, adapter, linear=library_linear)  # type: ignore[misc]
        found.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), leaves)])
    rtol = 1e-5 if x.dtype == torch.float32 else 0  # MKL's products of float32, not oneDNN's
    torch.testing.assert_close(found[0], found[1], rtol=rtol, atol=10 * rtol)
