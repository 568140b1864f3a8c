"""Ceilings: sane on any machine, and the machine left as it was."""

import pytest
import torch

from logratio.lab import ceilings
from logratio.lab.ceilings import Ceilings, measured, routed, sizes_of
from logratio.model.load import load


def test_rates_are_those_of_a_machine(monkeypatch):
    monkeypatch.setattr(ceilings, "LUMP", 1e6)
    found = measured(square=64, copy_bytes=2**20)
    assert set(found.matmul) == set(ceilings.ROUTES)
    assert set(found.errors) == {name for name in ceilings.ROUTES if name.startswith("fp32")}
    assert set(found.bandwidth) == {"copy", "sum", "one row"}
    for peak in (found.peak("fp32"), found.peak("bf16")):
        assert 1e7 < peak.flops < 1e16
        assert 1e7 < peak.bandwidth < 1e14
    assert 0 < found.errors["fp32"] < 1e-5
    assert found.record()["matmul_gflops"]["fp32"].keys() == {"64x64x64"}


def test_a_models_own_products_are_measured_and_huge_ones_left_out(monkeypatch):
    monkeypatch.setattr(ceilings, "MOST_FLOPS", 2e6)
    assert set(sizes_of(load("tiny-gpt2").model)) == {
        (rows, inner, columns)
        for inner, columns in [(64, 192), (64, 64), (64, 256), (256, 64), (64, 259)]
        for rows in ceilings.ROWS
        if 2 * rows * inner * columns <= 2e6
    }


def test_a_route_is_left_as_it_was_found():
    matmul = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = matmul.fp32_precision
    route = ceilings.ROUTES["fp32 by oneDNN"]
    with routed(route):
        assert matmul.fp32_precision == "bf16"
    assert matmul.fp32_precision == before
    with pytest.raises(ZeroDivisionError), routed(route):
        _ = 1 / 0
    assert matmul.fp32_precision == before


def made_up(**errors):
    return Ceilings(
        device="cpu",
        threads=1,
        matmul={"fp32": {(1, 1, 1): 2.0}, "fp32 by oneDNN": {(1, 1, 1): 5.0},
                "bf16": {(1, 1, 1): 3.0}, "bf16 laid out": {(1, 1, 1): 6.0, (2, 1, 1): 7.0}},
        errors={"fp32": 1e-7, **errors},
        bandwidth={"copy": 3.0, "sum": 2.0},
    )  # fmt: skip


def test_the_peak_is_the_best_route_that_is_as_accurate():
    good, bad = made_up(**{"fp32 by oneDNN": 1.9e-7}), made_up(**{"fp32 by oneDNN": 1e-3})
    assert good.peak("fp32").flops == 5.0
    assert bad.peak("fp32").flops == 2.0
    assert good.peak("bf16").flops == bad.peak("bf16").flops == 7.0
    assert good.peak("fp32").bandwidth == 3.0


def test_work_is_timed_by_its_median_without_the_first(monkeypatch):
    ticks = iter([0, 5, 10, 12, 20, 21, 30, 33, 40, 44])
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: next(ticks))
    calls = []
    assert ceilings.seconds(lambda: calls.append(1), torch.device("cpu")) == pytest.approx(3)
    assert len(calls) == 1 + ceilings.REPEATS
