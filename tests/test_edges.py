"""Batches at the edge, for every objective: finite, exactly 0 where it should be, or refused."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from objectives.rows import gradients, loss_of, refusal
from torch import Tensor

from logratio.batch import STREAMS, Batch, Policy
from logratio.objective import Objective
from logratio.objectives import find, names

VARIANTS = [
    ("sft", {"preset": "as_written"}),
    ("rft", {"preset": "online"}),
    ("reward_model", {"pooling": "last", "margin": "column", "centering": 0.01}),
    ("dpo", {"normalise": "length", "sft": 1.0}),
    ("dpo", {"kind": "ipo"}),
    ("dpo", {"kind": "hinge"}),
    ("ppo", {"credit.truncated": "bootstrap", "entropy": 0.01, "dual": 3.0}),
    ("ppo", {"credit.rewards": "steps", "value_clip": None, "average": "per_sequence"}),
    ("grpo", {"beta": 0.1}),
    ("grpo", {"beta": 0.1, "estimator": "k1", "corrected": True, "behaviour_cap": 2.0}),
    ("grpo", {"beta": 0.1, "estimator": "exact"}),
    ("grpo", {"preset": "process"}),
    ("grpo", {"preset": "rloo", "credit.kl": 0.1}),
    ("grpo", {"preset": "gspo"}),
    ("grpo", {"preset": "cispo"}),
    ("grpo", {"preset": "top_entropy"}),
    ("grpo", {"preset": "dr_grpo", "average.length": 10}),
    ("dapo", {"preset": "as_written"}),
    ("qpo", {"target": "td", "offset": "head", "A": "learned", "truncated": "bootstrap"}),
    ("qpo", {"target": "q_learning", "reading": "logit", "offset": "none"}),
    ("qpo", {"target": "bootstrap", "lagged": True}),
    ("spo", {"kind": "cross_entropy", "q0": -0.5}),
    ("spo", {"q0": "learned", "rewards": "tokens"}),
    ("spo", {"q0": "policy_weighted", "anchor": "old"}),
    ("spo", {"preset": "rebel"}),
    ("importance", {"kind": "product", "link": "tanh"}),
    ("importance", {"kind": "bernoulli", "credit.corrected": False}),
    ("variance_grpo", {"weight.form": "remaining", "weight.over": "batch", "beta": 0.1}),
]


def chosen() -> Iterator[tuple[str, Objective]]:
    """Gives every registered objective, and the variants, under a name that says which."""
    for name in names():
        yield name, find(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, settings in VARIANTS:
            label = " ".join(f"{key}={value}" for key, value in settings.items())
            yield f"{name} {label}", find(name).using(**settings)


OBJECTIVES = dict(chosen())
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
EIGHT = [5, 3, 4, 5, 1, 2, 5, 4]


def lengths_to_mask(lengths: list[int], tokens: int | None = None) -> Tensor:
    return torch.arange(tokens or max(lengths)) < torch.tensor(lengths)[:, None]


def case(objective: Objective, mask: Tensor, **given: Tensor) -> tuple[Policy, Batch]:
    """Gives a batch of what an objective declares, and a policy of leaves that is near its old."""
    source = torch.Generator().manual_seed(0)
    declared, (rows, tokens) = objective.declared(), mask.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=source)

    logp = -0.1 - uniform(rows, tokens)
    size = {"row": (rows,), "token": (rows, tokens), "state": (rows, tokens + 1)}
    known = {
        "behaviour": logp - 0.1,
        "drawn": torch.full((rows,), 2.0),
        "next_value": uniform(rows, tokens + 1),
        "importance": uniform(rows, tokens + 1),
        "old": logp + 0.05 * normal(rows, tokens),
        "pair": torch.arange(rows) if rows % 2 == 0 else torch.full((rows,), -1),
        "ref": logp + 0.3 * normal(rows, tokens),
        "reward": (torch.arange(rows) % 3 == 0).float(),
        "split": torch.zeros(rows, dtype=torch.long),
        "step_end": uniform(rows, tokens) < 0.5,
        "truncated": torch.zeros(rows, dtype=torch.bool),
    }
    if objective.loss.resolved().get("kind") == "cross_entropy":
        known["reward"] = known["reward"] - 1
    known |= given
    streams = {
        name: known[name] if name in known else normal(*size[declared.shape(name)])
        for name in declared.streams
    }
    fields = {name: streams.pop(name) for name in STREAMS if name in streams}
    group = torch.arange(rows) // 4
    batch = Batch(mask=mask, group=group, columns=streams, **fields)
    policy = Policy(
        logp=logp.requires_grad_(),
        heads={name: normal(rows, tokens + 1).requires_grad_() for name in sorted(declared.heads)},
        statistics={name: uniform(rows, tokens + 1) for name in sorted(declared.statistics)},
        scalars={name: torch.tensor(0.2, requires_grad=True) for name in sorted(declared.scalars)},
        **{name: normal(rows, tokens).requires_grad_() for name in sorted(declared.policy)},
    )
    return policy, objective.prepare(batch)


def check_finite(objective: Objective, policy: Policy, batch: Batch) -> tuple[Tensor, Tensor]:
    """Gives the loss and every slope in one vector; all finite, and the closed form's as well."""
    loss, found = loss_of(objective, policy, batch), gradients(objective, policy, batch)
    assert loss.isfinite()
    assert all(slope.isfinite().all() for slope in found.values())
    for name, slope in objective.slopes(policy, batch).items():
        torch.testing.assert_close(slope, found[name])
    return loss.detach(), torch.cat([slope.flatten() for slope in found.values()])


