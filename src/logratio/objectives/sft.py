"""SFT: the cross-entropy of the next token, on demonstrations."""

from typing import Literal

import torch

from logratio.average import AVERAGES
from logratio.batch import Batch, Policy, Term, Terms
from logratio.objective import Objective, Slopes
from logratio.part import Needs, Part

Trained = Literal["completion", "all"]


def loss(policy: Policy, batch: Batch, *, train_on: Trained = "completion") -> Terms:
    """Returns the negative log-prob of every trained token.

        loss_t = -log p(y_t)

    `train_on="all"` trains the prompt too: the rows are then made with the prompt in them.
    """
    del batch, train_on
    return Terms(terms={"nll": Term(loss=-policy.logp)}, watch={"logp": policy.logp})


def coefficient(policy: Policy, batch: Batch, *, train_on: Trained) -> Slopes:
    """Returns the slope -1 on every token."""
    del batch, train_on
    return {"nll": {"logp": -torch.ones_like(policy.logp)}}


def reads(*, train_on: Trained) -> Needs:
    """Returns whether the rows must hold the prompt's tokens as well."""
    return Needs(prompt_trained=train_on == "all")


sft = Objective(
    name="sft",
    loss=Part(loss, reads),
    coefficient=coefficient,
    average=AVERAGES["per_token"],
    presets={"as_written": {"average": "per_sequence"}},
)
