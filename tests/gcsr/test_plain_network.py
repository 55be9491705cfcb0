"""Plain networks written out, in C and with torch's operations: autograd's losses and gradients."""

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import gcsr.compiled
import gcsr.native_network
from gcsr import TrialConfig
from gcsr.models import build_model
from gcsr.native_network import NativeNetwork
from gcsr.plain_network import TorchNetwork, is_written_out, plain_network

needs_compiler = pytest.mark.skipif(not NativeNetwork.available(), reason="no C compiler here")


@pytest.fixture(params=["C", "torch"])
def kind(request):
    if request.param == "C" and not NativeNetwork.available():
        pytest.skip("no C compiler here")
    return NativeNetwork if request.param == "C" else TorchNetwork


def network(name, width=0.1, input_shape=(1, 8, 8), classes=10):
    torch.manual_seed(0)
    return build_model(name, input_shape=input_shape, classes=classes, width=width)


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def batch(size, input_shape=(1, 8, 8), classes=10):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, *input_shape, generator=generator), torch.randint(0, classes, (size,), generator=generator)


def exact(model, images, labels):
    """Loss and gradients by autograd, in float64."""
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    loss = cross_entropy(functional_call(model, weights, (images.double(),)), labels)
    return loss.item(), dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def check(written_out, model, images, labels):
    given = images.clone()
    loss, (expected, grads) = written_out.loss(images, labels), exact(model, given, labels)
    assert torch.equal(images, given)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(written_out.grads[name].double(), grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp1", "mlp2", "mlp6"])
def test_losses_and_gradients_are_autograds(kind, name):
    model = network(name)
    written_out = kind(weights_of(model))
    for size in (32, 7, 1, 32):  # ragged last batches, and whole ones after them
        check(written_out, model, *batch(size))


def test_answers_that_are_far_apart(kind):
    model = network("mlp1")
    with torch.no_grad():  # no exponential of such a difference is a float
        model.get_parameter("output.bias").copy_(torch.arange(-900.0, 1100.0, 200.0))
    check(kind(weights_of(model)), model, *batch(20))


@needs_compiler
@settings(max_examples=40)
@given(
    hidden=st.integers(1, 3),
    width=st.floats(0.01, 0.6),
    size=st.integers(1, 40),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    classes=st.integers(2, 70),
)
def test_every_size_of_layer_and_batch(hidden, width, size, shape, classes):
    model = network(f"mlp{hidden}", width, shape, classes)
    check(NativeNetwork(weights_of(model)), model, *batch(size, shape, classes))


@needs_compiler
def test_sums_that_are_longer_than_a_part():
    model = network("mlp2", 0.3, (3, 32, 32), 100)  # 3,072 inputs
    check(NativeNetwork(weights_of(model)), model, *batch(700, (3, 32, 32), 100))


def test_answers_are_the_networks(kind):
    model = network("mlp4")
    written_out, images = kind(weights_of(model)), batch(600)[0]
    expected = model(images).argmax(1)
    assert (written_out.answers(images) == expected).float().mean() > 0.999, "but for a draw to rounding"
    assert torch.equal(written_out.answers(images[:0]), torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize(("bias", "answer"), [([1.0, 2, 2, 0], 1), ([1, 2, float("nan"), 4], 2)])
def test_the_first_of_equal_answers_and_what_is_no_number(kind, bias, answer):
    weights = {"output.weight": torch.zeros(4, 3), "output.bias": torch.tensor(bias)}
    assert kind(weights).answers(torch.zeros(2, 3, 1, 1)).tolist() == [answer, answer]


@needs_compiler
def test_the_number_of_threads_changes_no_bit():
    model, (images, labels) = network("mlp2", width=1.3), batch(150)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            own = NativeNetwork(weights_of(model))
            found.append([own.loss(images, labels), own.answers(images), *own.grads.values()])
    finally:
        torch.set_num_threads(before)
    for one in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], one, strict=True))


