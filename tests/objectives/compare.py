"""Two objectives side by side: what each makes of the same ragged rows."""

import torch
from objectives.rows import eight_rows, loss_of, numbers
from torch.testing import assert_close

from logratio.batch import Batch, Policy
from logratio.lab import dense
from logratio.objective import Objective


def measured(objective: Objective, batch: Batch | None = None, *, on_policy: bool = False):
    """Gives loss and slope in the logits, of the eight ragged rows or of another such batch."""
    given, ids, logits, reference = eight_rows()
    given = batch or given
    leaf = logits.requires_grad_()
    declared = objective.declared()
    heads = {name: torch.full(logits.shape[:2], 0.3).double() for name in declared.heads}
    scalars = {name: numbers(0.2) for name in declared.scalars}
    policy = dense.read(
        leaf, ids, needs=declared, reference=reference, heads=heads, scalars=scalars
    )
    if on_policy:
        given = changed(given, old=policy.logp.detach())
    loss = loss_of(objective, policy, objective.prepare(given))
    return loss, torch.autograd.grad(loss, leaf)[0]


def changed(batch: Batch, **streams) -> Batch:
    """Gives the batch with other streams in place of its own."""
    fields = {
        name: streams.pop(name) for name in ("mask", "old", "reward", "ref") if name in streams
    }
    return Batch(**{**vars(batch), **fields, "columns": {**batch.columns, **streams}})


def rewarded(**streams) -> Batch:
    return changed(eight_rows()[0], **streams)


def agree(one: Objective, other: Objective, batch: Batch | None = None, **options) -> None:
    """Holds two objectives to the same loss and the same slope, which is not nothing."""
    (loss, slope), (other_loss, other_slope) = (
        measured(objective, batch, **options) for objective in (one, other)
    )
    assert slope.abs().max() > 1e-4
    assert_close(loss, other_loss)
    assert_close(slope, other_slope)


def log_ratios(policy: Policy, batch: Batch) -> torch.Tensor:
    assert batch.ref is not None
    return ((policy.logp - batch.ref) * batch.mask).sum(1)


def fresh() -> tuple[Policy, Batch]:
    """Gives eight rows with log-probs that are leaves."""
    batch, ids, logits, _ = eight_rows()
    logp = dense.taken(logits.log_softmax(-1), ids)
    return Policy(logp=logp.detach().requires_grad_()), batch
