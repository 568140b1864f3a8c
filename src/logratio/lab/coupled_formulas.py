"""The coefficients of losses that couple tokens: a response's, or a pair's, in plain numbers."""

from collections.abc import Callable, Iterator
from math import exp, log
from statistics import fmean

from logratio.lab import closed
from logratio.lab.coefficients import Coefficient, Formula, Seen, each_row

BETA, EDGE = 0.5, 0.2  # of spo
BOUND = 0.9  # of the importance network


def preferences() -> Iterator[Coefficient]:
    """Yields dpo's kinds, summed and by length, and its term on the chosen answer."""
    for kind, wrong in (
        ("sigmoid", 0.0),
        ("sigmoid", 0.1),
        ("robust", 0.1),
        ("ipo", 0.0),
        ("hinge", 0.0),
    ):
        for normalise in ("sum", "length"):
            settings = {"beta": 0.7, "kind": kind, "smoothing": wrong, "normalise": normalise}
            formula = preference(kind, wrong=wrong, by_length=normalise == "length")
            yield Coefficient(name="dpo", term="preference", settings=settings, formula=formula)

    def imitated(seen: Seen) -> dict[tuple[int, int], float]:
        return {
            (row, place): -1 / len(seen.tokens(row))
            for row, _ in seen.pairs()
            for place in seen.tokens(row)
        }

    yield Coefficient(name="dpo", term="sft", settings={"sft": 0.5}, formula=imitated)


def preference(kind: str, *, wrong: float, by_length: bool) -> Formula:
    """Returns +- beta times the slope in h, on every token of a pair, over its length if asked."""
    beta = 0.7

    def formula(seen: Seen) -> dict[tuple[int, int], float]:
        found: dict[tuple[int, int], float] = {}
        for pair in seen.pairs():
            over = [len(seen.tokens(row)) if by_length else 1 for row in pair]
            reward = [seen.summed(row) / length for row, length in zip(pair, over, strict=True)]
            h = beta * (reward[0] - reward[1])
            slope = beta * closed.preference_slope(kind, h, beta=beta, wrong=wrong)
            for row, length, side in zip(pair, over, (1, -1), strict=True):
                found |= {(row, place): side * slope / length for place in seen.tokens(row)}
        return found

    return formula


def scores() -> Iterator[Coefficient]:
    """Yields the reward model's loss, in the scores that are pooled."""
    for pooling in ("mean", "last"):
        yield Coefficient(
            name="reward_model",
            term="preference",
            stream="score",
            settings={"pooling": pooling, "margin": 0.5, "centering": 0.1},
            formula=pooled(pooling, margin=0.5, centering=0.1),
        )


def pooled(pooling: str, *, margin: float, centering: float) -> Formula:
    """Returns -+ sigmoid of the lacking margin, with the pull to 0, over the pooled states."""

    def formula(seen: Seen) -> dict[tuple[int, int], float]:
        found: dict[tuple[int, int], float] = {}
        for pair in seen.pairs():
            after = [[place + 1 for place in seen.tokens(row)] for row in pair]
            read = after if pooling == "mean" else [places[-1:] for places in after]
            score = [
                sum(seen.score_head[row][place] for place in places) / len(places)
                for row, places in zip(pair, read, strict=True)
            ]
            push = closed.sigmoid(score[1] - score[0] + margin)
            pull = 2 * centering * (score[0] + score[1])
            for row, places, side in zip(pair, read, (-1, 1), strict=True):
                slope = (side * push + pull) / len(places)
                found |= {(row, place): slope for place in places}
        return found

    return formula


def regressions() -> Iterator[Coefficient]:
    """Yields spo's squared loss from every Q0, its cross-entropy, and the loss of a pair."""
    for q0 in (-0.4, "reference", "learned", "mean", "vargrad", "policy_weighted", "policy"):
        settings = {"kind": "squared", "beta": BETA, "q0": q0}
        formula = each_row(soft("squared", q0))
        yield Coefficient(name="spo", term="soft", settings=settings, formula=formula)
    for q0 in (-0.4, "vargrad"):
        settings = {"kind": "cross_entropy", "beta": BETA, "q0": q0, "edge": EDGE}
        formula = each_row(soft("cross_entropy", q0))
        yield Coefficient(name="spo", term="soft", settings=settings, formula=formula)

    def of_pair(seen: Seen) -> dict[tuple[int, int], float]:
        found: dict[tuple[int, int], float] = {}
        for first, second in seen.pairs():
            slope = 2 * BETA * (residual(seen, second) - residual(seen, first))
            found |= {(first, place): slope for place in seen.tokens(first)}
            found |= {(second, place): -slope for place in seen.tokens(second)}
        return found

    settings = {"kind": "pair", "beta": BETA, "average": "per_pair"}
    yield Coefficient(name="spo", term="soft", settings=settings, formula=of_pair)


