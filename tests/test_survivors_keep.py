"""Which rollouts train: what a choice that does not fit its group comes to."""

import pytest
from samples import graded

from logratio.keep import by_group


def test_a_choice_says_one_truth_for_each_rollout_of_its_group():
    with pytest.raises(ValueError, match="shorter"):
        by_group([graded(), graded()], lambda _: [True])
