"""The value clip at its very edge, where rounding could decide."""

from objectives.rows import batch_of, policy_of

from logratio.objectives.ppo import value_error


def test_a_value_that_moved_by_just_the_clip_is_not_held():
    """3/7 + (0.1 - 3/7) is 0.1 and a rounding error more, so the held error is the larger one."""
    policy = policy_of([[0.0]], heads={"value": [[0.1, 0.0]]})
    rows = batch_of([[1]], value=[[3 / 7, 0.0]], returns=[[0.0]])
    error, held = value_error(policy, rows, 3 / 7 - 0.1)
    assert error.item() > 0.1**2 / 2
    assert not held.any()
