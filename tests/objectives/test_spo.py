"""SPO: 2 beta (Q - r), or (p - p*) / (1 - p), on every token of a response."""

import warnings
from math import log

import pytest
from objectives.rows import (
    batch_of,
    check_losses,
    check_runs,
    check_slopes,
    loss_of,
    needed,
    needs_of,
    policy_of,
    refusal,
)

from logratio.objectives.spo import spo

CROSS = {"kind": "cross_entropy", "q0": 0.0}


def one(*apart, reward, **streams):
    """One response with these log-ratios to a reference at -3."""
    policy = policy_of([[x - 3 for x in apart]])
    return policy, batch_of(
        [[1] * len(apart)], ref=[[-3.0] * len(apart)], reward=[reward], **streams
    )


@pytest.mark.parametrize(
    ("q0", "reward", "loss", "slope"),
    [
        # log-ratios .2 and .1 at beta .5: Q = q0 + .15
        (0.0, 0.15, 0.0, 0.0),
        (0.0, 1.15, 1.0, -1.0),  # 2 * .5 * (Q - r)
        (0.5, 0.15, 0.25, 0.5),
        (-0.5, -1.35, 1.0, 1.0),
    ],
)
def test_slope_of_the_squared_loss(q0, reward, loss, slope):
    objective = spo.using(beta=0.5, q0=q0)
    policy, batch = one(0.2, 0.1, reward=reward)
    check_losses(objective, policy, batch, soft=[loss])
    check_slopes(objective, policy, batch, logp=[[slope, slope]])


@pytest.mark.parametrize(
    ("apart", "reward", "loss", "slope"),
    [
        # beta 1, Q0 0: p = 1/2 and p* = 1/4: -(log(.5) + 3 log(.5)) / 4, (.5 - .25) / .5
        (-log(2), -log(4), 0.6931471805599453, 0.5),
        # p = 1/4, p* = 1/2: -(log(.25) + log(.75)) / 2, (.25 - .5) / .75
        (-log(4), -log(2), 0.8369882167858358, -1 / 3),
        (-log(4), -log(4), 0.5623351446188083, 0.0),  # the entropy of 1/4
        # success for certain: -log p, SFT on the positives
        (-log(4), 0.0, 1.3862943611198906, -1.0),
        # failure for certain: -log(1 - p), p / (1 - p)
        (-log(4), -float("inf"), 0.2876820724517809, 1 / 3),
        (-log(4), -800.0, 0.2876820724517809, 1 / 3),
    ],
)
def test_slope_of_the_cross_entropy(apart, reward, loss, slope):
    objective = spo.using(beta=1.0, **CROSS)
    policy, batch = one(apart - 1, 1.0, reward=reward)
    check_losses(objective, policy, batch, soft=[loss])
    check_slopes(objective, policy, batch, logp=[[slope, slope]])


@pytest.mark.parametrize(
    ("q", "loss", "slope"),
    [
        # p* = 1/4 and an edge at -log 2, where the loss is log 2 and the slope 1/2
        (-1.0, 0.5940063590403114, 0.18648253015199482),
        (-log(2), 0.6931471805599453, 0.5),
        (0.0, 1.0397207708399179, 0.5),  # log 2 on, at slope 1/2
        (1.0, 1.5397207708399179, 0.5),
    ],
)
def test_past_the_edge_the_cross_entropy_is_a_straight_line(q, loss, slope):
    objective = spo.using(beta=1.0, edge=log(2), **CROSS)
    policy, batch = one(q, reward=-log(4))
    check_losses(objective, policy, batch, soft=[loss])
    check_slopes(objective, policy, batch, logp=[[slope]])


def test_the_default_edge_is_a_hundredth():
    """At -.01 the slope is (p - 1/4) / (1 - p) with p = e^-.01."""
    objective = spo.using(beta=1.0, **CROSS)
    for q in (-0.01, 0.5):
        check_slopes(objective, *one(q, reward=-log(4)), logp=[[74.37562499895833]])


def test_beta_divides_both_exponents():
    """Q / .5 = -log 4 and r / .5 = -log 2; the slope is beta times 1 / beta."""
    objective = spo.using(beta=0.5, kind="cross_entropy", q0=-log(2))
    policy, batch = one(0.0, reward=-log(2) / 2)
    check_losses(objective, policy, batch, soft=[0.8369882167858358])
    check_slopes(objective, policy, batch, logp=[[-1 / 3]])


def test_slope_of_a_pair():
    """Q - Q' = .5 (.4 + .2) = .3 against r - r' = 1: .49, and -+ 2 * .5 * .7 on each token."""
    policy = policy_of([[-2.6, -9.0], [-3.1, -3.1], [-1.0, -1.0]])
    batch = batch_of(
        [[1, 0], [1, 1], [1, 1]], pair=[0, 1, -1], ref=[[-3.0, -3.0]] * 3, reward=[1.0, 0.0, 7.0]
    )  # fmt: skip
    objective = spo.using(kind="pair", beta=0.5, average="per_pair", q0=5.0)
    check_losses(objective, policy, batch, soft=[0.49])
    check_slopes(objective, policy, batch, logp=[[-0.7, 0], [0.7, 0.7], [0, 0]])
    assert objective(policy, batch).terms["soft"].unit == "pair"


@pytest.mark.parametrize("kind", ["squared", "cross_entropy"])
def test_the_other_kinds_are_about_sequences(kind):
    objective = spo.using(kind=kind, q0=-1.0)
    assert objective(*one(0.0, reward=-1.0)).terms["soft"].unit == "sequence"


