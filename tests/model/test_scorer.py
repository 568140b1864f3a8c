"""The scorer: what an objective needs and no rollout holds is read off the right frozen model."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from laws.variants import objectives
from model.models import models, rollouts
from torch.testing import assert_close

from logratio.collate import collate, rollouts_of
from logratio.lab import dense
from logratio.learner import Learner, Update
from logratio.model.adapter import Adapter, Unadapted, add, layers
from logratio.model.network import Network
from logratio.model.scorer import Frozen, score, scored
from logratio.objectives import find, names
from logratio.objectives.importance import linked
from logratio.part import Needs, needs
from logratio.records import Graded, Rollout, Verdict
from logratio.settings import Refused

OBJECTIVES = objectives()
ROWS = rollouts((0, 5, 4), (1, 3, 6), (0, 5, 2))
TEMPERATURE = 0.8
ANSWERS = ((10, 11, 12, 0), (10, 11, 0), (14, 15, 9), (14, 17, 18, 19, 0))  # two pairs a prompt


def graded():
    """Returns two groups of two pairs, each pair with a common beginning, and all records hold."""
    made = []
    for place, ids in enumerate((*ANSWERS, *ANSWERS)):
        group, index = divmod(place, len(ANSWERS))
        old = tuple(-2.0 - 0.1 * token for token in range(len(ids)))
        rollout = Rollout(
            problem=str(group), group=group, index=index, prompt_ids=((5, 6, 7), (8, 9))[group],
            ids=ids, old=old, behaviour=tuple(0.9 * one for one in old), split=(2, 1)[index // 2],
            finish="stop" if ids[-1] == 0 else "length",
        )  # fmt: skip
        verdict = Verdict(
            reward=float(index in (0, 3)), correct=index in (0, 3),
            steps=(0.5, 1.0), step_ends=(1, len(ids)),
        )  # fmt: skip
        columns = {"margin": 0.5, "q0": -0.2, "q0_samples": 8.0}
        made.append(Graded(rollout=rollout, verdict=verdict, pair=place // 2, side=place % 2,
                           columns=columns))  # fmt: skip
    return made


def untrained(one):
    """Returns a row as a data set holds it: nobody sampled it, so it has no numbers."""
    rollout = replace(one.rollout, old=None, behaviour=None)
    reward = -0.3 if one.verdict.reward == 0 else -0.1  # SPO's cross-entropy reads log-probs
    return replace(one, rollout=rollout, verdict=replace(one.verdict, reward=reward))


def network(objective, seed=0, *, name="gpt2"):
    """Returns a float32 network with heads that say something."""
    model = models()[name].float()
    made = Network(model, objective.declared(), temperature=TEMPERATURE)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return made


def frozen(policy, objective):
    """Returns every frozen model that there is: three others, of the same shape."""
    importance = Network(models()["gpt2"].float(), needs(heads=["importance"]))
    torch.nn.init.normal_(importance.heads["importance"].weight)
    return Frozen(
        policy=policy,
        reference=network(objective, 1),
        lagged=network(objective, 2),
        importance=importance,
        correlation=lambda read: linked(read, "sigmoid", 0.99)[0],
    )


def rows_for(label, objective):
    """Returns graded rollouts that the objective can read."""
    rows = graded()
    if objective.declared().prompt_trained or "cross_entropy" in label:
        rows = [untrained(one) for one in rows]
    return rows


@pytest.mark.parametrize("label", OBJECTIVES)
def test_every_objective_takes_a_step_from_rollouts(label):
    objective = OBJECTIVES[label]
    rows = rows_for(label, objective)
    policy = network(objective)
    models_of = frozen(policy, objective)
    batch, trained = collate(rows, objective), rollouts_of(rows, objective)
    if "token_reward" in objective.declared().streams:  # nothing makes one yet
        with pytest.raises(Refused, match="`token_reward` is missing"):
            scored(batch, trained, objective.declared(), models_of)
        return
    batch = scored(batch, trained, objective.declared(), models_of)
    learner = Learner(policy, objective, Update(budget=24))
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    learned = learner.update(batch, trained, reference=models_of.reference)
    assert not learned.skipped
    assert learned.grad_norm > 0
    moved = [not torch.equal(*pair) for pair in zip(before, policy.parameters(), strict=True)]
    assert any(moved)


def test_every_registered_objective_is_among_them():
    assert set(names()) <= set(OBJECTIVES)
