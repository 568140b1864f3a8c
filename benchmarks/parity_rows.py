"""What is compared: one row per loss, with TRL's settings, ours, and a fault that must show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from parity_inputs import LONGEST, Groups, Kind

Settings = Mapping[str, Any]


def quantile_share(groups: Groups, *, quantile: float = 0.2) -> float:
    """Returns the share of tokens at or above TRL's interpolated quantile, as we count it."""
    tokens = int(groups.mask.sum())
    return (tokens - math.ceil((1 - quantile) * (tokens - 1))) / tokens


@dataclass(frozen=True, kw_only=True)
class Row:
    """One loss on both sides. `fault` replaces settings of ours, and the row must then fail."""

    name: str
    theirs: Settings
    ours: Settings
    fault: Settings
    objective: Literal["grpo", "rloo", "dapo", "dpo", "reward_model"] = "grpo"
    inputs: Kind = "plain"
    gradient_only: bool = False  # the losses differ by what has no gradient


SAMPLE = {"credit.spread": "sample"}
TOKEN = {**SAMPLE, "average": "per_token"}
HIGHER = {"epsilon": 0.2, "epsilon_high": 0.28}
CLIPS = {"clip": 0.2, "clip_high": 0.28}
SWAPPED = {"clip": 0.28, "clip_high": 0.2}
SMOOTHED = {"label_smoothing": 0.1}

PAIR_ROWS = [
    Row(
        name="DPO sigmoid", objective="dpo", inputs="pairs",
        theirs={"loss_type": ["sigmoid"]}, ours={}, fault={"beta": 0.11},
    ),
    Row(
        name="DPO ipo", objective="dpo", inputs="pairs",
        theirs={"loss_type": ["ipo"]}, ours={"kind": "ipo", "normalise": "length"},
        fault={"normalise": "sum"},
    ),
    Row(
        name="DPO hinge", objective="dpo", inputs="pairs",
        theirs={"loss_type": ["hinge"], "beta": 0.5}, ours={"kind": "hinge", "beta": 0.5},
        fault={"kind": "sigmoid"},
    ),
    Row(
        name="DPO robust", objective="dpo", inputs="pairs",
        theirs={"loss_type": ["robust"], **SMOOTHED}, ours={"kind": "robust", "smoothing": 0.1},
        fault={"kind": "sigmoid"},
    ),
    Row(
        name="DPO length-normalised", objective="dpo", inputs="pairs",
        theirs={"loss_type": ["sigmoid_norm"], "beta": 2.0},
        ours={"normalise": "length", "beta": 2.0}, fault={"normalise": "sum"},
    ),
    Row(
        name="Bradley-Terry", objective="reward_model", inputs="pairs",
        theirs={}, ours={}, fault={"pooling": "mean"},
    ),
    Row(
        name="Bradley-Terry, margin", objective="reward_model", inputs="pairs",
        theirs={"margin": True}, ours={"margin": "column"}, fault={"margin": 0.0},
    ),
    Row(
        name="Bradley-Terry, centred", objective="reward_model", inputs="pairs",
        theirs={"centre": 0.01}, ours={"centering": 0.01}, fault={"centering": 0.02},
    ),
]  # fmt: skip

