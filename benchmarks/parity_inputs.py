"""Random inputs for the comparison with TRL: groups of rollouts, and pairs."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

PAD, EOS = 0, 1
GROUPS, SIZE, LONGEST, PAIRS = 4, 7, 13, 12
LARGE = 1e6  # TRL adds 1e-4 to a deviation; beside this one that is below fp32's rounding

Kind = Literal[
    "pairs",
    "plain",
    "truncated",
    "tools",
    "on_policy",
    "on_policy_binary",
    "binary",
    "equal",
    "far",
]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Sampled rollouts; column t of every `[B, T]` stream is about token t."""

    mask: Tensor  # False in the padding and where a tool wrote
    lengths: Tensor
    group: Tensor
    reward: Tensor
    truncated: Tensor  # True where the last token is not a stop token
    logp: Tensor
    old: Tensor
    ref: Tensor
    entropy: Tensor


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Preference pairs: the first half of the rows is chosen, row by row against the second."""

    mask: Tensor
    logp: Tensor
    ref: Tensor
    margin: Tensor
    score: Tensor  # what a reward model says of each row


@dataclass(frozen=True, kw_only=True)
class Result:
    """A loss and its gradient with respect to the leaf it was computed from."""

    loss: float
    gradient: Tensor


def lengths_to_mask(lengths: Tensor, longest: int = LONGEST) -> Tensor:
    """Returns True at the first `lengths[i]` columns of row i."""
    return torch.arange(longest) < lengths[:, None]


def draw_groups(seed: int) -> Groups:
    """Returns four groups of seven ragged rollouts; in the second all rewards are equal.

    The log-ratios have a part per sequence and a part per token, so that token ratios and
    sequence ratios both fall on either side of every clip range that the rows use.
    """
    source = torch.Generator().manual_seed(seed)
    rows = GROUPS * SIZE
    lengths = torch.randint(2, LONGEST + 1, (rows,), generator=source)
    lengths[0], lengths[1] = LONGEST, 1
    group = torch.arange(GROUPS).repeat_interleave(SIZE)
    reward = LARGE * torch.randn(rows, generator=source)
    logp = -0.2 - 3 * torch.rand(rows, LONGEST, generator=source)
    drift = 0.3 * torch.randn(rows, 1, generator=source)
    drift = drift + 0.3 * torch.randn(rows, LONGEST, generator=source)
    spread = 0.5 * torch.randn(rows, LONGEST, generator=source)
    return Groups(
        mask=lengths_to_mask(lengths),
        lengths=lengths,
        group=group,
        reward=torch.where(group == 1, LARGE, reward),
        truncated=torch.zeros(rows, dtype=torch.bool),
        logp=logp,
        old=logp - drift,
        ref=logp - spread,
        entropy=2 * torch.rand(rows, LONGEST, generator=source),
    )


def vary(groups: Groups, kind: Kind, seed: int) -> Groups:
    """Returns the rollouts as the kind of input wants them."""
    source = torch.Generator().manual_seed(seed)
    binary = (groups.reward > 0).float()
    cut = torch.rand(len(groups.mask), generator=source) < 0.3
    cut[0], cut[1] = True, False
    tool = torch.rand(groups.mask.shape, generator=source) < 0.25
    tool[:, 0] = False
    far = groups.ref.clone()
    far[0, 0] = groups.logp[0, 0] + 21
    changes: dict[str, dict[str, Tensor]] = {
        "truncated": {"truncated": cut},
        "tools": {"mask": groups.mask & ~tool},
        "on_policy": {"old": groups.logp},
        "on_policy_binary": {"old": groups.logp, "reward": binary},
        "binary": {"reward": binary},
        "equal": {"reward": torch.full_like(groups.reward, 0.7)},
        "far": {"ref": far},
    }
    return replace(groups, **changes.get(kind, {}))


def draw_pairs(seed: int) -> Pairs:
    """Returns twelve pairs; margins of the policy lie on both sides of every kink and zero."""
    source = torch.Generator().manual_seed(seed)
    rows = 2 * PAIRS
    lengths = torch.randint(1, LONGEST + 1, (rows,), generator=source)
    lengths[0] = LONGEST
    logp = -0.2 - 3 * torch.rand(rows, LONGEST, generator=source)
    offset = torch.randn(rows, 1, generator=source)
    return Pairs(
        mask=lengths_to_mask(lengths),
        logp=logp,
        ref=logp + 0.7 * offset + 0.3 * torch.randn(rows, LONGEST, generator=source),
        margin=torch.rand(PAIRS, generator=source),
        score=2 * torch.randn(rows, generator=source),
    )


def draw(kind: Kind, seed: int) -> Groups | Pairs:
    """Returns the inputs of one kind."""
    return draw_pairs(seed) if kind == "pairs" else vary(draw_groups(seed), kind, seed)
