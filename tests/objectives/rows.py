"""Small batches and policies from typed numbers, and what the tests of losses ask of them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from logratio.batch import STREAMS, Batch, Policy
from logratio.lab import dense
from logratio.objective import Objective, total_loss, watched
from logratio.settings import Refused


def numbers(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def batch_of(mask: list[list[int]], **streams: Any) -> Batch:
    """Gives a batch with a prompt for each row and weight 1, unless the streams say otherwise."""
    tensors = {name: numbers(values) for name, values in streams.items()}
    whole = {name: tensors.pop(name).long() for name in ("group", "pair") if name in tensors}
    fields = {name: tensors.pop(name) for name in STREAMS if name in tensors}
    shown = torch.tensor(mask, dtype=torch.bool)
    given = {"group": torch.arange(len(mask)), "weight": shown.double(), **fields, **whole}
    return Batch(mask=shown, columns=tensors, **given)


def policy_of(
    logp: Any,
    *,
    heads: Mapping[str, Any] | None = None,
    scalars: Mapping[str, float] | None = None,
    statistics: Mapping[str, Any] | None = None,
    **streams: Any,
) -> Policy:
    """Gives a policy whose every differentiable stream is a leaf."""

    def leaf(values: Any) -> Tensor:
        return numbers(values).requires_grad_()

    return Policy(
        logp=leaf(logp),
        heads={name: leaf(values) for name, values in (heads or {}).items()},
        scalars={name: leaf(value) for name, value in (scalars or {}).items()},
        statistics={name: numbers(values) for name, values in (statistics or {}).items()},
        **{name: leaf(values) for name, values in streams.items()},
    )


def leaves(policy: Policy) -> dict[str, Tensor]:
    names = ("logp", "logit", "entropy", "kl")
    action = {name: getattr(policy, name) for name in names if getattr(policy, name) is not None}
    return {**action, **policy.heads, **policy.scalars}


def loss_of(objective: Objective, policy: Policy, batch: Batch) -> Tensor:
    terms = objective(policy, batch)
    return total_loss(terms, objective.weights(terms, batch), batch)


def gradients(objective: Objective, policy: Policy, batch: Batch) -> dict[str, Tensor]:
    """Gives the slope of the whole loss in every stream, 0 where it does not reach."""
    inputs = leaves(policy)
    loss = loss_of(objective, policy, batch)
    if not loss.requires_grad:
        return {name: torch.zeros_like(value) for name, value in inputs.items()}
    found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    pairs = zip(inputs.items(), found, strict=True)
    return {name: torch.zeros_like(x) if g is None else g for (name, x), g in pairs}


def check_slopes(objective: Objective, policy: Policy, batch: Batch, /, **expected: Any) -> None:
    """Holds autograd and the closed form to typed numbers; what is not named has slope 0."""
    found, closed = gradients(objective, policy, batch), objective.slopes(policy, batch)
    assert set(expected) <= set(found)
    assert set(closed) == set(expected)
    for name, slope in found.items():
        wanted = numbers(expected.get(name, torch.zeros_like(slope).tolist()))
        torch.testing.assert_close(slope, wanted, msg=lambda text, n=name: f"{n}: {text}")
        if name in closed:
            torch.testing.assert_close(closed[name], wanted)


def check_numbers(found: Mapping[str, Tensor], expected: Mapping[str, Any]) -> None:
    """Holds named tensors to typed numbers, with no name too many or too few."""
    assert set(found) == set(expected)
    for name, wanted in expected.items():
        torch.testing.assert_close(
            found[name].detach(), numbers(wanted), msg=lambda text, n=name: f"{n}: {text}"
        )


def check_losses(objective: Objective, policy: Policy, batch: Batch, /, **expected: Any) -> None:
    terms = objective(policy, batch).terms
    check_numbers({name: term.loss for name, term in terms.items()}, expected)


def check_watch(objective: Objective, policy: Policy, batch: Batch, /, **expected: Any) -> None:
    check_numbers(objective(policy, batch).watch, expected)


def refusal(function: Callable[..., Any], *arguments: Any, **settings: Any) -> str:
    """Gives the sentence with which this is refused."""
    with pytest.raises(Refused) as refused:
        function(*arguments, **settings)
    return str(refused.value)


def check_sentence(sentence: str, field: str, came: str, allowed: str) -> None:
    """Holds a refusal to its three parts: the field first, in one sentence of one line."""
    assert sentence.startswith(f"`{field}`"), sentence
    assert came in sentence
    assert allowed in sentence.split(came, 1)[1], sentence
    assert "\n" not in sentence
    assert ". " not in sentence
    assert not sentence.endswith(".")


def needed(objective: Objective) -> dict[str, Any]:
    """Gives all that must be computed before an objective can run, as plain sets."""
    declared = objective.declared()
    return {
        "streams": set(declared.streams),
        "policy": set(declared.policy),
        "heads": set(declared.heads),
        "scalars": dict(declared.scalars),
        "statistics": set(declared.statistics),
        "couples": declared.couples,
        "prompt_trained": declared.prompt_trained,
    }


def needs_of(*streams: str, **others: Any) -> dict[str, Any]:
    """Gives what `needed` should say: these streams of the batch, and nothing else unless named."""
    nothing = {"policy": set(), "heads": set(), "scalars": {}, "statistics": set()}
    return {
        "streams": set(streams), **nothing, "couples": "row", "prompt_trained": False, **others,
    }  # fmt: skip


LENGTHS = [5, 3, 4, 5, 1, 2, 5, 4]


def eight_rows(seed: int = 0) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """Gives two groups of four ragged rows with every column there is, their ids and logits."""
    source = torch.Generator().manual_seed(seed)
    rows, tokens, words = 8, 5, 7

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=source, dtype=torch.float64)

    ids = torch.randint(words, (rows, tokens), generator=source)
    logits, reference = normal(rows, tokens + 1, words), normal(rows, tokens + 1, words)
    columns = dense.reference_columns(reference, ids)
    ref = columns.pop("ref")
    logp = dense.taken(logits.log_softmax(-1), ids)
    columns |= {
        "behaviour": logp + 0.2 * normal(rows, tokens),
        "drawn": torch.full((rows,), 2.0, dtype=torch.float64),
        "entropy": uniform(rows, tokens),
        "importance": uniform(rows, tokens + 1),
        "margin": uniform(rows),
        "next_value": uniform(rows, tokens + 1),
        "old_kl": uniform(rows, tokens),
        "q0": -uniform(rows),
        "q0_samples": torch.full((rows,), 16.0, dtype=torch.float64),
        "split": torch.tensor([1, 1, 2, 2, 0, 0, 3, 3]),
        "step_end": uniform(rows, tokens) < 0.5,
        "step_reward": normal(rows, tokens),
        "token_reward": -uniform(rows, tokens),
        "truncated": torch.tensor([0, 1, 0, 0, 0, 0, 1, 0]),
        "value": normal(rows, tokens + 1),
    }
    batch = Batch(
        mask=torch.arange(tokens) < torch.tensor(LENGTHS)[:, None],
        group=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        pair=torch.arange(rows),
        reward=torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 0], dtype=torch.float64),
        old=logp + 0.3 * normal(rows, tokens),
        ref=ref,
        columns=columns,
    )
    return batch, ids, logits, reference


def read_all(objective: Objective, *, seed: int = 0) -> tuple[Policy, Batch]:
    """Gives the policy that an objective asks for, and a batch of what it asks for and no more."""
    batch, ids, logits, reference = eight_rows(seed)
    declared = objective.declared()
    settings = objective.loss.resolved()
    if settings.get("kind") == "cross_entropy":
        assert batch.reward is not None
        batch = replace(batch, reward=batch.reward - 1)
    states = logits.shape[:2]
    source = torch.Generator().manual_seed(seed + 1)
    heads = {
        name: torch.randn(*states, generator=source, dtype=torch.float64).requires_grad_()
        for name in sorted(declared.heads)
    }
    scalars = {name: numbers(0.2).requires_grad_() for name in declared.scalars}
    policy = dense.read(
        logits.requires_grad_(),
        ids,
        needs=declared,
        reference=reference,
        heads=heads,
        scalars=scalars,
    )
    return policy, only(batch, set(declared.streams))


def only(batch: Batch, names: set[str]) -> Batch:
    """Gives a batch without the streams that are not named."""
    absent = {name: None for name in STREAMS if name not in names | {"group"}}
    columns = {name: column for name, column in batch.columns.items() if name in names}
    return replace(batch, **absent, columns=columns)


def without(policy: Policy, kind: str, name: str) -> Policy:
    """Gives a policy that lacks one stream, head, statistic or scalar."""
    if kind == "policy":
        return replace(policy, **{name: None})
    return replace(policy, **{kind: {k: v for k, v in getattr(policy, kind).items() if k != name}})


def check_runs(objective: Objective) -> dict[str, float]:
    """Runs an objective from rewards to slopes, on what it declares and nothing else.

    All is finite, the closed form is what autograd says, and each thing declared, when it is
    missing, is refused by its name.
    """
    policy, bare = read_all(objective)
    batch = objective.prepare(bare)
    found, closed = gradients(objective, policy, batch), objective.slopes(policy, batch)
    assert any(slope.abs().max() > 0 for slope in found.values())
    for name, slope in found.items():
        assert slope.isfinite().all()
        torch.testing.assert_close(closed.get(name, torch.zeros_like(slope)), slope)
    declared = objective.declared()
    for name in declared.streams:
        sentence = refusal(objective.prepare, only(bare, set(declared.streams) - {name}))
        assert sentence.startswith(f"`{name}` is missing from the batch, which has ")
    for kind in ("policy", "heads", "statistics", "scalars"):
        for name in getattr(declared, kind):
            sentence = refusal(objective, without(policy, kind, name), batch)
            assert sentence.startswith(f"`{name}` is missing from the policy")
    terms = objective(policy, batch)
    weights = objective.weights(terms, batch)
    assert total_loss(terms, weights, batch).isfinite()
    return {name: float(value) for name, value in watched(terms, weights, batch).items()}
