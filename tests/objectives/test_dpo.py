"""DPO: the slope in h of each kind of loss, times +- beta on every token."""

import pytest
import torch
from objectives.rows import (
    batch_of,
    check_losses,
    check_runs,
    check_slopes,
    check_watch,
    loss_of,
    needed,
    needs_of,
    numbers,
    policy_of,
    refusal,
)

from logratio.objectives.dpo import dpo

LOG_2 = 0.6931471805599453
MASK = [[1, 1], [1, 0]]


def pair_of(*chosen, rejected, **columns):
    """One pair with these log-ratios to a reference at -3; the rejected answer has one token."""
    apart = numbers([chosen, (rejected, *[5.0] * (len(chosen) - 1))])
    mask = [[1] * len(chosen), [1] + [0] * (len(chosen) - 1)]
    policy = policy_of((apart - 3).tolist())
    return policy, batch_of(mask, pair=[0, 1], ref=[[-3.0] * len(chosen)] * 2, **columns)


def test_the_worked_example_summed():
    """h = .1 (.6 + .3) = .09, sigma(-h) = .4775: slopes -+ .1 * .4775."""
    policy, batch = pair_of(0.4, 0.2, rejected=-0.3)
    check_losses(dpo, policy, batch, preference=[0.6491593390256101])
    slope = 0.04775151752081999
    check_slopes(dpo, policy, batch, logp=[[-slope, -slope], [slope, 0]])
    check_watch(dpo, policy, batch, chosen=[0.06], rejected=[-0.03], margin=[0.09], accuracy=[1.0])


def test_the_worked_example_per_token():
    """h = .1 (.3 + .3) = .06, sigma(-h) = .485004: slopes - .1 * .485 / 2 and + .1 * .485."""
    policy, batch = pair_of(0.4, 0.2, rejected=-0.3)
    objective = dpo.using(normalise="length")
    check_losses(objective, policy, batch, preference=[0.663597113076141])
    slope = 0.04850044983805899
    check_slopes(objective, policy, batch, logp=[[-slope / 2, -slope / 2], [slope, 0]])
    check_watch(
        objective, policy, batch, chosen=[0.03], rejected=[-0.03], margin=[0.06], accuracy=[1.0]
    )


@pytest.mark.parametrize(
    ("settings", "margin", "loss", "slope"),
    [
        # sigmoid: log(1 + e^-h), slope -sigma(-h)
        ({"kind": "sigmoid"}, 0.0, LOG_2, -0.5),
        ({"kind": "sigmoid"}, 1.0, 0.3132616875182228, -0.2689414213699951),
        ({"kind": "sigmoid"}, -1.0, 1.3132616875182228, -0.7310585786300049),
        ({"kind": "sigmoid"}, 100.0, 0.0, 0.0),
        ({"kind": "sigmoid"}, -100.0, 100.0, -1.0),
        # smoothed: .9 * .31326 + .1 * 1.31326, .1 sigma(1) - .9 sigma(-1)
        ({"smoothing": 0.1}, 1.0, 0.41326168751822284, -0.16894142136999513),
        # ... at h = 0 both sides cost log 2, and the slope is (.1 - .9) / 2
        ({"smoothing": 0.1}, 0.0, LOG_2, -0.4),
        # robust: (.9 * .31326 - .1 * 1.31326) / .8, -(.9 sigma(-1) + .1 sigma(1)) / .8
        ({"kind": "robust", "smoothing": 0.1}, 1.0, 0.1882616875182228, -0.39394142136999505),
        # ... at h = 0 it is log 2 again, and the slope -1 / 2 over .8
        ({"kind": "robust", "smoothing": 0.1}, 0.0, LOG_2, -0.625),
        ({"kind": "robust"}, 1.0, 0.3132616875182228, -0.2689414213699951),
        # hinge: 1 - h, then nothing
        ({"kind": "hinge"}, 0.25, 0.75, -1.0),
        ({"kind": "hinge"}, -1.0, 2.0, -1.0),
        ({"kind": "hinge"}, 1.0, 0.0, -1.0),  # on the edge the straight line still counts
        ({"kind": "hinge"}, 1.25, 0.0, 0.0),
        # ipo at beta 1: (h - 1/2)^2
        ({"kind": "ipo"}, 0.5, 0.0, 0.0),
        ({"kind": "ipo"}, 2.0, 2.25, 3.0),
        ({"kind": "ipo"}, -1.0, 2.25, -3.0),
    ],
)
def test_slope_of_each_kind_at_each_margin(settings, margin, loss, slope):
    """At beta 1 the margin is the chosen log-ratio, when the rejected one is 0."""
    objective = dpo.using(beta=1.0, **settings)
    policy, batch = pair_of(margin, rejected=0.0)
    check_losses(objective, policy, batch, preference=[loss])
    check_slopes(objective, policy, batch, logp=[[slope], [-slope]])


