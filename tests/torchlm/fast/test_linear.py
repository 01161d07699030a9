"""The matmul on a CPU: the same numbers by oneDNN as by `F.linear`, forward and backward, and without oneDNN."""

import pytest
import torch
import torch.nn.functional as F

from torchlm.fast import linear as module
from torchlm.fast.linear import MIN_ROWS, ONEDNN, laid_out, linear, matmul, onednn_linear
from torchlm.linear import Linear

SHAPES = [((MIN_ROWS, 5), 4), ((3, 33, 8), 3), ((2, 1, 1), 9)]


@pytest.mark.skipif(not ONEDNN, reason="this torch was built without oneDNN")
@pytest.mark.parametrize(("rows", "outputs"), SHAPES)
def test_it_is_the_matmul_and_its_gradients(
    rows: tuple[int, ...], outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAST_MKL", False)
    torch.manual_seed(0)
    x, weight = torch.randn(rows, requires_grad=True), torch.randn(outputs, rows[-1], requires_grad=True)
    torch.library.opcheck(onednn_linear, (x.detach(), weight.detach()))
    y = linear(x, weight)
    assert type(y.grad_fn).__name__ != type(F.linear(x, weight).grad_fn).__name__, "oneDNN was asked"
    direction = torch.randn(y.shape)
    exact = F.linear(x.double(), weight.double())
    for found, expected in zip(
        (y, *torch.autograd.grad(y, (x, weight), direction)),
        (exact, *torch.autograd.grad(exact, (x, weight), direction.double())),
        strict=True,
    ):
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not ONEDNN, reason="this torch was built without oneDNN")
@pytest.mark.parametrize("fast_mkl", [True, False])
def test_where_mkl_is_fast_only_few_rows_and_many_outputs_go_to_onednn(
    fast_mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAST_MKL", fast_mkl)
    wide, narrow = torch.randn(6, 4, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    by_torch = type(F.linear(torch.randn(2, 4), wide).grad_fn)
    asked = {
        (rows, len(weight)): type(linear(torch.randn(rows, weight.shape[1]), weight).grad_fn) is not by_torch
        for rows in (MIN_ROWS - 1, MIN_ROWS)
        for weight in (wide, narrow)
    }
    few, many = MIN_ROWS - 1, MIN_ROWS
    assert asked == {(few, 6): True, (few, 4): False, (many, 6): not fast_mkl, (many, 4): not fast_mkl}


def test_other_types_and_few_rows_go_to_torch() -> None:
    for layer, rows in ((Linear(4, 6), 1), (Linear(4, 4), MIN_ROWS - 1)):
        assert layer.bias is None
        few = torch.randn(rows, 4, requires_grad=True)
        assert type(layer(few).grad_fn) is type(F.linear(few, layer.weight).grad_fn)
    layer = Linear(4, 6)
    many = torch.randn(2 * MIN_ROWS, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(many).dtype == torch.bfloat16
    assert layer.double()(many.double()).dtype == torch.float64
    assert layer(many[:0].double()).shape == (0, 6)


def test_bfloat16_is_multiplied_in_float32_where_the_processor_has_no_such_matmuls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The factors and the sum are rounded to bfloat16, and nothing else is."""
    monkeypatch.setattr(module, "CPU_BFLOAT16", False)
    torch.manual_seed(0)
    x, weight = torch.randn(3, 300, requires_grad=True), torch.randn(5, 300, requires_grad=True)
    exact = F.linear(x.bfloat16().double(), weight.bfloat16().double())
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, weight)
    for found in (y, linear(x.bfloat16(), weight.bfloat16()), matmul(x.bfloat16(), weight.T.bfloat16())):
        assert torch.equal(found, exact.float().bfloat16())
    assert not torch.equal(y, F.linear(x, weight).bfloat16()), "the factors are rounded"
    direction = torch.randn(3, 5).bfloat16()
    for found, expected in zip(
        torch.autograd.grad(y, (x, weight), direction),
        torch.autograd.grad(exact, (x, weight), direction.double()),
        strict=True,
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected.bfloat16().float(), rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_torchs_private_operators_it_is_the_plain_form(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object) -> None:
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr(module, "ONEDNN", False)
    monkeypatch.setattr(module, "CPU_BFLOAT16", False)
    monkeypatch.setattr(module, "onednn_linear", never)
    torch.manual_seed(0)
    x, weight = torch.randn(2 * MIN_ROWS, 5, dtype=dtype), torch.randn(9, 5, dtype=dtype)
    expected = F.linear(x.double(), weight.double())
    for found in (linear(x, weight), linear(x, laid_out(weight)), matmul(x, weight.T)):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
    assert not torch.allclose(linear(x, -weight), expected.to(dtype), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_a_weight_laid_out_for_one_row_is_the_same_weight(dtype: torch.dtype, shape: tuple[int, int]):
    torch.manual_seed(0)
    weight, x = torch.randn(shape).to(dtype), torch.randn(1, shape[1]).to(dtype)
    expected = F.linear(x.double(), weight.double())
    allowed = 4 * torch.finfo(dtype).eps * expected.abs().max()
    assert (linear(x, laid_out(weight)).double() - expected).abs().max() <= allowed
    assert (linear(x, laid_out(weight.flip(1))).double() - expected).abs().max() > allowed
