"""What a training leaves behind: one record an epoch, and how it ended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from gcsr.data import Dataset
from gcsr.metrics import is_chance

__all__ = ["EpochRecord", "Status", "TrialResult", "summarized"]

Status = Literal["finished", "collapsed", "diverged"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecord:
    """One epoch. Rates and |∇L| are means over its steps; accuracy, |w| and sparsity are taken at its end.

    Attributes:
        epoch: from 0.
        train_loss: mean cross-entropy over the training images, without the penalty.
        test_accuracy, val_accuracy: from 0 to 1; the latter is None without hold-out.
        pi: mean π with the target λ.
        imposed_fraction: share of the steps at which λ was imposed.
        grad_abs_mean, weight_abs_mean: mean |∂L/∂w| and |w| over the regularized parameters.
        sparsity: exact zeros / all parameters.
        lr: learning rate of the epoch.
        lam_effective: mean ``lam_t``.
        seconds: wall time of the epoch.
    """

    epoch: int
    train_loss: float
    test_accuracy: float
    val_accuracy: float | None
    pi: float
    imposed_fraction: float
    grad_abs_mean: float
    weight_abs_mean: float
    sparsity: float
    lr: float
    lam_effective: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """How a trial ended. Metrics are the last epoch's (None if the first epoch diverged).

    Attributes:
        status: ``finished``; ``collapsed``: it ended at chance (`gcsr.metrics.is_chance`), or was given up
            (`gcsr.collapse`); ``diverged``: a loss, gradient or weight was not finite, and the metrics are those of the
            last epoch before.
        imposed_fraction: share of all steps of the trial at which λ was imposed.
        gamma_used: γ of mode ``ours``, as given or as ``auto`` chose it; None otherwise.
        parameters: number of parameters of the network.
        seconds: wall time of all epochs, also of those before an interruption.
        device: what it ran on.
        world_size: how many processes trained it, at the end.
        epochs: one record an epoch.
    """

    status: Status
    test_accuracy: float | None
    val_accuracy: float | None
    sparsity: float | None
    pi: float | None
    imposed_fraction: float | None
    train_loss: float | None
    grad_abs_mean: float | None
    weight_abs_mean: float | None
    gamma_used: int | None
    parameters: int
    seconds: float
    device: str
    world_size: int
    epochs: tuple[EpochRecord, ...]


def summarized(
    records: Sequence[EpochRecord],
    data: Dataset,
    *,
    ended: Literal["diverged", "collapsed"] | None = None,
    gamma_used: int | None,
    parameters: int,
    world_size: int = 1,
) -> TrialResult:
    """The result of a training that ended with these records; ``ended`` says why if that was before its time."""
    last = records[-1] if records else None
    status: Status = "finished"
    if ended == "diverged" or last is None:
        status = "diverged"
    elif ended == "collapsed" or is_chance(last.test_accuracy, data.test_labels):
        status = "collapsed"
    device = data.train_images.device
    return TrialResult(
        status=status,
        test_accuracy=last.test_accuracy if last else None,
        val_accuracy=last.val_accuracy if last else None,
        sparsity=last.sparsity if last else None,
        pi=last.pi if last else None,
        imposed_fraction=math.fsum(r.imposed_fraction for r in records) / len(records) if last else None,
        train_loss=last.train_loss if last else None,
        grad_abs_mean=last.grad_abs_mean if last else None,
        weight_abs_mean=last.weight_abs_mean if last else None,
        gamma_used=gamma_used,
        parameters=parameters,
        seconds=math.fsum(r.seconds for r in records),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        world_size=world_size,
        epochs=tuple(records),
    )
