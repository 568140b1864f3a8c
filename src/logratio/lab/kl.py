"""What each KL estimator adds up to and where its gradient points, in the loss and in the reward.

Every sequence is enumerated. Three gradients appear on the other side: of the whole KL, which
follows how often a state is passed; and, with those visits held fixed, of KL(policy, reference)
and of KL(reference, policy), state by state.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from logratio.lab import closed
from logratio.lab.bench import Claim, Experiment, all_sequences
from logratio.lab.rows import Row
from logratio.lab.tree import Table, Tree, World, random_world
from logratio.objective import Objective
from logratio.objectives import find

PART = "kl"
LIMITS = {"value": 1e-12, "gradient": 1e-12}
BANDIT_LIMITS = {"gradient": 1e-4, "variation": 1e-4}  # the numbers are printed to four digits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sums:
    """Expected sums over the states that are passed, each with a gradient in the logits."""

    whole: Float[Tensor, ""]  # of KL(policy, reference)
    whole_square: Float[Tensor, ""]  # of E (log-ratio)^2 / 2
    reverse: Float[Tensor, ""]  # of KL(policy, reference), under fixed visits
    forward: Float[Tensor, ""]  # of KL(reference, policy), under fixed visits
    square: Float[Tensor, ""]  # of E (log-ratio)^2 / 2, under fixed visits


def sums(world: World, policy: Table, visitor: Table) -> Sums:
    """Returns the sums over the states that a visitor passes."""
    passed = closed.visits(world.tree, visitor)
    reverse = closed.row_kl(policy, world.reference)
    square = closed.row_square(policy, world.reference)
    fixed = passed.detach()
    return Sums(
        whole=(passed * reverse).sum(),
        whole_square=(passed * square).sum(),
        reverse=(fixed * reverse).sum(),
        forward=(fixed * closed.row_kl(world.reference, policy)).sum(),
        square=(fixed * square).sum(),
    )


def rows() -> Iterator[Row]:
    """Yields a row for every estimator at every place."""
    noise = random_world(3)
    world = replace(random_world(2), reward=torch.zeros_like(noise.reward))
    policy = (world.reference + noise.reference).requires_grad_()
    yield from in_the_loss(world, policy)
    yield from off_policy(world, policy, noise.behaviour)
    yield from in_the_reward(world, policy)


def in_the_loss(world: World, policy: Table) -> Iterator[Row]:
    """Yields the estimators as a term of grpo's loss, on policy."""
    found = sums(world, policy, policy)
    nothing = 0 * found.reverse
    for estimator, corrected, value, slope, said in (
        ("k1", False, found.reverse, nothing, "of nothing at all"),
        ("k2", False, found.square, found.reverse, "of KL(policy, reference)"),
        ("k3", False, found.reverse, found.forward, "of KL(reference, policy)"),
        ("exact", False, found.reverse, found.reverse, "of KL(policy, reference)"),
        ("k1", True, found.reverse, found.reverse, "of KL(policy, reference)"),
        ("k2", True, found.square, found.square, "of its own mean"),
        ("k3", True, found.reverse, found.reverse, "of KL(policy, reference)"),
    ):
        data = all_sequences(world, None)
        objective = penalty(estimator, corrected=corrected)
        experiment = Experiment(objective=objective, world=world, data=data)
        case = f"{estimator}{' corrected' if corrected else ''} in the loss: gradient {said}"
        parameters = {"logits": policy}
        loss = experiment.loss(parameters)
        yield compared(experiment, policy, case, value=(loss, value), slope=slope)


def off_policy(world: World, policy: Table, sampler: Table) -> Iterator[Row]:
    """Yields the corrected estimators in the loss, on data of another policy."""
    found = sums(world, policy, sampler)
    for estimator, value in (("k1", found.reverse), ("k2", found.square), ("k3", found.reverse)):
        data = all_sequences(world, world.tree.law(sampler))
        objective = penalty(estimator, corrected=True)
        experiment = Experiment(objective=objective, world=world, data=data, old=sampler)
        case = f"{estimator} corrected in the loss, off policy: gradient of its own mean"
        loss = experiment.loss({"logits": policy})
        yield compared(experiment, policy, case, value=(loss, value), slope=value)


def penalty(estimator: str, *, corrected: bool) -> Objective:
    """Returns grpo with the KL in its loss; rewards of 0 leave nothing else in it."""
    settings = {"credit": "plain", "average": "summed"}
    return find("grpo").using(beta=1.0, estimator=estimator, corrected=corrected, **settings)


