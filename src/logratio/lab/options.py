"""Every option of every objective, read off the annotations: a new one is verified unasked."""

import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from logratio.average import AVERAGES
from logratio.batch import Unit
from logratio.credit import CREDITS
from logratio.lab.draw import draw
from logratio.objective import TABLES, Objective
from logratio.part import Part
from logratio.settings import Refused, allowed, defaults
from logratio.weight import WEIGHTS

Settings = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """An objective under each option of one of its settings, or of one of its parts."""

    objective: Objective
    setting: str
    changes: Sequence[Settings]

    def variants(self) -> dict[str, Objective]:
        """Returns the objective under each option, by the settings that make it."""
        return {typed(change): changed(self.objective, change) for change in self.changes}


MOVED: dict[str, list[object]] = {  # numbers, away from their defaults
    "reward_model.margin": [0.5],
    "reward_model.centering": [0.1],
    "dpo.beta": [0.7],
    "dpo.smoothing": [0.1],
    "dpo.sft": [0.5],
    "ppo.clip": [0.05, 0.5],
    "ppo.clip_high": [0.5],
    "ppo.dual": [1.1],
    "ppo.value": [0.5],
    "ppo.value_clip": [0.5],
    "ppo.entropy": [0.1],
    "grpo.clip": [0.05, 0.5],
    "grpo.clip_high": [0.5],
    "grpo.dual": [1.1],
    "grpo.behaviour_cap": [1.1],
    "grpo.beta": [0.3],
    "importance.bound": [0.8],
    "qpo.gain": [0.6],
    "qpo.A": [-0.4],
    "qpo.c": [0.3],
    "qpo.trace": [0.5],
    "qpo.top_p": [0.6],
    "qpo.top_k": [2],
    "qpo.label_threshold": [0.5],
    "qpo.reward_low": [-1.0],
    "qpo.reward_high": [2.0],
    "spo.beta": [0.5],
    "spo.q0": [-0.4],
    "spo.edge": [0.2],
    "group.kl": [0.3],
    "group.overlong_limit": [5],
    "group.overlong_cache": [3],
    "gae.discount": [0.8],
    "gae.trace": [0.5],
    "gae.kl": [0.0, 0.3],
    "variance.strength": [1.0],
    "variance.lowest": [0.5],
    "variance.highest": [1.5],
    "top_entropy.share": [0.5],
    "random.share": [0.5],
    "random.seed": [3],
    "fixed_length.length": [7],
}

NEAR = (0.37, 2.3, 3, -0.37)  # where a number that is not named above goes, if it may


BESIDE: dict[str, Settings] = {  # what else must be set for a setting, or for one value, to act
    "dpo.kind=robust": {"smoothing": 0.1},
    "fixed_length": {"average.length": 4},
    "group.estimator": {"credit.kl": 0.3},
    "group.overlong_cache": {"credit.overlong_limit": 4},
    "group.overlong_limit": {"credit.overlong_cache": 4},
    "grpo.corrected": {"beta": 0.3},
    "grpo.dual": {"clip_high": 0.05},
    "grpo.estimator": {"beta": 0.3},
    "grpo.preset=dr_grpo": {"average.length": 4},
    "ppo.dual": {"clip_high": 0.05},
    "qpo.centred": {"reading": "logit", "offset": "none", "A": 0.5},
    "qpo.lagged": {"target": "td"},
    "qpo.reading": {"offset": "none"},
    "qpo.top_k": {"target": "q_learning"},
    "qpo.top_p": {"target": "q_learning"},
    "qpo.trace": {"target": "td"},
    "qpo.truncated": {"target": "bootstrap"},
    "spo.edge": {"kind": "cross_entropy", "beta": 0.5},
    "spo.kind=cross_entropy": {"beta": 0.5},
    "spo.kind=pair": {"average": "per_pair"},
}

COMBINED: dict[str, list[Settings]] = {  # settings that meet in one line of a loss
    "reward_model": [{"margin": "column", "pooling": "last", "centering": 0.1}],
    "dpo": [
        {"sft": 0.5, "kind": "robust", "smoothing": 0.2},
        {"kind": "hinge", "normalise": "length", "beta": 2.0},
        {"kind": "ipo", "normalise": "length"},
    ],
    "grpo": [
        {"ratio": "sequence", "dual": 1.1, "clip": 0.05},
        {"ratio": "sequence", "surrogate": "cispo"},
        {"surrogate": "cispo", "clip": 0.05},
        {"beta": 0.3, "estimator": "k1", "corrected": True},
        {"beta": 0.3, "estimator": "k2", "corrected": True},
    ],
    "importance": [
        {"kind": kind, "link": "tanh", "bound": 0.8} for kind in ("normal", "product", "bernoulli")
    ],
    "qpo": [
        {"gain": 0.6, "A": "learned", "offset": "head", "target": "bootstrap"},
        {"target": "td", "trace": 0.5, "offset": "none"},
        {"target": "q_learning", "top_p": 0.6, "offset": "head"},
        {"target": "q_learning", "top_k": 2, "reading": "logit", "offset": "none"},
        {"target": "td", "lagged": True, "truncated": "bootstrap", "offset": "head"},
    ],
    "spo": [
        *(
            {"kind": "cross_entropy", "q0": q0, "beta": 0.5, "edge": 0.2}
            for q0 in ("reference", "learned", "mean", "policy_weighted", "policy", -0.4)
        ),
        {"kind": "pair", "average": "per_pair", "q0": "learned"},
    ],
}


