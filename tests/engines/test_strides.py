"""The path of a GPU: every test of the local engine again, several steps between two looks.

On a CPU the very same step runs uncaptured, with plain attention; on a GPU it is captured.
"""

import pytest
import torch
from engines.test_local import *  # noqa: F403 - its tests are collected here once more
from engines.test_local import MODELS, engine, problems

from logratio.engines.local import Local
from logratio.engines.local.cuda.strides import Eager, Kept, Kernels, Strides


@pytest.fixture(autouse=True)
def striding(monkeypatch):
    """Makes every engine of the suite take strides."""

    def decoding(self, model, requests, sampling):
        self.kept = self.kept or Kept(Kernels(), Eager)
        return Strides(
            requests, sampling, slots=self.slots, ends=self.ends, model=model, kept=self.kept
        )

    monkeypatch.setattr(Local, "decoding", decoding)
