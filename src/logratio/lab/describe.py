"""An objective in words: its settings, parts and presets, and what must be computed for it."""

import inspect
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from logratio.objective import TABLES, Objective
from logratio.objectives import find, names
from logratio.part import Needs, Part
from logratio.settings import defaults, spelled


def summaries() -> str:
    """Returns one line for every registered objective."""
    width = max(map(len, names()))
    return "\n".join(f"{name:<{width}}  {summary(find(name))}" for name in names())


def summary(objective: Objective) -> str:
    """Returns the first line of the docstring of the file that an objective stands in."""
    module = sys.modules[f"logratio.objectives.{objective.name}"]
    return (module.__doc__ or "").splitlines()[0]


def described(name: str) -> str:
    """Returns everything that can be said of an objective before it is run."""
    objective = find(name)
    lines = [objective.name, "", inspect.getdoc(objective.loss.function) or ""]
    lines += ["", "settings", *settings(objective.loss)]
    for slot in TABLES:
        part: Part = getattr(objective, slot)
        lines += ["", f"{slot}: {part.name}", *settings(part, prefix=f"{slot}.")]
    if objective.presets:
        lines += ["", "presets", *presets(objective.presets)]
    return "\n".join([*lines, "", "needs", *needs(objective.declared())])


def settings(part: Part, *, prefix: str = "") -> Iterator[str]:
    """Yields each setting of a part with its value and what is allowed."""
    hints = typing.get_type_hints(part.function, include_extras=True)
    values: Mapping[str, Any] = {**defaults(part.function), **part.settings}
    for name, value in values.items():
        given = "required" if value is inspect.Parameter.empty else repr(value)
        yield f"  {prefix + name} = {given}   ({spelled(hints[name])})"


def presets(named: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields each preset with the settings that it stands for."""
    for name, changes in named.items():
        yield f"  {name}: {' '.join(f'{key}={value}' for key, value in changes.items())}"


def needs(declared: Needs) -> Iterator[str]:
    """Yields each kind of thing that must be computed first, with the names."""
    kinds = {
        "streams of the batch": declared.streams,
        "streams of the policy": declared.policy | {"logp"},
        "heads": declared.heads,
        "learned numbers": declared.scalars,
        "statistics": declared.statistics,
    }
    for kind, found in kinds.items():
        if found:
            yield f"  {kind}: {', '.join(sorted(found))}"
    yield f"  a micro-batch must not cut a {declared.couples}"
