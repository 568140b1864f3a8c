"""The floor's formulas, at figures that were worked out apart from the code."""

import pytest

from logratio.lab.floor import (
    Peak,
    Shape,
    Work,
    decoding,
    phases,
    prefill,
    scoring,
    shape_of,
    training,
)
from logratio.lab.shapes import made
from logratio.lab.workload import Workload, equal
from logratio.model.load import load

GPT2 = Shape(
    body=84_934_656, head=38_597_376, parameters=124_439_808,
    layers=12, heads=12, kv_heads=12, width=64,
)  # fmt: skip
HALF = Shape(
    body=357_826_560, head=136_134_656, parameters=494_032_768,
    layers=24, heads=14, kv_heads=2, width=64,
)  # fmt: skip
FP32 = Peak(flops=250e9, bandwidth=25e9)
BF16 = Peak(flops=500e9, bandwidth=25e9)
H200 = Peak(flops=788e12, bandwidth=4.3e12)
REFERENCE = equal(16, 8, (256, 256))
SMALL = Shape(body=100, head=10, parameters=110, layers=2, heads=4, kv_heads=2, width=8)

# The printed tables have two or three digits, and count C decoding steps where the first token
# comes with the prompt and C - 1 are left: 1 in 256.
PRINTED = 0.02


@pytest.mark.parametrize(
    ("shape", "peak", "precision", "expected"),
    [
        (GPT2, FP32, "fp32", {"prefill": 2.9, "decode": 34.2, "train": 121, "total": 159}),
        (HALF, FP32, "fp32", {"prefill": 11.9, "decode": 134, "train": 473, "total": 619}),
        (GPT2, BF16, "bf16", {"prefill": 1.43, "decode": 17.1, "train": 60.7, "total": 79}),
        (HALF, BF16, "bf16", {"prefill": 6.0, "decode": 66.9, "train": 236, "total": 310}),
        (GPT2, H200, "bf16", {"prefill": 0.9e-3, "decode": 59.5e-3, "total": 100e-3}),
        (HALF, H200, "bf16", {"prefill": 3.8e-3, "decode": 73.8e-3, "total": 230e-3}),
    ],
)
def test_the_reference_step_is_as_printed(shape, peak, precision, expected):
    found = phases(shape, REFERENCE, precision, peak, overlapped=True, head_products=4)
    found["total"] = sum(found.values())
    for name, seconds in expected.items():
        assert found[name] == pytest.approx(seconds, rel=PRINTED)  # two printed digits


@pytest.mark.parametrize(
    ("peak", "precision", "decode", "total"),
    [(FP32, "fp32", 47.8, 172), (BF16, "bf16", 23.9, 86)],
)
def test_the_serial_floor_is_as_printed(peak, precision, decode, total):
    found = phases(GPT2, REFERENCE, precision, peak, head_products=4)
    assert found["decode"] == pytest.approx(decode, rel=PRINTED)  # as above
    assert sum(found.values()) == pytest.approx(total, rel=PRINTED)  # as above


@pytest.mark.parametrize(
    ("load", "seconds"), [(equal(4, 8, (64, 64)), 9.7), (equal(4, 8, (128, 32)), 6.0)]
)
def test_the_small_workloads_are_as_printed(load, seconds):
    found = phases(GPT2, load, "fp32", FP32, overlapped=True, head_products=4)
    assert sum(found.values()) == pytest.approx(seconds, rel=PRINTED)  # two printed digits


@pytest.mark.parametrize(
    ("shape", "peak", "size", "rows", "milliseconds"),
    [
        (GPT2, FP32, 4, 1, 20.9),
        (GPT2, FP32, 4, 8, 28.8),
        (GPT2, FP32, 4, 32, 56),
        (GPT2, FP32, 4, 128, 165),
        (GPT2, BF16, 2, 512, 300),
        (HALF, FP32, 4, 1, 79),
        (HALF, BF16, 2, 32, 65),
        (HALF, H200, 2, 128, 0.37),
    ],
)
def test_a_decoding_step_is_as_printed(shape, peak, size, rows, milliseconds):
    """At context 384 with nothing shared: as many prompts as rows, and one token past them."""
    load = Workload(prompts=(383,) * rows, completions=((2,),) * rows)
    found = 1e3 * decoding(shape, load, 1, size).overlapped(peak)
    assert found == pytest.approx(milliseconds, rel=PRINTED)  # two printed digits