def in_the_reward(world: World, policy: Table) -> Iterator[Row]:
    """Yields the estimators in the reward of ppo and of grpo, where only k1 follows the KL."""
    found = sums(world, policy, policy)
    for estimator, value, slope, said in (
        ("k1", found.whole, found.whole, "of the whole KL"),
        (
            "k2",
            found.whole_square,
            found.whole_square - found.reverse,
            "of its mean, less k2's own",
        ),
        ("k3", found.whole, found.whole - found.forward, "of the whole KL, less k3's own"),
        ("exact", found.whole, found.whole - found.reverse, "of the whole KL, less its own"),
    ):
        credit = {"credit.kl": 1.0, "credit.estimator": estimator}
        still = {"credit.whiten": False, "credit.trace": 1.0, "value": 0.0, "value_clip": None}
        ppo = experiment_on(world, find("ppo").using(average="summed", **credit, **still))
        grpo = experiment_on(
            world, find("grpo").using(average="summed", **credit, **{"credit.spread": "none"})
        )
        case = f"{estimator} in the reward: gradient {said}"
        yield compared(ppo, policy, case, value=(advantage_of(ppo, policy), value), slope=slope)
        yield compared(grpo, policy, case, slope=slope)


def experiment_on(world: World, objective: Objective) -> Experiment:
    """Returns the experiment of an objective on its own sequences."""
    return Experiment(objective=objective, world=world, data=all_sequences(world, None))


def parameters_of(experiment: Experiment, policy: Table) -> dict[str, Tensor]:
    """Returns a policy's logits, and 0 for every head."""
    heads = experiment.objective.declared().heads
    return {"logits": policy, **{name: torch.zeros_like(policy[..., 0]) for name in heads}}


def advantage_of(experiment: Experiment, policy: Table) -> Float[Tensor, ""]:
    """Returns what is taken off the reward, in expectation: less the first token's advantage."""
    parameters = parameters_of(experiment, policy)
    advantage = experiment.batch(parameters).stream("advantage")
    return -(experiment.share(parameters) * advantage[:, 0]).sum()


def compared(
    experiment: Experiment,
    policy: Table,
    case: str,
    *,
    slope: Float[Tensor, ""],
    value: tuple[Tensor, Tensor] | None = None,
) -> Row:
    """Returns how far value and gradient are from their closed forms, over the largest slope."""
    (expected,) = torch.autograd.grad(slope, policy, retain_graph=True)
    gradient = experiment.gradient(parameters_of(experiment, policy.detach()))["logits"]
    scale = max(float(expected.abs().max()), 1e-3)
    measured = {"gradient": float((gradient - expected).abs().max()) / scale}
    if value is not None:
        measured = {"value": (value[0] - value[1]).abs().item(), **measured}
    subject = experiment.objective.name
    return Row(part=PART, subject=subject, case=case, measured=measured, limits=LIMITS)


EXPONENTIAL, RATIONAL = (0.4711, 0.4333, 0.0956), (0.5144, 0.3600, 0.1256)  # as published
BANDITS: list[tuple[str, dict[str, object], tuple[float, ...]]] = [
    ("k2 in the loss", {"beta": 1.0, "estimator": "k2"}, EXPONENTIAL),
    ("exact in the loss", {"beta": 1.0, "estimator": "exact"}, EXPONENTIAL),
    ("k3 corrected in the loss", {"beta": 1.0, "corrected": True}, EXPONENTIAL),
    ("k1 in the reward", {"credit.kl": 1.0}, EXPONENTIAL),
    ("k3 in the loss", {"beta": 1.0, "estimator": "k3"}, RATIONAL),
    ("k1 in the loss", {"beta": 1.0, "estimator": "k1"}, (1.0, 0.0, 0.0)),
]


def bandits() -> Iterator[Claim]:
    """Yields grpo on one token with rewards 1, 0, -1, reference .2, .5, .3 and beta 1."""
    tree = Tree(vocabulary=3, length=1)
    reference = tree.table(torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).log())
    reward = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    world = World(tree=tree, reference=reference, behaviour=reference, reward=reward)
    for case, settings, expected in BANDITS:
        law = torch.tensor([expected], dtype=torch.float64).log().clamp(min=-700)
        objective = find("grpo").using(**{"credit.spread": "none", **settings})
        yield Claim(
            part="bandit",
            case=f"{case}: {', '.join(f'{share:.4f}' for share in expected)}",
            experiment=experiment_on(world, objective),
            optimum={"logits": tree.table(law)},
            limits=BANDIT_LIMITS,
            rate=1.0,
        )
