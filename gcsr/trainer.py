"""The trainer: assembles data, network, gated optimizer and checkpoints into one trial."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gcsr.augment import crop_and_flip, draw_crops
from gcsr.checkpoint import Checkpointer
from gcsr.collapse import constant_loss, has_collapsed
from gcsr.config import TrialConfig
from gcsr.data import Dataset
from gcsr.errors import CheckpointError, ConfigError, NonFiniteGradientError, OutOfTimeError
from gcsr.evaluation import CorrectAnswers
from gcsr.fused_sgd import QuickSGD
from gcsr.graph import ReplayedStep, capture_for
from gcsr.interleaving import Steps, finished
from gcsr.metrics import sparsity, weight_abs_mean
from gcsr.models import ConvolutionalNetwork, build_model
from gcsr.names import is_mlp
from gcsr.native_epoch import NativeEpoch
from gcsr.native_network import NativeNetwork
from gcsr.optim import GatedOptimizer, regularized_parameters
from gcsr.parallel import Workers
from gcsr.plain_network import PlainNetwork, plain_network
from gcsr.precision import autocast
from gcsr.randomness import seed_generators, undisturbed
from gcsr.records import EpochRecord, TrialResult, summarized
from gcsr.triton_support import has_triton

__all__ = ["check_data", "new_network", "train", "training"]


def train(
    config: TrialConfig,
    data: Dataset,
    *,
    checkpointer: Checkpointer | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    group: dist.ProcessGroup | None = None,
    stop_collapsed: bool = False,
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

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConfigError: the data are not ``config``'s.
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
) -> Steps[TrialResult]:
    """`train`, step by step; to be taken inside of `gcsr.randomness.undisturbed`, by `Interleaved` or `finished`."""
    workers = Workers.of(group)
    check_data(config, data)
    seed_generators(config.seed, data.train_images.device)
    run = _Run(config, data, workers)
    state = _load(checkpointer, config, data.train_images.device, workers)
    if state is not None:
        try:
            run.load_state_dict(state)
        except torch.OutOfMemoryError:
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
    return run.result()


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


def check_data(config: TrialConfig, data: Dataset) -> None:
    """Raise `ConfigError` unless ``data`` is the trial's data set, with hold-out and inputs as the trial wants them.

    Tensors are looked at, too: neither C nor a GPU's kernels ask whether what they read exists.
    """
    if data.name != config.dataset:
        raise ConfigError("dataset", config.dataset, f"{data.name}, which is the data given")
    if (config.holdout > 0) != (data.val_labels is not None):
        held_out = "a share of the images" if data.val_labels is not None else "0"
        raise ConfigError("holdout", config.holdout, f"{held_out}, as in the data given")
    if data.inputs != config.inputs:
        raise ConfigError("inputs", config.inputs, f"{data.inputs}, as the data given")
    for split in ("train", "val", "test"):
        images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
        if labels is not None:
            _check_split(split, images, labels, data)
    expected = [1, data.train_images.shape[1], 1, 1]
    for name in ("scale", "shift"):
        found = list(getattr(data, name).shape)
        if found != expected:
            raise ConfigError(name, found, f"{expected}: one number a channel")


def _check_split(split: str, images: Tensor, labels: Tensor, data: Dataset) -> None:
    expected = [len(labels) or 1, *data.train_images.shape[1:]]
    if images.dim() != 4 or list(images.shape) != expected:
        raise ConfigError(f"{split}_images", list(images.shape), f"{expected}, as the labels and train_images")
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise ConfigError(f"{split}_labels", f"{labels.dtype} {list(labels.shape)}", "torch.int64 [N]")
    low, high = torch.stack(torch.aminmax(labels)).tolist()
    if low < 0 or high >= data.classes:
        raise ConfigError(f"{split}_labels", low if low < 0 else high, f"0 to {data.classes - 1}")


def new_network(config: TrialConfig, data: Dataset) -> nn.Module:
    """The trial's network on the data's device, initialized from torch's global generator."""
    return build_model(
        config.model,
        input_shape=data.input_shape,
        classes=data.classes,
        width=config.width,
        dropout=config.dropout or 0.0,
        initialization=config.initialization,
    ).to(data.train_images.device)


