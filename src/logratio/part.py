"""What a configurable part is: a function, the settings bound to it, and what it needs."""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


class Refused(ValueError):
    """An input that was wrong at the door: says which field, what came, what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """A number read off a whole row of logits, under stop-gradient, chunk by chunk in the head.

    `function(row, reference_row, state, scalars)` maps `[N, V]` logits, the reference's `[N, V]`
    (or None), the head named `state` at the same states `[N]` (or None) and the learned scalars
    to `[N]`.
    """

    function: Callable[..., Any]
    reference: bool = False
    state: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What must be computed before a part can run; `|` joins two of them."""

    streams: frozenset[str] = frozenset()  # of the batch: old, ref, reward, a column's name, ...
    policy: frozenset[str] = frozenset()  # of the policy, beyond logp: logit, entropy, kl
    heads: frozenset[str] = frozenset()  # linear maps from a hidden state to one number
    scalars: Mapping[str, float] = field(default_factory=dict[str, float])  # name -> start
    statistics: Mapping[str, Statistic] = field(default_factory=dict[str, Statistic])
    couples: Literal["row", "pair", "group"] = "row"  # what a micro-batch must not cut
    makes: frozenset[str] = frozenset()  # columns that the part makes itself
    prompt_trained: bool = False  # the prompt's tokens are trained too: collate moves them over

    def __or__(self, other: "Needs") -> "Needs":
        """Returns everything that either needs; the wider coupling wins."""
        order = ("row", "pair", "group")
        return Needs(
            streams=self.streams | other.streams,
            policy=self.policy | other.policy,
            heads=self.heads | other.heads,
            scalars={**self.scalars, **other.scalars},
            statistics={**self.statistics, **other.statistics},
            couples=max(self.couples, other.couples, key=order.index),
            makes=self.makes | other.makes,
            prompt_trained=self.prompt_trained or other.prompt_trained,
        )


def needs(
    *streams: str,
    policy: Iterable[str] = (),
    heads: Iterable[str] = (),
    couples: Literal["row", "pair", "group"] = "row",
    makes: Iterable[str] = (),
) -> Needs:
    """Returns the needs of a part that reads these streams of the batch."""
    return Needs(
        makes=frozenset(makes),
        streams=frozenset(streams),
        policy=frozenset(policy),
        heads=frozenset(heads),
        couples=couples,
    )


@dataclass(frozen=True, slots=True)
class Part:
    """A function whose keyword-only arguments are its settings; calling it uses those bound.

    >>> def double(value, *, times: int = 2): return value * times
    >>> Part(double).using(times=3)(5)
    15
    """

    function: Callable[..., Any]
    needs: Needs | Callable[..., Needs] = Needs()  # noqa: RUF009 (frozen)
    settings: Mapping[str, object] = field(default_factory=dict[str, object])

    def __call__(self, *values: Any) -> Any:
        """Returns the function's result under the bound settings."""
        return self.function(*values, **self.settings)

    @property
    def name(self) -> str:
        """The function's own name."""
        return self.function.__name__

    def using(self, **settings: object) -> "Part":
        """Returns this part with more settings bound; an unknown or ill-typed one is refused."""
        check_settings(self.function, settings)
        return replace(self, settings={**self.settings, **settings})

    def resolved(self) -> dict[str, Any]:
        """Returns every setting, bound or default; a setting without either is refused."""
        values = {**defaults(self.function), **self.settings}
        for name, value in values.items():
            if value is inspect.Parameter.empty:
                raise Refused(f"`{name}` of `{self.name}` has no default: give it a value")
        return values

    def declared(self) -> Needs:
        """Returns what this part needs under its settings."""
        return self.needs if isinstance(self.needs, Needs) else self.needs(**self.resolved())


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the settings of a function, that is its keyword-only arguments, with defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_settings(function: Callable[..., Any], settings: Mapping[str, object]) -> None:
    """Refuses a setting that the function does not have, or a value its annotation excludes."""
    known = defaults(function)
    hints = typing.get_type_hints(function)
    for name, value in settings.items():
        if name not in known:
            raise Refused(unknown("setting", name, known, owner=function.__name__))
        if not allowed(value, hints[name]):
            raise Refused(f"`{name}` is {value!r}, but it must be {spelled(hints[name])}")


def unknown(kind: str, name: str, known: Iterable[str], *, owner: str) -> str:
    """Returns the sentence for a name that does not exist, with the nearest that does."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    return f"`{owner}` has no {kind} `{name}`: {hint}it has {', '.join(names) or 'none'}"


def allowed(value: object, hint: Any) -> bool:
    """Says whether a value fits an annotation made of numbers, literals, None and unions."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return any(value is option or value == option for option in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return any(allowed(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    return value is None if hint is type(None) else True


def spelled(hint: Any) -> str:
    """Returns an annotation in words: `a number`, `one of 'a', 'b'`, `a number or None`."""
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    origin = typing.get_origin(hint)
    if origin is Literal:
        options = [repr(option) for option in typing.get_args(hint)]
        return options[0] if len(options) == 1 else f"one of {', '.join(options)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spelled(option) for option in typing.get_args(hint))
    return "None" if hint is type(None) else words.get(hint, str(hint))