@pytest.mark.parametrize(
    ("kind", "loss", "slope"),
    [
        # log-ratios .7 and .2 at beta 2: h = 1
        ("sigmoid", 0.3132616875182228, -0.5378828427399902),  # -2 sigma(-1)
        ("hinge", 0.0, -2.0),
        ("robust", 0.3132616875182228, -0.5378828427399902),
        # D+ - D- - 1 / (2 beta) = .5 - .25: .0625, and 2 * .25 in the log-ratio, whatever beta
        ("ipo", 0.0625, 0.5),
    ],
)
def test_beta_multiplies_the_margin_and_the_slope(kind, loss, slope):
    policy, batch = pair_of(0.75, rejected=0.25)
    objective = dpo.using(kind=kind, beta=2.0)
    check_losses(objective, policy, batch, preference=[loss])
    check_slopes(objective, policy, batch, logp=[[slope], [-slope]])


@pytest.mark.parametrize("kind", ["ipo", "hinge"])
def test_the_other_kinds_divide_by_the_length_as_well(kind):
    """Means .3 and -.2, a difference of .5: ipo at beta 1 has slope 0, the hinge -1, halved."""
    policy, batch = pair_of(0.5, 0.1, rejected=-0.2)
    objective = dpo.using(kind=kind, beta=1.0, normalise="length")
    slope = {"ipo": 0.0, "hinge": -1.0}[kind]
    check_slopes(objective, policy, batch, logp=[[slope / 2, slope / 2], [-slope, 0]])


def test_the_sft_term_is_the_mean_over_the_chosen_tokens_only():
    """Chosen log-probs -2.6 and -2.8: a mean of 2.7. At .5 each token gets -.5 / 2 more."""
    policy, batch = pair_of(0.4, 0.2, rejected=-0.3)
    objective = dpo.using(sft=0.5)
    check_losses(objective, policy, batch, preference=[0.6491593390256101], sft=[2.7])
    terms = objective(policy, batch).terms
    assert (terms["sft"].coefficient, terms["sft"].unit) == (0.5, "pair")
    assert (terms["preference"].coefficient, terms["preference"].unit) == (1.0, "pair")
    # .64916 + .5 * 2.7
    torch.testing.assert_close(loss_of(objective, policy, batch), numbers(1.9991593390256101))
    slope = 0.04775151752081999
    check_slopes(objective, policy, batch, logp=[[-slope - 0.25, -slope - 0.25], [slope, 0]])


def test_no_sft_term_unless_asked():
    policy, batch = pair_of(0.4, rejected=-0.3)
    assert set(dpo(policy, batch).terms) == {"preference"}


def test_the_loss_is_the_mean_over_pairs_wherever_their_rows_stand():
    """Rows: rejected of pair 1, chosen of pair 0, no pair, chosen of pair 1, rejected of pair 0."""
    policy = policy_of([[-3.0], [-2.0], [-1.0], [-3.0], [-2.0]])
    batch = batch_of([[1]] * 5, pair=[3, 0, -1, 2, 1], ref=[[-3.0], [-2.0], [-9.0], [-4.0], [-2.0]])
    objective = dpo.using(beta=1.0, sft=1.0)
    # pair 0 is level, pair 1 leads by 1; the chosen rows cost 2 and 3
    check_losses(objective, policy, batch, preference=[LOG_2, 0.3132616875182228], sft=[2.0, 3.0])
    slope = 0.2689414213699951 / 2
    check_slopes(
        objective, policy, batch, logp=[[slope], [-0.25 - 0.5], [0], [-slope - 0.5], [0.25]]
    )
    check_watch(
        objective, policy, batch,
        chosen=[0.0, 1.0], rejected=[0.0, 0.0], margin=[0.0, 1.0], accuracy=[0.0, 1.0],
    )  # fmt: skip


