"""Bugs that other libraries had in losses, scaling and statistics; see `test_known_bugs.py`."""

from dataclasses import replace

import pytest
import torch
from samples import batch, graded, groups, learned, marks, noise, ragged, same

from logratio.batch import Policy
from logratio.collate import collate
from logratio.lab import dense
from logratio.numerics import kl_estimate
from logratio.objective import total_loss, watched
from logratio.objectives import find
from logratio.part import Needs
from logratio.settings import Refused

STOP = 0  # the id that ends a text and, in many tokenizers, the one that pads too


TOKEN_OBJECTIVES = ["sft", "rft", "grpo", "dapo", "spo"]


@pytest.mark.parametrize("average", ["per_token", "per_sequence", "per_group_token", "summed"])
def test_a_truncated_row_left_out_is_in_no_denominator(average):
    """19."""
    mask = ragged(3, 2, 5, 4)
    objective = find("grpo").using(average=average, credit="plain")
    filtered = objective.using(**{"average.truncated": "leave_out"})
    rows, logp = groups(mask, truncated=[0.0, 0.0, 1.0, 0.0]), noise(9, 4, 5) - 2
    loss, slopes = learned(filtered, rows, logp=logp)
    others = torch.tensor([0, 1, 3])
    without, fewer = learned(objective, rows.rows(others), logp=logp[others])
    same(loss, without)
    same(slopes["logp"][others], fewer["logp"])
    assert (slopes["logp"][2] == 0).all()


def test_a_spread_of_the_group_is_not_that_of_the_batch():
    """20: deviations 4 and 1 in the groups, and sqrt(34 / 4) over the batch of mean 1."""
    rows = batch(ragged(1, 1, 1, 1), reward=[5.0, -3.0, 2.0, 0.0], group=[0, 0, 1, 1])
    centre = torch.tensor([4.0, -4.0, 1.0, -1.0])
    for spread, deviation in (("population", centre.abs()), ("batch", 8.5**0.5)):
        found = find("grpo").using(**{"credit.spread": spread}).credit(rows)["advantage"][:, 0]
        same(found, centre / deviation)


RATIO, GOOD = 3.0, [1.0, -1.0]
KINDS = [
    ({}, [1.2, -3.0], [0.0, -3.0]),  # value and slope of the surrogate at ratio 3
    ({"clip_high": 2.5}, [3.0, -3.0], [3.0, -3.0]),
    ({"dual": 2.0}, [1.2, -2.0], [0.0, 0.0]),
    ({"surrogate": "cispo", "clip_high": 4.0}, None, [3.0, -3.0]),
    ({"surrogate": "cispo", "clip_high": 1.0}, None, [2.0, -2.0]),  # capped, yet it learns
    ({"ratio": "sequence", "clip_high": 1.5}, [2.5, -3.0], [0.0, -3.0]),
]


@pytest.mark.parametrize(("settings", "values", "slopes"), KINDS)
def test_each_kind_of_surrogate_is_the_one_asked_for(settings, values, slopes):
    """21, 28."""
    objective = find("grpo").using(credit="plain", average="summed", **settings)
    rows = batch(ragged(1, 1), reward=GOOD, old=[[-2.0]] * 2)
    logp = torch.full((2, 1), RATIO, dtype=torch.float64).log() - 2
    loss, found = learned(objective, rows, logp=logp)
    same(found["logp"][:, 0], [-slope / 2 for slope in slopes])
    if values is not None:
        same(loss, -sum(values) / 2)


def test_an_unknown_kind_is_refused():
    """21."""
    with pytest.raises(Refused, match="`surrogate` is 'cispoo', but it must be one of 'clip', 'ci"):
        find("grpo").using(surrogate="cispoo")


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, size) for name in TOKEN_OBJECTIVES for size in (1, 2, 4) if name != "spo" or size == 4],
)
def test_micro_batches_of_unequal_lengths_add_up_to_the_whole(name, size):
    """22, 23, 34, 54, 61: the loss, its gradient and every logged mean; spo cuts no group."""
    objective = find(name)
    mask = ragged(1, 7, 3, 2, 6, 6, 1, 4)
    rows = objective.prepare(groups(mask))
    logp = (noise(7, 8, 7) - 2).requires_grad_()

    def summed_over(parts):
        terms = objective(Policy(logp=logp), rows)
        weights, loss, means = objective.weights(terms, rows), 0.0, {}
        for index in parts:
            part = rows.rows(index)
            cut = {key: weight.rows(index) for key, weight in weights.items()}
            terms = objective(Policy(logp=logp[index]), part)
            loss = loss + total_loss(terms, cut, part)
            for key, value in watched(terms, cut, part).items():
                means[key] = means.get(key, 0.0) + value
        return loss, torch.autograd.grad(loss, logp)[0], means

    whole = summed_over([slice(0, 8)])
    parts = summed_over([slice(start, start + size) for start in range(0, 8, size)])
    same(parts[0], whole[0])
    same(parts[1], whole[1])
    for key, value in whole[2].items():
        same(parts[2][key], value)


