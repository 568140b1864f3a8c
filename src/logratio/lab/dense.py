"""What a model says, from a whole `[B, T+1, V]` tensor of logits: small cases, exact and plain.

It is the definition that the chunked head must agree with.
"""

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor

from logratio.batch import Policy
from logratio.numerics import stop
from logratio.part import Needs
from logratio.settings import Refused

Rows = Float[Tensor, "B S V"]  # S = T + 1: one row of logits for each state


def taken(rows: Rows, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Returns the entry of the token that was taken at each state but the last."""
    return rows[:, :-1].gather(2, ids[:, :, None])[:, :, 0]


def read(
    logits: Rows,
    ids: Int[Tensor, "B T"],
    *,
    needs: Needs = Needs(),  # noqa: B008 (a frozen value)
    reference: Rows | None = None,
    heads: Mapping[str, Float[Tensor, "B S"]] | None = None,
    scalars: Mapping[str, Float[Tensor, ""]] | None = None,
) -> Policy:
    """Returns every stream that the needs name, differentiable where the contract says so."""
    heads, scalars = heads or {}, scalars or {}
    logp = logits.log_softmax(-1)
    entropy = kl = None
    if "entropy" in needs.policy:
        entropy = -(logp.exp() * logp).sum(-1)[:, :-1]
    if "kl" in needs.policy:
        kl = (logp.exp() * (logp - rows_of(reference).log_softmax(-1))).sum(-1)[:, :-1]
    return Policy(
        logp=taken(logp, ids),
        logit=taken(logits, ids) if "logit" in needs.policy else None,
        entropy=entropy,
        kl=kl,
        heads=heads,
        statistics=statistics(logits, needs, reference=reference, heads=heads, scalars=scalars),
        scalars=scalars,
    )


def statistics(
    logits: Rows,
    needs: Needs,
    *,
    reference: Rows | None,
    heads: Mapping[str, Float[Tensor, "B S"]],
    scalars: Mapping[str, Float[Tensor, ""]],
) -> dict[str, Float[Tensor, "B S"]]:
    """Returns each declared statistic of every row of logits, under stop-gradient."""
    found: dict[str, Tensor] = {}
    flat = logits.detach().flatten(0, 1)
    fixed = {name: value.detach() for name, value in scalars.items()}
    for name, statistic in needs.statistics.items():
        other = rows_of(reference).flatten(0, 1) if statistic.reference else None
        state = heads[statistic.state].detach().flatten() if statistic.state else None
        values: Tensor = statistic.function(flat, other, state, fixed)
        found[name] = stop(values.view(logits.shape[:2]))
    return found


def reference_columns(reference: Rows, ids: Int[Tensor, "B T"]) -> dict[str, Tensor]:
    """Returns the streams `ref` and `ref_logit` of the frozen reference."""
    return {"ref": taken(reference.log_softmax(-1), ids), "ref_logit": taken(reference, ids)}


def rows_of(reference: Rows | None) -> Rows:
    """Returns the reference's rows; what needs them is refused without."""
    if reference is None:
        raise Refused("`reference` is None, but the exact KL or a statistic reads its rows")
    return reference
