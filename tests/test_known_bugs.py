"""Bugs that other libraries had, each with the test that would have caught it here.

The number in a docstring is that of the table of `trl.md`, section 4. Those that can only occur in
a later layer have their tests there:

- tasks, prompts and chat templates: 2, 4, 5, 6, 7, 8, 13, 16, 69
- the model, its head and packing: 11, 12, 18, 27, 28, 41, 51, 52, 55, 59, 60, 62, 64, 65
- engines and workers: 32, 38, 39, 40, 45, 48, 53
- learner, trainer and checkpoints: 29, 33, 37, 42, 43, 44, 46, 49, 50, 58, 66
"""

from dataclasses import replace

import pytest
import torch
from samples import batch, graded, groups, learned, marks, noise, ragged, same

from logratio.collate import collate
from logratio.lab import dense
from logratio.objectives import find
from logratio.settings import Refused

STOP = 0  # the id that ends a text and, in many tokenizers, the one that pads too


# masks, tokens, data


@pytest.mark.parametrize("name", ["sft", "rft", "grpo", "dapo", "ppo", "spo", "qpo"])
def test_the_stop_token_is_trained_even_where_it_is_also_the_pad(name):
    """1, 63."""
    old = {"old": (-1.0, -1.0), "correct": True}
    rows = [
        graded(1.0, ids=(5, STOP), **old),
        graded(0.5, ids=(5, STOP, STOP, STOP), **{**old, "old": (-1.0,) * 4, "correct": False}),
    ]
    assert collate(rows, find(name)).mask.equal(ragged(2, 4))


def test_of_a_pair_both_stop_tokens_are_trained():
    """1."""
    rows = [graded(None, ids=(5, 6, STOP), pair=(0, 0)), graded(None, ids=(7, STOP), pair=(0, 1))]
    for name in ("dpo", "reward_model"):
        assert collate(rows, find(name)).mask.equal(ragged(3, 2))


def test_the_first_trained_token_is_the_first_of_the_answer():
    """3: it is read from the state after the prompt, and nothing before it is trained."""
    logits = noise(0, 1, 4, 5).requires_grad_()
    rows = collate([graded(ids=(4, 2, STOP))], find("sft"))
    policy = dense.read(logits, torch.tensor([[4, 2, STOP]]))
    same(policy.logp[0, 0], logits[0, 0].log_softmax(-1)[4])
    find("sft")(policy, find("sft").prepare(rows)).terms["nll"].loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(2).gt(0).equal(marks("xxx."))


@pytest.mark.parametrize(("normalise", "apart"), [("sum", 0.9 - 0.15), ("length", 0.3 - 0.15)])
@pytest.mark.parametrize("longest", [3, 6])
def test_ipo_divides_by_the_number_of_tokens_or_by_nothing(normalise, apart, longest):
    """9: log-ratios of 0.9 on three tokens and 0.15 on one, in a batch as long or longer."""
    mask, ref = ragged(3, 1, longest=longest), torch.zeros(2, longest).double()
    logp = torch.full((2, longest), 7.0, dtype=torch.float64)
    logp[0, :3], logp[1, 0] = torch.tensor([0.2, 0.3, 0.4]), 0.15
    objective = find("dpo").using(kind="ipo", normalise=normalise, beta=0.1)
    loss, _ = learned(objective, batch(mask, pair=[0, 1], ref=ref), logp=logp)
    same(loss, (apart - 5.0) ** 2)  # 5 is 1 / (2 beta)


@pytest.mark.parametrize("name", ["trained", "old", "behaviour", "entropy"])
def test_a_stream_longer_than_the_text_is_refused(name):
    """14."""
    stream = (True,) * 3 if name == "trained" else (-1.0,) * 3
    streams = {"old": (-1.0, -1.0), name: stream}
    asked = {"behaviour": {"behaviour_cap": 2.0}, "entropy": {"weight": "top_entropy"}}
    objective = find("grpo").using(**asked.get(name, {}))
    says = f"`{name}` of rollout 0 of `sums/7` has 3 entries, but it must have 2, one a token"
    with pytest.raises(Refused, match=says):
        collate([graded(ids=(1, 2), **streams)], objective)


def test_as_many_tokens_are_trained_as_were_sampled():
    """14, 68: what a tool wrote, and the prompt, were not."""
    trained = (True, True, False, False, True)
    row = graded(ids=(4, 5, 6, 7, STOP), trained=trained)
    rows = collate([row], find("sft"))
    assert rows.mask.tolist() == [list(trained)]
    assert collate([graded(ids=(4, 5))], find("sft")).mask.sum() == 2


TOKEN_OBJECTIVES = ["sft", "rft", "grpo", "dapo", "spo"]


@pytest.mark.parametrize("name", TOKEN_OBJECTIVES)
def test_what_stands_on_a_masked_token_changes_nothing(name):
    """10, 15, 56: neither in a pad, which has no id here at all, nor where a tool wrote."""
    mask = marks("xx.x..", "x.....", "xxxxxx", ".xx.x.")
    rows, logp = groups(mask), noise(5, 4, 6) - 2
    loss, slopes = learned(find(name), rows, logp=logp)
    for junk in (torch.nan, -torch.inf, 1e30):
        changed = {key: getattr(rows, key).masked_fill(~mask, junk) for key in ("old", "ref")}
        junked = logp.masked_fill(~mask, junk)
        found, same_slopes = learned(find(name), replace(rows, **changed), logp=junked)
        assert found.equal(loss)
        assert same_slopes["logp"].equal(slopes["logp"])
    assert (slopes["logp"][~mask] == 0).all()


def test_any_stop_token_ends_a_text_and_only_running_out_truncates_it():
    """17, 57: a model with three stop ids; a truncated text trains its last token too."""
    rows = [
        graded(ids=(5, 1), finish="stop"),
        graded(ids=(5, 6, 2), finish="stop"),
        graded(ids=(5, 6, 7, 8), finish="length"),
    ]
    found = collate(rows, find("sft").using(**{"average.truncated": "leave_out"}))
    assert found.mask.equal(ragged(2, 3, 4))
    assert found.stream("truncated").tolist() == [0.0, 0.0, 1.0]