def test_the_sft_term_of_dpo_is_the_chosen_answers_mean_and_is_divided_once():
    """24, 61: chosen logs -1, -2 and -0.5, two pairs, so (1.5 + 0.5) / 2."""
    rows = batch(ragged(2, 3, 1, 1), pair=[0, 1, 3, 2], ref=torch.zeros(4, 3).double())
    logp = torch.tensor([[-1.0, -2.0, 9.0], [-7.0, -7.0, -7.0], [-5.0, 9.0, 9.0], [-0.5, 9.0, 9.0]])
    plain, slopes = learned(find("dpo"), rows, logp=logp.double())
    mixed, both = learned(find("dpo").using(sft=3.0), rows, logp=logp.double())
    same(mixed - plain, 3.0)
    own = (both["logp"] - slopes["logp"]) / 3
    same(own, [[-0.25, -0.25, 0.0], [0.0] * 3, [0.0] * 3, [-0.5, 0.0, 0.0]])


def test_the_sft_term_of_dpo_leaves_what_is_watched_alone():
    """25."""
    rows = groups(ragged(2, 3, 1, 1), pair=[0, 1, 2, 3])
    policy = Policy(logp=noise(3, 4, 3))
    plain = find("dpo")(policy, rows).watch
    mixed = find("dpo").using(sft=2.0)(policy, rows).watch
    assert set(plain) <= set(mixed)
    for name, values in plain.items():
        same(mixed[name], values)


def test_reference_log_probs_that_were_computed_before_are_those_that_count():
    """26: DPO at the policy's own log-probs as reference is log 2, elsewhere it is not."""
    mask, logp = ragged(3, 2), noise(3, 2, 3)
    own = batch(mask, pair=[0, 1], ref=logp)
    same(learned(find("dpo"), own, logp=logp)[0], torch.tensor(2.0).double().log())
    shifted = batch(mask, pair=[0, 1], ref=logp - torch.tensor([[1.0], [0.0]]))
    margin = torch.tensor(0.3, dtype=torch.float64)  # beta times 3 tokens of 1
    same(learned(find("dpo"), shifted, logp=logp)[0], -torch.sigmoid(margin).log())


def test_the_exact_kl_of_two_tokens_is_its_closed_form():
    """30."""
    p, q = 0.8, 0.3
    logits, reference = (
        torch.tensor([[[one, 1 - one]] * 2], dtype=torch.float64).log() for one in (p, q)
    )
    needs = Needs(policy=frozenset({"kl"}))
    policy = dense.read(logits, torch.tensor([[0]]), needs=needs, reference=reference)
    ratios = torch.tensor([p / q, (1 - p) / (1 - q)], dtype=torch.float64).log()
    same(policy.stream("kl")[0, 0], p * ratios[0] + (1 - p) * ratios[1])


def test_the_off_policy_correction_compares_the_two_samplers_and_not_the_learner():
    """31: a token drawn 4 times as often as the full softmax says weighs a quarter."""
    objective = find("grpo").using(behaviour_cap=2.0, credit="plain", average="summed")
    behaviour = torch.tensor([[-2.0 + torch.tensor(4.0).log()], [-2.0], [-9.0]]).double()
    rows = batch(ragged(1, 1, 1), reward=[1.0] * 3, old=[[-2.0]] * 3, behaviour=behaviour)
    for step in (0.0, -0.1):  # the learner moves, the correction does not
        logp = torch.full((3, 1), -2.0 + step, dtype=torch.float64)
        _, slopes = learned(objective, rows, logp=logp)
        ratio = torch.tensor(step).double().exp()
        same(slopes["logp"][:, 0], -ratio / 3 * torch.tensor([0.25, 1.0, 2.0]).double())


