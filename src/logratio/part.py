"""What a configurable part is: a function, the settings bound to it, and what it needs."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from logratio.settings import Refused, check_settings, defaults

Coupling = Literal["row", "pair", "group"]
COUPLINGS: list[Coupling] = ["row", "pair", "group"]  # the later one is the wider


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
    couples: Coupling = "row"  # what a micro-batch must not cut
    makes: frozenset[str] = frozenset()  # columns that the part makes itself
    prompt_trained: bool = False  # the prompt's tokens are trained too: collate moves them over

    def __or__(self, other: "Needs") -> "Needs":
        """Returns everything that either needs; the wider coupling wins."""
        return Needs(
            streams=self.streams | other.streams,
            policy=self.policy | other.policy,
            heads=self.heads | other.heads,
            scalars={**self.scalars, **other.scalars},
            statistics={**self.statistics, **other.statistics},
            couples=max(self.couples, other.couples, key=COUPLINGS.index),
            makes=self.makes | other.makes,
            prompt_trained=self.prompt_trained or other.prompt_trained,
        )


def needs(
    *streams: str,
    policy: Iterable[str] = (),
    heads: Iterable[str] = (),
    scalars: Mapping[str, float] | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    couples: Coupling = "row",
    makes: Iterable[str] = (),
) -> Needs:
    """Returns the needs of a part that reads these streams of the batch."""
    return Needs(
        scalars=scalars or {},
        statistics=statistics or {},
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
    needs: Needs | Callable[..., Needs] = Needs()
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
