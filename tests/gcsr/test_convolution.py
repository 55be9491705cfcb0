"""Convolutions as matrix products are torch's convolutions."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from gcsr.convolution import Convolution, _Patches, _Taps, _WholeImages
from gcsr.precision import autocast

CPU = torch.device("cpu")
ROUNDING = {"fp32": 1e-6, "bf16": 5e-3}  # of the norm of what is compared

# channels, out, kernel, stride, padding, height and width of the images
WHOLE = [
    (192, 384, 3, 1, 1, 2, 2),
    (5, 7, 3, 1, 1, 1, 4),
    (5, 7, 5, 1, 2, 2, 1),
    (3, 2, 1, 1, 0, 2, 2),
    (2, 3, 3, 1, 1, 1, 1),
]
SAME = [  # more pixels, as many in the result as in the images
    (64, 192, 5, 1, 2, 4, 4),
    (16, 32, 3, 1, 1, 4, 4),
    (4, 6, 1, 1, 0, 4, 3),
    (4, 6, 7, 1, 3, 2, 5),
    (4, 6, 9, 1, 4, 3, 3),
]
PATCHES = [
    (4, 6, 3, 1, 0, 5, 4),
    (4, 6, 3, 1, 0, 4, 4),
    (4, 6, 1, 1, 1, 2, 2),
    (4, 6, 3, 1, 2, 2, 2),
]
DISTANT = [(3, 64, 11, 4, 5, 32, 32), (3, 5, 3, 2, 1, 7, 5), (3, 5, 2, 2, 1, 2, 2)]
TORCHS = [
    (3, 8, 3, 1, 1, 8, 8),
    (4, 6, 3, 1, 1, 1, 17),
    (4, 6, 3, 1, 3, 2, 2),
]  # of many pixels: of the images, or of the result


def convolution(case):
    channels, out, kernel, stride, padding, *_ = case
    torch.manual_seed(0)
    return Convolution(channels, out, kernel, stride=stride, padding=padding)


def images_for(case, layout=torch.contiguous_format, n=9):
    torch.manual_seed(1)
    return torch.randn(n, case[0], *case[5:]).contiguous(memory_format=layout)


def calls_of_torchs_convolution(layer, images, precision):
    spied = mock.patch.object(nn.Conv2d, "forward", autospec=True, side_effect=nn.Conv2d.forward)
    with spied as torchs, autocast(precision, CPU):
        layer(images)
    return torchs.call_count


def distance(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", WHOLE + SAME + PATCHES + DISTANT + TORCHS)
def test_result_and_gradients_are_torchs_in_float64(case, precision, layout):
    layer = convolution(case).to(memory_format=layout)
    exact = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding).double()
    exact.load_state_dict(layer.state_dict())
    first = case in DISTANT  # a network's first layer: nobody asks for the gradient of its images
    images = images_for(case, layout).requires_grad_(not first)
    doubles = images.detach().double().requires_grad_()
    with autocast(precision, CPU):
        result = layer(images)
    expected = exact(doubles)
    gradient = torch.randn_like(result)
    result.backward(gradient)
    expected.backward(gradient.double())

    assert result.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    pairs = [(result, expected), (layer.weight.grad, exact.weight.grad), (layer.bias.grad, exact.bias.grad)]
    if not first:
        pairs.append((images.grad, doubles.grad))
    assert max(distance(found, right) for found, right in pairs) < ROUNDING[precision]
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("cases", "fp32", "bf16"), [(WHOLE, 0, 0), (SAME, 0, 0), (PATCHES, 1, 0), (DISTANT, 1, 0), (TORCHS, 1, 1)]
)
def test_products_are_taken_where_they_are_faster(cases, fp32, bf16):
    for case in cases:
        layer, images = convolution(case), images_for(case)
        assert calls_of_torchs_convolution(layer, images, "fp32") == fp32
        assert calls_of_torchs_convolution(layer, images, "bf16") == bf16
        assert calls_of_torchs_convolution(layer, images.bfloat16(), "bf16") == bf16


def test_a_strided_convolution_whose_images_want_a_gradient_is_torchs():
    layer, images = convolution(DISTANT[0]), images_for(DISTANT[0]).requires_grad_()
    assert calls_of_torchs_convolution(layer, images, "bf16") == 1


def test_images_and_weights_of_another_kind_are_torchs():
    layer, images = convolution(WHOLE[1]), images_for(WHOLE[1])
    assert calls_of_torchs_convolution(layer, images[0], "fp32") == 1
    assert calls_of_torchs_convolution(layer.double(), images.double(), "fp32") == 1
    with pytest.raises(RuntimeError):  # as torch's does
        layer.float()(images.double())
    with pytest.raises(RuntimeError):
        layer.double()(images)
    layer.float()
    with torch.autocast("cpu", dtype=torch.float16):
        assert calls_of_torchs_convolution(layer, images, "fp32") == 1


def test_weights_that_are_more_than_tensors_are_torchs():
    class Sharded(torch.Tensor):
        pass

    layer, images = convolution(WHOLE[1]), images_for(WHOLE[1])
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Sharded))
    assert calls_of_torchs_convolution(layer, images, "fp32") == 1


@pytest.mark.parametrize(
    ("case", "precision"), [(WHOLE[0], "fp32"), (SAME[0], "fp32"), (WHOLE[0], "bf16"), (SAME[0], "bf16")]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_the_images_goes_on(case, precision, layout):
    layer, images = convolution(case).to(memory_format=layout), images_for(case, layout).requires_grad_()
    with autocast(precision, CPU):
        result = layer(images)
    result.sum().backward()
    for each in (result, images.grad):
        assert each.is_contiguous(memory_format=layout)
    assert not result._is_view()  # or a ReLU in place would be several times as slow


@pytest.mark.parametrize(
    ("case", "precision"), [(WHOLE[1], "fp32"), (SAME[1], "fp32"), (WHOLE[1], "bf16"), (SAME[1], "bf16")]
)
def test_stacked_weights_are_convolved_as_alone(case, precision):
    layers = [convolution(case) for _ in range(3)]
    for number, layer in enumerate(layers):
        nn.init.constant_(layer.bias, number)
        nn.init.normal_(layer.weight)
    stacked = {name: torch.stack([layer.state_dict()[name] for layer in layers]) for name in ("weight", "bias")}
    images = images_for(case)

    def loss(weights, images):
        with autocast(precision, CPU):
            return functional_call(layers[0], weights, images).float().square().sum()

    def losses(weights):  # as `gcsr.cohort` takes them
        each = vmap(loss, in_dims=({"weight": 0, "bias": 0}, None))(weights, images)
        return (each * torch.arange(3)).sum()

    together = grad(losses)(stacked)
    for number, layer in enumerate(layers):
        alone = grad(loss)(dict(layer.named_parameters()), images)
        for name, gradient in alone.items():
            expected = number * gradient.double()
            assert (together[name][number] - expected).norm() <= ROUNDING[precision] * expected.norm()


@pytest.mark.parametrize(
    ("product", "case", "precision"),
    [(_Taps, WHOLE[1], "fp32"), (_WholeImages, WHOLE[1], "bf16"), (_Patches, SAME[1], "bf16")],
)
def test_no_images_have_no_answers(product, case, precision):
    layer, images = convolution(case), images_for(case, n=0)
    with autocast(precision, CPU), mock.patch.object(product, "apply", wraps=product.apply) as applied:
        result = layer(images)
    result.sum().backward()
    assert applied.call_count == 1
    assert result.shape == (0, case[1], *case[5:])
    assert not layer.weight.grad.any()