def options(objective: Objective) -> Iterator[Options]:
    """Yields the options of one objective, setting by setting, without those that it refuses."""
    for setting, changes in asked(objective).items():
        found = [change for change in changes if accepted(objective, change)]
        if found:
            yield Options(objective=objective, setting=setting, changes=found)


def asked(objective: Objective) -> dict[str, list[Settings]]:
    """Returns the options of one objective; of one that borrows its loss only what it adds."""
    presets = [{"preset": name} for name in objective.presets]
    chosen: dict[str, list[Settings]] = {
        "default": [{}],
        "preset": [beside(objective.name, preset) for preset in presets],
    }
    if not borrowed(objective):
        for setting, values in alternatives(objective.name, objective.loss.function).items():
            changes = ({setting: value} for value in values)
            chosen[setting] = [beside(objective.name, change) for change in changes]
        chosen["combined"] = list(COMBINED.get(objective.name, []))
        for slot, parts in admitted(objective).items():
            chosen[slot] = [change for part in parts for change in changes_of(slot, part)]
    return chosen


def accepted(objective: Objective, change: Settings) -> bool:
    """Says whether an objective takes a change; one may need another beside it that is not here."""
    try:
        changed(objective, change)
    except Refused:
        return False
    return True


def changed(objective: Objective, change: Settings) -> Objective:
    """Returns the objective under a change that is made on purpose, so without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return objective.using(**change)


def typed(change: Settings) -> str:
    """Returns settings as they are typed."""
    return " ".join(f"{key}={value}" for key, value in change.items()) or "default"


def borrowed(objective: Objective) -> bool:
    """Says whether an objective is another one's loss with other parts, as dapo is grpo's."""
    return not objective.loss.function.__module__.endswith(f".{objective.name}")


def beside(owner: str, change: Settings) -> Settings:
    """Returns a change with what must be set beside it for the change to act."""
    (name, value), *_ = change.items()
    return {
        **change,
        **BESIDE.get(f"{owner}.{name}", {}),
        **BESIDE.get(f"{owner}.{name}={value}", {}),
    }


def alternatives(owner: str, function: Any) -> dict[str, list[object]]:
    """Returns, for each setting, every value of a choice but the default, and numbers moved."""
    hints = typing.get_type_hints(function, include_extras=True)
    found: dict[str, list[object]] = {}
    for name, default in defaults(function).items():
        values = [value for value in choices(hints[name]) if value != default]
        values += MOVED.get(f"{owner}.{name}", [])
        near: list[object] = [value for value in NEAR if allowed(value, hints[name])]
        found[name] = values or near[:1]
    return {name: values for name, values in found.items() if values}


def choices(hint: Any) -> list[object]:
    """Returns the values that an annotation lists: of a Literal, a bool, and None."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return list(typing.get_args(hint))
    if origin is Annotated:
        return choices(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return [value for one in typing.get_args(hint) for value in choices(one)]
    listed: dict[object, list[object]] = {bool: [True, False], type(None): [None]}
    return listed.get(hint, [])


def admitted(objective: Objective) -> dict[str, list[str]]:
    """Returns the parts that can stand in each slot of an objective and that its loss would feel.

    keep is not among them: it chooses rows before there is a loss.
    """
    reads = objective.loss.declared().streams
    made = {name: credit.declared().makes for name, credit in CREDITS.items()}
    wanted = reads & frozenset().union(*made.values())
    found = {
        "credit": [name for name in CREDITS if wanted and wanted <= made[name]],
        "weight": list(WEIGHTS) if "advantage" in reads else [],
        "average": [name for name in AVERAGES if fits(name, objective)],
    }
    return {slot: parts for slot, parts in found.items() if parts}


def fits(average: str, objective: Objective) -> bool:
    """Says whether an average is about the kind of item that the objective's losses are."""
    one = draw(objective, 0)
    units: set[Unit] = {
        term.unit for term in objective(one.policy(one.leaves), one.batch).terms.values()
    }
    part = bound(average)
    try:
        for unit in units:
            part(one.batch, unit)
    except Refused:
        return False
    return True


def bound(average: str) -> Part:
    """Returns an average with a length where it asks for one."""
    extra = BESIDE.get(average, {})
    return AVERAGES[average].using(**{key.partition(".")[2]: value for key, value in extra.items()})


def changes_of(slot: str, name: str) -> list[Settings]:
    """Returns the choice of a part, and under it every option of every setting of its own."""
    chosen: Settings = {slot: name, **BESIDE.get(name, {})}
    found: list[Settings] = [chosen]
    for setting, values in alternatives(name, TABLES[slot][name].function).items():
        extra = BESIDE.get(f"{name}.{setting}", {})
        found += [{**chosen, f"{slot}.{setting}": value, **extra} for value in values]
    return found
