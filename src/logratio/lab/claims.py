"""What each objective must come to on the exact bench, objective by objective."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor

from logratio.lab import closed
from logratio.lab.bench import Claim, Data, Experiment, all_pairs, all_sequences
from logratio.lab.tree import Law, Table, World, random_world
from logratio.objective import Objective
from logratio.objectives import find
from logratio.records import Graded, Rollout, Verdict

TEMPERATURE = 0.7  # beta, wherever beta is the price of KL
GAIN = 0.8  # of qpo
BAR = -0.8  # above which rft keeps
NOISE = 0.2  # share of labels that are wrong


def every_claim() -> Iterator[Claim]:
    """Yields every claim about where an objective ends."""
    world = random_world()
    yield from imitations(world)
    yield from preferences(world)
    yield from rewarded_divergences(world)
    yield from penalised_divergences(random_world(1, length=1))
    yield from classifiers(world)
    yield from regressions(world)
    yield from relatives(world)


def imitations(world: World) -> Iterator[Claim]:
    """Yields sft, which becomes its data, and rft, which becomes the kept part of the model."""
    tree = world.tree
    data = all_sequences(world, tree.law(world.behaviour))
    for average in ("per_token", "per_sequence"):
        sft = Experiment(objective=find("sft").using(average=average), world=world, data=data)
        case = f"{average}: the law of the data"
        yield Claim(case=case, experiment=sft, optimum={"logits": world.behaviour})
    rft = find("rft").using(preset="online", **{"keep.bar": BAR})
    reference = tree.law(world.reference)
    drawn = all_sequences(world, reference.masked_fill(~kept(world, rft), -torch.inf))
    columns = {"drawn": torch.ones_like(world.reward)}
    online = Experiment(objective=rft, world=world, data=drawn, columns=columns)
    law = closed.conditioned(reference, world.reward > BAR)
    yield Claim(
        case="online: the reference, given that it is kept",
        experiment=online,
        optimum={"logits": bounded(tree.table(law))},
        rate=1.0,  # the optimum lies at infinity
    )


def kept(world: World, objective: Objective) -> Bool[Tensor, "S N"]:
    """Returns which sequences the objective's own keep lets train."""
    graded = [
        Graded(
            rollout=Rollout(problem=f"{group}", group=group, index=i, prompt_ids=(), ids=(i,)),
            verdict=Verdict(reward=reward),
        )
        for group, rewards in enumerate(cast(list[list[float]], world.reward.tolist()))
        for i, reward in enumerate(rewards)
    ]
    return torch.tensor(objective.keep(graded)).view(world.reward.shape)


def bounded(logits: Tensor) -> Tensor:
    """Returns logits with -700 for what is never drawn: log 0 has no gradient to measure."""
    return torch.where(logits.isnan(), 0.0, logits).clamp(min=-700)


def preferences(world: World) -> Iterator[Claim]:
    """Yields reward_model and dpo on pairs labelled with the exact Bradley-Terry probability."""
    chance = closed.preference(world.reward[:, :, None], world.reward[:, None, :])
    exact, noisy = (
        all_pairs(world, (1 - noise) * chance + noise * (1 - chance)) for noise in (0.0, NOISE)
    )
    inner = world.tree.first(world.tree.length)
    leaves = torch.nn.functional.pad(world.reward, (inner, 0))
    for pooling, scale in (("mean", world.tree.length), ("last", 1)):
        objective = find("reward_model").using(pooling=pooling)
        yield Claim(
            case=f"{pooling} score: the reward, up to a constant",
            experiment=Experiment(objective=objective, world=world, data=exact),
            optimum={"logits": world.reference, "score": scale * leaves},
        )
    robust = {"kind": "robust", "smoothing": NOISE}
    for said, data, settings in (
        ("exact labels", exact, {}),
        ("robust, a fifth of the labels wrong", noisy, robust),
    ):
        objective = find("dpo").using(beta=TEMPERATURE, **settings)
        yield tilted(said, Experiment(objective=objective, world=world, data=data))