@pytest.mark.parametrize("normalise", ["sum", "length"])
@pytest.mark.parametrize("mask", [[[1], [0]], [[0], [1]], [[0], [0]]])
def test_a_pair_with_an_empty_side_trains_nothing(normalise, mask):
    """Its ratio is that of no token, 0; so is its mean log-prob."""
    objective = dpo.using(normalise=normalise, sft=1.0, beta=1.0)
    policy, batch = policy_of([[-3.0], [-3.0]]), batch_of(mask, pair=[0, 1], ref=[[-3.0]] * 2)
    nll = 3.0 * mask[0][0]
    check_losses(objective, policy, batch, preference=[LOG_2], sft=[nll])
    check_slopes(objective, policy, batch, logp=[[0], [0]])


def test_at_the_reference_every_slope_is_half_of_beta():
    policy, batch = pair_of(0.0, 0.0, rejected=0.0)
    torch.testing.assert_close(loss_of(dpo, policy, batch), numbers(LOG_2))
    check_slopes(dpo, policy, batch, logp=[[-0.05, -0.05], [0.05, 0]])


def test_swapping_the_pair_costs_the_margin():
    """L(h) - L(-h) = -h."""
    forward = loss_of(dpo, *pair_of(0.8, rejected=-0.3))
    backward = loss_of(dpo, *pair_of(-0.3, rejected=0.8))
    torch.testing.assert_close(forward - backward, numbers(-0.11))


def test_a_shared_prefix_cancels_when_summed_and_not_when_normalised():
    """Two answers share token 1: at lengths 2 and 1 its slopes are -+ s, or - s / 2 and + s."""
    policy, batch = pair_of(0.3, 0.1, rejected=0.3)
    summed, normalised = (dpo.using(normalise=n).slopes(policy, batch) for n in ("sum", "length"))
    assert summed["logp"][:, 0].sum() == 0
    assert normalised["logp"][:, 0].sum().abs() > 0.01


def test_what_dpo_is_made_of():
    assert dpo.name == "dpo"
    assert dpo.loss.resolved() == {
        "beta": 0.1, "kind": "sigmoid", "normalise": "sum", "smoothing": 0.0, "sft": 0.0
    }  # fmt: skip
    assert (dpo.keep.name, dpo.credit.name) == ("everything", "none")
    assert (dpo.weight.name, dpo.average.name) == ("uniform", "per_pair")
    assert dict(dpo.presets) == {"as_written": {"normalise": "length"}, "rpo": {"sft": 1.0}}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preset": "as_written"},
        {"preset": "rpo"},
        {"kind": "ipo"},
        {"kind": "hinge"},
        {"kind": "robust", "smoothing": 0.2},
        {"smoothing": 0.2, "normalise": "length", "sft": 0.3},
    ],
)
def test_each_setting_runs_on_pairs_and_a_reference(settings):
    objective = dpo.using(**settings)
    assert needed(objective) == needs_of("pair", "ref", couples="pair")
    check_runs(objective)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta": 0.0}, "`beta` is 0.0, but it must be a number in (0, inf)"),
        ({"beta": -0.1}, "`beta` is -0.1, but it must be a number in (0, inf)"),
        ({"smoothing": 0.5}, "`smoothing` is 0.5, but it must be a number in [0, 0.5)"),
        ({"smoothing": -0.1}, "`smoothing` is -0.1, but it must be a number in [0, 0.5)"),
        ({"sft": -1.0}, "`sft` is -1.0, but it must be a number in [0, inf)"),
        (
            {"kind": "ipo", "smoothing": 0.1},
            "`smoothing` is 0.1, but only `kind` 'sigmoid' or 'robust' reads it",
        ),
        (
            {"kind": "hinge", "smoothing": 0.1},
            "`smoothing` is 0.1, but only `kind` 'sigmoid' or 'robust' reads it",
        ),
        (
            {"kind": "kto"},
            "`kind` is 'kto', but it must be one of 'sigmoid', 'ipo', 'hinge', 'robust'",
        ),
        ({"normalise": "mean"}, "`normalise` is 'mean', but it must be one of 'sum', 'length'"),
    ],
)
def test_what_is_refused(settings, sentence):
    assert refusal(dpo.using, **settings) == sentence


def test_a_smoothing_just_below_a_coin_is_allowed():
    assert dpo.using(smoothing=0.49).loss.resolved()["smoothing"] == 0.49
