"""Where TRL and we differ on purpose or by default: each with its reason, most of them measured.

A measured difference is a row that must *not* agree: one that comes to agree is out of date.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parity_inputs import Kind
from parity_rows import HIGHER, SAMPLE, TOKEN


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One difference; without settings of TRL's it was read in the source and is not measured."""

    name: str
    reason: str
    theirs: Mapping[str, Any] | None = None
    ours: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "grpo"
    inputs: Kind = "plain"


GRPO = {"loss_type": "grpo"}
SEQUENCE = {**GRPO, "importance_sampling_level": "sequence"}

DEFAULTS = [
    Difference(
        name="Deviation", theirs=GRPO, ours={},
        reason="TRL divides by the sample deviation, we by the population's (`credit.spread`): "
        "for two outcomes it has the closed form sqrt((1 - p) / p). A factor on the gradient.",
    ),
    Difference(
        name="1e-4 beside the deviation", theirs=GRPO, ours=SAMPLE, inputs="binary",
        reason="TRL divides by deviation + 1e-4, we by the deviation: rewards of 0 and 1 then "
        "differ by 2e-4 of each advantage. The rows above use rewards near 1e6, where it is lost.",
    ),
    Difference(
        name="Equal rewards", theirs=GRPO, ours=SAMPLE, inputs="equal",
        reason="Seven rewards of 0.7 have a mean that is not 0.7 in fp32, and TRL trains on the "
        "rounding over 1e-4. We find such groups by max - min and give them exactly 0.",
    ),
    Difference(
        name="KL correction", theirs={**GRPO, "beta": 0.04}, ours={**SAMPLE, "beta": 0.04},
        reason="`use_bias_correction_kl` is on by default since 1.16.0: k3 is multiplied by the "
        "differentiable ratio and its gradient is that of the reverse KL. Ours is `corrected`, off "
        "by default, because GRPO was published with plain k3.",
    ),
    Difference(
        name="Default loss", theirs={}, ours=SAMPLE,
        reason="TRL's default `loss_type` is `dapo`, the mean over tokens; our `grpo` takes the "
        "mean over sequences, as published. `average=per_token` is TRL's.",
    ),
    Difference(
        name="CISPO's cap", theirs={"loss_type": "cispo", "epsilon_high": 1.28},
        ours={**TOKEN, "surrogate": "cispo", "clip_high": 1.28},
        reason="TRL's `epsilon_high` is the cap itself (ScaleRL's form), ours is 1 + `clip_high` "
        "(MiniMax-M1's). Left alone, TRL's cap is `epsilon` = 0.2: every ratio above 0.2 becomes "
        "0.2.",
    ),
    Difference(
        name="IPO", objective="dpo", inputs="pairs",
        theirs={"loss_type": ["ipo"]}, ours={"kind": "ipo"},
        reason="TRL divides each log-ratio by its length (its authors agreed, says the source); "
        "the paper does not. Ours is the paper's; `normalise=length` is TRL's.",
    ),
    Difference(
        name="Label smoothing", objective="dpo", inputs="pairs",
        theirs={"loss_type": ["sigmoid"], "label_smoothing": 0.1}, ours={"smoothing": 0.1},
        reason="TRL 1.16.0 ignores `label_smoothing` for `sigmoid` without a word (`robust`, "
        "`exo_pair`, `aot` read it). Ours is the conservative loss "
        "-(1 - s) log sigmoid(h) - s log sigmoid(-h).",
    ),
    Difference(
        name="SFT term of DPO", objective="dpo", inputs="pairs",
        theirs={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}, ours={"sft": 1.0},
        reason="TRL's is the mean over all chosen tokens of the micro-batch; ours the mean over "
        "pairs of each answer's mean, so that no item is divided by another's length.",
    ),
]  # fmt: skip