def tilted(said: str, experiment: Experiment) -> Claim:
    """Returns the claim that an experiment ends at the exponential tilt of its reference."""
    return Claim(
        case=f"{said}: the exponential tilt", experiment=experiment, optimum=tilt(experiment.world)
    )


def tilt(world: World) -> dict[str, Tensor]:
    """Returns the logits of the exponential tilt."""
    reference = world.tree.law(world.reference)
    law = closed.exponential_tilt(reference, world.reward, TEMPERATURE)
    return {"logits": world.tree.table(law)}


def rewarded_divergences(world: World) -> Iterator[Claim]:
    """Yields ppo and grpo with the KL in the reward: they follow reward - beta KL."""
    data = all_sequences(world, None)
    values = closed.soft_values(world.tree, world.reference, world.reward, TEMPERATURE)
    settings = {"credit.kl": TEMPERATURE, "credit.whiten": False, "value": 1.0, "value_clip": None}
    ppo = find("ppo").using(**settings, average="summed")
    learned = tilted("k1 in the reward, value learned", exact(ppo, world, data))
    yield replace(learned, optimum={**learned.optimum, "value": inner(world, values)})
    reward = {"average": "summed", "credit.spread": "none", "credit.kl": TEMPERATURE}
    for said, center in (("k1 in the reward", "mean"), ("rloo, k1 in the reward", "leave_one_out")):
        grpo = find("grpo").using(**reward, **{"credit.center": center})
        yield tilted(said, exact(grpo, world, data))


def exact(objective: Objective, world: World, data: Data) -> Experiment:
    """Returns an experiment that needs no columns of its own."""
    return Experiment(objective=objective, world=world, data=data)


def inner(world: World, values: Tensor) -> Tensor:
    """Returns numbers on states, with 0 on the whole sequences, where nothing reads them."""
    states = torch.arange(world.tree.states) < world.tree.first(world.tree.length)
    return torch.where(states, values, 0.0)


def penalised_divergences(world: World) -> Iterator[Claim]:
    """Yields grpo with the KL in the loss, where one token is all: k3 leads somewhere else."""
    reference = world.tree.law(world.reference)
    rational = closed.rational_tilt(reference, world.reward, TEMPERATURE)
    for estimator, corrected in (("k2", False), ("k3", False), ("k3", True), ("exact", False)):
        objective = find("grpo").using(
            beta=TEMPERATURE,
            estimator=estimator,
            corrected=corrected,
            **{"credit.spread": "none"},
        )
        said = f"{estimator} in the loss{', corrected' if corrected else ''}, one token"
        claim = tilted(said, exact(objective, world, all_sequences(world, None)))
        if estimator == "k3" and not corrected:
            optimum = {"logits": world.tree.table(rational)}
            claim = replace(claim, case=f"{said}: the rational tilt", optimum=optimum)
        yield claim


LOW, HIGH = -1.6, 0.1  # rewards that qpo reads as success 0 and 1
TARGETS: list[tuple[str, bool, dict[str, Any], str]] = [  # target, on policy, closed form, in words
    ("monte_carlo", False, {"trace": 1.0}, "Q of the behaviour"),
    ("monte_carlo", True, {"trace": 0.0}, "Q of the policy, on policy"),
    ("bootstrap", False, {"trace": 0.0}, "Q of the policy"),
    ("q_learning", False, {"best": True}, "Q of the best"),
    ("td", False, {"trace": 0.6}, "Q of both, mixed"),
]