@pytest.mark.parametrize(("anchor", "slope"), [("ref", -0.85), ("old", -0.95)])
def test_the_anchor_is_the_reference_or_the_sampler(anchor, slope):
    """Log-ratios .3 and .1: Q = .15 or .05, against a reward of 1."""
    objective = spo.using(beta=0.5, q0=0.0, anchor=anchor)
    policy, batch = one(0.3, reward=1.0, old=[[-2.8]])
    check_slopes(objective, policy, batch, logp=[[slope]])


def test_token_rewards_add_up():
    """-.2 and -.3; what stands on the pad does not count."""
    objective = spo.using(beta=0.5, q0=0.0, rewards="tokens")
    policy = policy_of([[-3.0, -3.0, -1.0]])
    batch = batch_of([[1, 1, 0]], ref=[[-3.0] * 3], token_reward=[[-0.2, -0.3, -9.0]])
    check_losses(objective, policy, batch, soft=[0.25])
    check_slopes(objective, policy, batch, logp=[[0.5, 0.5, 0]])


PRESETS = {
    "as_written": {"kind": "squared", "beta": 0.01, "q0": "policy"},
    "agro": {"kind": "squared", "q0": "vargrad"},
    "a_star_po": {"kind": "squared", "q0": "reference", "beta": 0.001},
    "rebel": {"kind": "pair", "anchor": "old", "q0": 0.0, "average": "per_pair"},
    "kimi": {"kind": "squared", "anchor": "old", "q0": "mean"},
}


def test_what_spo_is_made_of():
    assert spo.name == "spo"
    assert spo.loss.resolved() == {
        "kind": "squared", "beta": 0.1, "q0": "vargrad", "anchor": "ref", "rewards": "outcome",
        "edge": 0.01,
    }  # fmt: skip
    assert (spo.keep.name, spo.credit.name) == ("everything", "none")
    assert (spo.weight.name, spo.average.name) == ("uniform", "per_sequence")
    assert dict(spo.presets) == PRESETS


@pytest.mark.parametrize(
    ("settings", "streams", "others"),
    [
        ({}, ["ref", "reward"], {"couples": "group"}),
        ({"preset": "agro"}, ["ref", "reward"], {"couples": "group"}),
        ({"preset": "a_star_po"}, ["ref", "reward", "q0", "q0_samples"], {}),
        ({"preset": "rebel"}, ["old", "reward", "pair"], {"couples": "pair"}),
        ({"preset": "kimi"}, ["old", "reward"], {"couples": "group"}),
        ({"q0": -0.5}, ["ref", "reward"], {}),
        ({"q0": "learned"}, ["ref", "reward"], {"heads": {"q0"}}),
        ({"q0": "policy_weighted"}, ["ref", "reward"], {"couples": "group"}),
        ({"q0": -0.5, "rewards": "tokens"}, ["ref", "token_reward"], {}),
        ({"kind": "cross_entropy", "q0": -0.5}, ["ref", "reward"], {}),
        (
            {"kind": "cross_entropy", "q0": "learned", "rewards": "tokens", "anchor": "old"},
            ["old", "token_reward"],
            {"heads": {"q0"}},
        ),
        (
            {"kind": "pair", "average": "per_pair"},
            ["ref", "reward", "pair"],
            {"couples": "group"},
        ),
    ],
)
def test_each_setting_runs_on_what_it_asks_for(settings, streams, others):
    objective = spo.using(**settings)
    assert needed(objective) == needs_of(*streams, **others)
    check_runs(objective)


WARNING = (
    "`q0` is 'policy', the document's own: off policy it is not the soft value of the reference, "
    "and moves the optimum"
)


@pytest.mark.parametrize("settings", [{"q0": "policy"}, {"preset": "as_written"}])
def test_the_documents_q0_comes_with_a_warning(settings):
    with pytest.warns(UserWarning, match="is") as seen:
        objective = spo.using(**settings)
    assert [str(one.message) for one in seen] == [WARNING]
    assert needed(objective) == needs_of("ref", "reward", couples="group")
    check_runs(objective)


def test_the_warning_points_at_whoever_called_using(monkeypatch):
    """Two frames lie between; test_find.py sees the line itself."""
    seen = []
    monkeypatch.setattr(warnings, "warn", lambda *_, **options: seen.append(options))
    spo.using(q0="policy")
    assert seen == [{"stacklevel": 3}]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta": 0.0}, "`beta` is 0.0, but it must be a number in (0, inf)"),
        (
            {"kind": "cross_entropy", "edge": 0.0},
            "`edge` is 0.0, but it must be a number in (0, inf)",
        ),
        ({"edge": 0.1}, "`edge` is 0.1, but only `cross_entropy` reads it"),
        ({"kind": "pair", "edge": 0.1}, "`edge` is 0.1, but only `cross_entropy` reads it"),
        (
            {"kind": "square"},
            "`kind` is 'square', but it must be one of 'squared', 'cross_entropy', 'pair'",
        ),
        (
            {"q0": "ref"},
            "`q0` is 'ref', but it must be a number or one of 'reference', 'vargrad', 'learned', "
            "'mean', 'policy_weighted', 'policy'",
        ),
        ({"anchor": "policy"}, "`anchor` is 'policy', but it must be one of 'ref', 'old'"),
        ({"rewards": "steps"}, "`rewards` is 'steps', but it must be one of 'outcome', 'tokens'"),
    ],
)
def test_what_is_refused(settings, sentence):
    assert refusal(spo.using, **settings) == sentence


def test_the_cross_entropy_wants_rewards_of_at_most_zero():
    objective = spo.using(**CROSS)
    assert refusal(objective, *one(0.0, reward=0.5)) == (
        "`reward` holds 0.5, but `kind` 'cross_entropy' reads it as a log-probability: at most 0, "
        "so subtract the largest"
    )
    assert loss_of(spo.using(kind="cross_entropy", q0=-1.0), *one(0.0, reward=0.0)).isfinite()
