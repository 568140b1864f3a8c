"""The numbers of `algorithms.md`, sections 10 and 11: QPO and SPO."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import batch, learned, marks, minimised, ragged, same

from logratio.batch import Policy
from logratio.lab import dense
from logratio.numerics import group_log_mean_exp
from logratio.objective import total_loss
from logratio.objectives import find

HALF = [0.5, 0.5]


def printed(value, digits):
    """Returns numbers rounded as they are printed."""
    return [round(one, digits) + 0.0 for one in value.detach().flatten().tolist()]


# 10. QPO: policies as classifiers of success


def fitted(objective, rows, ids, state_of, *, reference, rounds=1):
    """Fits a table of logits, one row of it for each state; returns it, and the final terms.

    `state_of` says which row of the table each column of each rollout reads.
    """
    table = reference.clone().requires_grad_()
    rows = objective.prepare(rows)
    c = torch.zeros((), dtype=torch.float64, requires_grad=True)
    learns_c = "c" in objective.declared().scalars

    def read(logits):
        scalars = {"c": c} if learns_c else {}
        seen = {"needs": objective.declared(), "reference": reference[state_of]}
        return dense.read(logits[state_of], ids, scalars=scalars, **seen)

    for _ in range(rounds):
        targets = read(table.detach()).statistics  # held fixed for a round, as a lagged copy is

        def loss(targets=targets):
            policy = read(table)
            policy = type(policy)(**{**vars(policy), "statistics": targets})
            terms = objective(policy, rows)
            return total_loss(terms, objective.weights(terms, rows), rows)

        minimised(loss, [table, c] if learns_c else [table])
    return table.detach(), objective(read(table.detach()), rows)


def one_step(objective, rewards, reference):
    """Fits a policy of one token on one rollout of each; returns it and its predictions."""
    ids = torch.arange(len(rewards))[:, None]
    ref = torch.tensor([reference], dtype=torch.float64).log()
    columns = dense.reference_columns(ref[:, None].expand(len(rewards), 2, -1), ids)
    rows = batch(ragged(*[1] * len(rewards)), reward=rewards, **columns)
    states = torch.zeros(len(rewards), 2, dtype=torch.long)
    table, terms = fitted(objective, rows, ids, states, reference=ref)
    return table.softmax(-1), terms.watch["q"]


def test_without_an_offset_the_classifier_is_biased():
    """10.3: success (.3, .1) from a fair reference is predicted as (.650, .128)."""
    policy, success = one_step(find("qpo").using(preset="log_probs"), [0.3, 0.1], HALF)
    assert printed(policy, 3) == [0.927, 0.073]
    assert printed(success, 3) == [0.65, 0.128]


def test_with_the_right_offset_it_predicts_exactly():
    """10.3: the offset is -1.310; 10.2: the posterior would be (.75, .25), QPO is greedier."""
    learned_c = {"offset": "none", "c": "learned"}
    for settings in ({"offset": "none", "c": -1.310}, learned_c, {"c": 0.0}):
        policy, success = one_step(find("qpo").using(**settings), [0.3, 0.1], HALF)
        assert printed(policy, 3) == [0.794, 0.206]
        assert printed(success, 3) == [0.3, 0.1]


def test_the_policy_is_the_reference_times_the_odds_to_the_gain():
    """10.2: odds (4, 1/4) at gain 2 are (16, 1/16)."""
    for gain, odds in ((1.0, 4.0), (2.0, 16.0)):
        policy, _ = one_step(find("qpo").using(c=0.0, gain=gain), [0.8, 0.2], [0.9, 0.1])
        weighed = torch.tensor([0.9 * odds, 0.1 / odds])
        same(policy[0], (weighed / weighed.sum()).double())


def test_a_reward_that_says_nothing_moves_the_policy_only_where_the_reference_counts():
    """10.3, defect 1: at A = 0 the reference stays, at gain 1 and A = 1 the policy is uniform."""
    free = {"offset": "none", "c": "learned"}
    kept, _ = one_step(find("qpo").using(**free), [0.4, 0.4], [0.9, 0.1])
    assert printed(kept, 6) == [0.9, 0.1]
    with pytest.warns(UserWarning, match="`A` is not 0"):
        objective = find("qpo").using(A=1.0, **free)
    uniform, _ = one_step(objective, [0.4, 0.4], [0.9, 0.1])
    assert printed(uniform, 6) == [0.5, 0.5]


def test_at_the_reference_the_loss_is_that_of_a_constant():
    """10.6: with c the logit of the mean reward, the slope in c is 0."""
    rows = batch(ragged(2, 2), reward=[1.0, 0.0], ref=[[-1.0, -2.0]] * 2)
    objective = find("qpo").using(offset="none", c=0.0)
    loss, slopes = learned(objective, rows, logp=[[-1.0, -2.0]] * 2)
    assert printed(loss, 4) == [0.6931]
    same(slopes["logp"].sum(), 0.0)


TREE = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 2, 0], [0, 2, 0]])  # the root is state 0


@pytest.mark.parametrize(
    ("target", "first", "values", "success"),
    [
        ("monte_carlo", 0.5, [0.5, 0.5], 0.6324),
        ("bootstrap", 0.7647, [0.7647, 0.5], 0.7024),
        ("q_learning", 0.8, [0.8, 0.5], 0.7118),
    ],
)
def test_the_two_step_tree(target, first, values, success):
    """10.6, item 4: leaves [[.2, .8], [.5, .5]] from uniform data; Monte Carlo is blind."""
    ids = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    leaves = torch.tensor([0.2, 0.8, 0.5, 0.5], dtype=torch.float64)
    reference = torch.zeros(3, 2, dtype=torch.float64)
    columns = dense.reference_columns(reference[TREE], ids)
    rows = batch(ragged(2, 2, 2, 2), reward=leaves, **columns)
    objective = find("qpo").using(target=target, c=0.0)
    table, terms = fitted(objective, rows, ids, TREE, reference=reference, rounds=2)
    policy = table.softmax(-1)
    assert printed(policy[1], 4) == [0.0588, 0.9412]
    assert printed(policy[2], 4) == [0.5, 0.5]
    assert printed(policy[0, 0], 4) == [first]
    assert printed(terms.watch["q"][[0, 2], 0], 4) == values
    reached = policy[0].repeat_interleave(2) * policy[1:].flatten()
    assert printed((reached * leaves).sum(), 4) == [success]


@given(seed=st.integers(0, 2**31 - 1))
def test_the_best_next_value_is_never_below_the_expected_one(seed):
    """10.6, items 1 and 5; at the last token all targets are the reward."""
    source = torch.Generator().manual_seed(seed)
    logits, reference = (torch.randn(3, 4, 5, generator=source).double() for _ in range(2))
    ids = torch.randint(5, (3, 3), generator=source)
    columns = dense.reference_columns(reference, ids)
    rows = batch(ragged(3, 1, 2), reward=[0.0, 1.0, 0.5], **columns)
    found = {}
    for target in ("monte_carlo", "bootstrap", "q_learning"):
        objective = find("qpo").using(target=target, c=0.0)
        policy = dense.read(logits, ids, needs=objective.declared(), reference=reference)
        found[target] = objective(policy, objective.prepare(rows)).watch["target"]
    assert (found["q_learning"] >= found["bootstrap"]).all()
    last = marks("..x", "x..", ".x.")
    for targets in found.values():
        same(targets[last], [0.0, 1.0, 0.5])


def test_a_constant_on_the_logits_moves_the_raw_reading_only():
    """10.6, item 6."""
    ids, reference = torch.tensor([[1]]), torch.zeros(1, 2, 3, dtype=torch.float64)
    logits = torch.tensor([[[0.3, 0.9, -0.2]] * 2], dtype=torch.float64)
    rows = batch(ragged(1), reward=[1.0], **dense.reference_columns(reference, ids))
    for offset, moves in (("none", False), ("log_sum_exp", True)):
        objective = find("qpo").using(offset=offset, c=0.0)
        losses = []
        for shift in (0.0, 1.0):
            policy = dense.read(
                logits + shift, ids, needs=objective.declared(), reference=reference
            )
            terms = objective(policy, objective.prepare(rows))
            losses.append(terms.terms["success"].loss.item())
        assert (losses[0] == pytest.approx(losses[1], rel=1e-12)) is not moves


# 11. SPO: soft values


def soft_value(reward, beta):
    """Returns beta log mean exp(r / beta) over samples of the reference, and its sample size."""
    one_group = torch.zeros(len(reward), dtype=torch.long)
    value, size = group_log_mean_exp(reward / beta, one_group)
    return beta * value[0], size[0]


GUESSES = -torch.arange(100, dtype=torch.float64) / 99  # the target is 1, guesses are 1 to 100


@pytest.mark.parametrize(
    ("beta", "digits", "value"), [(0.01, 7, -0.0415233), (0.1, 5, -0.22626), (1.0, 5, -0.45785)]
)
def test_the_soft_value_of_guessing_a_number(beta, digits, value):
    """11.4, item 3."""
    assert printed(soft_value(GUESSES, beta)[0], digits) == [value]


def test_the_optimal_guesser():
    """11.4, item 3: its likeliest guesses, its reward, its KL, and that they make up the value."""
    value, _ = soft_value(GUESSES, 0.01)
    policy = ((GUESSES - value) / 0.01).exp() / 100
    reward, kl = (policy * GUESSES).sum(), (policy * (100 * policy).log()).sum()
    assert printed(policy[:4], 5) == [0.63582, 0.23155, 0.08433, 0.03071]
    assert printed(reward, 6) == [-0.005786]
    assert printed(kl, 4) == [3.5738]
    same(reward - 0.01 * kl, value)
    same(policy.sum(), 1.0)


def test_a_soft_value_has_no_floor():
    """11.1: a floor of 1e-8 on the mean would make this -0.1842."""
    same(soft_value(torch.full((16,), -0.5), 0.01)[0], -0.5)


@pytest.mark.parametrize(
    ("beta", "mean", "deviation", "share"),
    [(0.01, -0.0426, 0.0049, 0.021), (0.1, -0.227, 0.013, 0.20)],
)
def test_estimates_of_a_soft_value_are_low_and_rest_on_few_samples(beta, mean, deviation, share):
    """11.4, item 7: 256 samples each."""
    source, trials = torch.Generator().manual_seed(0), 2000
    drawn = GUESSES[torch.randint(100, (trials * 256,), generator=source)]
    owner = torch.arange(trials).repeat_interleave(256)
    value, size = group_log_mean_exp(drawn / beta, owner)
    value, size = beta * value[::256], size[::256]
    assert value.mean() < soft_value(GUESSES, beta)[0]
    # 2000 trials: the mean is good to deviation / 45, the deviation to 2 %, the share to 1 %
    assert value.mean().item() == pytest.approx(mean, abs=4 * deviation / 2000**0.5 + 5e-4)
    assert value.std().item() == pytest.approx(deviation, rel=0.1)  # two printed digits
    assert size.mean().item() / 256 == pytest.approx(share, rel=0.1)  # two printed digits


REWARD = [1.0, 0.0, -1.0]
REFERENCE = torch.tensor([[0.2], [0.5], [0.3]], dtype=torch.float64).log()
OUTCOMES = batch(ragged(1, 1, 1), reward=REWARD, ref=REFERENCE)
SOFT = soft_value(torch.tensor([1.0] * 2 + [0.0] * 5 + [-1.0] * 3).double(), 1.0)[0].item()
BEST = REFERENCE + torch.tensor(REWARD, dtype=torch.float64)[:, None] - SOFT


def test_the_soft_value_and_the_optimum_of_three_outcomes():
    """11.1."""
    assert round(SOFT, 4) == 0.1433
    assert printed(BEST.exp(), 4) == [0.4711, 0.4333, 0.0956]


@pytest.mark.parametrize(
    ("start", "digits", "settled"),
    [
        (SOFT, 4, [0.4711, 0.4333, 0.0956]),
        ("vargrad", 4, [0.4711, 0.4333, 0.0956]),
        (SOFT + 0.5, 3, [0.511, 0.427, 0.062]),
        (SOFT - 0.5, 3, [0.445, 0.422, 0.133]),
    ],
)
def test_off_policy_the_start_decides_where_spo_settles(start, digits, settled):
    """11.1: uniform data over three outcomes; the variance form needs no soft value."""
    objective = find("spo").using(beta=1.0, q0=start)
    rows = objective.prepare(OUTCOMES)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def loss():
        terms = objective(Policy(logp=logits.log_softmax(0)[:, None]), rows)
        return total_loss(terms, objective.weights(terms, rows), rows)

    minimised(loss, [logits])
    assert printed(logits.softmax(0), digits) == settled


@pytest.mark.parametrize("shift", [0.0, 0.5, -0.5])
def test_on_policy_the_start_is_only_a_baseline(shift):
    """11.1: the expected gradient at the optimum is 0 whatever Q0 is."""
    objective = find("spo").using(beta=1.0, q0=SOFT + shift)
    _, slopes = learned(objective, OUTCOMES, logp=BEST)
    weighed = BEST.exp() * 3 * slopes["logp"]  # as often as the policy draws each, not a third
    same(weighed - BEST.exp() * weighed.sum(), torch.zeros(3, 1))
    same(weighed.sum(), 2 * shift)


def test_at_the_optimum_the_loss_is_exactly_zero_and_at_the_reference_q_is_q0():
    """11.4, items 1 and 2."""
    for start in (SOFT, "vargrad"):
        loss, slopes = learned(find("spo").using(beta=1.0, q0=start), OUTCOMES, logp=BEST)
        same(loss, 0.0)
        same(slopes["logp"], torch.zeros(3, 1))
    objective = find("spo").using(q0=-0.3)
    policy = Policy(logp=REFERENCE)
    same(objective(policy, objective.prepare(OUTCOMES)).watch["q_terminal"], [-0.3] * 3)


def test_a_shift_of_rewards_and_start_changes_nothing_and_a_scale_all_by_its_square():
    """11.4, item 4."""
    logp = [[-1.0], [-0.5], [-2.0]]

    def found(shift, scale):
        reward = (scale * (one + shift) for one in REWARD)
        rows = batch(ragged(1, 1, 1), reward=list(reward), ref=REFERENCE)
        return learned(
            find("spo").using(beta=0.5 * scale, q0=scale * (0.2 + shift)), rows, logp=logp
        )

    plain, slopes = found(0.0, 1.0)
    moved, same_slopes = found(3.0, 1.0)
    same(moved, plain)
    same(same_slopes["logp"], slopes["logp"])
    scaled, square_slopes = found(0.0, 4.0)
    same(scaled, 16 * plain)
    same(square_slopes["logp"], 16 * slopes["logp"])


@pytest.mark.parametrize(("reward", "loss", "slope"), [(0.0, 0.7, -1.0), (-1e9, 0.6863, 0.9864)])
def test_cross_entropy_of_success_is_sft_and_of_failure_unlikelihood(reward, loss, slope):
    """11.4, item 5: p = e^-0.7; -log p with slope -1, or -log(1 - p) with slope p / (1 - p)."""
    objective = find("spo").using(kind="cross_entropy", beta=1.0, q0=-0.5)
    rows = batch(ragged(1), reward=[reward], ref=[[-1.0]])
    value, slopes = learned(objective, rows, logp=[[-1.2]])
    assert printed(value, 4) == [loss]
    assert printed(slopes["logp"], 4) == [slope]