@needs_compiler
@pytest.mark.parametrize("changed", ["LANES=4", "LANES=8", "SHUFFLES=0"])
def test_nor_do_the_processors_vectors(changed, monkeypatch):
    model, found = network("mlp3", 0.3), []
    for flags in (gcsr.compiled._FLAGS, (*gcsr.compiled._FLAGS, f"-D{changed}")):
        monkeypatch.setattr(gcsr.compiled, "_FLAGS", flags)
        monkeypatch.setattr(gcsr.native_network, "compiled", gcsr.compiled.compiled.__wrapped__)
        own = NativeNetwork(weights_of(model))
        found.append([own.loss(*batch(50)), *own.grads.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_it_follows_weights_that_are_updated_in_place(kind):
    weights = weights_of(network("mlp2"))
    written_out = kind(weights)
    before = written_out.loss(*batch(8)).item()
    for name, weight in weights.items():
        weight -= 0.5 * written_out.grads[name]
    assert written_out.loss(*batch(8)).item() < before


def test_measures_are_counts_and_sums_of_all_that_there_is(kind):
    weights = weights_of(network("mlp3", 0.3))
    for number, weight in enumerate(weights.values()):
        weight.flatten()[: 3 * number].zero_()
    nonzero, total = kind(weights).measures()
    assert nonzero == sum((weight != 0).sum().item() for weight in weights.values())
    matrices = [weight for name, weight in weights.items() if name.endswith("weight")]
    assert total == pytest.approx(sum(weight.double().abs().sum().item() for weight in matrices), rel=1e-12)
    weights["hidden1.weight"][0, 0] = torch.nan
    assert kind(weights).measures()[0] in (nonzero, nonzero + 1), "what is no number is not 0"
    assert math.isnan(kind(weights).measures()[1])


def test_images_and_labels_in_another_order_of_memory(kind):
    written_out, (images, labels) = kind(weights_of(network("mlp2"))), batch(9)
    expected = written_out.loss(images, labels)
    images, labels = images.mT.contiguous().mT, torch.stack([labels, labels], 1)[:, 0]
    assert torch.equal(written_out.loss(images, labels), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["hidden0.weight", "hidden1.bias", "output.weight", "output.bias"])
def test_what_is_not_finite_shows_in_the_loss(kind, name, bad):
    weights = weights_of(network("mlp2"))
    weights[name].flatten()[3] = bad
    assert not kind(weights).loss(*batch(8)).isfinite()


@pytest.mark.parametrize(
    ("fields", "device", "suits"),
    [
        ({}, "cpu", True),
        ({}, "cuda", False),
        ({"precision": "bf16"}, "cpu", False),
        ({"dataset": "cifar10", "model": "alexnet"}, "cpu", False),
        ({"dataset": "cifar10", "model": "mlp2"}, "cpu", True),
    ],
)
def test_what_is_written_out(fields, device, suits):
    assert is_written_out(TrialConfig(**fields), torch.device(device)) is suits


@needs_compiler
def test_answers_take_no_memory_for_gradients():
    own = NativeNetwork(weights_of(network("mlp2")))
    own.answers(torch.zeros(100, 1, 8, 8))
    taken = len(own._scratch)
    own.answers(torch.zeros(20_000, 1, 8, 8))
    assert len(own._scratch) == taken


@needs_compiler
def test_other_precisions_are_torchs():
    weights = {name: weight.double() for name, weight in weights_of(network("mlp2")).items()}
    written_out = plain_network(TrialConfig(), weights)
    assert type(written_out) is TorchNetwork
    images, labels = batch(5)
    assert written_out.loss(images.double(), labels).dtype == torch.float64


@needs_compiler
def test_without_leave_nothing_compiled_is_used(monkeypatch):
    weights = weights_of(network("mlp2"))
    assert type(plain_network(TrialConfig(), weights)) is NativeNetwork
    monkeypatch.setitem(os.environ, "GCSR_NATIVE", "0")
    assert type(plain_network(TrialConfig(), weights)) is TorchNetwork
