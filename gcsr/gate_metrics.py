"""What the gate measures in an epoch."""

from dataclasses import dataclass

__all__ = ["GateMetrics"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateMetrics:
    """What the gate measured since the epoch began, averaged over its steps.

    Attributes:
        steps: number of steps.
        pi: mean π, measured with the target λ at every step, imposed or not (the paper's Figure 3).
        imposed_fraction: share of the steps at which λ was imposed.
        lam_effective: mean of ``lam_t``.
        grad_abs_mean: mean |∂L/∂w| over the regularized parameters, before the penalty joins (the paper's Figure 2b).
    """

    steps: int
    pi: float
    imposed_fraction: float
    lam_effective: float
    grad_abs_mean: float

    @classmethod
    def of_sums(
        cls, steps: float, pi: float, imposed: float, grad_sum: float, *, lam: float, size: int
    ) -> "GateMetrics":
        """The means of what was summed over ``steps`` steps.

        Args:
            steps: their number.
            pi, imposed: sums over the steps; of ``imposed``, 1 for each step at which λ was.
            grad_sum: Σ|∂L/∂w| over R and the steps.
            lam: target λ.
            size: number of elements of R.
        """
        divisor = max(steps, 1)
        return cls(
            steps=int(steps),
            pi=pi / divisor,
            imposed_fraction=imposed / divisor,
            lam_effective=lam * imposed / divisor,
            grad_abs_mean=grad_sum / size / divisor,
        )