def test_the_entropy_threshold_sees_the_whole_batch_and_no_pad():
    """35: of ten tokens the two with the highest entropy, wherever the batch is cut."""
    mask = ragged(1, 2, 1, 6, longest=40)
    entropy = torch.full(mask.shape, 50.0).double().masked_fill(mask, 0.0)
    entropy[1, 1], entropy[3, 4] = 3.0, 2.0
    objective = find("grpo").using(weight="top_entropy")
    rows = objective.prepare(groups(mask, entropy=entropy))
    weight = rows.stream("weight")
    assert weight.nonzero().tolist() == [[1, 1], [3, 4]]
    assert rows.rows(slice(0, 1)).stream("weight").sum() == 0


def test_the_score_of_ppo_stands_on_the_stop_token():
    """36: the one-step return there is the score, whatever comes after."""
    rows = [
        graded(2.0, ids=(5, 6, STOP), old=(-1.0,) * 3),
        graded(3.0, ids=(5,) * 5, old=(-1.0,) * 5),
    ]
    ppo = find("ppo").using(**{"credit.kl": 0.0, "credit.trace": 0.0, "credit.whiten": False})
    collated = collate(rows, ppo)
    value = torch.tensor([[0.0, 0.0, 0.5, 9.0, 9.0, 9.0], [0.0] * 6])
    found = ppo.prepare(replace(collated, columns={**collated.columns, "value": value}))
    same(found.stream("returns"), [[0.0, 0.5, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 3.0]])


def test_after_a_filter_each_row_still_has_its_own_log_probs():
    """47: the ratios of the kept rows are 1."""
    log_probs = [(-1.0, -2.0), (-3.0,), (-4.0, -5.0, -6.0), (-7.0,)]
    rows = [
        graded(float(place), ids=(1,) * len(old), old=old, group=place % 2, correct=place > 1)
        for place, old in enumerate(log_probs)
    ]
    rows.insert(1, graded(1.0, ids=(1, 1), old=(-8.0, -9.0), group=9, correct=True))
    found = collate(rows, find("dapo"))  # group 9 is all right, so it is dropped
    same(found.stream("old"), [[-1.0, -2.0, 0], [-3.0, 0, 0], [-4.0, -5.0, -6.0], [-7.0, 0, 0]])
    same(found.stream("reward"), [0.0, 1.0, 2.0, 3.0])
    assert found.group.tolist() == [0, 1, 0, 1]
    prepared = find("dapo").prepare(found)
    watch = find("dapo")(Policy(logp=found.stream("old")), prepared).watch
    assert (watch["ratio"] == 1).all()


def test_the_kl_is_masked_and_averaged_as_the_surrogate_is():
    """67: at no advantage the loss is beta times the KL of the chosen tokens, token by token."""
    mask = marks("xx.", "x..")
    ref = torch.tensor([[-1.0, -2.0, 9.0], [-1.5, 9.0, 9.0]], dtype=torch.float64)
    logp = torch.tensor([[-1.5, -1.5, 5.0], [-1.0, 5.0, 5.0]], dtype=torch.float64)
    rows = batch(mask, reward=[1.0, 1.0], old=logp, ref=ref)
    kl = kl_estimate(logp, ref, estimator="k3")[0]
    for average, expected in (
        ("per_token", (kl[0, :2].sum() + kl[1, 0]) / 3),
        ("per_sequence", (kl[0, :2].mean() + kl[1, 0]) / 2),
    ):
        loss, _ = learned(find("grpo").using(beta=0.5, average=average), rows, logp=logp)
        same(loss, 0.5 * expected)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_every_estimator_in_the_loss_reads_the_reference(estimator):
    """67: only the slope of k1 does not depend on it, and its value does."""
    losses, slopes = [], []
    for ref in (-1.0, -1.7):
        rows = batch(ragged(1, 1), reward=[1.0, 1.0], old=[[-1.2]] * 2, ref=[[ref]] * 2)
        objective = find("grpo").using(beta=1.0, estimator=estimator)
        loss, slope = learned(objective, rows, logp=[[-1.2]] * 2)
        losses.append(loss)
        slopes.append(slope["logp"])
    assert not losses[0].isclose(losses[1])
    assert slopes[0].equal(slopes[1]) is (estimator == "k1")
