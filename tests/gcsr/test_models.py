"""The paper's networks have the paper's sizes."""

import pytest
import torch

from gcsr import ConfigError
from gcsr.models import build_model


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "parameters", "millions"),
    [
        ("alexnet", 100, 2_626_980, 2.6),
        ("alexnet", 10, 2_603_850, 2.6),
        ("vgg16", 10, 15_245_130, 15.2),
        ("vgg16", 100, 15_291_300, 15.3),
        ("vgg11", 10, 9_750_922, 9.8),
        ("vgg19", 10, 20_554_826, 20.6),
    ],
)
def test_parameter_counts_are_the_papers(name, classes, parameters, millions):
    model = build_model(name, input_shape=(3, 32, 32), classes=classes)
    assert size(model) == parameters
    assert round(parameters / 1e6, 1) == millions


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg16", "vgg19"])
def test_narrow_networks_give_logits(name):
    model = build_model(name, input_shape=(3, 32, 32), classes=7, width=0.05)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert size(model) < 200_000


@pytest.mark.parametrize("hidden", [1, 6, 32])
def test_plain_networks_have_k_hidden_layers_of_128(hidden):
    model = build_model(f"mlp{hidden}", input_shape=(1, 8, 8), classes=10)
    assert size(model) == 65 * 128 + (hidden - 1) * 129 * 128 + 129 * 10
    assert model(torch.randn(3, 1, 8, 8)).shape == (3, 10)


def test_dropout_is_what_it_is_told():
    model = build_model("alexnet", input_shape=(3, 32, 32), classes=10, dropout=0.25)
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [0.25, 0.25]


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_initializations(name):
    def built(initialization):
        torch.manual_seed(0)
        return build_model(name, input_shape=(3, 32, 32), classes=10, initialization=initialization)

    default, as_vgg, as_torch = (built(each) for each in (None, "vgg", "torch"))
    own = as_vgg if name == "vgg11" else as_torch
    assert all(torch.equal(p, q) for p, q in zip(default.parameters(), own.parameters(), strict=True))
    for module, plain in zip(as_vgg.modules(), as_torch.modules(), strict=True):
        if isinstance(module, torch.nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        elif isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1)
        else:
            continue
        assert not module.bias.any()
        bound = plain.weight[0].numel() ** -0.5  # torch's: uniform
        assert plain.weight.abs().max().item() == pytest.approx(bound, rel=0.1)


@pytest.mark.parametrize("name", ["mlp0", "mlp33", "mlp", "mlp06", "resnet18", "", "VGG16"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ConfigError, match="model"):
        build_model(name, input_shape=(3, 32, 32), classes=10)


def test_small_images_are_for_plain_networks():
    with pytest.raises(ConfigError, match="model"):
        build_model("vgg11", input_shape=(1, 8, 8), classes=10)


@pytest.mark.parametrize(("name", "layout"), [("vgg11", "A"), ("vgg16", "D"), ("vgg19", "E")])
def test_the_layers_of_vgg_are_torchvisions(name, layout):
    from torchvision.models.vgg import cfgs, make_layers

    model = build_model(name, input_shape=(3, 32, 32), classes=10)
    torchvisions = make_layers(cfgs[layout])
    torchvisions.load_state_dict(model.features.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.features(images), torchvisions(images))
