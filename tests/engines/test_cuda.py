"""Decoding without a look from the host, on a CPU: the step, the looks, what is captured when."""

import copy
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from model.models import SHAPE, models
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from logratio.engine import Request, requests_of
from logratio.engines.local import Local
from logratio.engines.local.cuda import strides
from logratio.engines.local.cuda.graph import Eager, Graphs, hindrance, size_of
from logratio.engines.local.cuda.stage import Room, Stage, plain, step
from logratio.engines.local.cuda.strides import Kept, Kernels, Strides
from logratio.engines.local.decoding import Decoding
from logratio.engines.local.forward import Forward
from logratio.model.network import Network
from logratio.part import needs
from logratio.records import Problem
from logratio.sampler import Sampling, draw, uniforms

MODELS = models()
WORDS = [Problem(key=k, prompt="", prompt_ids=ids) for k, ids in [("a", (3, 1, 4)), ("b", (9,))]]
EVERY_FIFTH = range(0, 50, 5)


class Noted(Eager):
    """Eager steps that note how many rows each had."""

    def run(self, step, steps, key):
        self.rows = [*getattr(self, "rows", []), *[key[0]] * steps]
        super().run(step, steps, key)


class Striding(Local):
    """The engine as it is on a GPU, uncaptured and with plain attention."""

    def decoding(self, model, requests, sampling):
        self.kept = self.kept or Kept(Kernels(), Noted)
        slots, ends = self.slots, self.ends
        return Strides(requests, sampling, slots=slots, ends=ends, model=model, kept=self.kept)


def engine(kind, name="gpt2", ends=(0,), slots=64):
    return kind(Network(MODELS[name], needs()), ends, slots=slots)


def said(rollouts):
    return [(one.group, one.index, one.ids, one.finish, one.split) for one in rollouts]


@pytest.mark.parametrize("name", MODELS)
def test_strides_say_what_single_steps_say(name):
    """Token for token; again in memory that was used before, and in more of it."""
    ours, theirs = (engine(kind, name, EVERY_FIFTH, slots=5) for kind in (Striding, Local))
    for samples, settings in ((3, {}), (4, {"temperature": 0.7, "top_k": 20, "min_tokens": 4})):
        asked, sampling = requests_of(WORDS, samples=samples), Sampling(max_tokens=13, **settings)
        found, wanted = (one.generate(asked, sampling) for one in (ours, theirs))
        assert said(found) == said(wanted)
        assert len({len(one.ids) for one in wanted}) > 2
        for one, other in zip(found, wanted, strict=True):
            for part in ("old", "behaviour", "entropy"):
                assert_close(getattr(one, part), getattr(other, part), rtol=0, atol=1e-12)


@pytest.mark.parametrize("slots", [3, 64])
def test_sisters_leave_and_rows_are_refilled(slots):
    """Splits before, at and behind a look, in few slots: a bed for every order of events."""
    asked = [
        Request(problem=WORDS[n % 2], group=n % 2, index=2 * n, split=split, sister=2 * n + 1)
        for n, split in enumerate([0, 1, 7, 8, 9, 12, 30, 3])
    ] + requests_of(WORDS, samples=5, seed=1)
    sampling = Sampling(max_tokens=20)
    found, wanted = (
        engine(kind, ends=[0, 7], slots=slots).generate(asked, sampling)
        for kind in (Striding, Local)
    )
    assert said(found) == said(wanted)
    assert sum(one.parent is not None for one in found) >= 4


def test_a_row_that_ends_at_its_split_has_no_sister_however_long_it_stays():
    asked = [Request(problem=WORDS[0], group=0, index=2 * n, split=3, sister=2 * n + 1)
             for n in range(18)]  # fmt: skip
    sampling = Sampling(max_tokens=14)
    found, wanted = (
        engine(kind, ends=EVERY_FIFTH).generate(asked, sampling) for kind in (Striding, Local)
    )
    assert said(found) == said(wanted)
    assert any(len(one.ids) == 3 and one.finish == "stop" for one in wanted)