AVERAGE_ROWS = [
    Row(
        name="GRPO grpo", theirs={"loss_type": "grpo"}, ours=SAMPLE,
        fault={"credit.spread": "population"},
    ),
    Row(
        name="GRPO dapo, first inner step", inputs="on_policy",
        theirs={"loss_type": "dapo", "num_iterations": 1, "beta": 0.5},
        ours={**TOKEN, "beta": 0.5, "corrected": True}, fault={"corrected": False},
    ),
    Row(
        name="GRPO dapo", theirs={"loss_type": "dapo"}, ours=TOKEN,
        fault={"average": "per_sequence"},
    ),
    Row(
        name="GRPO dapo, our `dapo`", objective="dapo", theirs={"loss_type": "dapo", **HIGHER},
        ours={"credit.signed": False, **SAMPLE}, fault=SWAPPED,
    ),
    Row(
        name="GRPO dapo, two micro-batches", theirs={"loss_type": "dapo", "micro_batches": 2},
        ours=TOKEN, fault={"average": "per_group_token"},
    ),
    Row(
        name="GRPO dr_grpo", theirs={"loss_type": "dr_grpo", "scale_rewards": "none"},
        ours={"preset": "dr_grpo", "average.length": LONGEST},
        fault={"average.length": LONGEST + 1},
    ),
    Row(
        name="GRPO bnpo", theirs={"loss_type": "bnpo"}, ours=TOKEN,
        fault={"average": "summed"},
    ),
    Row(
        name="GRPO dapo, tool tokens masked", inputs="tools", theirs={"loss_type": "dapo"},
        ours=TOKEN, fault={"average": "per_sequence"},
    ),
    Row(
        name="GRPO dapo, truncated masked", inputs="truncated",
        theirs={"loss_type": "dapo", "mask_truncated_completions": True},
        ours={**TOKEN, "average.truncated": "leave_out"}, fault={"average.truncated": "count"},
    ),
    Row(
        name="GRPO dapo, top-entropy tokens",
        theirs={"loss_type": "dapo", "top_entropy_quantile": 0.2},
        ours={**TOKEN, "weight": "top_entropy", "weight.share": quantile_share},
        fault={"weight.share": 0.3},
    ),
    Row(
        name="RLOO, first inner step", objective="rloo", inputs="on_policy_binary",
        theirs={"beta": 0.05}, ours={"preset": "rloo", "credit.kl": 0.05},
        fault={"credit.center": "mean"}, gradient_only=True,
    ),
]  # fmt: skip

SURROGATE_ROWS = [
    Row(
        name="GRPO grpo, asymmetric clip", theirs={"loss_type": "grpo", **HIGHER},
        ours={**SAMPLE, **CLIPS}, fault=SWAPPED,
    ),
    Row(
        name="GRPO dapo, two-sided cap", theirs={"loss_type": "dapo", **HIGHER, "delta": 1.5},
        ours={**TOKEN, **CLIPS, "dual": 1.5}, fault={"dual": None},
    ),
    Row(
        name="GRPO cispo", theirs={"loss_type": "cispo", "epsilon_high": 1.28},
        ours={**TOKEN, "surrogate": "cispo", "clip_high": 0.28}, fault={"clip_high": 1.28},
    ),
    Row(
        name="GRPO sequence ratio (GSPO)",
        theirs={"loss_type": "grpo", "importance_sampling_level": "sequence", **HIGHER},
        ours={**SAMPLE, **CLIPS, "ratio": "sequence"}, fault={"ratio": "token"},
    ),
    Row(
        name="GRPO sequence ratio, GSPO's clips",
        theirs={
            "loss_type": "grpo", "importance_sampling_level": "sequence",
            "epsilon": 3e-4, "epsilon_high": 4e-4,
        },
        ours={**SAMPLE, "preset": "gspo"}, fault={"clip": 0.2, "clip_high": 0.2},
    ),
    Row(
        name="GRPO sequence ratio, per token",
        theirs={"loss_type": "dapo", "importance_sampling_level": "sequence", **HIGHER},
        ours={**TOKEN, **CLIPS, "ratio": "sequence"}, fault=SWAPPED,
    ),
    Row(
        name="GRPO k3, corrected (TRL's default)", theirs={"loss_type": "grpo", "beta": 0.5},
        ours={**SAMPLE, "beta": 0.5, "corrected": True}, fault={"corrected": False},
    ),
    Row(
        name="GRPO k3, uncorrected",
        theirs={"loss_type": "grpo", "beta": 0.5, "use_bias_correction_kl": False},
        ours={**SAMPLE, "beta": 0.5}, fault={"estimator": "k2"},
    ),
    Row(
        name="GRPO dapo, k3 corrected", theirs={"loss_type": "dapo", "beta": 0.5},
        ours={**TOKEN, "beta": 0.5, "corrected": True}, fault={"beta": 0.55},
    ),
    Row(
        name="GRPO sequence ratio, k3 uncorrected",
        theirs={
            "loss_type": "grpo", "importance_sampling_level": "sequence", **HIGHER,
            "beta": 0.5, "use_bias_correction_kl": False,
        },
        ours={**SAMPLE, **CLIPS, "ratio": "sequence", "beta": 0.5}, fault=SWAPPED,
    ),
]  # fmt: skip

ROWS = [*PAIR_ROWS, *AVERAGE_ROWS, *SURROGATE_ROWS]
