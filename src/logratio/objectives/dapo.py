"""DAPO: GRPO that clips higher than lower, counts tokens and trains on mixed groups only."""

from dataclasses import replace

from logratio.average import AVERAGES
from logratio.keep import KEEPS
from logratio.objectives.grpo import grpo

dapo = replace(
    grpo,
    name="dapo",
    loss=grpo.loss.using(clip=0.2, clip_high=0.28),
    keep=KEEPS["mixed_groups"],
    average=AVERAGES["per_token"],
    presets={
        "as_written": {
            "average": "per_group_token",
            "credit.signed": True,
            "credit.overlong_limit": 20480,
            "credit.overlong_cache": 4096,
        },
        "overlong_filter": {"average.truncated": "leave_out"},
    },
)
