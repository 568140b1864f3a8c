"""What a configurable part is: a function, the settings bound to it, and what it needs."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from logratio.settings import Refused, check_settings, defaults

Coupling = Literal["row", "pair", "group"]
COUPLINGS: list[Coupling] = ["row", "pair", "group"]  # the later one is the wider
Shape = Literal["row", "token", "state"]  # [B], [B, T], [B, T+1]

SHAPES: dict[str, Shape] = {  # every stream of a batch that logratio knows by name
    "pair": "row",
    "reward": "row",
    "advantage": "token",
    "weight": "token",
    "old": "token",  # log-prob under the full softmax that sampled
    "old_kl": "token",  # exact KL of the policy that sampled to the reference
    "behaviour": "token",  # log-prob under the truncated law that sampled
    "entropy": "token",  # of the policy that sampled
    "ref": "token",  # log-prob under the reference
    "ref_logit": "token",  # ... and its raw logit
    "step_end": "token",  # True on the last token of a step
    "step_reward": "token",
    "token_reward": "token",
    "value": "state",  # of the value head that sampled
    "returns": "token",  # what the value is fitted to
    "next_value": "state",  # success expected by a lagged copy
    "importance": "state",  # correlation of rewards that share the tokens so far
    "split": "row",  # how many tokens a row shares with its sister
    "mean": "row",  # of the group's rewards
    "variance": "row",
    "shift": "row",
    "truncated": "row",  # 1 where the tokens ran out
    "drawn": "row",  # rollouts sampled for each one kept
    "margin": "row",
    "q0": "row",  # soft value of the prompt under the reference
    "q0_samples": "row",  # how many samples carry it
}


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
    columns: Mapping[str, Shape] = field(default_factory=dict[str, Shape])  # shapes of new names
    policy: frozenset[str] = frozenset()  # of the policy, beyond logp: logit, entropy, kl
    heads: frozenset[str] = frozenset()  # linear maps from a hidden state to one number
    scalars: Mapping[str, float] = field(default_factory=dict[str, float])  # name -> start
    statistics: Mapping[str, Statistic] = field(default_factory=dict[str, Statistic])
    lagged: Mapping[str, Statistic] = field(default_factory=dict[str, Statistic])  # as columns
    couples: Coupling = "row"  # what a micro-batch must not cut
    makes: frozenset[str] = frozenset()  # columns that the part makes itself
    prompt_trained: bool = False  # the prompt's tokens are trained too: collate moves them over

    def __or__(self, other: "Needs") -> "Needs":
        """Returns everything that either needs; the wider coupling wins."""
        return Needs(
            streams=self.streams | other.streams,
            columns={**self.columns, **other.columns},
            policy=self.policy | other.policy,
            heads=self.heads | other.heads,
            scalars={**self.scalars, **other.scalars},
            statistics={**self.statistics, **other.statistics},
            lagged={**self.lagged, **other.lagged},
            couples=max(self.couples, other.couples, key=COUPLINGS.index),
            makes=self.makes | other.makes,
            prompt_trained=self.prompt_trained or other.prompt_trained,
        )

    def shape(self, name: str) -> Shape:
        """Returns the shape of a stream that is needed."""
        return self.columns.get(name) or SHAPES[name]


def needs(
    *streams: str,
    columns: Mapping[str, Shape] | None = None,
    policy: Iterable[str] = (),
    heads: Iterable[str] = (),
    scalars: Mapping[str, float] | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    lagged: Mapping[str, Statistic] | None = None,
    couples: Coupling = "row",
    makes: Iterable[str] = (),
) -> Needs:
    """Returns the needs of a part that reads these streams of the batch.

    A stream that logratio does not know by name is one of `columns`, with its shape.
    """
    for name in streams:
        if name not in SHAPES:
            raise Refused(f"`{name}` is no stream that logratio knows: give its shape as "
                          f"columns={{'{name}': 'row'}}, 'token' or 'state'")  # fmt: skip
    return Needs(
        columns=columns or {},
        scalars=scalars or {},
        statistics=statistics or {},
        lagged=lagged or {},
        makes=frozenset(makes),
        streams=frozenset(streams) | frozenset(columns or {}),
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
