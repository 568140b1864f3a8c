"""The coefficient of every loss, written out token by token: the table of section 0.2, longer."""

from collections.abc import Iterator, Mapping
from math import exp, inf
from typing import Any

from logratio.lab import closed
from logratio.lab.coefficients import PART, Coefficient, Formula, Seen, each_token
from logratio.lab.coupled_formulas import correlations, preferences, regressions, scores
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
            yield Coefficient(
                name="grpo",
                term="kl",
                settings={"beta": 0.3, "estimator": estimator, "corrected": corrected},
                formula=penalty(estimator, weighed=corrected),
            )


def penalty(estimator: str, *, weighed: bool) -> Formula:
    """Returns the slope of a KL estimator at each token."""

    def slope(seen: Seen, row: int, place: int) -> float:
        ratio = exp(seen.apart(row, place, "old")) if weighed else None
        return closed.kl_slope(estimator, seen.apart(row, place), ratio)

    return each_token(slope)


def values() -> Iterator[Coefficient]:
    """Yields ppo's value error, held near the old value or not, and its entropy bonus."""
    for clip in (0.2, None):
        yield Coefficient(
            name="ppo",
            term="value",
            stream="value",
            settings={"value_clip": clip},
            formula=value_error(inf if clip is None else clip),
        )
    yield Coefficient(
        name="ppo",
        term="entropy",
        stream="entropy",
        settings={"entropy": 0.1},
        formula=each_token(minus_one),
    )


def value_error(clip: float) -> Formula:
    """Returns the slope of the value error in the value before each token."""

    def slope(seen: Seen, row: int, place: int) -> float:
        now, target = seen.value_head[row][place], seen.returns[row][place]
        return closed.value_slope(now, target, before=seen.value[row][place], clip=clip)

    return each_token(slope)


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