def check_nothing(objective: Objective, policy: Policy, batch: Batch) -> None:
    """Holds loss and slopes to exactly 0."""
    loss, slopes = check_finite(objective, policy, batch)
    assert loss.item() == 0
    assert slopes.abs().max().item() == 0


@every_objective
def test_responses_of_one_token(objective):
    _, slopes = check_finite(objective, *case(objective, lengths_to_mask([1] * 8)))
    assert slopes.abs().max() > 0


@every_objective
def test_a_single_token_in_the_whole_batch(objective):
    mask = lengths_to_mask([1, 0, 0, 0, 0, 0, 0, 0], tokens=3)
    check_finite(objective, *case(objective, mask))


def smallest_group(objective: Objective) -> int:
    """Gives how many rollouts of a prompt an objective needs, for its credit or for its Q0."""
    if objective.name == "spo":
        return 2 if objective.declared().couples == "group" else 1
    if objective.credit.name == "pairs":
        return 3 if objective.credit.resolved()["corrected"] else 1
    return 2 if objective.credit.name in {"group", "process"} else 1


def run(objective: Objective, mask: Tensor) -> Tensor:
    return loss_of(objective, *case(objective, mask))


@every_objective
def test_a_single_sample(objective):
    """A group baseline refuses it; what is about pairs has none; the rest trains on it."""
    mask = lengths_to_mask([3])
    least = smallest_group(objective)
    if least > 1:
        assert refusal(run, objective, mask) == (
            f"`group` 0 has 1 rollout(s), but a group baseline needs at least {least} for each "
            "prompt"
        )
    elif "pair" in objective.declared().streams:
        check_nothing(objective, *case(objective, mask))
    else:
        check_finite(objective, *case(objective, mask))


@every_objective
@pytest.mark.parametrize("reward", [0.0, 0.7, 1.0])
def test_equal_rewards(objective, reward):
    kind = objective.loss.resolved().get("kind")
    wrong = {"cross_entropy": reward > 0, "bernoulli": reward == 0.7}
    if wrong.get(str(kind)):
        reward = 0.0
    policy, batch = case(objective, lengths_to_mask(EIGHT), reward=torch.full((8,), reward))
    by_group = objective.credit.name in {"group", "pairs"} and not objective.credit.resolved().get(
        "kl"
    )
    if (
        by_group
        and not objective.loss.resolved().get("beta")
        and "overlong" not in named(objective)
    ):
        loss, slopes = check_finite(objective, policy, batch)
        assert slopes.abs().max().item() == 0
        assert loss.item() == 0
    else:
        check_finite(objective, policy, batch)


def named(objective: Objective) -> str:
    """Gives the settings of the credit that are not at their default, as text."""
    return " ".join(name for name, value in objective.credit.settings.items() if value)


@every_objective
def test_all_truncated_and_left_out(objective):
    if objective.name == "importance":
        assert refusal(objective.setting, "average.truncated", "leave_out") == (
            "`per_informative_pair` has no setting `truncated`: it has none"
        )
        return
    left_out = objective.setting("average.truncated", "leave_out")
    truncated = torch.ones(8, dtype=torch.bool)
    check_nothing(left_out, *case(left_out, lengths_to_mask(EIGHT), truncated=truncated))


@every_objective
def test_all_filtered(objective):
    mask = torch.zeros(8, 5, dtype=torch.bool)
    check_nothing(objective, *case(objective, mask))


@every_objective
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), float("-inf")])
def test_whatever_stands_in_the_padding(objective, fill):
    """Log-probs, logits, heads, statistics and columns: where no token stands, nothing is read."""
    mask = lengths_to_mask(EIGHT)
    mask[1, 1] = False  # a tool's token in the middle
    no = torch.zeros(8, 1, dtype=torch.bool)
    states = torch.cat([mask, no], 1) | torch.cat([no, mask], 1)

    def spoiled(stream: Tensor) -> Tensor:
        if stream.dim() < 2 or not stream.is_floating_point():
            return stream
        seen = mask if stream.shape[1] == mask.shape[1] else states
        return torch.where(seen, stream.detach(), fill).requires_grad_(stream.requires_grad)

    policy, batch = case(objective, mask)
    streams = {name: getattr(batch, name) for name in STREAMS}
    columns = {name: spoiled(column) for name, column in batch.columns.items()}
    dirty = replace(
        batch,
        columns=columns,
        **{name: spoiled(s) for name, s in streams.items() if s is not None},
    )
    actions = {name: getattr(policy, name) for name in ("logp", "logit", "entropy", "kl")}
    said = replace(
        policy,
        heads={name: spoiled(head) for name, head in policy.heads.items()},
        statistics={name: spoiled(s) for name, s in policy.statistics.items()},
        **{name: spoiled(s) for name, s in actions.items() if s is not None},
    )
    for given in (dirty, objective.prepare(dirty)):
        loss, slopes = check_finite(objective, said, given)
        clean_loss, clean_slopes = check_finite(objective, policy, batch)
        assert loss == clean_loss
        assert slopes.tolist() == clean_slopes.tolist()


@every_objective
def test_ten_thousand_tokens(objective):
    policy, batch = case(objective, lengths_to_mask([10_000, 1, 9_999, 5_000] * 2))
    start = time.process_time()
    _, slopes = check_finite(objective, policy, batch)
    assert time.process_time() - start < 2
    assert slopes.abs().max() > 0
