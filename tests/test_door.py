"""Wrong input at the door: one sentence says which field, what came, and what is allowed.

Settings have a door of their own, in test_door_of_settings.py.
"""

import math
from dataclasses import replace

import jaxtyping
import pytest
import torch
from objectives.rows import (
    batch_of,
    check_sentence,
    eight_rows,
    only,
    policy_of,
    read_all,
    refusal,
    without,
)

from logratio.batch import Batch, Policy
from logratio.lab import dense
from logratio.objectives import find
from logratio.part import Part, needs
from logratio.records import Graded, Rollout, Verdict

WHOLE = {"mask": torch.ones(2, 3, dtype=torch.bool), "group": torch.tensor([0, 0])}


@pytest.fixture
def without_type_checks():
    """Turns off the type checks of the tests, which would speak before the door does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


unchecked = pytest.mark.usefixtures("without_type_checks")


# --- shapes ---


@unchecked
@pytest.mark.parametrize(
    ("field", "came", "allowed"),
    [
        ("group", (3,), (2,)),
        ("pair", (3,), (2,)),
        ("reward", (2, 3), (2,)),
        ("advantage", (2,), (2, 3)),
        ("weight", (2, 4), (2, 3)),
        ("old", (2, 4), (2, 3)),
        ("ref", (3, 3), (2, 3)),
    ],
)
def test_a_field_of_the_batch_with_the_wrong_shape(field, came, allowed):
    stream = torch.zeros(*came, dtype=torch.long if field in ("group", "pair") else torch.float32)
    sentence = refusal(Batch, **{**WHOLE, field: stream})
    check_sentence(sentence, field, f"has shape {list(came)}", f"it must be {list(allowed)}")


def test_a_column_of_no_shape_that_there_is():
    sentence = refusal(Batch, **WHOLE, columns={"margin": torch.zeros(2, 7)})
    check_sentence(sentence, "margin", "shape [2, 7]", "it must be [2] or [2, 3] or [2, 4]")


@pytest.mark.parametrize(
    ("objective", "settings", "field", "came", "allowed"),
    [
        ("ppo", {}, "value", (2, 3), [2, 4]),
        ("reward_model", {"margin": "column"}, "margin", (2, 3), [2]),
        ("importance", {}, "split", (2, 3), [2]),
        ("qpo", {}, "ref_logit", (2, 4), [2, 3]),
        ("variance_grpo", {}, "importance", (2, 3), [2, 4]),
        ("spo", {"q0": "reference"}, "q0", (2, 4), [2]),
        ("grpo", {"average.truncated": "leave_out"}, "truncated", (2, 3), [2]),
    ],
)
def test_a_column_of_another_shape_than_the_objective_reads(
    objective, settings, field, came, allowed
):
    chosen = find(objective).using(**settings)
    given = {name: numbers_for(name) for name in chosen.declared().streams}
    columns = {name: given.pop(name) for name in list(given) if name not in FIELDS}
    batch = Batch(**WHOLE, **given, columns={**columns, field: torch.zeros(*came)})
    sentence = refusal(chosen.prepare, batch)
    check_sentence(sentence, field, f"shape {list(came)}", f"it must be {allowed}")


FIELDS = ("pair", "reward", "old", "ref")


def numbers_for(name: str) -> torch.Tensor:
    """Gives a stream of the shape that it should have in a batch of two rows of three."""
    if name == "pair":
        return torch.tensor([0, 1])
    by_token = ("old", "ref", "ref_logit", "behaviour", "step_end", "step_reward")
    by_state = ("value", "importance", "next_value")
    return torch.zeros(*((2, 3) if name in by_token else (2, 4) if name in by_state else (2,)))


@unchecked
def test_a_mask_that_is_not_of_truth_values():
    sentence = refusal(Batch, mask=torch.ones(2, 3), group=torch.tensor([0, 0]))
    check_sentence(sentence, "mask", "float32 [2, 3]", "it must be a bool [B, T]")


@unchecked
def test_a_mask_of_one_row():
    sentence = refusal(Batch, mask=torch.ones(3, dtype=torch.bool), group=torch.tensor([0, 0]))
    check_sentence(sentence, "mask", "bool [3]", "it must be a bool [B, T]")


@pytest.mark.parametrize(
    ("field", "policy"),
    [
        ("logp", Policy(logp=torch.zeros(2, 4))),
        ("logp", Policy(logp=torch.zeros(2, 4), entropy=torch.zeros(2, 4))),
    ],
)
def test_a_policy_of_another_shape_than_the_batch(field, policy):
    sentence = refusal(find("sft"), policy, Batch(**WHOLE))
    check_sentence(sentence, field, "shape [2, 4]", "it must be [2, 3]")


@unchecked
@pytest.mark.parametrize("field", ["logit", "entropy", "kl"])
def test_an_action_stream_of_another_shape(field):
    policy = Policy(logp=torch.zeros(2, 3), **{field: torch.zeros(2, 4)})
    sentence = refusal(find("sft"), policy, Batch(**WHOLE))
    check_sentence(sentence, field, "shape [2, 4]", "it must be [2, 3]")


@unchecked
@pytest.mark.parametrize("kind", ["heads", "statistics"])
def test_a_state_stream_without_its_last_column(kind):
    policy = Policy(logp=torch.zeros(2, 3), **{kind: {"score": torch.zeros(2, 3)}})
    sentence = refusal(find("sft"), policy, Batch(**WHOLE))
    check_sentence(sentence, "score", "shape [2, 3]", "it must be [2, 4]")


# --- what is missing ---


def test_a_stream_that_is_missing_when_the_batch_is_prepared():
    batch = only(eight_rows()[0], {"old", "ref"})
    sentence = refusal(find("grpo").prepare, batch)
    check_sentence(sentence, "reward", "is missing from the batch", "group, old, ref")


def test_a_stream_that_is_missing_when_the_loss_is_taken():
    """A batch that was not prepared has no advantage."""
    batch = only(eight_rows()[0], {"old", "reward"})
    sentence = refusal(find("grpo"), policy_of([[-1.0] * 5] * 8), batch)
    check_sentence(sentence, "advantage", "is missing from the batch", "group, old, reward")


@pytest.mark.parametrize(
    ("objective", "settings", "kind", "name"),
    [
        ("ppo", {}, "heads", "value"),
        ("reward_model", {}, "heads", "score"),
        ("qpo", {"c": "learned"}, "scalars", "c"),
        ("qpo", {"target": "bootstrap"}, "statistics", "next_value"),
    ],
)
def test_a_head_a_scalar_or_a_statistic_that_is_missing(objective, settings, kind, name):
    chosen = find(objective).using(**settings)
    policy, batch = read_all(chosen)
    sentence = refusal(chosen, without(policy, kind, name), chosen.prepare(batch))
    check_sentence(
        sentence, name, f"is missing from the policy's {kind}",
        f"`{objective}` declares it and the model must give it",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "settings", "name"),
    [
        ("qpo", {}, "logit"),
        ("ppo", {"entropy": 0.1}, "entropy"),
        ("grpo", {"beta": 0.1, "estimator": "exact"}, "kl"),
    ],
)
def test_an_action_stream_that_is_missing(objective, settings, name):
    chosen = find(objective).using(**settings)
    policy, batch = read_all(chosen)
    sentence = refusal(chosen, without(policy, "policy", name), chosen.prepare(batch))
    check_sentence(sentence, name, "is missing from the policy", "the head was not asked for it")


def test_a_reference_that_is_missing():
    chosen = find("grpo").using(beta=0.1, estimator="exact")
    rows, ids = torch.zeros(1, 2, 3), torch.zeros(1, 1, dtype=torch.long)
    sentence = refusal(dense.read, rows, ids, needs=chosen.declared())
    check_sentence(sentence, "reference", "is None", "the exact KL or a statistic reads its rows")


def test_a_setting_without_a_default_that_was_not_given():
    chosen = find("grpo").using(average="fixed_length")
    sentence = refusal(chosen.declared)
    check_sentence(sentence, "length", "of `fixed_length` has no default", "give it a value")


def test_an_objective_without_a_closed_form():
    mine = replace(find("sft"), name="mine", coefficient=None)
    sentence = refusal(mine.slopes, policy_of([[-1.0]]), batch_of([[1]]))
    check_sentence(sentence, "mine", "gives no closed-form", "`coefficient`")


# --- rewards, groups, pairs ---


@pytest.mark.parametrize(
    ("objective", "settings", "group", "size", "least"),
    [
        ("grpo", {}, [5, 7, 5, 5], 1, 2),
        ("grpo", {"preset": "process"}, [5, 7, 5, 5], 1, 2),
        ("dapo", {}, [5, 7, 5, 5], 1, 2),
        ("importance", {}, [7, 7, 5, 5], 2, 3),
    ],
)
def test_a_group_too_small_to_be_its_own_baseline(objective, settings, group, size, least):
    batch = batch_of(
        [[1]] * 4, group=group, pair=[0, 1, 2, 3], split=[0] * 4, old=[[-1.0]] * 4,
        reward=[0.0, 1.0, 0.0, 1.0], step_end=[[1]] * 4, step_reward=[[0.0]] * 4,
    )  # fmt: skip
    chosen = find(objective).using(**settings)
    sentence = refusal(chosen.prepare, batch)
    check_sentence(
        sentence, "group", f"7 has {size} rollout(s)", f"needs at least {least} for each"
    )


@pytest.mark.parametrize("reward", [-0.5, 1.5])
def test_a_label_outside_zero_to_one(reward):
    chosen = find("qpo")
    policy, batch = read_all(chosen)
    wrong = Batch(**{**vars(batch), "reward": torch.full((8,), reward).double()})
    sentence = refusal(chosen, policy, chosen.prepare(wrong))
    check_sentence(
        sentence, "reward", f"holds {reward:g}", "[0, 1]: set `label_threshold`, or `reward_low`"
    )


@pytest.mark.parametrize("objective", ["grpo", "ppo", "qpo", "spo", "importance"])
def test_a_reward_that_is_not_a_number(objective):
    chosen = find(objective)
    _, batch = read_all(chosen)
    reward = torch.tensor([0.0, 1, 0, 1, 0, 1, 0, math.nan], dtype=torch.float64)
    sentence = refusal(chosen.prepare, Batch(**{**vars(batch), "reward": reward}))
    check_sentence(sentence, "reward", "holds nan", "it must be numbers")


def test_a_reward_above_zero_under_the_cross_entropy_of_spo():
    chosen = find("spo").using(kind="cross_entropy")
    policy, batch = read_all(chosen)
    wrong = Batch(**{**vars(batch), "reward": torch.full((8,), 0.5).double()})
    sentence = refusal(chosen, policy, chosen.prepare(wrong))
    check_sentence(sentence, "reward", "holds 0.5", "at most 0, so subtract the largest")


def test_rewards_that_are_neither_right_nor_wrong_under_the_bernoulli():
    chosen = find("importance").using(kind="bernoulli")
    policy, batch = read_all(chosen)
    half = torch.tensor([0.0, 0.5] * 4, dtype=torch.float64)
    wrong = chosen.prepare(Batch(**{**vars(batch), "reward": half}))
    sentence = refusal(chosen, policy, wrong)
    check_sentence(sentence, "reward", "holds [0.0, 0.5]", "rewards of 0 and 1")


def test_a_split_past_the_end_of_its_row():
    chosen = find("importance")
    policy, batch = read_all(chosen)
    split = torch.tensor([6, 6, 0, 0, 0, 0, 0, 0])
    wrong = Batch(**{**vars(batch), "columns": {**batch.columns, "split": split}})
    sentence = refusal(chosen, policy, chosen.prepare(wrong))
    check_sentence(sentence, "split", "holds 6 in a row of 5 tokens", "at most the length")


@pytest.mark.parametrize(
    "pair",
    [
        [0, 1, 2, -1],  # no rejected one
        [0, 1, 1, 0],  # twice
        [1, 2, 3, 4],  # 1 and 2 belong to different pairs
        [0, 2, 4, 6],  # chosen ones only
    ],
)
def test_pairs_that_are_broken(pair):
    sentence = refusal(batch_of, [[1]] * 4, pair=pair)
    came = sorted(k for k in pair if k >= 0)
    check_sentence(
        sentence, "pair", f"holds {came}", "each pair k must have one row 2k (chosen or first)"
    )


def test_half_of_an_overlong_shaping():
    chosen = find("dapo").using(**{"credit.overlong_cache": 4})
    sentence = refusal(chosen.prepare, read_all(chosen)[1])
    check_sentence(
        sentence, "overlong_limit", "is None and `overlong_cache` is 4", "both must be given"
    )


# --- averages ---


@pytest.mark.parametrize(
    ("objective", "average", "wanted", "unit"),
    [
        ("dpo", "per_token", "token", "pair"),
        ("dpo", "per_sequence", "sequence", "pair"),
        ("dpo", "summed", "token", "pair"),
        ("dpo", "per_group_token", "token", "pair"),
        ("grpo", "per_pair", "pair", "token"),
        ("spo", "per_token", "token", "sequence"),
        ("spo", "per_pair", "pair", "sequence"),
    ],
)
def test_an_average_over_another_kind_of_item(objective, average, wanted, unit):
    chosen = find(objective).using(average=average)
    policy, batch = read_all(chosen)
    batch = chosen.prepare(batch)
    paired = Batch(**{**vars(batch), "pair": torch.arange(8)})
    sentence = refusal(chosen.weights, chosen(policy, paired), paired)
    check_sentence(sentence, "average", f"is `{average}`", f"not of a {unit}")
    assert wanted in sentence.split("losses of", 1)[1].split(", not", 1)[0]


# --- rollouts and verdicts ---


def graded(**verdict) -> list[Graded]:
    rollout = Rollout(problem="sums/3", group=0, prompt_ids=(1,), ids=(2,))
    return [Graded(rollout=rollout, verdict=Verdict(**verdict))]


def test_a_verdict_without_a_reward_or_an_error():
    sentence = refusal(find("rft").keep, graded(reward=None))
    check_sentence(sentence, "reward", "of `sums/3` is None", "no `error` says why")


def test_a_verdict_that_does_not_say_what_is_right():
    sentence = refusal(find("dapo").keep, graded(reward=1.0))
    check_sentence(
        sentence, "keep", "is `mixed_groups`", "the task must say which answers are right"
    )


def test_a_users_own_part_is_taken_as_it_is():
    """What is not wrong is not refused: a function, or a part with its needs."""

    def halved(batch: Batch) -> dict[str, torch.Tensor]:
        return {"advantage": batch.mask * batch.stream("reward")[:, None] / 2}

    chosen = find("grpo").using(credit=Part(halved, needs("reward", makes=["advantage"])))
    assert chosen.declared().streams == {"old", "reward"}
    _, batch = read_all(chosen)
    assert chosen.prepare(batch).stream("advantage").max() == 0.5
    assert find("grpo").using(credit=halved).credit.name == "halved"