def test_the_host_looks_at_every_eighth_step_or_when_something_is_due(monkeypatch):
    taken = []
    monkeypatch.setattr(Noted, "run", lambda _, one, steps, key: [one() for _ in range(steps)]
                        and taken.append((key[0], steps)))  # fmt: skip
    local = engine(Striding, ends=())
    local.generate(requests_of(WORDS, samples=2), Sampling(max_tokens=20))
    assert taken == [(4, 8), (4, 8), (4, 3)]  # the first token is the prefill's
    taken.clear()
    split = Request(problem=WORDS[0], group=0, split=5, sister=1)
    local.generate([split], Sampling(max_tokens=20))
    assert taken == [(1, 4), (2, 8), (2, 7)]
    taken.clear()
    limits = [Request(problem=WORDS[0], group=0, index=n, limit=limit)
              for n, limit in enumerate([3, 12, 20, 12, 2, 12])]  # fmt: skip
    local.generate(limits, Sampling(max_tokens=20))
    # two are over at the first look: four are left; after the second only one is
    assert taken == [(8, 8), (4, 8), (1, 3)]


def test_sizes_are_few_and_waste_little():
    sizes = [size_of(rows) for rows in range(1, 513)]
    assert len(set(sizes)) == 23
    assert all(size >= rows for rows, size in enumerate(sizes, 1))
    assert max(size - rows for rows, size in enumerate(sizes, 1)) < 32


def on_meta(name, sampling):
    """Returns a step on tensors that hold no numbers, so that no look at one is possible."""
    model = Forward(copy.deepcopy(Network(MODELS[name], needs())).to("meta"))
    ends = torch.zeros(3, dtype=torch.long, device="meta")
    board, lanes = Stage.of(Room(4, 8, 2, 8), ends, plain).view(4)
    config, dtype = model.model.config, model.model.dtype
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    states = torch.zeros(1, heads, 1, width, device="meta", dtype=dtype)
    for layer in range(config.num_hidden_layers):
        lanes.prefix.layer(layer, states, states)

    def drawn(logits, rows):
        banned = ends if sampling.min_tokens else ()
        early = rows.count < sampling.min_tokens
        return draw(logits, uniforms(rows.key, rows.count), sampling, banned=banned, where=early)

    return lambda: step(model, board, lanes, draw=drawn, ends=ends)


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 5},
        {"top_p": 0.5, "min_p": 0.1, "min_tokens": 2},
    ],
)
def test_nothing_in_a_step_is_looked_at(name, settings):
    on_meta(name, Sampling(**settings))()


def test_a_row_that_is_done_neither_advances_nor_writes():
    """Its tokens, numbers, keys and place are what they were, whatever is computed for it."""
    network = Network(MODELS["gpt2"], needs())
    kept = Kept(Kernels(), Eager)
    asked, model = requests_of(WORDS, samples=3), Forward(network)
    call = Strides(asked, Sampling(max_tokens=9), slots=8, ends=frozenset(), model=model, kept=kept)
    with torch.no_grad():
        call.enter(model)
        call.sample(0)
        kept.stage.settle(call.board, call.slots, 8)
        board, lanes = kept.stage.view(8)
        for _ in range(3):
            step(model, board, lanes, draw=call.draw, ends=call.stops)
        board.done[1] = True
        before = copy.deepcopy((board, lanes))
        for _ in range(3):
            step(model, board, lanes, draw=call.draw, ends=call.stops)
    assert board.count.tolist() == [7, 4, 7, 7, 7, 7, 1, 1]  # two that are no rows at all
    assert lanes.length.tolist() == [6, 3, 6, 6, 6, 6, 0, 0]
    assert_close(board.ids[1, :4], before[0].ids[1, :4], rtol=0, atol=0)
    assert_close(board.numbers[1, :4], before[0].numbers[1, :4], rtol=0, atol=0)
    for layer, buffers in lanes.suffix.layers.items():
        for buffer, old in zip(buffers, before[1].suffix.layers[layer], strict=True):
            assert_close(buffer[1, :, :3], old[1, :, :3], rtol=0, atol=0)
            assert not torch.equal(buffer[0, :, :5], old[0, :, :5])


def test_what_was_captured_is_forgotten_when_weights_move_or_room_is_short():
    network = Network(copy.deepcopy(MODELS["gpt2"]), needs())
    kept, ends = Kept(Kernels(), Eager), torch.zeros(0, dtype=torch.long)
    kept.ready(Forward(network), Room(4, 8, 2, 8), ends)
    first = kept.steps, kept.stage
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(0.5)  # as an optimizer does it: where they are
    kept.ready(Forward(network), Room(2, 8, 2, 4), ends)
    assert (kept.steps, kept.stage) == first
    kept.ready(Forward(network), Room(2, 9, 2, 4), ends)
    assert kept.room == Room(4, 9, 2, 8)
    second = kept.steps, kept.stage
    assert second[0] is not first[0]
    assert second[1] is not first[1]
    network.model.lm_head.weight = torch.nn.Parameter(network.model.lm_head.weight.clone())
    kept.ready(Forward(network), Room(2, 9, 2, 4), ends)
    assert kept.steps is not second[0]


