"""The coefficient of every loss, written out token by token: the table of section 0.2, longer."""

from collections.abc import Iterator, Mapping
from math import exp, inf
from typing import Any

from logratio.lab import closed
from logratio.lab.coefficients import PART, Coefficient, Formula, Seen, each_row, each_token
from logratio.lab.rows import Row, attempted


def rows() -> Iterator[Row]:
    """Yields a row for each coefficient."""
    for one in coefficients():
        yield attempted(one.row, part=PART, subject=one.name, case=one.said())


def coefficients() -> Iterator[Coefficient]:
    """Yields the slope of every term of every loss."""
    yield Coefficient(name="sft", term="nll", formula=each_token(minus_one))
    yield from surrogates()
    yield from penalties()
    yield from values()
    yield from preferences()
    yield from scores()
    yield from classifiers()
    yield from regressions()
    yield from correlations()


def minus_one(seen: Seen, row: int, place: int) -> float:
    """Returns the slope of a loss that is the negative of what it is a slope in."""
    del seen, row, place
    return -1.0


def surrogates() -> Iterator[Coefficient]:
    """Yields the clipped surrogates of grpo, dapo and ppo: -r A while the token may move."""
    dual = {"dual": 1.1, "clip_high": 0.05}
    yield surrogate("grpo", low=0.2, high=0.2)
    yield surrogate("dapo", low=0.2, high=0.28)
    yield surrogate("ppo", low=0.2, high=0.2)
    yield surrogate("grpo", low=0.1, high=0.4, settings={"clip": 0.1, "clip_high": 0.4})
    for name in ("grpo", "ppo"):
        yield surrogate(name, low=0.2, high=0.05, dual=1.1, settings=dual)

    def capped(seen: Seen, row: int, place: int) -> float:
        ratio = exp(seen.apart(row, place, "old"))
        return -min(ratio, 1.1) * seen.advantage[row][place]

    cispo = {"surrogate": "cispo", "clip_high": 0.1}
    yield Coefficient(name="grpo", term="policy", settings=cispo, formula=each_token(capped))

    def of_sequence(seen: Seen, row: int, place: int) -> float:
        ratio = exp(seen.summed(row, "old") / len(seen.tokens(row)))
        return -closed.surrogate_slope(ratio, seen.advantage[row][place], low=0.2, high=0.2)

    gspo = {"ratio": "sequence"}
    yield Coefficient(name="grpo", term="policy", settings=gspo, formula=each_token(of_sequence))

    def of_sampler(seen: Seen, row: int, place: int) -> float:
        ratio, advantage = exp(seen.apart(row, place, "old")), seen.advantage[row][place]
        drift = exp(seen.old[row][place] - seen.behaviour[row][place])
        return -min(drift, 1.1) * closed.surrogate_slope(ratio, advantage, low=0.2, high=0.2)

    cap = {"behaviour_cap": 1.1}
    yield Coefficient(name="grpo", term="policy", settings=cap, formula=each_token(of_sampler))


def surrogate(
    name: str,
    *,
    low: float,
    high: float,
    dual: float = inf,
    settings: Mapping[str, Any] | None = None,
) -> Coefficient:
    """Returns the coefficient of a clipped surrogate."""

    def slope(seen: Seen, row: int, place: int) -> float:
        ratio, advantage = exp(seen.apart(row, place, "old")), seen.advantage[row][place]
        return -closed.surrogate_slope(ratio, advantage, low=low, high=high, dual=dual)

    formula = each_token(slope)
    return Coefficient(name=name, term="policy", settings=settings or {}, formula=formula)


def penalties() -> Iterator[Coefficient]:
    """Yields the KL estimators in grpo's loss, as they are and weighed by the ratio."""
    for estimator in ("k1", "k2", "k3"):
        for corrected in (False, True):

            def slope(
                seen: Seen, row: int, place: int, kind: str = estimator, weighed: bool = corrected
            ) -> float:
                ratio = exp(seen.apart(row, place, "old")) if weighed else None
                return closed.kl_slope(kind, seen.apart(row, place), ratio)

            settings = {"beta": 0.3, "estimator": estimator, "corrected": corrected}
            yield Coefficient(name="grpo", term="kl", settings=settings, formula=each_token(slope))


def values() -> Iterator[Coefficient]:
    """Yields ppo's value error, held near the old value or not, and its entropy bonus."""
    for clip in (0.2, None):

        def slope(seen: Seen, row: int, place: int, held: float | None = clip) -> float:
            return closed.value_slope(
                seen.value_head[row][place],
                seen.returns[row][place],
                before=seen.value[row][place],
                clip=inf if held is None else held,
            )

        settings = {"value_clip": clip}
        formula = each_token(slope)
        yield Coefficient(
            name="ppo", term="value", stream="value", settings=settings, formula=formula
        )
    bonus, minus = {"entropy": 0.1}, each_token(minus_one)
    yield Coefficient(name="ppo", term="entropy", stream="entropy", settings=bonus, formula=minus)


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

        def formula(seen: Seen, pooled: str = pooling) -> dict[tuple[int, int], float]:
            found: dict[tuple[int, int], float] = {}
            for pair in seen.pairs():
                places = [[place + 1 for place in seen.tokens(row)] for row in pair]
                places = places if pooled == "mean" else [own[-1:] for own in places]
                score = [
                    sum(seen.score_head[row][place] for place in own) / len(own)
                    for row, own in zip(pair, places, strict=True)
                ]
                push = closed.sigmoid(score[1] - score[0] + 0.5)
                pull = 2 * 0.1 * (score[0] + score[1])
                for row, own, side in zip(pair, places, (-1, 1), strict=True):
                    slope = (side * push + pull) / len(own)
                    found |= {(row, place): slope for place in own}
            return found

        settings = {"pooling": pooling, "margin": 0.5, "centering": 0.1}
        yield Coefficient(
            name="reward_model",
            term="preference",
            stream="score",
            settings=settings,
            formula=formula,
        )


