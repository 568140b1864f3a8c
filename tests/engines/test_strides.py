"""The path of a GPU held to the tests of the local engine: several steps between two looks.

On a CPU the very same step runs uncaptured, with plain attention. On a GPU it is captured, with the
kernels; there a network spends each call of its engine, and nothing else changes.
"""

import pytest
import torch
from engines.test_company import *  # noqa: F403 - every test of these is collected here once more
from engines.test_local import *  # noqa: F403
from engines.test_split import *  # noqa: F403

from logratio.engines.local import Local
from logratio.engines.local.cuda.graph import Eager
from logratio.engines.local.cuda.strides import Kept, Kernels, Strides

pytestmark = pytest.mark.slow
ON_GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")],
)


@pytest.fixture(autouse=True, params=["cpu", ON_GPU])
def striding(request, monkeypatch):
    """Makes every engine take strides."""
    generate = Local.generate

    def decoding(self, model, requests, sampling):
        self.kept = self.kept or Kept(Kernels(), Eager)
        slots, ends = self.slots, self.ends
        return Strides(requests, sampling, slots=slots, ends=ends, model=model, kept=self.kept)

    def there(self, requests, sampling):
        self.network.to("cuda")
        rollouts = generate(self, requests, sampling)
        self.network.to("cpu")
        return rollouts

    if request.param == "cpu":
        if "over_many_tokens" in request.node.name:
            pytest.skip("on a CPU it takes a minute, of steps that the other tests take too")
        monkeypatch.setattr(Local, "decoding", decoding)
    else:
        monkeypatch.setattr(Local, "generate", there)
