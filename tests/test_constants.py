"""What a batch holds is a constant, what nothing reads is refused, what is no number is refused."""

import pytest
import torch
from samples import batch, marks, ragged
from torch.testing import assert_close

from logratio.batch import Policy
from logratio.objective import total_loss
from logratio.objectives import find
from logratio.objectives.dpo import dpo
from logratio.objectives.grpo import grpo
from logratio.objectives.importance import importance
from logratio.objectives.ppo import ppo
from logratio.objectives.qpo import qpo
from logratio.objectives.sft import sft
from logratio.objectives.spo import spo
from logratio.settings import Refused

MASK = ragged(2, 1)
STREAMS = {
    "old": [[-1.0, -2.0], [-1.5, 0.0]],
    "ref": [[-1.1, -1.8], [-1.4, 0.0]],
    "reward": [1.0, 0.0],
    "pair": [0, 1],
    "ref_logit": [[0.3, 0.2], [0.1, 0.0]],
    "value": [[0.1, 0.2, 0.0], [0.3, 0.0, 0.0]],
}


def rows(**streams):
    return batch(MASK, group=[0, 0], **{**STREAMS, **streams})


def policy(**streams):
    logp = torch.tensor([[-1.2, -1.9], [-1.3, 0.0]], dtype=torch.float64, requires_grad=True)
    return Policy(logp=logp, **streams)


def loss(objective, given, said):
    given = objective.prepare(given)
    terms = objective(said, given)
    return total_loss(terms, objective.weights(terms, given), given)


@pytest.mark.parametrize("objective", [grpo, dpo, spo, ppo], ids=lambda one: one.name)
def test_no_gradient_gets_through_a_batch(objective):
    given = rows()
    live = [stream.requires_grad_() for stream in (given.old, given.ref, given.columns["value"])]
    heads = {"value": torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)}
    loss(objective, given, policy(heads=heads)).backward()
    assert all(stream.grad is None for stream in live)


def test_no_gradient_gets_through_a_statistic():
    statistic = torch.full((2, 3), 0.4, dtype=torch.float64, requires_grad=True)
    said = policy(
        logit=torch.ones(2, 2, dtype=torch.float64, requires_grad=True),
        statistics={"next_value": statistic},
    )
    loss(qpo.using(target="bootstrap"), rows(), said).backward()
    assert statistic.grad is None


def test_a_credit_of_ones_own_makes_advantages():
    objective = grpo.using(credit=lambda given: {"advantage": 3.0 * given.mask})
    assert objective.prepare(rows()).advantage.tolist() == [[3.0, 3.0], [3.0, 0.0]]


@pytest.mark.parametrize("objective", [sft, dpo, spo, qpo], ids=lambda one: one.name)
def test_a_weight_or_credit_that_the_loss_does_not_read_is_refused(objective):
    with pytest.raises(Refused, match=f"`weight` is `random`, but `{objective.name}` weighs no"):
        objective.using(weight="random")
    with pytest.raises(Refused, match=f"`credit` is `group`, but `{objective.name}` does not read"):
        objective.using(credit="group")


@pytest.mark.parametrize("objective", [grpo, ppo, grpo.using(credit="plain"), importance])
def test_a_reward_without_end_is_refused_by_a_baseline(objective):
    given = batch(ragged(1, 1, 1), group=[0] * 3, **{
        "old": [[-1.0]] * 3, "ref": [[-1.0]] * 3, "value": [[0.0, 0.0]] * 3,
        "pair": [0, 1, -1], "split": [0.0] * 3, "reward": [1.0, 0.0, float("-inf")],
    })  # fmt: skip
    with pytest.raises(Refused, match="`reward` holds -inf, but a baseline"):
        objective.prepare(given)


@pytest.mark.parametrize("name", ["old", "reward", "value"])
def test_a_needed_number_that_is_none_is_refused(name):
    given = rows()
    stream = given.stream(name)
    stream[0] = float("nan")
    with pytest.raises(Refused, match=f"`{name}` holds nan"):
        ppo.using(**{"credit.kl": 0.0}).prepare(given)


def test_nan_in_padding_is_no_number_that_is_needed():
    given = rows()
    given.old[1, 1] = float("nan")
    assert loss(grpo, given, policy()).isfinite()


def test_weights_that_were_not_cut_with_the_rows_are_refused():
    given = sft.prepare(batch(MASK, reward=[1.0, 0.0]))
    weights = sft.weights(sft(policy(), given), given)
    one = given.rows(slice(0, 1))
    part = sft(Policy(logp=torch.zeros(1, 2, dtype=torch.float64)), one)
    with pytest.raises(Refused, match=r"`nll` have shape \[2, 2\], but its loss has \[1, 2\]"):
        total_loss(part, weights, one)


def test_whole_rewards_are_numbers_like_any_other():
    given = rows(reward=[1, 0])
    assert not given.reward.is_floating_point()
    fractions = loss(spo.using(q0=-0.5), rows(), policy())
    assert_close(loss(spo.using(q0=-0.5), given, policy()), fractions)


def test_a_weight_that_is_not_there_is_one():
    given = rows(advantage=[[1.0, 1.0], [-1.0, 0.0]])
    assert given.weight is None
    # -(e^-.2 + e^.1 - e^.2) = -(.8187 + 1.1052 - 1.2214)
    found = grpo(policy(), given).terms["policy"].loss.sum().detach()
    assert_close(float(found), -0.702498912993, rtol=1e-9, atol=0)


def test_a_split_counts_tokens_that_the_policy_chose():
    """After a tool's two tokens, the state after the second chosen one is column 4."""
    statistics = {"mean": [0.5, 0.5], "variance": [0.25, 0.25], "shift": [0.0, 0.0]}
    both = {"split": [2.0, 2.0], "pair": [0, 1], "reward": [1.0, 0.0]}
    given = batch(marks("x..x", "x..x"), group=[0, 0], **both, **statistics)
    head = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    said = Policy(logp=torch.zeros(2, 4, dtype=torch.float64), heads={"importance": head})
    importance(said, given).terms["pair"].loss.sum().backward()
    assert head.grad is not None
    assert (head.grad != 0).tolist() == [[False] * 4 + [True], [False] * 5]


def test_a_missing_import_of_a_users_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "numpyish_objective.py").write_text("import numpyish\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="numpyish"):
        find("numpyish_objective:mine")