def soft(kind: str, q0: float | str) -> Callable[[Seen, int], float]:
    """Returns the slope of a response's loss in each of its log-probs."""

    def slope(seen: Seen, row: int) -> float:
        end = start(seen, row, q0) + BETA * seen.summed(row)
        return BETA * closed.soft_slope(kind, end, seen.reward[row], beta=BETA, edge=EDGE)

    return slope


def start(seen: Seen, row: int, q0: float | str) -> float:
    """Returns the soft value of a row's prompt, as each name of it is defined."""
    group = group_of(seen, row)
    ratios, rewards = [seen.summed(r) for r in group], [seen.reward[r] for r in group]
    if isinstance(q0, float):
        return q0
    if q0 == "reference":
        return seen.q0[row]
    if q0 == "learned":
        return seen.q0_head[row][seen.tokens(row)[0]]
    if q0 in ("mean", "vargrad"):
        return fmean(residual(seen, r) if q0 == "vargrad" else seen.reward[r] for r in group)
    weights = [-ratio if q0 == "policy_weighted" else 0.0 for ratio in ratios]
    exponents = zip(rewards, weights, strict=True)
    return BETA * log(fmean(exp(reward / BETA + weight) for reward, weight in exponents))


def residual(seen: Seen, row: int) -> float:
    """Returns the reward of a response less what its log-ratio stands for."""
    return seen.reward[row] - BETA * seen.summed(row)


def correlations() -> Iterator[Coefficient]:
    """Yields the importance network's losses, in the number its head gives where a pair splits."""
    for kind, corrected in (
        ("normal", False),
        ("normal", True),
        ("product", False),
        ("product", True),
        ("bernoulli", False),
    ):
        yield Coefficient(
            name="importance",
            term="pair",
            stream="importance",
            settings={"kind": kind, "bound": BOUND, "credit.corrected": corrected},
            formula=correlated(kind, corrected=corrected),
        )


def correlated(kind: str, *, corrected: bool) -> Formula:
    """Returns the slope through the bounded sigmoid, where the first row of a pair splits."""

    def formula(seen: Seen) -> dict[tuple[int, int], float]:
        found: dict[tuple[int, int], float] = {}
        for first, second in seen.pairs():
            place = seen.tokens(first)[0] + int(seen.split[first])
            part = closed.sigmoid(seen.importance_head[first][place])
            moments = standardised(seen, first, second, corrected=corrected)
            f = BOUND * part
            if kind == "bernoulli":
                mean = fmean(seen.reward[row] for row in group_of(seen, first))
                right = (seen.reward[row] == 1 for row in (first, second))
                slope = closed.outcome_slope(f, mean, *right)
            else:
                slope = closed.pair_slope(f, *moments) if kind == "normal" else 2 * (f - moments[1])
            found[first, place] = slope * BOUND * part * (1 - part)
        return found

    return formula


def group_of(seen: Seen, row: int) -> list[int]:
    """Returns the rows that answer the same prompt as a row."""
    return [other for other in seen.rows if seen.group[other] == seen.group[row]]


def standardised(seen: Seen, first: int, second: int, *, corrected: bool) -> tuple[float, float]:
    """Returns a^2 + b^2 and a b of a pair's rewards, standardised by their group's.

    The group holds the pair: with G rewards in pairs of correlation c its variance is too small by
    s = v (1 + c) / G, and so is each product; s is estimated by (v' + mean product') / (G - 2).
    """
    group = group_of(seen, first)
    mean = fmean(seen.reward[row] for row in group)
    away = {row: seen.reward[row] - mean for row in group}
    variance = fmean(square**2 for square in away.values())
    products = [away[one] * away[other] for one, other in seen.pairs() if one in away]
    short = max(variance + fmean(products), 0) / (len(group) - 2) if corrected else 0.0
    variance += short
    squares = (away[first] ** 2 + away[second] ** 2 + 2 * short) / variance
    return squares, (away[first] * away[second] + short) / variance
