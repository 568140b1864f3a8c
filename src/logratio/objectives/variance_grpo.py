"""Reward-variance GRPO: GRPO with a soft mask on the tokens that decide the reward.

The mask is made from the column `importance`, which the network of `importance.py` predicts.
"""

from dataclasses import replace

from logratio.objectives.grpo import grpo
from logratio.weight import WEIGHTS

variance_grpo = replace(
    grpo,
    name="variance_grpo",
    weight=WEIGHTS["variance"],
    presets={
        "as_written": {"beta": 1.0, "estimator": "k3", "weight.strength": 1.0},
        "remaining": {"weight.form": "remaining"},
        "off": {"weight.strength": 0.0},
    },
)
