"""N ranks come to what one comes to: in one process, and under torchrun with FSDP2 on the CPU."""

import itertools
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import ranks_worker as worker
import torch
from torch.testing import assert_close

from logratio.objectives.dpo import dpo
from logratio.objectives.grpo import grpo
from logratio.ranks import ALONE, Ranks, device_of, joined
from logratio.settings import Refused

HERE = Path(__file__).parent
LIMIT = 300  # seconds; a rank that waits for another fails before that


class Pretended(Ranks):
    """One of several ranks, in a process of its own: nobody adds anything."""

    def total(self, values):
        return values

    def check_same(self, name, value):
        del name, value


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_every_item_counts_once_and_all_ranks_have_as_many_turns(size, count):
    ranks = [Ranks(rank=rank, size=size).turns(range(count)) for rank in range(size)]
    assert sorted(item for turns in ranks for item, counts in turns if counts) == [*range(count)]
    assert {len(turns) for turns in ranks} == {-(-count // size)}


@pytest.mark.parametrize(
    ("case", "micro_batches"),
    [
        (worker.Case(objective=grpo.using(beta=0.1), model="gpt2"), 4),
        (worker.Case(objective=dpo, model="gpt2", prompts=3, budget=14), 3),
        (worker.Case(objective=dpo, model="gpt2", prompts=1), 1),
    ],
)
def test_the_ranks_mean_gradient_is_that_of_the_whole_batch(case, micro_batches):
    learner, batch, rollouts = worker.setting(case, ALONE)
    batch = learner.objective.prepare(batch)
    loss, watch = learner.backward(batch, rollouts, reference=None)
    whole = {name: weight.grad.clone() for name, weight in learner.network.named_parameters()}
    losses, watches, gradients = [], [], []
    for rank in range(2):
        learner.ranks = Pretended(rank=rank, size=2)
        learner.optimizer.zero_grad()
        lengths = [pack.ids.shape[1] for pack in learner.cut(batch, rollouts)]
        assert len(lengths) == micro_batches
        assert lengths == sorted(lengths, reverse=True)
        found = learner.backward(batch, rollouts, reference=None)
        losses.append(found[0])
        watches.append(found[1])
        gradients.append({n: weight.grad for n, weight in learner.network.named_parameters()})
        gradients[-1] = {name: slope.clone() for name, slope in gradients[-1].items()}
    assert_close(sum(losses), loss, rtol=1e-5, atol=1e-6)
    for name, value in watch.items():
        assert_close(sum(found[name] for found in watches), value, rtol=1e-5, atol=1e-6)
    for name, slope in whole.items():
        mean = (gradients[0][name] + gradients[1][name]) / 2
        assert_close(mean, slope, rtol=1e-4, atol=1e-6)  # float32 sums in another order


def test_a_repeated_micro_batch_adds_nothing():
    learner, batch, rollouts = worker.setting(worker.TRAINED["one micro-batch and none"], ALONE)
    learner.ranks = Pretended(rank=1, size=2)
    loss, watch = learner.backward(learner.objective.prepare(batch), rollouts, reference=None)
    assert loss == 0.0
    assert watch
    assert not any(watch.values())
    gradients = [weight.grad for weight in learner.network.parameters()]
    assert all(slope is not None and not slope.any() for slope in gradients)


def test_one_rank_needs_no_process_group():
    with joined(cuda=False) as ranks:
        assert not torch.distributed.is_initialized()
        assert (ranks.rank, ranks.size, ranks.device.type) == (0, 1, "cpu")
        assert ranks.added([1.5, -2.0]) == [1.5, -2.0]
        ranks.check_same("anything", 1)


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(Refused, match="`--nproc-per-node` is more than 3, but this machine has 2"):
        device_of(True)


@contextmanager
def launched(folder):
    """Runs the worker on two ranks; gives the process, whose words go to a file in the folder."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with (folder / "said").open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command, HERE / "ranks_worker.py", folder],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Returns what each rank of two found, and one alone, with the folders of their weights."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    with launched(two) as process:
        alone = worker.everything(ALONE, one)
        code = process.wait(timeout=LIMIT)
    assert code == 0, (two / "said").read_text()
    ranks = [json.loads((two / f"{rank}.json").read_text()) for rank in range(2)]
    return {"ranks": ranks, "alone": alone, "two": two, "one": one}


every_case = pytest.mark.parametrize("name", worker.TRAINED)


@pytest.mark.slow
@every_case
def test_two_ranks_learn_what_one_learns(name, found):
    ours, theirs = found["ranks"][0][name], found["alone"][name]
    assert found["ranks"][1][name] == ours
    assert ours["micro-batches"] == MICRO_BATCHES.get(name, 4)
    assert len(ours["loss"]) == worker.STEPS
    assert_close(ours["loss"], theirs["loss"], rtol=0, atol=1e-5)
    assert abs(ours["loss"][-1] - ours["loss"][0]) > 0.01
    assert_close(ours["norm"][0], theirs["norm"][0], rtol=1e-6, atol=0)
    assert_close(ours["norm"], theirs["norm"], rtol=1e-3, atol=0)
    for mine, other in zip(ours["watch"], theirs["watch"], strict=True):
        assert_close(mine, other, rtol=0, atol=1e-5)


MICRO_BATCHES = {"two micro-batches and one": 3, "one micro-batch and none": 1}


# they hold the key's bias, whose gradient is 0 but for rounding: of that Adam makes whole steps
BLIND = ("c_attn.bias", "query_key_value.bias")


@pytest.mark.slow
@every_case
def test_two_ranks_end_at_the_weights_of_one(name, found):
    ours, theirs = (torch.load(found[side] / f"{name}.pt") for side in ("two", "one"))
    start = worker.network_of(worker.TRAINED[name]).state_dict()
    assert ours.keys() == theirs.keys() == start.keys()
    for weights in (ours, theirs, start):
        for name_of_weight in [one for one in weights if one.endswith(BLIND)]:
            del weights[name_of_weight]
    share = worker.distance(ours, theirs) / worker.distance(theirs, start)
    assert share < (1e-9 if "float64" in name else 1e-4)


def apart(ours, theirs):
    """Returns how far two runs' losses are apart, on average over the steps."""
    return sum(abs(mine - other) for mine, other in zip(ours, theirs, strict=True)) / len(ours)


@pytest.mark.slow
def test_in_bf16_two_ranks_are_as_near_to_one_as_two_cuts_are_to_each_other(found):
    between, beside = [0.0] * 3, [0.0] * 3
    for name, alone in found["alone"]["narrow"].items():
        ours = found["ranks"][0]["narrow"][name]
        exact = found["alone"][name]["loss"][0]
        assert ours["types"] == alone["types"] == ["torch.float32"]
        (two,), cuts = ours["losses"], alone["losses"]
        assert_close(two[0], cuts[0][0], rtol=0, atol=1e-6)
        assert abs(two[0] - exact) > 1e-4
        pairs = itertools.combinations(cuts, 2)
        between = [total + apart(*pair) for total, pair in zip(between, pairs, strict=True)]
        beside = [total + apart(two, cut) for total, cut in zip(beside, cuts, strict=True)]
    assert min(beside) <= max(between)


@pytest.mark.slow
def test_in_bf16_what_is_not_trained_is_narrow_on_every_rank(found):
    ours, alone = found["ranks"][1]["kept"], found["alone"]["kept"]
    assert ours["types"] == alone["types"] == ["torch.bfloat16"]
    assert_close(ours["loss"], alone["loss"], rtol=0, atol=1e-6)
    # gradients of the weights are bfloat16, which holds 8 bits, before they are summed
    assert_close(ours["norm"], alone["norm"], rtol=2**-8, atol=0)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_by_all(found):
    for ours in (*(rank["poisoned"] for rank in found["ranks"]), found["alone"]["poisoned"]):
        assert ours["skipped"] == [False, True, False, True]
        assert ours["moved"] == [False, True]
        assert_close(ours["loss"], found["alone"]["poisoned"]["loss"], rtol=0, atol=1e-5)
    first, second = (rank["poisoned"]["said"] for rank in found["ranks"])
    assert first == second
    assert first.startswith("2 gradients in a row were not finite")


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["out", "tied", "score", "in", "used", "after a step", "adapter off"]
)
def test_whole_weights_go_out_and_in_bit_for_bit(what, found):
    assert found["ranks"][0]["gathered"][what]
    assert found["ranks"][1]["gathered"][what]


@pytest.mark.slow
def test_ranks_that_differ_are_refused(found):
    said = [
        "`rollouts` differs between the ranks, but all 2 must have the same",
        "`model` differs between the ranks, but all 2 must have the same",
    ]
    assert [rank["differing"] for rank in found["ranks"]] == [said, said]
