"""When λ applies: eq. 8 (`ours_orig`), eq. 11 (`ours`), and the two plain modes."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gcsr.errors import ConfigError

__all__ = ["MODES", "Gate", "Mode", "choose_gamma"]

Mode = Literal["none", "baseline", "ours", "ours_orig"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """A pure rule from (epoch, π) to "is λ imposed at this step?".

    Attributes:
        mode: ``none`` never; ``baseline`` always; ``ours`` from epoch γ on, for good (eq. 11);
            ``ours_orig`` at the steps where ``π > μ`` (eq. 8).
        gamma: γ ≥ 0, the number of free epochs; ``None`` while ``gamma: auto`` has not chosen. Read by ``ours``.
        mu: μ in [0, 1]. Read by ``ours_orig``.
    """

    mode: Mode
    gamma: int | None = 5
    mu: float = 0.6

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError("mode", self.mode, "one of " + ", ".join(MODES))
        if self.gamma is not None and (type(self.gamma) is not int or self.gamma < 0):
            raise ConfigError("gamma", self.gamma, "an integer ≥ 0, or auto")
        if not 0 <= self.mu <= 1:
            raise ConfigError("mu", self.mu, "a number from 0 to 1")

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

    def imposed(self, epoch: int, pi: Tensor) -> Tensor:
        """The decision at one step: a 0-dim bool tensor on π's device. ``π = μ`` and NaN impose nothing.

        Args:
            epoch: epoch of the step, from 0.
            pi: 0-dim, the step's π with the target λ.
        """
        if self.decides_by_pi():
            return pi > self.mu
        return torch.full((), self.imposed_in(epoch), dtype=torch.bool, device=pi.device)


def choose_gamma(epoch: int, previous_pi: float | None, threshold: float) -> int | None:
    """``gamma: auto``: γ = ``epoch`` if the mean π of the epoch before it passed ``threshold``, else None.

    The paper sets γ "as the time step where π becomes a little greater than 0.5", by hand.
    """
    return epoch if previous_pi is not None and previous_pi > threshold else None
