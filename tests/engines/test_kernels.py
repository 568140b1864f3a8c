"""The kernels of a GPU, interpreted where there is none, and what a GPU alone can say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model.models import models
from torch.testing import assert_close

HERE = "cuda" if torch.cuda.is_available() else "cpu"  # where conftest has it interpreted
pytest.importorskip("triton", reason="Triton is not installed: it comes with torch for a GPU")

from logratio.engine import requests_of  # noqa: E402
from logratio.engines.local import Local  # noqa: E402
from logratio.engines.local.cuda import attention, sampling  # noqa: E402
from logratio.engines.local.cuda.graph import Eager, Graphs  # noqa: E402
from logratio.engines.local.cuda.stage import Held, Where, plain  # noqa: E402
from logratio.engines.local.cuda.strides import Kept, Kernels, Strides  # noqa: E402
from logratio.model.attention import How  # noqa: E402
from logratio.model.network import Network  # noqa: E402
from logratio.part import needs  # noqa: E402
from logratio.records import Problem  # noqa: E402
from logratio.sampler import Sampling, draw, key_of, uniforms  # noqa: E402

on_gpu = pytest.mark.skipif(HERE == "cpu", reason="no GPU; the interpreted twin runs instead")


def noise(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(HERE, dtype)


def scene(heads, groups, width, dtype):
    """Rows of several prompts and ages, in buffers that are longer than any of them."""
    where = Where(
        owner=torch.tensor([0, 2, 2, 1, 0], device=HERE),
        before=torch.tensor([33, 1, 70, 5], device=HERE),
        length=torch.tensor([0, 40, 31, 7, 2], device=HERE),
    )
    # queries as a model gives them: a cut of one row of numbers, not dense
    query, key, value = (
        part.view(5, 1, -1, width).transpose(1, 2)
        for part in noise(5, (heads + 2 * groups) * width, dtype=dtype).split(
            [heads * width, groups * width, groups * width], 1
        )
    )
    buffers = [(6, 45), (6, 45), (4, 96), (4, 96)]
    held = [noise(rows, groups, tokens, width, seed=n, dtype=dtype)
            for n, (rows, tokens) in enumerate(buffers, 1)]  # fmt: skip
    return (query, key, value), held, where


@pytest.mark.parametrize("window", [None, 36, 1])
@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 4, 8), (6, 2, 16), (3, 1, 24)])
def test_the_kernel_is_plain_attention(heads, groups, width, window, monkeypatch):
    """In pieces of 16 keys, so that a row has up to six of its prompt and three of its own."""
    monkeypatch.setattr(attention, "BYTES", 16 * 8 * 32)
    states, held, where = scene(heads, groups, width, torch.float64)
    copies = [part.clone() for part in held]
    how = How(layer=0, scale=width**-0.5, window=window)
    found = attention.attend(states, Held(*held), where, how)
    wanted = plain(states, Held(*copies), where, how)
    assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    for part, other in zip(held, copies, strict=True):
        assert_close(part, other, rtol=0, atol=0)  # the new token is stored, and nothing else


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        pytest.param(torch.bfloat16, marks=[pytest.mark.gpu, on_gpu]),  # interpreted as integers
    ],
)
def test_fewer_bits_cost_what_they_must(dtype):
    """Against the same attention of the same rounded inputs in float64."""
    states, held, where = scene(6, 2, 16, dtype)
    how = How(layer=0, scale=0.25, window=None)
    wanted = plain(
        tuple(part.double() for part in states), Held(*[one.double() for one in held]), where, how
    )
    found = attention.attend(states, Held(*held), where, how)
    assert found.dtype == dtype
    slack = 8 * torch.finfo(dtype).eps  # a rounded share, and a rounded sum, of numbers near 1
    assert (found.double() - wanted).abs().max() < slack


def test_company_changes_no_bit():
    """Alone, or with its rows in another order, a row has the same output to the last bit."""
    states, held, where = scene(6, 2, 16, torch.float32)
    how = How(layer=0, scale=0.25, window=None)
    whole = attention.attend(states, Held(*held), where, how)
    for some in ([3], [4, 1, 0]):
        part = [one[some] for one in (*states, *held[:2], where.owner, where.length)]
        rest = Where(part[5], where.before, part[6])
        alone = attention.attend(tuple(part[:3]), Held(part[3], part[4], *held[2:]), rest, how)
        assert_close(alone, whole[some], rtol=0, atol=0)


def rows_of_logits(words, rows=12, dtype=torch.float64):
    """Loud logits, flat ones, ones that only one token has, and ones that some have not."""
    logits = noise(rows, words, dtype=dtype) * torch.linspace(0, 9, rows, device=HERE)[:, None]
    logits[1, words // 2] = 60.0
    logits[2, ::3] = -torch.inf
    logits[3, : words - 1] = -torch.inf
    return logits.to(dtype)


@pytest.mark.parametrize("words", [7, 2048, 5001])
@pytest.mark.parametrize("heat", [1.0, 0.7])
def test_one_pass_draws_what_the_sampler_draws(words, heat):
    logits = rows_of_logits(words)
    for step in range(4):
        keys = torch.tensor([key_of(step, row) for row in range(len(logits))], device=HERE)
        uniform = uniforms(keys, torch.zeros_like(keys))
        found = sampling.draw(logits, uniform, heat)
        wanted = draw(logits, uniform, Sampling(temperature=heat))
        assert_close(found.ids, wanted.ids, rtol=0, atol=0)
        for part in ("old", "behaviour", "entropy"):
            assert_close(getattr(found, part), getattr(wanted, part), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_what_lies_on_a_boundary_is_drawn_otherwise(dtype):
    logits = rows_of_logits(5001, dtype=dtype)
    uniform = uniforms(torch.arange(12, device=HERE), torch.zeros(12, dtype=int, device=HERE))
    found = sampling.draw(logits, uniform, 1.0)
    wanted = draw(logits.double(), uniform, Sampling())
    steps = logits.double().softmax(-1).cumsum(-1)
    near = (steps - uniform[:, None]).abs().amin(-1) < 1e-5
    assert (near | (found.ids == wanted.ids)).all()
    same = found.ids == wanted.ids
    assert same.sum() >= 10
    for part in ("old", "entropy"):
        one, other = getattr(found, part)[same], getattr(wanted, part)[same]
        assert_close(one.double(), other, rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("edge", [0.0, 1 - 2.0**-53, 1.0])
def test_the_ends_of_the_unit_interval_stay_in_the_support(edge):
    """Also at 1, where no uniform is, but where a rounded sum can be; the last block is empty."""
    logits = rows_of_logits(5001)
    logits[4:, 3500:] = -torch.inf
    uniform = torch.full((12,), edge, dtype=torch.float64, device=HERE)
    found = sampling.draw(logits, uniform, 1.0)
    assert found.old.isfinite().all()
    if edge == 0:
        assert_close(found.ids, draw(logits, uniform, Sampling()).ids, rtol=0, atol=0)


WORDS = [Problem(key=k, prompt="", prompt_ids=ids) for k, ids in [("a", (3, 1, 4)), ("b", (9,))]]


def rollouts_of(network, sampling, kept, samples=2):
    """Returns what an engine says that takes strides with what is kept, on the device here."""

    class Striding(Local):
        def decoding(self, model, requests, sampling):
            slots, ends = self.slots, self.ends
            return Strides(requests, sampling, slots=slots, ends=ends, model=model, kept=kept)

    network.to(HERE)
    asked = requests_of(WORDS, samples=samples)
    found = Striding(network, [0], slots=3).generate(asked, sampling)
    network.to("cpu")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_the_engine_with_kernels_says_what_it_says_without(name):
    network, sampling = Network(models()[name], needs()), Sampling(max_tokens=7, temperature=0.8)
    found = rollouts_of(network, sampling, Kept(Kernels.triton(), Eager), samples=1)
    wanted = Local(network, [0]).generate(requests_of(WORDS, samples=1), sampling)
    assert [one.ids for one in found] == [one.ids for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert_close(one.old, other.old, rtol=0, atol=1e-11)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 5}, {"min_tokens": 3}])
def test_captured_steps_say_what_launched_ones_say(settings):
    network, sampling = Network(models()["gemma3"], needs()), Sampling(max_tokens=30, **settings)
    captured, launched = (
        rollouts_of(network, sampling, Kept(Kernels.triton(), how)) for how in (Graphs, Eager)
    )
    assert captured == launched


@pytest.mark.gpu
@on_gpu
def test_a_second_call_replays_what_the_first_captured():
    network, kept = Network(models()["gpt2"], needs()).to("cuda"), Kept(Kernels.triton(), Graphs)
    first = rollouts_of(network, Sampling(max_tokens=30), kept)
    assert first == rollouts_of(network, Sampling(max_tokens=30), kept)


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu():
    """With no GPU at hand: for one of Hopper's kind, within its shared memory and registers."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    script = Path(__file__).parent / "compile_kernels.py"
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    made = run.stdout.splitlines()
    assert len(made) == 2 * (2 * 3 + 2)  # types x (shapes x kernels of attention, and of sampling)