def classifiers(world: World) -> Iterator[Claim]:
    """Yields qpo under its four targets, with both offsets that make its classifier exact."""
    success = (world.reward - LOW) / (HIGH - LOW)
    elsewhere, itself = (
        all_sequences(world, law) for law in (world.tree.law(world.behaviour), None)
    )
    for target, on_policy, solution, said in TARGETS:
        logits, offset = closed.odds_tilt(
            world.tree, world.reference, success, gain=GAIN, behaviour=world.behaviour, **solution
        )
        trace = {"trace": solution["trace"]} if target == "td" else {}
        shared = {"target": target, "gain": GAIN, "reward_low": LOW, "reward_high": HIGH, **trace}
        for kind, c, optimum in readings(world, target, logits, offset):
            objective = find("qpo").using(**shared, offset=kind, c=c)
            yield Claim(
                case=f"{target}, offset {kind}: odds tilt, {said}",
                experiment=exact(objective, world, itself if on_policy else elsewhere),
                optimum=optimum,
                rate=0.1,
            )


def readings(
    world: World, target: str, logits: Table, offset: Tensor
) -> Iterator[tuple[str, float | str, dict[str, Tensor]]]:
    """Yields each offset of qpo with its c and the parameters at which l_Q = logit(Q).

    Raw logits hold the offset, and a c too: it is learned where that is quick, else fixed.
    """
    if target in ("monte_carlo", "td"):
        zero = torch.zeros((), dtype=logits.dtype)
        yield "log_sum_exp", "learned", {"logits": logits, "c": zero}
    else:
        yield "log_sum_exp", -0.2, {"logits": logits + 0.2 * GAIN}
    yield "head", -0.2, {"logits": logits, "offset": inner(world, offset + 0.2)}


def regressions(world: World) -> Iterator[Claim]:
    """Yields spo off policy, where it asks for the exact Q0 or the mean residual, and on policy."""
    elsewhere = all_sequences(world, world.tree.law(world.behaviour))
    for kind, settings in (("squared", {}), ("cross_entropy", {"edge": 0.2})):
        for said, q0 in (("exact", "reference"), ("vargrad", "vargrad")):
            yield soft(
                f"{kind}, {said} Q0, off policy", world, elsewhere, kind=kind, q0=q0, **settings
            )
    learned = soft("squared, learned Q0, off policy", world, elsewhere, q0="learned")
    values = closed.soft_values(world.tree, world.reference, world.reward, TEMPERATURE)
    root = torch.arange(world.tree.states) == 0
    yield replace(learned, optimum={**learned.optimum, "q0": torch.where(root, values, 0.0)})
    yield soft("squared, wrong Q0, on policy", world, all_sequences(world, None), q0=0.5)


def soft(said: str, world: World, data: Data, **settings: Any) -> Claim:
    """Returns the claim that spo under these settings ends at the exponential tilt.

    The anchor, where it is the policy that sampled, is the reference: one round of several.
    """
    q0 = soft_start(world, TEMPERATURE)
    objective = find("spo").using(**{"beta": TEMPERATURE, **settings})
    columns = {"q0": q0, "q0_samples": torch.ones_like(q0)}
    experiment = Experiment(
        objective=objective, world=world, data=data, columns=columns, old=world.reference
    )
    return tilted(said, experiment)


def soft_start(world: World, temperature: float) -> Law:
    """Returns the exact soft value of each problem, at every sequence."""
    reference = world.tree.law(world.reference)
    value = closed.soft_value(reference, world.reward, temperature)
    return value[:, None].expand_as(world.reward)


def relatives(world: World) -> Iterator[Claim]:
    """Yields the published relatives of spo: each is one of its presets."""
    itself = all_sequences(world, None)
    yield soft("a_star_po", world, itself, preset="a_star_po")
    two = soft(
        "a_star_po, Q0 at twice the temperature, on policy", world, itself, preset="a_star_po"
    )
    columns = {**two.experiment.columns, "q0": soft_start(world, 2 * TEMPERATURE)}
    yield replace(two, experiment=replace(two.experiment, columns=columns))
    sequences = world.tree.leaves
    equal = torch.ones(len(world.reward), sequences, sequences, dtype=world.reward.dtype)
    yield soft("rebel, one round", world, all_pairs(world, equal), preset="rebel")
    yield soft("kimi, one round, on policy", world, itself, preset="kimi")