STORY = []


class Device:
    """Stands in for what captures: it tells the story, and what runs inside is told as captured."""

    mode = "eager"

    def __init__(self, *_, pool="", capture_error_mode=""):
        self.told = f"pool {pool}, {capture_error_mode}"

    def __enter__(self):
        STORY.append(self.told)
        Device.mode = "captured"

    def __exit__(self, *_):
        Device.mode = "eager"

    def replay(self):
        STORY.append("replay")

    def pool(self):
        return (1, 2)

    def wait_stream(self, _):
        STORY.append("wait")


def test_a_size_is_captured_once_after_a_step_that_counts(monkeypatch):
    """The order of things; whether a device captures them only a device can say."""
    for name in ("CUDAGraph", "graph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Device)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    STORY.clear()
    graphs = Graphs()
    for rows in (8, 8, 4):
        graphs.run(lambda: STORY.append(Device.mode), 3, (rows,))
        STORY.append("|")
    before, after = ["wait", "eager", "wait"], ["captured", "replay", "replay", "|"]
    first, other = ([f"pool {pool}, thread_local"] for pool in (None, (1, 2)))
    again = [*["replay"] * 3, "|"]
    assert [*before, *first, *after, *again, *before, *other, *after] == STORY


GROUPED = {**SHAPE, "num_key_value_heads": 2}


def mixture():
    sizes = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**GROUPED, **sizes, num_experts_per_tok=2))


def test_a_model_that_looks_at_its_numbers_is_not_captured():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    stretched = LlamaForCausalLM(LlamaConfig(**GROUPED, rope_parameters=rope))
    assert "does not run without numbers: aten._local_scalar_dense" in str(hindrance(stretched))
    experts = mixture()
    experts.set_experts_implementation("eager")
    assert "does not run without numbers: aten.nonzero" in str(hindrance(experts))
    experts.set_experts_implementation("batched_mm")
    assert hindrance(experts) is None
    assert hindrance(MODELS["gemma3"]) is None
    sharded = copy.deepcopy(MODELS["gpt2"])
    sharded.register_parameter("odd", type("Shard", (torch.nn.Parameter,), {})(torch.zeros(1)))
    assert "its weights are sharded" in str(hindrance(sharded))


def test_it_says_so_once_and_takes_single_launches(monkeypatch):
    monkeypatch.setattr(Kernels, "triton", staticmethod(Kernels))
    monkeypatch.setattr(strides, "hindrance", lambda _: "it is so")
    model = Forward(Network(MODELS["gpt2"], needs()))
    with pytest.warns(UserWarning, match="launched operation by operation: it is so"):
        assert isinstance(Kept.on_gpu(model).repeat(), Eager)
    monkeypatch.setattr(strides, "hindrance", lambda _: None)
    assert isinstance(Kept.on_gpu(model).repeat(), Graphs)


def test_the_device_of_the_weights_decides(monkeypatch):
    made, taken, local = [], [], engine(Local)
    model = Forward(local.network)
    call = local.decoding(model, [], Sampling())
    assert type(call) is Decoding
    model.device = torch.device("cuda")
    monkeypatch.setattr(Kept, "on_gpu", staticmethod(lambda model: made.append(model) or "kept"))
    monkeypatch.setattr(strides, "Strides", lambda *_, **named: taken.append(named["kept"]) or call)
    assert [local.decoding(model, [], Sampling()) for _ in range(2)] == [call, call]
    assert taken == ["kept", "kept"]
    assert made == [model]  # what is kept is made once


@pytest.mark.slow  # a fresh interpreter
def test_on_a_cpu_none_of_it_is_imported():
    program = """
import sys
sys.modules["triton"] = None  # can not be imported: other libraries import it where it is
from logratio.engine import requests_of
from logratio.engines.local import Local
from logratio.model.backbone import Route
from logratio.model.network import Network
from logratio.part import needs
from logratio.records import Problem
from logratio.sampler import Sampling
from transformers import GPT2Config, GPT2LMHeadModel
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9, n_positions=8))
engine = Local(Network(model, needs(), route=Route(name="tree", why="")), [0])
problem = Problem(key="", prompt="", prompt_ids=(1,))
engine.generate(requests_of([problem], samples=2), Sampling(max_tokens=2))
print([name for name in sys.modules if name.startswith("logratio.engines.local.cuda")])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"
