"""The paper's networks: torchvision's AlexNet and VGG with its changes, and plain ReLU networks for digits."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from gcsr.config import TrialConfig
from gcsr.convolution import Convolution
from gcsr.data import Dataset
from gcsr.errors import ConfigError
from gcsr.names import check_model_name, default_initialization, is_mlp, is_own_network
from gcsr.own_network import own_network
from gcsr.precision import lowered

__all__ = ["ConvolutionalNetwork", "Features", "build_model", "network_of", "new_network"]

_VGG_LAYOUT = {"vgg11": "A", "vgg16": "D", "vgg19": "E"}
_MLP_WIDTH = 128


def build_model(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    width: float = 1.0,
    dropout: float = 0.5,
    initialization: str | None = None,
) -> nn.Module:
    """A freshly initialized network: float logits ``[N, classes]`` from float images ``[N, C, H, W]``.

    Draws from torch's global generator (as every torch layer does): seed it first.

    Args:
        name: see `gcsr.names.check_model_name`.
        input_shape: ``(C, H, W)``; the convolutional networks take ``(3, 32, 32)``.
        classes: size of the output layer.
        width: multiplies every hidden layer's width (at least 1 unit stays).
        dropout: drop probability of the fully connected layers; the plain networks have none.
        initialization: ``torch``: each layer's default. ``vgg``: convolutions normal with He's deviation for their
            outputs, fully connected layers normal with deviation 0.01, biases 0. None: as torchvision for the network.

    Raises:
        ConfigError: an unknown name, or images that the network cannot take.
        InvalidInputError: it is the user's own, and cannot be built.
    """
    check_model_name(name)
    if is_own_network(name):
        return own_network(name, input_shape=input_shape, classes=classes)
    if is_mlp(name):
        model = _mlp(int(name[3:]), input_shape, classes, _scaled(width))
    elif input_shape != (3, 32, 32):
        raise ConfigError("model", name, f"an mlpK for images of shape {input_shape}; {name} takes (3, 32, 32)")
    else:
        scaled = _scaled(width)
        model = _alexnet(classes, scaled, dropout) if name == "alexnet" else _vgg(name, classes, scaled, dropout)
    if (initialization or default_initialization(name)) == "vgg":
        _initialize_as_vgg(model)
    return model


def network_of(config: TrialConfig, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The trial's network, freshly initialized by `build_model`."""
    return build_model(
        config.model,
        input_shape=input_shape,
        classes=classes,
        width=config.width,
        dropout=config.dropout or 0.0,
        initialization=config.initialization,
    )


def new_network(config: TrialConfig, data: Dataset) -> nn.Module:
    """The trial's network on the data's device, initialized from torch's global generator."""
    return network_of(config, data.input_shape, data.classes).to(data.train_images.device)


class ConvolutionalNetwork(nn.Module):
    """Convolutions, then fully connected layers on what is left of the image (1×1: no pooling to 7×7).

    Args:
        layers: each a convolution, its ReLU and perhaps a 2×2 max-pool.
        classifier: the rest.
    """

    def __init__(self, layers: Sequence[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.features = Features(*layers)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


class Features(nn.Sequential):
    """The convolutions of a network.

    Attributes:
        fused: what follows a convolution is one operation (`gcsr.activation`); on GPUs only, not under `torch.func`,
            and without the hooks of single layers.
    """

    fused = False

    def forward(self, images: Tensor) -> Tensor:
        if not self.fused:
            plain: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
            return plain
        from gcsr.activation import activated  # importing Triton takes longer than all of gcsr

        layers = list(self)
        convolutions = [(place, layer) for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
        weights: Sequence[Tensor] = [convolution.weight for _, convolution in convolutions]
        if torch.is_autocast_enabled(images.device.type):
            weights = lowered(weights)
        for (place, convolution), weight in zip(convolutions, weights, strict=True):
            assert convolution.bias is not None
            images = conv2d(
                images, weight, None, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
            )
            pool = place + 2 < len(layers) and isinstance(layers[place + 2], nn.MaxPool2d)
            images = activated(images, convolution.bias, pool=pool)
        return images


def _scaled(width: float) -> Callable[[int], int]:
    return lambda channels: max(1, round(channels * width))


def _mlp(hidden: int, input_shape: tuple[int, int, int], classes: int, scaled: Callable[[int], int]) -> nn.Module:
    size = input_shape[0] * input_shape[1] * input_shape[2]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for index in range(hidden):
        layers[f"hidden{index}"] = nn.Linear(size, scaled(_MLP_WIDTH))
        layers[f"relu{index}"] = nn.ReLU()
        size = scaled(_MLP_WIDTH)
    layers["output"] = nn.Linear(size, classes)
    return nn.Sequential(layers)


def _alexnet(classes: int, scaled: Callable[[int], int], dropout: float) -> nn.Module:
    """torchvision's AlexNet; §3's changes: max-pools 3→2, first padding 2→5, fully connected layers of 256."""
    from torchvision.models import alexnet  # only here: importing torchvision takes a second

    with torch.device("meta"):  # the layout only: the original's 61 M parameters are never allocated
        layout = alexnet(weights=None).features
    layers: list[nn.Module] = []
    channels = 3
    for layer in layout:
        if isinstance(layer, nn.Conv2d):
            kernel, stride, padding = (int(each[0]) for each in (layer.kernel_size, layer.stride, layer.padding))
            out = scaled(layer.out_channels)
            layers.append(Convolution(channels, out, kernel, stride=stride, padding=padding if layers else 5))
            channels = out
        elif isinstance(layer, nn.MaxPool2d):
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        else:
            layers.append(nn.ReLU(inplace=True))
    units = scaled(256)
    classifier = nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(channels, units),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(units, units),
        nn.ReLU(inplace=True),
        nn.Linear(units, classes),
    )
    return ConvolutionalNetwork(layers, classifier)


def _vgg(name: str, classes: int, scaled: Callable[[int], int], dropout: float) -> nn.Module:
    """torchvision's VGG without the 7×7 pooling, fully connected layers of 512."""
    from torchvision.models.vgg import cfgs

    layers: list[nn.Module] = []
    channels = 3
    for size in cfgs[_VGG_LAYOUT[name]]:
        if isinstance(size, str):
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        else:
            out = scaled(size)
            layers += [Convolution(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
            channels = out
    units = scaled(512)
    classifier = nn.Sequential(
        nn.Linear(scaled(512), units),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(units, units),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(units, classes),
    )
    return ConvolutionalNetwork(layers, classifier)


def _initialize_as_vgg(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
