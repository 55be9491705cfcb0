"""A plain network on a CPU, which learns without autograd."""

import torch
from torch import Tensor, nn

from gcsr.config import TrialConfig
from gcsr.data import Dataset
from gcsr.interleaving import Steps
from gcsr.native_epoch import NativeEpoch
from gcsr.native_network import NativeNetwork
from gcsr.optim import GatedOptimizer
from gcsr.parallel import Workers
from gcsr.plain_network import PlainNetwork
from gcsr.regularized import regularized_parameters
from gcsr.training_images import TrainingImages

__all__ = ["PlainLearner"]


class PlainLearner:
    """A `gcsr.learner.Learner`; in C, by whole epochs, where the images are ready and the optimizer allows it.

    Args:
        config: the trial.
        data: its data, on a CPU.
        model: the network whose weights `network` follows.
        network: leaves its gradients where the optimizer looks for them.
        optimizer: of the weights.
    """

    def __init__(
        self, config: TrialConfig, data: Dataset, model: nn.Module, network: PlainNetwork, optimizer: GatedOptimizer
    ) -> None:
        self._network, self._optimizer = network, optimizer
        self._labels, self._batch_size = data.train_labels, config.batch_size
        for name, p in model.named_parameters():
            p.grad = network.grads[name]
        self._parameters = sum(p.numel() for p in model.parameters())
        self._regularized = sum(p.numel() for p in regularized_parameters(model))
        self.images = TrainingImages(config, data, Workers())
        self._whole: NativeEpoch | None = None
        if self.images.ready is not None and isinstance(network, NativeNetwork):
            self._whole = NativeEpoch(network, optimizer, self.images.ready, data.train_labels)
        self._evaluated = [(data.normalized(images), labels) for images, labels in data.evaluated]

    def epoch(self, loss_sum: Tensor) -> Steps[None]:
        order = self.images.draw_order()
        if self._whole is not None and self._whole.run(order, self._batch_size, loss_sum):
            return
        for size, (rows, *crops) in self.images.batches(order):
            loss = self._network.loss(self.images.network_input(rows, *crops), self._labels[rows])
            self._optimizer.step()
            loss_sum += loss.double() * size
            yield False

    def measures(self) -> list[Tensor]:
        nonzero, weights = self._network.measures()
        found = [1 - nonzero / self._parameters, weights / self._regularized]
        correct = [(self._network.answers(images) == labels).sum() for images, labels in self._evaluated]
        return [*torch.tensor(found, dtype=torch.float64), *correct]
