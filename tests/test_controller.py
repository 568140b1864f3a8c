import dataclasses

import pytest

from logratio.controller import AdaptiveKL

STEERED = AdaptiveKL(coefficient=0.5, target=2.0)


@pytest.mark.parametrize(
    ("kl", "coefficient"),
    [
        (2.0, 0.5),  # on target
        (2.2, 0.505),  # a tenth above: a hundredth more
        (1.8, 0.495),
        (2.4, 0.51),  # a fifth above is the most that counts
        (50.0, 0.51),
        (1.6, 0.49),
        (0.0, 0.49),
        (-3.0, 0.49),  # a sampled KL can be negative
    ],
)
def test_the_coefficient_follows_the_error_within_a_fifth(kl, coefficient):
    assert STEERED.after(kl=kl).coefficient == pytest.approx(coefficient, rel=1e-12)


def test_the_gain_scales_the_step_and_nothing_else_changes():
    assert STEERED.gain == 0.1
    quick = AdaptiveKL(coefficient=0.5, target=2.0, gain=1.0)
    assert quick.after(kl=2.2).coefficient == pytest.approx(0.55, rel=1e-12)
    assert dataclasses.replace(quick.after(kl=2.2), coefficient=0.5) == quick


def test_a_controller_is_a_value():
    STEERED.after(kl=50.0)
    assert STEERED.coefficient == 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        STEERED.coefficient = 1.0  # type: ignore[misc]
    assert not hasattr(STEERED, "__dict__")
    with pytest.raises(TypeError):
        AdaptiveKL(0.5, 2.0)  # type: ignore[misc]


def test_it_comes_to_the_target_of_a_kl_that_falls_with_the_coefficient():
    steered = AdaptiveKL(coefficient=1.0, target=2.0)
    for _ in range(400):
        steered = steered.after(kl=1.0 / steered.coefficient)
    assert steered.coefficient == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("coefficient", "target"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, -1.0)]
)
def test_a_controller_that_can_not_steer_is_refused(coefficient, target):
    says = f"^`target` is {target} and `coefficient` is {coefficient}, but both must be above 0$"
    with pytest.raises(ValueError, match=says):
        AdaptiveKL(coefficient=coefficient, target=target)


def test_small_numbers_steer_too():
    steered = AdaptiveKL(coefficient=1e-3, target=1e-2).after(kl=1e-2)
    assert steered == AdaptiveKL(coefficient=1e-3, target=1e-2)