class _Run:
    """A trial in motion: everything that a checkpoint must hold."""

    def __init__(self, config: TrialConfig, data: Dataset, workers: Workers) -> None:
        self.config, self.data, self.workers = config, data, workers
        self.device = data.train_images.device
        self.model = new_network(config, data).to(memory_format=self._layout())
        self.quick = False  # batches and what follows convolutions are kernels of our own
        if isinstance(self.model, ConvolutionalNetwork) and workers.group is None and has_triton(self.device.type):
            self.quick = self.model.features.fused = True
        self.network = workers.wrapped(self.model)
        workers.seed(config.seed, 0, self.device)
        self.params = regularized_parameters(self.model)
        self.size = sum(p.numel() for p in self.params)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        fused = self.device.type in ("cpu", "cuda")
        inner = QuickSGD(self.model.parameters(), config.lr, momentum=config.momentum, fused=fused)
        self.schedule = torch.optim.lr_scheduler.StepLR(inner, config.lr_decay_epochs, config.lr_decay)
        gate = config.gate()
        self.optimizer = GatedOptimizer(
            inner,
            self.params,
            regularizer=config.penalty,
            mode=gate.mode,
            lam=config.lam,
            gamma="auto" if gate.gamma is None else gate.gamma,
            gamma_threshold=gate.gamma_threshold,
            mu=gate.mu,
            process_group=workers.group,
        )
        self.plain = self._written_out()
        # Order and augmentation draw from a generator of their own: the same for every network and on every rank.
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.inputs = None if config.augment else data.normalized(data.train_images)
        self.whole_epoch: NativeEpoch | None = None
        if self.inputs is not None and isinstance(self.plain, NativeNetwork):
            self.whole_epoch = NativeEpoch(self.plain, self.optimizer, self.inputs, data.train_labels)
        self.evaluated = self._evaluated()
        self.constant_loss = constant_loss(data.train_labels)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        capture = capture_for(self.device) if workers.group is None else None
        self.step = ReplayedStep(capture, self.optimizer.after_capture)
        self.correct = CorrectAnswers((), self.device, capture)
        self.records: list[EpochRecord] = []

    def _layout(self) -> torch.memory_format:
        """Channels last where the convolutions are faster with it."""
        convolutional = not is_mlp(self.config.model)
        fast = self.device.type == "cuda" or self.config.precision == "bf16"
        return torch.channels_last if convolutional and fast else torch.contiguous_format

    def _written_out(self) -> PlainNetwork | None:
        """The network without autograd, which leaves its gradients where the optimizer looks for them."""
        if self.workers.group is not None:
            return None
        plain = plain_network(self.config, dict(self.model.named_parameters()))
        if plain is not None:
            for name, p in self.model.named_parameters():
                p.grad = plain.grads[name]
        return plain

    def _evaluated(self) -> list[tuple[Tensor, Tensor]]:
        """Images and labels of the test split, and of those held out if there are any; of plain networks as they take
        them.
        """
        splits = [(self.data.test_images, self.data.test_labels)]
        if self.data.val_images is not None and self.data.val_labels is not None:
            splits.append((self.data.val_images, self.data.val_labels))
        if self.plain is None:
            return splits
        return [(self.data.normalized(images), labels) for images, labels in splits]

    @property
    def epoch(self) -> int:
        """The next epoch, from 0."""
        return len(self.records)

    def train_epoch(self) -> Steps[EpochRecord | None]:
        """One pass over the training images and its measurements; None if it diverged."""
        began = time.perf_counter()
        lr = float(self.schedule.get_last_lr()[0])
        self.optimizer.start_epoch(self.epoch)
        labels = self.data.train_labels
        order = torch.randperm(len(labels), generator=self.generator, device=self.device)
        self.loss_sum.zero_()
        if self.whole_epoch is None or not self.whole_epoch.run(order, self.config.batch_size, self.loss_sum):
            yield from self._step_by_step(order)
        self.schedule.step()
        loss_sum = self.workers.sum(self.loss_sum)
        measured = [*self._measures(), *self._correct()]
        yield False  # whoever is there beside gets its own work in before this one's is waited for
        train_loss = loss_sum.item() / len(labels)
        try:
            gate = self.optimizer.metrics()
        except NonFiniteGradientError:
            return None
        if not math.isfinite(train_loss):
            return None
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

    def _step_by_step(self, order: Tensor) -> Steps[None]:
        # Drawn for whole batches, so that an image is cropped alike however many ranks there are.
        drawn = (order,) if self.inputs is not None else (order, draw_crops(len(order), self.generator))
        batch_size, share, decided = self.config.batch_size, self.workers.share, self.optimizer.refresh()
        for batch in zip(*(each.split(batch_size) for each in drawn), strict=True):
            self.step(self._step, decided, len(batch[0]), *map(share, batch))
            yield False

    def _step(self, size: int, rows: Tensor, crops: Tensor | None = None) -> None:
        """Train on this rank's ``rows`` of a batch of ``size`` images, cropped if they are augmented."""
        images, labels = self._batch(rows, crops), self.data.train_labels[rows]
        loss = self._backward(images, labels, size) if self.plain is None else self.plain.loss(images, labels)
        self.optimizer.step()
        self.loss_sum += loss.double() * size

    def _backward(self, images: Tensor, labels: Tensor, size: int) -> Tensor:
        """Gradients of this rank's share of the mean loss over a batch of ``size`` images, and that share."""
        with autocast(self.config.precision, self.device):
            logits = self.network(images)
        # Averaged over ranks by DDP, this is the mean over the whole batch, however uneven the shares are.
        loss = cross_entropy(logits.float(), labels, reduction="sum") / size
        self.optimizer.zero_grad()
        (loss if self.workers.group is None else loss * self.workers.world_size).backward()
        return loss.detach()

    def _batch(self, rows: Tensor, crops: Tensor | None) -> Tensor:
        """Network input for some rows of the training images."""
        if crops is None:
            assert self.inputs is not None, "only images that are ready need no crops"
            images = self.inputs[rows]
        elif self.quick:
            from gcsr.batches import augmented  # importing Triton takes longer than all of gcsr

            dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
            return augmented(self.data, rows, crops, dtype)
        else:
            images = self.data.normalized(crop_and_flip(self.data.train_images[rows], crops))
        return images.contiguous(memory_format=self._layout())

    def _measures(self) -> tuple[Tensor, Tensor]:
        """Sparsity and mean |w|."""
        if self.plain is None:
            return sparsity(self.model), weight_abs_mean(self.params)
        nonzero, weights = self.plain.measures()
        found = torch.tensor([1 - nonzero / self.parameters, weights / self.size], dtype=torch.float64)
        return found[0], found[1]

    def _correct(self) -> Tensor:
        """Correct answers on the test images, and on the held-out ones if there are any: int64 ``[1 or 2]``."""
        if self.plain is not None:
            return torch.stack([(self.plain.answers(images) == labels).sum() for images, labels in self.evaluated])
        self.model.eval()
        own = [(self.workers.share(images), self.workers.share(labels)) for images, labels in self.evaluated]
        counts = [self.correct.count(self._answers, images, labels) for images, labels in own]
        self.model.train()
        return self.workers.sum(torch.stack(counts))

    def _answers(self, images: Tensor) -> Tensor:
        images = self.data.normalized(images).contiguous(memory_format=self._layout())
        with autocast(self.config.precision, self.device):
            logits: Tensor = self.model(images)
        return logits.argmax(1)

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
            "generator": self.generator.get_state(),
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
        self.generator.set_state(state["generator"].cpu())
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
            parameters=self.parameters,
            world_size=self.workers.world_size,
        )
