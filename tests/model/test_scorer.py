"""The scorer: what an objective needs and no rollout holds is read off the right frozen model."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from laws.variants import objectives
from model.models import TREE, gpt2, qwen2, rollouts
from torch.testing import assert_close

from logratio.batch import Batch
from logratio.collate import collate, rollouts_of
from logratio.lab import dense
from logratio.learner import Learner, Update
from logratio.model import adapter
from logratio.model.adapter import Adapter, Unadapted
from logratio.model.network import Network
from logratio.model.scorer import Frozen, score, scored
from logratio.objectives import names
from logratio.objectives.importance import linked
from logratio.objectives.qpo import qpo
from logratio.part import Needs, needs
from logratio.records import Graded, Rollout, Verdict
from logratio.settings import Refused

tree = partial(Network, route=TREE)
OBJECTIVES = objectives()
ROWS = rollouts((0, 5, 4), (1, 3, 6), (0, 5, 2))  # a group is not in one piece
TEMPERATURE = 0.8
ANSWERS = ((10, 11, 12, 0), (10, 11, 0), (14, 15, 9), (14, 17, 18, 19, 0))  # two pairs a prompt
VALUE = qpo.using(target="bootstrap", offset="head", c="learned", lagged=True)


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


def network(asked, seed=0):
    """Returns a float32 network whose heads and scalars say something."""
    made = tree(gpt2().float(), asked, temperature=TEMPERATURE)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def frozen(asked):
    """Returns every frozen model that there is, no two with the same weights."""
    return Frozen(
        policy=network(asked),
        reference=network(Needs(), 1),
        lagged=network(asked, 2),
        importance=network(needs(heads=["importance"]), 3),
        correlation=lambda read: linked(read, "sigmoid", 0.99)[0],
    )


def rows_for(label, objective):
    """Returns graded rollouts that the objective can read."""
    rows = graded()
    if objective.declared().prompt_trained or "cross_entropy" in label:
        rows = [untrained(one) for one in rows]
    return rows


@pytest.mark.parametrize(
    "label",
    [one if one in names() else pytest.param(one, marks=pytest.mark.slow) for one in OBJECTIVES],
)
def test_every_objective_takes_a_step_from_rollouts(label):
    objective = OBJECTIVES[label]
    rows, declared = rows_for(label, objective), objective.declared()
    models = frozen(declared)
    batch, trained = collate(rows, objective), rollouts_of(rows, objective)
    if "token_reward" in declared.streams:  # no record holds one, and no model says it
        with pytest.raises(Refused, match="`token_reward` is missing from the batch"):
            scored(batch, trained, declared, models)
        return
    batch = scored(batch, trained, declared, models)
    learner = Learner(models.policy, objective, Update(budget=24))
    before = deepcopy(list(models.policy.parameters()))
    learned = learner.update(batch, trained, reference=models.reference)
    assert not learned.skipped
    assert learned.grad_norm > 0
    pairs = zip(before, models.policy.parameters(), strict=True)
    assert any(not torch.equal(*pair) for pair in pairs)


def test_every_registered_objective_is_among_them():
    assert set(names()) <= set(OBJECTIVES)


def alone(model, row, asked, reference=None):
    """Returns what a network says of one row, by its own attention and whole logits."""
    ids = torch.tensor([row.prompt_ids + row.ids])
    first = len(row.prompt_ids) - 1
    hidden = model.model.base_model(ids).last_hidden_state[:, first:]
    return dense.read(
        model.model(ids).logits[:, first:] / TEMPERATURE,
        torch.tensor([row.ids]),
        needs=asked,
        reference=reference and reference.model(ids).logits[:, first:] / TEMPERATURE,
        heads={name: head(hidden)[..., 0] for name, head in model.heads.items()},
        scalars=model.scalars(),
    )


@torch.no_grad()
def test_each_stream_is_said_by_the_model_it_belongs_to():
    lagged = VALUE.declared().lagged
    streams = ["ref", "ref_logit", "value", "entropy", "old_kl", "importance", "next_value"]
    asked = replace(needs(*streams, heads=["value", "offset"], scalars={"c": 0.0}), lagged=lagged)
    models = frozen(asked)
    mask = torch.tensor([[place < len(row.ids) for place in range(6)] for row in ROWS])
    batch = Batch(mask=mask, group=torch.tensor([0, 1, 0]))
    batch = scored(batch, ROWS, asked, models, budget=12)
    for place, row in enumerate(ROWS):
        policy = alone(models.policy, row, needs(policy=["entropy", "kl"]), models.reference)
        reference = alone(models.reference, row, needs(policy=["logit"]))
        old = alone(models.lagged, row, needs(statistics=lagged), models.reference)
        importance = alone(models.importance, row, Needs()).heads["importance"]
        truth = {
            "ref": reference.logp,
            "ref_logit": reference.logit,
            "value": policy.heads["value"],
            "entropy": policy.entropy,
            "old_kl": policy.kl,
            "importance": 0.99 * importance.sigmoid(),
            "next_value": old.statistics["next_value"],
        }
        for name, wanted in truth.items():
            found = batch.stream(name)[place, : wanted.shape[1]]
            assert_close(found, wanted[0], rtol=1e-4, atol=1e-5)  # float32 in another order


def test_what_the_rollouts_hold_is_not_said_again():
    asked = needs("entropy", "ref")
    held = torch.full((3, 6), 0.25)
    mask = torch.ones(3, 6, dtype=torch.bool)
    batch = Batch(mask=mask, group=torch.tensor([0, 1, 0]), ref=held, columns={"entropy": held})
    same = scored(batch, ROWS, asked, Frozen(policy=network(Needs())))
    assert same.ref is held
    assert same.columns["entropy"] is held


def test_with_an_adapter_the_reference_is_the_base():
    model = qwen2().float()
    plain = score(tree(qwen2().float(), Needs(), temperature=TEMPERATURE), ROWS)["logp"]
    adapter.add(model, Adapter(rank=4))
    for layer in adapter.layers(model).values():
        layer.lora_B[adapter.NAME].weight.data.normal_(0, 0.2)
    policy = tree(model, needs(heads=["value"]), temperature=TEMPERATURE)
    asked = needs("ref", "ref_logit", "old_kl", "value")
    batch = Batch(mask=torch.ones(3, 6, dtype=torch.bool), group=torch.tensor([0, 1, 0]))
    models = Frozen(policy=policy, reference=Unadapted(policy))
    batch = scored(batch, ROWS, asked, models)
    assert_close(batch.ref, plain, rtol=0, atol=0)
    assert batch.stream("old_kl")[0, :4].min() > 0.01


def test_scoring_leaves_dropout_off_and_the_mode_as_it_was():
    policy = network(Needs())
    said = score(policy, ROWS)["logp"]
    policy.train()
    policy.model.get_submodule("transformer.drop").p = 0.5  # pyright: ignore[reportArgumentType]
    assert_close(score(policy, ROWS)["logp"], said, rtol=0, atol=0)
    assert policy.training


def test_what_is_missing_is_named():
    mask = torch.ones(3, 6, dtype=torch.bool)
    batch = Batch(mask=mask, group=torch.tensor([0, 1, 0]))
    plain = Frozen(policy=network(Needs()))
    for name, owner in (("ref", "reference"), ("importance", "importance")):
        with pytest.raises(Refused, match=f"`{name}` is read .* by the model `{owner}`"):
            scored(batch, ROWS, needs(name), plain)
    asked = replace(needs("next_value"), lagged=VALUE.declared().lagged)
    with pytest.raises(
        Refused, match="`next_value` is read off the rollouts by the model `lagged`"
    ):
        scored(batch, ROWS, asked, replace(plain, reference=network(Needs())))
    with pytest.raises(Refused, match="`policy` has no head `value`"):
        scored(batch, ROWS, needs("value"), plain)
    with pytest.raises(Refused, match="`kl` is read off the reference's rows"):
        scored(batch, ROWS, needs("old_kl"), plain)
    for name in ("old", "q0", "margin"):
        with pytest.raises(Refused, match=f"`{name}` is missing from the batch, and no model"):
            scored(batch, ROWS, needs(name), plain)


def test_models_that_do_not_belong_together_are_refused():
    policy = network(Needs())
    cold = tree(gpt2().float(), Needs())
    for name in ("reference", "lagged"):
        with pytest.raises(Refused, match=f"`{name}` is read at temperature 1.0, .* 0.8"):
            Frozen(policy=policy, **{name: cold})
    with pytest.raises(Refused, match="`importance` and `correlation` must be given together"):
        Frozen(policy=policy, importance=policy)


def test_a_number_that_is_none_is_an_error():
    policy = network(Needs())
    with torch.no_grad():
        policy.model.get_parameter("transformer.wte.weight")[ROWS[1].ids[2]] = float("nan")
    with pytest.raises(ValueError, match="`logp` is not a number in rollout"):
        score(policy, ROWS)
