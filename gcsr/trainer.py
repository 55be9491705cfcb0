"""The trainer: assembles data, network, gated optimizer and checkpoints into one trial."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import torch
import torch.distributed as dist

from gcsr.archive import GPU_FAULTS
from gcsr.checkpoint import Checkpointer
from gcsr.collapse import constant_loss, has_collapsed
from gcsr.config import TrialConfig
from gcsr.data import Dataset, check_data
from gcsr.errors import CheckpointError, NonFiniteGradientError, OutOfTimeError
from gcsr.fused_sgd import QuickSGD
from gcsr.interleaving import Steps, finished
from gcsr.learner import AutogradLearner, Learner, memory_layout
from gcsr.models import new_network
from gcsr.names import is_own_network
from gcsr.optim import GatedOptimizer
from gcsr.own_network import check_workers
from gcsr.parallel import Workers
from gcsr.plain_learner import PlainLearner
from gcsr.plain_network import plain_network
from gcsr.randomness import seed_generators, seed_python, undisturbed
from gcsr.records import EpochRecord, TrialResult, summarized
from gcsr.regularized import regularized_parameters
from gcsr.trained_network import TrainedNetwork

__all__ = ["train", "training"]


def train(
    config: TrialConfig,
    data: Dataset,
    *,
    checkpointer: Checkpointer | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    group: dist.ProcessGroup | None = None,
    stop_collapsed: bool = False,
    on_network: Callable[[TrainedNetwork], None] | None = None,
) -> TrialResult:
    """Train one network by the paper's recipe (§3).

    Runs on the data's device. Deterministic for a given config, device, number of workers and library versions,
    whatever the caller's random state, default dtype, ``torch.no_grad`` and ``autocast``, which are left as they were.

    Args:
        config: the trial.
        data: must be ``config``'s data set with its hold-out.
        checkpointer: if it holds a state of this trial, training goes on from there, to bit-identical metrics (with
            another number of workers: to the same experiment). Only the first rank's is read and written.
        on_epoch: called after every epoch, on every rank.
        group: the processes that train this network together, each on its share of every batch; all of them call
            this function with the same ``config``. None for a single process.
        stop_collapsed: end early, as ``collapsed``, a trial that cannot learn any more (`gcsr.collapse`).
        on_network: gets the network of a trial that ``finished``, on the first rank.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConfigError: the data are not ``config``'s, or a user's own network cannot be trained by several processes.
        InvalidInputError: a user's own network cannot be built.
        OutOfTimeError: the checkpointer's deadline has passed; the state is saved.
    """
    with undisturbed(data.train_images.device, config.precision):
        return finished(
            training(
                config,
                data,
                checkpointer=checkpointer,
                on_epoch=on_epoch,
                group=group,
                stop_collapsed=stop_collapsed,
                on_network=on_network,
            )
        )


def training(
    config: TrialConfig,
    data: Dataset,
    *,
    checkpointer: Checkpointer | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    group: dist.ProcessGroup | None = None,
    stop_collapsed: bool = False,
    on_network: Callable[[TrainedNetwork], None] | None = None,
) -> Steps[TrialResult]:
    """`train`, step by step; to be taken inside of `gcsr.randomness.undisturbed`, by `Interleaved` or `finished`."""
    workers = Workers.of(group)
    check_data(config, data)
    seed_generators(config.seed, data.train_images.device)
    if is_own_network(config.model):
        seed_python(config.seed)
    run = _Run(config, data, workers)
    state = _load(checkpointer, config, data.train_images.device, workers)
    if state is not None:
        try:
            run.load_state_dict(state)
        except GPU_FAULTS:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint: its state is no trial's: {' '.join(str(error).split())[:100]}"
            ) from None
    while run.epoch < config.epochs:  # type: ignore[operator]
        record = yield from run.train_epoch()
        if record is None:
            return run.result("diverged")
        if on_epoch is not None:
            on_epoch(record)
        if stop_collapsed and has_collapsed(run.records, run.constant_loss):
            return run.result("collapsed")
        if workers.from_first(checkpointer is not None and checkpointer.due(run.epoch)):
            state = run.state_dict()
            if checkpointer is not None and workers.rank == 0:
                checkpointer.save(config, state)
            out_of_time = workers.from_first(checkpointer is not None and checkpointer.out_of_time())
            if out_of_time and run.epoch < config.epochs:  # type: ignore[operator]
                raise OutOfTimeError(f"stopped after epoch {run.epoch} of {config.epochs}")
        yield True
    result = run.result()
    if on_network is not None and result.status == "finished" and workers.rank == 0:
        on_network(TrainedNetwork.of(config, run.model, data))
    return result


def _load(
    checkpointer: Checkpointer | None, config: TrialConfig, device: torch.device, workers: Workers
) -> dict[str, Any] | None:
    """The checkpoint as rank 0 finds it: what other nodes see of a shared disk may be older."""
    state: dict[str, Any] | CheckpointError | None = None
    if checkpointer is not None and workers.rank == 0:
        try:
            state = checkpointer.load(config, torch.device("cpu") if workers.group else device)
        except CheckpointError as error:
            state = error
    state = workers.from_first(state)
    if isinstance(state, CheckpointError):
        raise state
    return state


class _Run:
    """A trial in motion: everything that a checkpoint must hold."""

    def __init__(self, config: TrialConfig, data: Dataset, workers: Workers) -> None:
        self.config, self.data, self.workers = config, data, workers
        self.device = data.train_images.device
        self.model = new_network(config, data).to(memory_format=memory_layout(config))
        check_workers(config.model, self.model, workers.world_size)
        inner = QuickSGD(
            self.model.parameters(), config.lr, momentum=config.momentum, fused=self.device.type in ("cpu", "cuda")
        )
        self.schedule = torch.optim.lr_scheduler.StepLR(inner, config.lr_decay_epochs, config.lr_decay)
        gate = config.gate()
        self.optimizer = GatedOptimizer(
            inner,
            regularized_parameters(self.model),
            regularizer=config.penalty,
            mode=gate.mode,
            lam=config.lam,
            gamma="auto" if gate.gamma is None else gate.gamma,
            gamma_threshold=gate.gamma_threshold,
            mu=gate.mu,
            process_group=workers.group,
        )
        self.learner = self._learner()
        workers.seed(config.seed, 0, self.device)
        self.constant_loss = constant_loss(data.train_labels)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.records: list[EpochRecord] = []

    def _learner(self) -> Learner:
        plain = None
        if self.workers.group is None:
            plain = plain_network(self.config, dict(self.model.named_parameters()))
        if plain is None:
            return AutogradLearner(self.config, self.data, self.workers, self.model, self.optimizer)
        return PlainLearner(self.config, self.data, self.model, plain, self.optimizer)

    @property
    def epoch(self) -> int:
        """The next epoch, from 0."""
        return len(self.records)

    def train_epoch(self) -> Steps[EpochRecord | None]:
        """One pass over the training images and its measurements; None if it diverged."""
        began = time.perf_counter()
        lr = float(self.schedule.get_last_lr()[0])
        self.optimizer.start_epoch(self.epoch)
        self.loss_sum.zero_()
        yield from self.learner.epoch(self.loss_sum)
        self.schedule.step()
        loss_sum = self.workers.sum(self.loss_sum)
        measured = self.learner.measures()
        yield False  # whoever is there beside gets its own work in before this one's is waited for
        train_loss = loss_sum.item() / len(self.data.train_labels)
        try:
            gate = self.optimizer.metrics()
        except NonFiniteGradientError:
            return None
        sparse, weight, *correct = torch.stack([value.double() for value in measured]).tolist()
        if not (math.isfinite(train_loss) and math.isfinite(weight)):
            return None
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

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from; all ranks call it, and get the same."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "device": self.device.type,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.learner.images.generator.get_state(),
            "random": self.workers.gathered(random),
            "records": [asdict(record) for record in self.records],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`. If it is of another number of workers, dropout draws anew.

        Raises:
            ValueError: it is of another kind of device, whose random numbers are others.
        """
        if state["device"] != self.device.type:
            raise ValueError(f"written on {state['device']}; expected {self.device.type}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.learner.images.generator.set_state(state["generator"].cpu())
        self.records = [EpochRecord(**record) for record in state["records"]]
        random = state["random"]
        if len(random) != self.workers.world_size:
            self.workers.seed(self.config.seed, self.epoch, self.device)
            return
        own = random[self.workers.rank]
        torch.set_rng_state(own["cpu"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"].cpu(), self.device)

    def result(self, ended: Literal["diverged", "collapsed"] | None = None) -> TrialResult:
        return summarized(
            self.records,
            self.data,
            ended=ended,
            gamma_used=self.optimizer.gamma,
            parameters=sum(p.numel() for p in self.model.parameters()),
            world_size=self.workers.world_size,
        )
