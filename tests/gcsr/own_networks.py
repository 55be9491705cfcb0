"""What a user might bring as a network, and what is none."""

import random

import numpy as np
import torch
from torch import nn

from gcsr.models import build_model


def plain(num_classes):
    """gcsr's own mlp2 on digits."""
    return build_model("mlp2", input_shape=(1, 8, 8), classes=num_classes)


def normalized(num_classes):
    """Batch normalization, dropout and a lazy layer."""
    return nn.Sequential(
        nn.LazyConv2d(8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        nn.LazyLinear(num_classes),
    )  # fmt: skip


class Residual(nn.Module):
    """A class is a function, too."""

    def __init__(self, num_classes):
        super().__init__()
        self.embed, self.inner, self.answer = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, num_classes)

    def forward(self, images):
        hidden = torch.relu(self.embed(images.flatten(1)))
        return self.answer(hidden + torch.relu(self.inner(hidden)))


def raises(num_classes):
    raise KeyError("no weights\nhere")


def exits(num_classes):
    raise SystemExit(3)


def takes_nothing():
    return nn.Identity()


def no_module(num_classes):
    return "resnet"


def too_many_logits(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes + 1))


def of_other_images(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(num_classes))


def answers_classes(num_classes):
    class Classes(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), num_classes, dtype=torch.int64)

    return Classes()


def without_weights(num_classes):
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.AdaptiveAvgPool1d(num_classes))


class AnswersTwiceInTraining(nn.Module):
    """As torchvision's GoogLeNet."""

    def __init__(self, num_classes):
        super().__init__()
        self.answer, self.auxiliary = nn.Linear(64, num_classes), nn.Linear(64, num_classes)

    def forward(self, images):
        flat = images.flatten(1)
        return (self.answer(flat), self.auxiliary(flat)) if self.training else self.answer(flat)


def with_a_layer_only_for_training(num_classes):
    network = AnswersTwiceInTraining(num_classes)
    network.auxiliary = nn.LazyLinear(num_classes)
    return network


def normalized_by_batch(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))


class Viewing(nn.Linear):
    """As many write it; there is no telling the -1 from no images."""

    def __init__(self, num_classes):
        super().__init__(64, num_classes)

    def forward(self, images):
        return super().forward(images.view(len(images), -1))


class ViewingPictures(nn.Module):
    """A convolution's answer as one dimension, and weights of five."""

    def __init__(self, num_classes):
        super().__init__()
        self.convolution, self.answer = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, num_classes)
        self.scale = nn.Parameter(torch.ones(1, 4, 6, 6, 1))

    def forward(self, images):
        seen = torch.relu(self.convolution(images)) * self.scale[..., 0]
        return self.answer(seen.view(-1, 4 * 36))


def of_double_precision_from_now_on(num_classes):
    torch.set_default_dtype(torch.float64)
    return Viewing(num_classes).float()


def talkative(num_classes):
    print("here is your network")
    return Viewing(num_classes)


class Drawing(Viewing):
    """Random numbers of Python's and numpy's."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(np.random.normal(0, 0.1, self.weight.shape)))

    def forward(self, images):
        scale = random.random() + np.random.random() if self.training else 1.0
        return scale * super().forward(images)


class Remembering(Viewing):
    """Has in its state what no checkpoint may hold."""

    def get_extra_state(self):
        return {"seen": np.random.RandomState(0)}

    def set_extra_state(self, state):
        self.seen = state["seen"]


class Counting(Viewing):
    """Has a plain value in its state."""

    seen = 0

    def forward(self, images):
        self.seen += self.training
        return super().forward(images)

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


class PartlyUsed(Viewing):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.unused = nn.Linear(2, 2)


class WithoutGradient(Viewing):
    def forward(self, images):
        return super().forward(images).detach()


def sparse(num_classes):
    return nn.Sequential(nn.Flatten(), Rounded(), nn.EmbeddingBag(9, num_classes, sparse=True))


class Rounded(nn.Module):
    def forward(self, images):
        return images.long()


BODY = nn.Linear(64, 8)


def around_one_body(num_classes):
    return nn.Sequential(nn.Flatten(), BODY, nn.Linear(8, num_classes))


CONSTANT = 3
