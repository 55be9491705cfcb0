"""When λ applies: eq. 8 (`ours_orig`), eq. 11 (`ours`), and the two plain modes."""

from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING

from gcsr.errors import ConfigError
from gcsr.names import MODES, Mode

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GAMMA", "GAMMA_THRESHOLD", "MAX_LAM", "MU", "Gate", "is_integer", "is_number"]

GAMMA, MU = 5, 0.6  # the paper's (§3)
MAX_LAM = 1e30  # beyond, 2λ or what it multiplies may be no float32
GAMMA_THRESHOLD = 0.6  # of ``gamma: auto``: "a little greater than 0.5"


def is_number(value: object) -> bool:
    """Whether it is a real number, NumPy's included."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_integer(value: object) -> bool:
    """Whether it is an integer, NumPy's included."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """A pure rule from (epoch, π) to "is λ imposed at this step?".

    Attributes:
        mode: ``none`` never; ``baseline`` always; ``ours`` from epoch γ on, for good (eq. 11);
            ``ours_orig`` at the steps where ``π > μ`` (eq. 8).
        gamma: γ ≥ 0, the epochs before λ applies; ``None`` while ``gamma: auto`` has not chosen. Read by ``ours``.
        gamma_threshold: in [0, 1]: the mean π that ``gamma: auto`` waits for.
        mu: μ in [0, 1]. Read by ``ours_orig``.
    """

    mode: Mode
    gamma: int | None = GAMMA
    gamma_threshold: float = GAMMA_THRESHOLD
    mu: float = MU

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError("mode", self.mode, "one of " + ", ".join(MODES))
        if self.gamma is not None:
            if not is_integer(self.gamma) or self.gamma < 0:
                raise ConfigError("gamma", self.gamma, "an integer ≥ 0, or auto")
            object.__setattr__(self, "gamma", int(self.gamma))  # a saved state holds plain values
        for name in ("gamma_threshold", "mu"):
            if not is_number(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise ConfigError(name, getattr(self, name), "a number from 0 to 1")

    @property
    def gamma_in_use(self) -> int | None:
        """γ as given, or as ``gamma: auto`` chose it; None before it chose and in modes without γ."""
        return self.gamma if self.mode == "ours" else None

    def decides_by_pi(self) -> bool:
        """Whether the decision depends on the step's π, so that only the device knows it."""
        return self.mode == "ours_orig"

    def imposed_in(self, epoch: int) -> bool:
        """The decision for a whole epoch (counted from 0) in the modes that do not ask π."""
        match self.mode:
            case "baseline":
                return True
            case "ours":
                return self.gamma is not None and epoch >= self.gamma
            case _:
                return False

    def imposed_by(self, pi: "Tensor") -> "Tensor":
        """Eq. 8's decision where it depends on π: bool, of π's shape. ``π = μ`` and NaN impose nothing."""
        return pi > self.mu

    def with_gamma(self, epoch: int, previous_pi: float | None) -> "Gate":
        """The gate of an epoch: ``gamma: auto`` chooses it as γ if the mean π of the epoch before passed the threshold.

        The paper sets γ "as the time step where π becomes a little greater than 0.5", by hand.

        Args:
            epoch: that begins, from 0.
            previous_pi: mean π of the epoch before it; None if there was none.
        """
        chooses = self.mode == "ours" and self.gamma is None
        passed = previous_pi is not None and previous_pi > self.gamma_threshold  # NaN is not
        return replace(self, gamma=epoch) if chooses and passed else self
