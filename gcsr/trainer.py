"""The trainer: assembles data, network, gated optimizer and checkpoints into one trial."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gcsr.augment import crop_and_flip
from gcsr.checkpoint import Checkpointer
from gcsr.config import TrialConfig
from gcsr.data import Dataset
from gcsr.errors import NonFiniteGradientError
from gcsr.metrics import count_correct, is_chance, sparsity, weight_abs_mean
from gcsr.models import build_model
from gcsr.optim import GatedOptimizer, regularized_parameters

__all__ = ["EpochRecord", "Status", "TrialResult", "train"]

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
        status: ``finished``; ``collapsed``: it ended at chance (`gcsr.metrics.is_chance`); ``diverged``: a loss or
            gradient was not finite, and the metrics are those of the last epoch before.
        imposed_fraction: share of all steps of the trial at which λ was imposed.
        gamma_used: γ of mode ``ours``, as given or as ``auto`` chose it; None otherwise.
        parameters: number of parameters of the network.
        seconds: wall time of all epochs, also of those before an interruption.
        device: what it ran on.
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
    epochs: tuple[EpochRecord, ...]


def train(
    config: TrialConfig,
    data: Dataset,
    *,
    checkpointer: Checkpointer | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrialResult:
    """Train one network by the paper's recipe (§3).

    Runs on the data's device. Deterministic for a given config, device and library versions; the caller's random
    state is left as it was.

    Args:
        config: the trial.
        data: must be ``config``'s data set with its hold-out.
        checkpointer: if it holds a state of this trial, training goes on from there, to bit-identical metrics.
        on_epoch: called after every epoch.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    device = data.train_images.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        run = _Run(config, data)
        state = checkpointer.load(config.trial_id, device) if checkpointer else None
        if state is not None:
            run.load_state_dict(state)
        diverged = False
        while run.epoch < config.epochs and not diverged:  # type: ignore[operator]
            record = run.train_epoch()
            if record is None:
                diverged = True
                break
            if on_epoch is not None:
                on_epoch(record)
            if checkpointer is not None and (run.epoch == config.epochs or checkpointer.due(run.epoch)):
                checkpointer.save(config.trial_id, run.state_dict())
        return run.result(diverged)


class _Run:
    """A trial in motion: everything that a checkpoint must hold."""

    def __init__(self, config: TrialConfig, data: Dataset) -> None:
        self.config, self.data = config, data
        self.device = data.train_images.device
        self.model: nn.Module = build_model(
            config.model,
            input_shape=data.input_shape,
            classes=data.classes,
            width=config.width,
            dropout=config.dropout or 0.0,
        ).to(self.device)
        self.params = regularized_parameters(self.model)
        fused = self.device.type in ("cpu", "cuda")
        inner = torch.optim.SGD(self.model.parameters(), config.lr, momentum=config.momentum, fused=fused)
        self.schedule = torch.optim.lr_scheduler.StepLR(inner, config.lr_decay_epochs, config.lr_decay)
        self.optimizer = GatedOptimizer(
            inner,
            self.params,
            regularizer="l1" if config.regularizer == "l1" else "l2",
            mode=config.mode,
            lam=config.lam,
            gamma=5 if config.gamma is None else config.gamma,
            gamma_threshold=0.6 if config.gamma_threshold is None else config.gamma_threshold,
            mu=0.6 if config.mu is None else config.mu,
        )
        # Order and augmentation draw from a generator of their own, so that they are the same for every network.
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.inputs = None if config.augment else data.normalized(data.train_images)
        self.records: list[EpochRecord] = []

    @property
    def epoch(self) -> int:
        """The next epoch, from 0."""
        return len(self.records)

    def train_epoch(self) -> EpochRecord | None:
        """One pass over the training images and its measurements; None if it diverged."""
        began = time.perf_counter()
        lr = float(self.schedule.get_last_lr()[0])
        self.model.train()
        self.optimizer.start_epoch(self.epoch)
        labels = self.data.train_labels
        order = torch.randperm(len(labels), generator=self.generator, device=self.device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for index in order.split(self.config.batch_size):
            loss = cross_entropy(self.model(self._batch(index)), labels[index])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.detach() * len(index)
        self.schedule.step()
        train_loss = loss_sum.item() / len(labels)
        try:
            gate = self.optimizer.metrics()
        except NonFiniteGradientError:
            return None
        if not math.isfinite(train_loss):
            return None
        measured = [sparsity(self.model), weight_abs_mean(self.params), *self._correct()]
        sparse, weight, *correct = torch.stack([value.double() for value in measured]).tolist()
        record = EpochRecord(
            epoch=self.epoch,
            train_loss=train_loss,
            test_accuracy=correct[0] / len(self.data.test_labels),
            val_accuracy=correct[1] / len(self.data.val_labels) if self.data.val_labels is not None else None,
            pi=gate.pi,
            imposed_fraction=gate.imposed_fraction,
            grad_abs_mean=gate.grad_abs_mean,
            weight_abs_mean=weight,
            sparsity=sparse,
            lr=lr,
            lam_effective=gate.lam_effective,
            seconds=time.perf_counter() - began,
        )
        self.records.append(record)
        return record

    def _batch(self, index: Tensor) -> Tensor:
        if self.inputs is not None:
            return self.inputs[index]
        return self.data.normalized(crop_and_flip(self.data.train_images[index], self.generator))

    def _correct(self) -> list[Tensor]:
        data = self.data
        counts = [count_correct(self.model, data.test_images, data.test_labels, data.normalized)]
        if data.val_images is not None and data.val_labels is not None:
            counts.append(count_correct(self.model, data.val_images, data.val_labels, data.normalized))
        return counts

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "cpu_rng": torch.get_rng_state(),
            "records": [asdict(record) for record in self.records],
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["cpu_rng"].cpu())
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        self.records = [EpochRecord(**record) for record in state["records"]]

    def result(self, diverged: bool) -> TrialResult:
        last = self.records[-1] if self.records else None
        status: Status = "finished"
        if diverged or last is None:
            status = "diverged"
        elif is_chance(last.test_accuracy, self.data.test_labels):
            status = "collapsed"
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return TrialResult(
            status=status,
            test_accuracy=last.test_accuracy if last else None,
            val_accuracy=last.val_accuracy if last else None,
            sparsity=last.sparsity if last else None,
            pi=last.pi if last else None,
            imposed_fraction=sum(r.imposed_fraction for r in self.records) / len(self.records) if last else None,
            train_loss=last.train_loss if last else None,
            grad_abs_mean=last.grad_abs_mean if last else None,
            weight_abs_mean=last.weight_abs_mean if last else None,
            gamma_used=self.optimizer.gamma,
            parameters=sum(p.numel() for p in self.model.parameters()),
            seconds=sum(r.seconds for r in self.records),
            device=name,
            epochs=tuple(self.records),
        )
