"""RFT: SFT on the model's own answers that were accepted (rejection-sampling fine-tuning)."""

from dataclasses import replace

from logratio.average import AVERAGES
from logratio.keep import KEEPS
from logratio.objectives.sft import sft

rft = replace(
    sft,
    name="rft",
    keep=KEEPS["above"].using(bar=0.0),
    average=AVERAGES["per_sequence"],
    presets={
        "as_written": {"average": "per_sequence", "average.count": "drawn"},
        "offline": {"average": "per_sequence", "average.count": "kept"},
        "online": {"average": "summed", "average.count": "drawn"},
        "best": {"keep": "best"},
    },
)
