"""What a setting may be: its annotation says so, and what it excludes is refused in words."""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import isnan
from typing import Annotated, Any, Literal


class Refused(ValueError):
    """An input that was wrong at the door: says which field, what came, what is allowed."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The range of a number, as an annotation: `Annotated[float, Interval("(0, 1]")]`.

    >>> Interval("(0, 1]").holds(0), Interval("(0, 1]").holds(1)
    (False, True)
    """

    text: str

    def holds(self, value: float) -> bool:
        """Says whether a number lies in the interval."""
        low, high = (float(end) for end in self.text[1:-1].split(","))
        above = value >= low if self.text[0] == "[" else value > low
        return above and (value <= high if self.text[-1] == "]" else value < high)


Positive = Annotated[float, Interval("(0, inf)")]
AtLeastZero = Annotated[float, Interval("[0, inf)")]
Fraction = Annotated[float, Interval("[0, 1]")]
Share = Annotated[float, Interval("(0, 1]")]
AboveOne = Annotated[float, Interval("(1, inf)")]
AtLeastOne = Annotated[int, Interval("[1, inf)")]


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the settings of a function, that is its keyword-only arguments, with defaults."""
    return dict(signature_of(function))


@cache
def signature_of(function: Callable[..., Any]) -> tuple[tuple[str, Any], ...]:
    """Returns each keyword-only argument with its default: read once, for a loss asks each call."""
    parameters = inspect.signature(function).parameters.values()
    return tuple((p.name, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY)


def check_settings(function: Callable[..., Any], settings: Mapping[str, object]) -> None:
    """Refuses a setting that the function does not have, or a value its annotation excludes."""
    known = defaults(function)
    hints = typing.get_type_hints(function, include_extras=True)
    for name, value in settings.items():
        if name not in known:
            raise Refused(unknown("setting", name, known, owner=function.__name__))
        hint = hints.get(name, Any)  # an argument without annotation takes anything
        if not allowed(value, hint):
            raise Refused(f"`{name}` is {value!r}, but it must be {spelled(hint)}")


def unknown(kind: str, name: str, known: Iterable[str], *, owner: str) -> str:
    """Returns the sentence for a name that does not exist, with the nearest that does."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    return f"`{owner}` has no {kind} `{name}`: {hint}it has {', '.join(names) or 'none'}"


def allowed(value: object, hint: Any) -> bool:
    """Says whether a value fits an annotation made of numbers, literals, None and unions."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        fits = allowed(value, options[0])
        return fits and all(interval.holds(value) for interval in options[1:])
    if origin in (typing.Union, types.UnionType):
        return any(allowed(value, option) for option in options)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in options)
    if isinstance(value, bool):
        return hint in (bool, Any, object)
    if hint is float:
        return isinstance(value, int | float) and not isnan(value)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def spelled(hint: Any) -> str:
    """Returns an annotation in words: `a number`, `one of 'a', 'b'`, `a number or None`."""
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    origin = typing.get_origin(hint)
    if origin is Literal:
        options = [repr(option) for option in typing.get_args(hint)]
        return options[0] if len(options) == 1 else f"one of {', '.join(options)}"
    if origin is Annotated:
        kind, *ranges = typing.get_args(hint)
        return f"{spelled(kind)} in {ranges[0].text}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spelled(option) for option in typing.get_args(hint))
    return "None" if hint is type(None) else words.get(hint, str(hint))
