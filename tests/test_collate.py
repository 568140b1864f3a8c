"""Records become tensors: what the sampler and the grader knew stands where it belongs."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from logratio.collate import collate
from logratio.objectives.dpo import dpo
from logratio.objectives.grpo import grpo
from logratio.objectives.importance import importance
from logratio.objectives.reward_model import reward_model
from logratio.objectives.rft import rft
from logratio.objectives.sft import sft
from logratio.records import Graded, Rollout, Verdict
from logratio.settings import Refused

STOP = 7


def rollout(ids, **fields):
    given = {"problem": "p", "group": 0, "prompt_ids": (1, 2), "old": (-1.0,) * len(ids)}
    return Rollout(**{**given, "ids": tuple(ids), **fields})


def graded(ids, reward=0.0, *, verdict=None, pair=None, side=0, columns=None, **fields):
    return Graded(
        rollout=rollout(ids, **fields),
        verdict=verdict or Verdict(reward=reward),
        pair=pair,
        side=side,
        columns=columns or {},
    )


def test_every_token_counts_the_stop_token_too_and_padding_never():
    """The end is found by length: here 7 is the stop id and nothing else marks the end."""
    batch = collate([graded([5, STOP], 1.0), graded([5, 5, 5, STOP])], grpo)
    assert batch.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.reward.tolist() == [1.0, 0.0]
    assert batch.old.tolist() == [[-1.0, -1.0, 0.0, 0.0], [-1.0] * 4]
    assert batch.group.tolist() == [0, 0]
    assert batch.pair is None
    assert batch.columns == {}


def test_a_token_that_a_tool_wrote_is_not_chosen():
    batch = collate([graded([5, 6, STOP], trained=(True, False, True)), graded([5])], grpo)
    assert batch.mask.tolist() == [[True, False, True], [True, False, False]]


def test_the_prompt_is_trained_where_asked():
    rows = [graded([5, STOP], old=None, prompt_ids=(1, 2, 3)), graded([6], old=None)]
    assert collate(rows, sft).mask.sum(1).tolist() == [2, 1]
    assert collate(rows, sft.using(train_on="all")).mask.sum(1).tolist() == [4, 2]


def test_a_sampled_prompt_can_not_be_trained():
    with pytest.raises(Refused, match="was sampled"):
        collate([graded([5])], sft.using(train_on="all"))


def test_nobody_reads_the_reward_of_a_demonstration():
    assert collate([graded([5], None)], sft).reward is None


def test_dropped_rollouts_are_counted():
    """Of four samples one is kept: three others were drawn for it."""
    rows = [graded([5], reward) for reward in (0.0, 0.0, 1.0, 0.0)]
    online = rft.using(preset="online")
    assert collate(rows, online).columns["drawn"].tolist() == [4.0]
    assert "drawn" not in collate(rows, rft).columns


def test_a_failure_takes_its_group_along():
    failed = graded([5], verdict=Verdict(reward=None, error="timed out"))
    rows = [failed, graded([5], 1.0), graded([6], 1.0, group=1), graded([7], group=1)]
    assert collate(rows, grpo).group.tolist() == [1, 1]


def test_pairs_and_margins():
    rows = [
        graded([5], pair=0, side=1, columns={"margin": 0.0}),
        graded([6], pair=0, side=0, columns={"margin": 2.0}),
    ]
    batch = collate(rows, reward_model.using(margin="column"))
    assert batch.pair.tolist() == [1, 0]
    assert batch.columns["margin"].tolist() == [0.0, 2.0]
    assert collate([*rows, graded([5])], dpo).pair.tolist() == [1, 0, -1]


def test_streams_that_only_the_sampler_knew():
    rows = [
        graded([5, 6], behaviour=(-0.5, -0.25), entropy=(0.1, 0.2), finish="length"),
        graded([5], entropy=(0.3,)),
    ]
    objective = grpo.using(behaviour_cap=2.0, weight="top_entropy")
    objective = objective.using(**{"average.truncated": "leave_out"})
    batch = collate(rows, objective)
    assert batch.columns["behaviour"].tolist() == [[-0.5, -0.25], [-1.0, 0.0]]
    assert_close(batch.columns["entropy"], torch.tensor([[0.1, 0.2], [0.3, 0.0]]))
    assert batch.columns["truncated"].tolist() == [1.0, 0.0]


def test_the_split_of_a_pair():
    rows = [graded([5], 1.0, split=1, pair=0), graded([6], split=1, pair=0, side=1)]
    assert collate(rows, importance).columns["split"].tolist() == [1.0, 1.0]
    assert "split" not in collate([replace_split(one) for one in rows], importance).columns


def replace_split(one):
    return replace(one, rollout=replace(one.rollout, split=None))


def test_steps_end_on_a_token_that_the_policy_chose():
    """The second step ends with a tool's token: its reward stands on the last chosen one."""
    judged = Verdict(reward=1.0, steps=(0.5, 1.0, 2.0), step_ends=(1, 3, 4))
    one = graded([5, 6, 7, 8], verdict=judged, trained=(True, True, False, True))
    batch = collate([one, graded([5])], grpo.using(preset="process"))
    assert batch.columns["step_end"].tolist() == [[1, 1, 0, 1], [0, 0, 0, 0]]
    assert batch.columns["step_reward"].tolist() == [[0.5, 1.0, 0.0, 2.0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("rows", "objective", "said"),
    [
        ([], grpo, "`graded` is empty"),
        ([graded([5])], rft, "dropped all 1 rollouts"),
        ([graded([])], grpo, "`ids` of `p` is empty"),
        ([graded([5, 6], old=(-1.0,)), graded([5])], grpo, "`old` of rollout 0 of `p` has 1 "),
        ([graded([5], trained=(True, True))], grpo, "`trained` of rollout 0 of `p` has 2 "),
        ([graded([5]), graded([5], old=None, index=1)], grpo, "`old` is missing from rollout 1"),
        ([graded([5], None)], grpo, "`reward` of `p` is None"),
        *(
            (
                [graded([5, 6], verdict=Verdict(reward=1.0, steps=steps, step_ends=ends))],
                grpo.using(preset="process"),
                "`step_ends` of `p` is",
            )
            for steps, ends in [((1.0,), ()), ((1.0, 1.0), (2, 2)), ((1.0,), (3,)), ((1.0,), (0,))]
        ),
    ],
)
def test_what_is_refused(rows, objective, said):
    with pytest.raises(Refused, match=said):
        collate(rows, objective)
