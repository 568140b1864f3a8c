"""Coefficients that move: a controller is a value; `after` returns the next one."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveKL:
    """A KL coefficient steered so that the measured KL comes to a target (InstructGPT's rule).

        coefficient *= 1 + gain clip(kl / target - 1, -0.2, 0.2)

    >>> round(AdaptiveKL(coefficient=0.1, target=6.0).after(kl=12.0).coefficient, 6)
    0.102
    """

    coefficient: float
    target: float
    gain: float = 0.1

    def __post_init__(self) -> None:
        """Refuses a target that a KL can not reach, and a coefficient that never moves."""
        if self.target <= 0 or self.coefficient <= 0:
            raise ValueError(
                f"`target` is {self.target} and `coefficient` is {self.coefficient}, "
                "but both must be above 0"
            )

    def after(self, *, kl: float) -> "AdaptiveKL":
        """Returns the controller after a step whose sampled KL was this."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, coefficient=self.coefficient * (1 + self.gain * error))
