"""Training steps of the paper's networks on CPUs, with torch's convolutions and with ours."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gcsr.convolution import Convolution
from gcsr.models import build_model
from gcsr.precision import autocast
from tests.benchmarks.timing import Timing, paired

__all__ = ["beside_torch", "with_plain_convolutions"]


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """The network with its weights, each convolution `torch.nn.Conv2d`."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, Convolution):
                plain = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)  # type: ignore[arg-type]
                plain.load_state_dict(layer.state_dict())
                setattr(parent, name, plain)
    return model


def beside_torch(model_name: str, precision: str, rounds: int) -> dict[str, Timing]:
    """Forward and backward on 128 CIFAR-100-shaped images; torch's in the layout that is the faster one for it."""
    torchs = torch.channels_last if precision == "bf16" else torch.contiguous_format
    labels = torch.randint(100, (128,))

    def network() -> nn.Module:
        torch.manual_seed(0)
        return build_model(model_name, input_shape=(3, 32, 32), classes=100)

    def step(model: nn.Module, layout: torch.memory_format) -> Callable[[], None]:
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
        images = torch.randn(128, 3, 32, 32).contiguous(memory_format=layout)

        def run() -> None:
            with autocast(precision, images.device):
                logits = model(images)
            model.zero_grad()
            cross_entropy(logits.float(), labels).backward()

        return run

    functions = {
        f"{model_name}, {precision}, torch's convolutions": step(with_plain_convolutions(network()), torchs),
        f"{model_name}, {precision}, ours": step(network(), torch.channels_last),
    }
    return paired(functions, rounds=rounds)
