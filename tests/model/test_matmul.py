"""Layouts and routes change no number but its last digits."""

import pytest
import torch
from model.models import models
from torch.testing import assert_close

from logratio.model import matmul
from logratio.model.matmul import can_lay_out, faster_route, laid_out, linear_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", [1, 16, 100])
def test_a_laid_out_product_is_the_product(dtype, biased, rows):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((rows, 1, 48), (30, 48), (30,))
    )
    found = linear_of(weight, bias if biased else None)(x)
    truth = torch.nn.functional.linear(
        x.double(), weight.double(), bias.double() if biased else None
    )
    near = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float64: 1e-12}[dtype]
    assert_close(found.double(), truth, rtol=near, atol=near * 10)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_a_model_with_laid_out_weights_is_the_model(name):
    model = models()[name].float()
    ids = torch.arange(1, 12)[None]
    with torch.no_grad():
        plain = model(ids).logits
        with laid_out(model):
            inside = model(ids).logits
        after = model(ids).logits
    assert_close(inside, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
    assert torch.equal(after, plain)
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_what_has_no_layout_is_left_alone(monkeypatch):
    weight = torch.zeros(3, 4)
    assert not can_lay_out(weight.double())
    assert not can_lay_out(weight.to("meta"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_lay_out(weight)


@pytest.mark.parametrize(
    ("timings", "chosen"),
    [
        ([(1.0, 1e-5), (0.5, 1e-5)], "bf16"),
        ([(1.0, 1e-5), (0.95, 1e-5)], "none"),  # not worth it
        ([(1.0, 1e-5), (0.2, 1e-2)], "none"),  # fast because it rounds
    ],
)
def test_the_faster_route_is_taken_where_it_is_as_exact(monkeypatch, timings, chosen):
    setting, given = getattr(torch.backends.mkldnn, "matmul"), iter(timings)  # noqa: B009
    before = setting.fp32_precision
    monkeypatch.setattr(matmul, "timed_product", lambda: next(given))
    try:
        found = faster_route.__wrapped__()
    finally:
        setting.fp32_precision = before
    assert found == (chosen if chosen == "bf16" else before)
