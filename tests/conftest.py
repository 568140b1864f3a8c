"""Settings of every test: hypothesis draws the same examples each time, and has no deadline."""

import os

import hypothesis
import torch
from hypothesis import Phase

hypothesis.settings.register_profile(
    "house",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=10,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("house")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it once, when it is imported
torch.set_num_threads(1)  # the tensors are tiny, and two workers share two cores