BATCHES = [
    Difference(
        name="bnpo in micro-batches", theirs={"loss_type": "bnpo", "micro_batches": 2}, ours=TOKEN,
        reason="TRL takes a token mean in each micro-batch and averages those; the cut changes the "
        "gradient. Our totals count the whole optimisation batch. (With one micro-batch: equal.)",
    ),
    Difference(
        name="Truncated rollouts, grpo",
        theirs={"loss_type": "grpo", "mask_truncated_completions": True},
        ours={**SAMPLE, "average.truncated": "leave_out"}, inputs="truncated",
        reason="TRL zeroes the masked rows but still divides by their number; we divide by the "
        "rows that train. The gradients are parallel. (`dapo` counts tokens that train: equal, see "
        "its row.)",
    ),
    Difference(
        name="Truncated rollouts, dr_grpo", inputs="truncated",
        theirs={
            "loss_type": "dr_grpo", "mask_truncated_completions": True, "scale_rewards": "none",
        },
        ours={"preset": "dr_grpo", "average.length": 13, "average.truncated": "leave_out"},
        reason="The same: TRL's rows times length counts the rows that it masked.",
    ),
    Difference(
        name="dapo's normaliser",
        reason="TRL divides by the tokens of the *generation* batch (all processes), over the "
        "processes, scaled by accumulation / `steps_per_generation`: when one generation feeds "
        "several optimiser steps, each is divided by their mean token count, not by its own. Ours "
        "is the token count of the optimisation batch. (One step per generation: equal.)",
    ),
    Difference(
        name="Deviation over the batch", theirs={**GRPO, "scale_rewards": "batch"},
        ours={"credit.spread": "batch"},
        reason="As for groups: TRL's is the sample deviation of all rewards, ours the "
        "population's. A factor sqrt(n / (n - 1)).",
    ),
    Difference(
        name="Top-entropy tokens",
        theirs={"loss_type": "dapo", "top_entropy_quantile": 0.2},
        ours={**TOKEN, "weight": "top_entropy", "weight.share": 0.2},
        reason="TRL keeps tokens at or above an interpolated quantile of the *current* policy's "
        "entropy in each micro-batch; we keep round(share x tokens) of the whole batch by the "
        "entropy at sampling time, before the cut. On one batch they differ by a token at most.",
    ),
]  # fmt: skip

FORMULAS = [
    Difference(
        name="KL correction of a sequence ratio", theirs={**SEQUENCE, **HIGHER, "beta": 0.5},
        ours={
            **SAMPLE, "clip_high": 0.28, "ratio": "sequence", "beta": 0.5, "corrected": True,
        },
        reason="TRL multiplies each token's k3 by the sequence ratio, we by the token's own: the "
        "estimate is a token's, and at a given state only the token's own ratio corrects it.",
    ),
    Difference(
        name="Two-sided cap below the clip", theirs={"loss_type": "dapo", "delta": 1.1},
        ours={**TOKEN, "dual": 1.1},
        reason="TRL's `delta` cuts the ratio for both signs before the minimum; ours bounds "
        "negative advantages only. Equal while delta >= 1 + clip_high, which TRL recommends.",
    ),
    Difference(
        name="k3 far from the reference", inputs="far", theirs={"loss_type": "grpo", "beta": 0.04,
        "use_bias_correction_kl": False}, ours={**SAMPLE, "beta": 0.04},
        reason="Past a log-ratio of 20 our k3 keeps its value at 20 and has no gradient; TRL's "
        "grows as exp and overflows near 88.",
    ),
    Difference(
        name="RLOO's ratio", objective="rloo", theirs={"beta": 0.0}, ours={"preset": "rloo"},
        reason="TRL clips one ratio for the whole sequence, exp of the summed log-ratio; our "
        "preset clips token by token. Gradients agree at the first inner step (see the row); the "
        "losses do not: TRL counts an advantage once for each sequence, we for each token.",
    ),
    Difference(
        name="DPO length-normalised",
        reason="`sigmoid_norm` is a loss of its own in TRL; ours is a setting (`normalise`) that "
        "combines with every kind.",
    ),
    Difference(
        name="Ratio of the first inner step",
        reason="With one iteration and one step per generation TRL sets old = stop(logp), whatever "
        "the sampler computed; ours reads the sampler's log-probs, so a gap between the two "
        "shows. (Equal where there is no gap, see the row.)",
    ),
    Difference(
        name="Which rollouts are truncated",
        reason="TRL looks whether the last id is a stop or a pad token, and takes the rows out of "
        "the attention mask as well; ours reads the finish reason and touches the loss only.",
    ),
    Difference(
        name="Missing rewards",
        reason="TRL gives a rollout whose rewards are all None advantage 0 and leaves it out of "
        "the group's mean; with us a failed reward takes its whole group out (`keep`).",
    ),
]  # fmt: skip

DIFFERENCES = [*DEFAULTS, *BATCHES, *FORMULAS]
