"""What a trial trains: a network that learns for an epoch and is measured; by autograd, on any device, by any ranks."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gcsr.config import TrialConfig
from gcsr.data import Dataset
from gcsr.evaluation import CorrectAnswers
from gcsr.graph import ReplayedStep, capture_for
from gcsr.interleaving import Steps
from gcsr.metrics import sparsity, weight_abs_mean
from gcsr.models import ConvolutionalNetwork
from gcsr.names import is_convolutional, is_own_network
from gcsr.optim import GatedOptimizer
from gcsr.parallel import Workers
from gcsr.precision import autocast
from gcsr.randomness import seed_python
from gcsr.regularized import regularized_parameters
from gcsr.training_images import TrainingImages
from gcsr.triton_support import has_triton

__all__ = ["AutogradLearner", "Learner", "memory_layout"]


class Learner(Protocol):
    """A network and the images that it learns; `gcsr.plain_learner` has another one."""

    images: TrainingImages

    def epoch(self, loss_sum: Tensor) -> Steps[None]:
        """One pass over the training images.

        Args:
            loss_sum: this rank's share of each step's mean loss, times the images of the whole batch, is added to it;
                float64, 0-dim.
        """

    def measures(self) -> list[Tensor]:
        """Each 0-dim: sparsity, mean |w|, and correct answers on all ranks: of the test split, and of that held out."""


def memory_layout(config: TrialConfig) -> torch.memory_format:
    """Channels last, with which convolutions and pools are faster, for networks that are known to be able to take it.

    A user's own network may view what a convolution gives as one dimension, or have weights of five.
    """
    return torch.channels_last if is_convolutional(config.model) else torch.contiguous_format


class AutogradLearner:
    """Any network; on a GPU its steps are captured as graphs.

    Args:
        config: the trial.
        data: its data.
        workers: that train the network together.
        model: the network, in its `memory_layout`.
        optimizer: of its weights.
    """

    def __init__(
        self, config: TrialConfig, data: Dataset, workers: Workers, model: nn.Module, optimizer: GatedOptimizer
    ) -> None:
        self._data, self._workers, self._model, self._optimizer = data, workers, model, optimizer
        self._device, self._precision = data.train_images.device, config.precision
        self._layout = memory_layout(config)
        fused = False  # batches and what follows convolutions are kernels of our own
        if isinstance(model, ConvolutionalNetwork) and workers.group is None and has_triton(self._device.type):
            fused = model.features.fused = True
        self._network = workers.wrapped(model)
        self._regularized = regularized_parameters(model)
        self.images = TrainingImages(config, data, workers, layout=self._layout, fused=fused)
        self._own, self._seed = is_own_network(config.model), config.seed
        capture = capture_for(self._device, own_network=self._own) if workers.group is None else None
        self._replayed = ReplayedStep(capture, optimizer.after_capture)
        share = max(1, config.batch_size // workers.world_size)
        self._correct = CorrectAnswers((), self._device, capture, at_least=share)

    def epoch(self, loss_sum: Tensor) -> Steps[None]:
        def step(size: int, rows: Tensor, *crops: Tensor) -> None:
            loss = self._backward(self.images.network_input(rows, *crops), self._data.train_labels[rows], size)
            self._optimizer.step()
            loss_sum.add_(loss.double() * size)

        order, decided = self.images.draw_order(), self._optimizer.refresh()
        for place, (size, batch) in enumerate(self.images.batches(order)):
            self._seed_python(place)
            self._replayed(step, decided, size, *batch)
            yield False

    def _seed_python(self, what: object) -> None:
        if self._own:
            seed_python(self._seed, self._optimizer.epoch, what, self._workers.rank)

    def _backward(self, images: Tensor, labels: Tensor, size: int) -> Tensor:
        """Gradients of this rank's share of the mean loss over a batch of ``size`` images, and that share."""
        with autocast(self._precision, self._device):
            logits = self._network(images)
        # Averaged over ranks by DDP, this is the mean over the whole batch, however uneven the shares are.
        loss = cross_entropy(logits.float(), labels, reduction="sum") / size
        self._optimizer.zero_grad()
        (loss if self._workers.group is None else loss * self._workers.world_size).backward()
        return loss.detach()

    def measures(self) -> list[Tensor]:
        return [sparsity(self._model), weight_abs_mean(self._regularized), *self._counted()]

    def _counted(self) -> Tensor:
        """Correct answers of all ranks on each split: int64 ``[1 or 2]``."""
        self._seed_python("measures")
        self._model.eval()
        own = [map(self._workers.share, split) for split in self._data.evaluated]
        counts = [self._correct.count(self._answers, *split) for split in own]
        self._model.train()
        return self._workers.sum(torch.stack(counts))

    def _answers(self, images: Tensor) -> Tensor:
        images = self._data.normalized(images).contiguous(memory_format=self._layout)
        with autocast(self._precision, self._device):
            logits: Tensor = self._model(images)
        return logits.argmax(1)
