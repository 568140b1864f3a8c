"""Gradients three ways: by autograd, by the closed-form coefficient, by finite differences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite, isnan

import torch
from torch import Tensor

from logratio.batch import Policy
from logratio.lab.closed import head_gradient
from logratio.lab.draw import Draw, Leaves, draw, normal
from logratio.lab.kinks import decisions, same
from logratio.lab.options import Options
from logratio.lab.options import options as options_of
from logratio.lab.rows import Row, attempted, attempted_all
from logratio.numerics import recorded, replayed
from logratio.objective import Objective
from logratio.objectives import find, names

PART = "slopes"
LIMITS = {"closed form": 1e-11, "difference": 1e-6}  # relative to the largest slope
CORNER = 1e-3  # no decision of the loss may change within this much of a draw
STEP = 1e-5
DRAWS, DIRECTIONS, ATTEMPTS = 2, 2, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far the gradients of an objective are apart, at worst, and over how many draws."""

    closed: float = 0.0
    difference: float = 0.0
    largest: float = 0.0
    draws: int = 0
    skipped: int = 0


def rows() -> Iterator[Row]:
    """Yields a row for every setting and part of every objective."""
    for name in names():
        yield from attempted_all(rows_of(name), part=PART, subject=name)


def rows_of(name: str) -> Iterator[Row]:
    """Yields a row for every setting and part of one objective."""
    for options in options_of(find(name)):
        case = described(options)
        yield attempted(partial(row, options, case), part=PART, subject=name, case=case)


def described(options: Options) -> str:
    """Returns the setting with its values; for combinations the names of what they set."""
    if options.setting == "combined":
        values = [name for change in options.changes for name in change]
    else:
        values = [f"{next(iter(change.values()))}" for change in options.changes if change]
    return f"{options.setting}: {', '.join(dict.fromkeys(values))}".removesuffix(": ")


def row(options: Options, case: str) -> Row:
    """Returns the largest errors over the options of one setting."""
    found = {name: errors(variant) for name, variant in options.variants().items()}
    return Row(
        part=PART,
        subject=options.objective.name,
        case=case,
        measured={
            "closed form": max(one.closed for one in found.values()),
            "difference": max(one.difference for one in found.values()),
        },
        limits=LIMITS,
        worst=max(found, key=lambda name: badness(found[name])),
        counted={
            "options": len(found),
            "draws": sum(one.draws for one in found.values()),
            "skipped": sum(one.skipped for one in found.values()),
        },
    )


def badness(one: Errors) -> float:
    """Returns how near to its limit, or how far beyond, the worse error is."""
    return max(one.closed / LIMITS["closed form"], one.difference / LIMITS["difference"])


def errors(objective: Objective) -> Errors:
    """Returns the errors over enough draws that lie away from every corner of the loss.

    Too few draws, or gradients that are all 0, verify nothing: the errors are then infinite.
    """
    found = Errors()
    for seed in range(ATTEMPTS):
        if found.draws < DRAWS:
            found = after(found, draw(objective, seed), seed)
    if found.draws < DRAWS or found.largest == 0.0:
        return Errors(closed=inf, difference=inf, skipped=found.skipped)
    return found


def after(found: Errors, one: Draw, seed: int) -> Errors:
    """Returns the errors with those of one more draw, or with one more that was skipped."""
    ways = [direction(one.leaves, seed, place) for place in range(DIRECTIONS)]
    with recorded() as stopped:
        policy = one.policy({name: leaf.requires_grad_() for name, leaf in one.leaves.items()})
        loss = one.loss_of(one.objective(policy, one.batch))
    if not smooth(one, ways, stopped):
        return replace(found, skipped=found.skipped + 1)
    streams = {**present(policy), **one.leaves}
    gradient = by_autograd(loss, streams)
    largest = max(size(gradient[name]) for name in one.leaves)
    scale = max(largest, 1e-3)
    expected = by_coefficient(one, policy)
    closed = max(size(gradient[name] - expected[name]) for name in streams)
    apart = max(size(by_difference(one, way, stopped) - along(gradient, way)) for way in ways)
    return replace(
        found,
        closed=max(found.closed, share(closed, scale)),
        difference=max(found.difference, share(apart, scale)),
        largest=max(found.largest, largest),
        draws=found.draws + 1,
    )


def present(policy: Policy) -> dict[str, Tensor]:
    """Returns the action streams that a policy has."""
    named = {name: getattr(policy, name) for name in ("logp", "logit", "entropy", "kl")}
    return {name: stream for name, stream in named.items() if stream is not None}


def by_autograd(loss: Tensor, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the gradient of a loss in each of these; zeros where it does not reach."""
    found = torch.autograd.grad(
        loss, list(streams.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(streams, found, strict=True))


def by_coefficient(one: Draw, policy: Policy) -> dict[str, Tensor]:
    """Returns the same gradient in closed form: the slopes, and the head's gradient from them."""
    with torch.no_grad():
        slopes = one.objective.slopes(policy, one.batch)
    streams = {**present(policy), **one.leaves}
    found = {name: slopes.get(name, torch.zeros_like(at)) for name, at in streams.items()}
    own = {name: found[name] for name in present(policy)}
    found["logits"] = head_gradient(one.leaves["logits"].detach(), one.reference, one.ids, own)
    return found


def by_difference(one: Draw, way: Leaves, stopped: list[Tensor]) -> Tensor:
    """Returns the slope of the loss along a direction, with what it stops held fixed."""
    ahead, behind = (moved_loss(one, way, side * STEP, stopped) for side in (1, -1))
    return (ahead - behind) / (2 * STEP)


def smooth(one: Draw, ways: Sequence[Leaves], stopped: list[Tensor]) -> bool:
    """Says whether the loss decides alike all along short lines through the draw.

    Every comparison, clamp, minimum and maximum of the loss is looked at, CORNER to either side.
    """
    here = decisions(lambda: moved_loss(one, ways[0], 0.0, stopped))
    ends = (
        decisions(lambda way=way, step=step: moved_loss(one, way, step, stopped))
        for way in ways
        for step in (-CORNER, CORNER)
    )
    return all(same(here, end) for end in ends)


def moved_loss(one: Draw, way: Leaves, step: float, stopped: list[Tensor]) -> Tensor:
    """Returns the loss some steps along a direction."""
    with torch.no_grad(), replayed(stopped):
        return one.loss({name: leaf + step * way[name] for name, leaf in one.leaves.items()})


def direction(leaves: Leaves, seed: int, place: int) -> dict[str, Tensor]:
    """Returns +1 or -1 for every number that a gradient may reach."""
    generator = torch.Generator().manual_seed(1000 * seed + place)
    return {name: normal(generator, *leaf.shape).sign() for name, leaf in leaves.items()}


def along(gradient: Mapping[str, Tensor], way: Leaves) -> Tensor:
    """Returns the slope that a gradient has along a direction."""
    return torch.stack([(gradient[name] * way[name]).sum() for name in way]).sum()


def share(part: float, whole: float) -> float:
    """Returns how large an error is for gradients of this size; infinite where either is."""
    return part / whole if isfinite(part) and isfinite(whole) else inf


def size(values: Tensor) -> float:
    """Returns the largest magnitude; infinity where a number is none, for max passes nan over."""
    largest = values.abs().max().item()
    return inf if isnan(largest) else largest