def test_the_parts_of_a_training_pass_are_as_printed():
    bodiless = Shape(**{**vars_of(GPT2), "body": 0})
    headless = Shape(**{**vars_of(GPT2), "head": 0})
    work = training(GPT2, REFERENCE)
    assert training(headless, REFERENCE).linear == pytest.approx(18.8e12, rel=PRINTED)  # printed
    assert training(bodiless, REFERENCE).linear == pytest.approx(7.6e12, rel=PRINTED)  # printed
    again = training(bodiless, REFERENCE, head_products=4).linear
    assert again == pytest.approx(10.1e12, rel=PRINTED)  # printed
    assert work.attention == pytest.approx(1.45e12, rel=PRINTED)  # printed


def vars_of(shape):
    return {name: getattr(shape, name) for name in Shape.__dataclass_fields__}


def test_keys_and_values_of_a_token_are_as_printed():
    assert GPT2.cached(2) == pytest.approx(36.9e3, rel=1e-3)
    assert HALF.cached(4) == pytest.approx(24.6e3, rel=1e-3)


def test_one_prompt_and_two_ragged_completions_by_hand():
    """Prompt 3; completions 1 and 4. A score costs 4 x 2 x 4 x 8 = 256, a token's cache 64 b."""
    load = Workload(prompts=(3,), completions=((1, 4),))
    assert prefill(SMALL, load, 4) == Work(
        linear=2 * 100 * 3 + 2 * 10, attention=256 * 6, weights=110 * 4
    )
    # only the longer row is left after the first token: it sees the prompt and its own two
    assert decoding(SMALL, load, 2, 4) == Work(
        linear=2 * 110, attention=256 * 5, weights=110 * 4, cache=256 * (3 + 2)
    )
    assert decoding(SMALL, load, 4, 4).linear == 0
    pairs = 6 + (3 + 1) + (12 + 10)
    assert scoring(SMALL, load) == Work(linear=2 * 100 * 8 + 2 * 10 * 5, attention=256 * pairs)
    assert training(SMALL, load) == Work(linear=3 * 1700, attention=3 * 256 * pairs)


def test_the_first_token_comes_with_the_prompt_and_the_last_is_not_read():
    load = Workload(prompts=(3,), completions=((1, 4),))
    found = phases(SMALL, load, "fp32", Peak(flops=1.0, bandwidth=1e9), overlapped=True)
    assert found["decode"] == sum(2 * 110 + 256 * (3 + own) for own in (1, 2, 3))


def test_a_prompt_is_read_once_a_group_and_not_after_its_last_row():
    load = Workload(prompts=(3, 7), completions=((2, 2), (1, 1)))
    found = decoding(SMALL, load, 1, 2)
    assert found.cache == SMALL.cached(2) * (3 + 2)
    assert found.attention == 256 * 2 * (3 + 1)


def test_serial_takes_turns_and_overlapped_does_not():
    work = Work(linear=8.0, attention=2.0, weights=6.0, cache=12.0)
    peak = Peak(flops=1.0, bandwidth=2.0)
    assert work.overlapped(peak) == 10.0
    assert work.serial(peak) == 8.0 + 6.0


def test_a_reference_and_epochs_cost_what_they_do():
    plain = phases(GPT2, equal(2, 8, (64, 64)), "fp32", FP32)
    whole = Workload(**{
        **{name: getattr(equal(2, 8, (64, 64)), name) for name in ("prompts", "completions")},
        "reference": True, "epochs": 2,
    })  # fmt: skip
    more = phases(GPT2, whole, "fp32", FP32)
    assert more["train"] == pytest.approx(2 * plain["train"])
    assert more["optimizer"] == pytest.approx(2 * plain["optimizer"])
    assert more["reference"] == pytest.approx(plain["train"] / 3)
    assert plain["optimizer"] == pytest.approx(32 * 124_439_808 / 25e9)


@pytest.mark.parametrize(
    ("name", "body", "head", "parameters"),
    [
        # 4 layers of 2 x 256² + 2 x 256 x 128 + 3 x 256 x 1024; a tied head of V x 256
        ("qwen2-4.5m", 3_932_160, 524_288, 4_460_800),
        ("w0", 3_932_160, 8_192_000, 12_128_512),
    ],
)
def test_a_shape_is_counted_from_the_modules(name, body, head, parameters):
    found = shape_of(made(name).model)
    assert (found.body, found.head, found.parameters) == (body, head, parameters)
    assert (found.layers, found.heads, found.kv_heads, found.width) == (4, 4, 2, 64)


def test_a_gpt2_has_its_own_kind_of_linear_layer():
    found = shape_of(load("tiny-gpt2").model)
    assert found.body == 2 * 12 * 64**2
    assert found.head == 259 * 64
