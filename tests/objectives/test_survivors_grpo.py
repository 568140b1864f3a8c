"""What the loss asks of a batch by itself, whoever made it."""

import pytest

from logratio.objectives import find


@pytest.mark.parametrize("name", ["dapo", "grpo", "variance_grpo"])
def test_the_loss_says_that_it_reads_advantages(name):
    assert find(name).loss.declared().streams == {"old", "advantage", "weight"}