def classifiers() -> Iterator[Coefficient]:
    """Yields qpo's cross-entropy against the label, in log-probs and in raw logits."""
    numbers = {"gain": 0.6, "A": -0.4, "c": 0.3}

    def success(seen: Seen, row: int, place: int, apart: float) -> float:
        logit = apart / 0.6 - 0.4 * seen.ref[row][place] + 0.3
        return (closed.sigmoid(logit) - seen.reward[row]) / 0.6

    def of_logp(seen: Seen, row: int, place: int) -> float:
        return success(seen, row, place, seen.apart(row, place))

    def of_logit(seen: Seen, row: int, place: int) -> float:
        apart = seen.logit[row][place] - seen.ref_logit[row][place]
        return success(seen, row, place, apart)

    for offset, stream, slope in (("none", "logp", of_logp), ("log_sum_exp", "logit", of_logit)):
        yield Coefficient(
            name="qpo",
            term="success",
            stream=stream,
            settings={**numbers, "offset": offset},
            formula=each_token(slope),
        )


def regressions() -> Iterator[Coefficient]:
    """Yields spo's squared and cross-entropy losses, of a fixed Q0 and of the mean residual."""
    beta, edge = 0.5, 0.2

    def residual(seen: Seen, row: int) -> float:
        return seen.reward[row] - beta * seen.summed(row)

    def start(seen: Seen, row: int) -> float:
        group = [other for other in seen.rows if seen.group[other] == seen.group[row]]
        return sum(residual(seen, other) for other in group) / len(group)

    for kind in ("squared", "cross_entropy"):
        for q0 in (-0.4, "vargrad"):

            def slope(seen: Seen, row: int, kind: str = kind, q0: Any = q0) -> float:
                first = start(seen, row) if q0 == "vargrad" else q0
                end = first + beta * seen.summed(row)
                return beta * closed.soft_slope(kind, end, seen.reward[row], beta=beta, edge=edge)

            settings = {"kind": kind, "beta": beta, "q0": q0}
            settings |= {"edge": edge} if kind == "cross_entropy" else {}
            yield Coefficient(name="spo", term="soft", settings=settings, formula=each_row(slope))

    def of_pair(seen: Seen) -> dict[tuple[int, int], float]:
        found: dict[tuple[int, int], float] = {}
        for first, second in seen.pairs():
            slope = 2 * beta * (residual(seen, second) - residual(seen, first))
            found |= {(first, place): slope for place in seen.tokens(first)}
            found |= {(second, place): -slope for place in seen.tokens(second)}
        return found

    settings = {"kind": "pair", "beta": beta, "average": "per_pair"}
    yield Coefficient(name="spo", term="soft", settings=settings, formula=of_pair)


def correlations() -> Iterator[Coefficient]:
    """Yields the importance network's losses, in the number its head gives where a pair splits."""
    for kind in ("normal", "product", "bernoulli"):

        def formula(seen: Seen, kind: str = kind) -> dict[tuple[int, int], float]:
            found: dict[tuple[int, int], float] = {}
            for first, second in seen.pairs():
                place = int(seen.split[first])
                share = closed.sigmoid(seen.importance_head[first][place])
                slope = pair_slope(seen, kind, (first, second), 0.9 * share)
                found[first, place] = slope * 0.9 * share * (1 - share)
            return found

        settings = {"kind": kind, "bound": 0.9, "credit.corrected": False}
        yield Coefficient(
            name="importance", term="pair", stream="importance", settings=settings, formula=formula
        )


def pair_slope(seen: Seen, kind: str, pair: tuple[int, int], f: float) -> float:
    """Returns the slope in f of a pair's loss, its rewards standardised by their group's."""
    group = [row for row in seen.rows if seen.group[row] == seen.group[pair[0]]]
    mean = sum(seen.reward[row] for row in group) / len(group)
    variance = sum((seen.reward[row] - mean) ** 2 for row in group) / len(group)
    if kind == "bernoulli":
        first, second = (seen.reward[row] == 1 for row in pair)
        return closed.outcome_slope(f, mean, first, second)
    a, b = ((seen.reward[row] - mean) / variance**0.5 for row in pair)
    return closed.pair_slope(f, a, b) if kind == "normal" else 2 * (f - a * b)
