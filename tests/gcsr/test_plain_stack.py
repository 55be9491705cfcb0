"""Plain networks written out, in C and with torch's operations: autograd's losses and gradients, whoever is beside."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, stack_module_state
from torch.nn.functional import cross_entropy

import gcsr.compiled
import gcsr.native_stack
from gcsr import TrialConfig
from gcsr.models import build_model
from gcsr.native_stack import NativeStack
from gcsr.plain_stack import TorchStack, is_written_out, plain_stack

needs_compiler = pytest.mark.skipif(not NativeStack.available(), reason="no C compiler here")


@pytest.fixture(params=["C", "torch"])
def kind(request):
    if request.param == "C" and not NativeStack.available():
        pytest.skip("no C compiler here")
    return NativeStack if request.param == "C" else TorchStack


def networks(name, count, width=0.1, input_shape=(1, 8, 8), classes=10):
    torch.manual_seed(0)
    return [build_model(name, input_shape=input_shape, classes=classes, width=width) for _ in range(count)]


def stacked(models):
    return {name: p.detach().clone() for name, p in stack_module_state(models)[0].items()}


def batches(count, size, input_shape=(1, 8, 8), classes=10):
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(count, size, *input_shape, generator=generator)
    return images, torch.randint(0, classes, (count, size), generator=generator)


def exact(model, images, labels):
    """Loss and gradients by autograd, in float64."""
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    loss = cross_entropy(functional_call(model, weights, (images.double(),)), labels)
    return loss.item(), dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def check(stack, models, images, labels):
    losses = stack.losses(images, labels)
    for k, model in enumerate(models):
        expected, grads = exact(model, images[k], labels[k])
        assert losses[k].item() == pytest.approx(expected, rel=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(stack.grads[name][k].double(), grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp1", "mlp2", "mlp6"])
@pytest.mark.parametrize("count", [1, 3])
def test_losses_and_gradients_are_autograds(kind, name, count):
    models = networks(name, count)
    stack = kind(stacked(models))
    for size in (32, 7, 1, 32):  # ragged last batches, and whole ones after them
        check(stack, models, *batches(count, size))


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
    models = networks(f"mlp{hidden}", 2, width, shape, classes)
    check(NativeStack(stacked(models)), models, *batches(2, size, shape, classes))


@needs_compiler
def test_sums_that_are_longer_than_a_part():
    models = networks("mlp2", 1, 0.3, (3, 32, 32), 100)  # 3,072 inputs
    check(NativeStack(stacked(models)), models, *batches(1, 700, (3, 32, 32), 100))


def test_answers_are_the_networks(kind):
    models = networks("mlp4", 3)
    stack, images = kind(stacked(models)), batches(1, 600)[0][0]
    expected = torch.stack([model(images).argmax(1) for model in models])
    assert (stack.answers(images) == expected).float().mean() > 0.999, "but for a draw to rounding"
    assert torch.equal(stack.answers(images[:0]), torch.empty(3, 0, dtype=torch.int64))


def test_the_first_of_equal_answers_and_what_is_no_number(kind):
    weights = {"output.weight": torch.zeros(2, 4, 3), "output.bias": torch.tensor([[1.0, 2, 2, 0], [1, 2, 3, 4]])}
    weights["output.bias"][1, 2] = float("nan")
    assert kind(weights).answers(torch.zeros(2, 3, 1, 1)).tolist() == [[1, 1], [2, 2]]


def test_a_trials_bits_do_not_depend_on_the_others(kind):
    models = networks("mlp3", 4)
    images, labels = batches(4, 19)
    together = kind(stacked(models))
    losses = together.losses(images, labels)
    for k in range(4):
        alone = kind(stacked(models[k : k + 1]))
        assert torch.equal(alone.losses(images[k : k + 1], labels[k : k + 1])[0], losses[k])
        assert all(torch.equal(grad[0], together.grads[name][k]) for name, grad in alone.grads.items())


@needs_compiler
@pytest.mark.parametrize("count", [1, 5])
def test_nor_on_the_number_of_threads(count):
    models = networks("mlp2", count, width=1.3)
    images, labels = batches(count, 150)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            stack = NativeStack(stacked(models))
            found.append([stack.losses(images, labels), stack.answers(images[0]), *stack.grads.values()])
    finally:
        torch.set_num_threads(before)
    for one in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], one, strict=True))


@needs_compiler
@pytest.mark.parametrize("lanes", [4, 8])
def test_nor_on_the_processors_vectors(lanes, monkeypatch):
    models = networks("mlp3", 2, 0.3)
    images, labels = batches(2, 50)
    found = []
    for flags in (gcsr.compiled._FLAGS, (*gcsr.compiled._FLAGS, f"-DLANES={lanes}")):
        monkeypatch.setattr(gcsr.compiled, "_FLAGS", flags)
        monkeypatch.setattr(gcsr.native_stack, "compiled", gcsr.compiled.compiled.__wrapped__)
        stack = NativeStack(stacked(models))
        found.append([stack.losses(images, labels), *stack.grads.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_it_follows_weights_that_are_updated_in_place(kind):
    weights = stacked(networks("mlp2", 1))
    stack = kind(weights)
    images, labels = batches(1, 8)
    before = stack.losses(images, labels).item()
    for name, weight in weights.items():
        weight -= 0.5 * stack.grads[name]
    assert stack.losses(images, labels).item() < before


def test_images_and_labels_in_another_order_of_memory(kind):
    stack = kind(stacked(networks("mlp2", 2)))
    images, labels = batches(2, 9)
    expected = stack.losses(images, labels)
    images, labels = images.mT.contiguous().mT, labels.t().contiguous().t()
    assert torch.equal(stack.losses(images, labels), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["hidden0.weight", "hidden1.bias", "output.weight", "output.bias"])
def test_what_is_not_finite_shows_in_the_loss(kind, name, bad):
    weights = stacked(networks("mlp2", 1))
    weights[name].flatten()[3] = bad
    stack = kind(weights)
    assert not stack.losses(*batches(1, 8)).isfinite().any()


@pytest.mark.parametrize(
    ("fields", "device", "suits"),
    [
        ({}, "cpu", True),
        ({}, "cuda", False),  # a kernel for each trial and layer would be what a cohort is there to avoid
        ({"precision": "bf16"}, "cpu", False),
        ({"dataset": "cifar10", "model": "alexnet"}, "cpu", False),
        ({"dataset": "cifar10", "model": "mlp2"}, "cpu", True),
    ],
)
def test_what_is_written_out(fields, device, suits):
    assert is_written_out(TrialConfig(**fields), torch.device(device)) is suits


@needs_compiler
def test_memory_is_for_those_that_are_trained_at_once():
    before, sizes = torch.get_num_threads(), []
    try:
        for count, threads in ((1, 1), (1, 64), (2, 64)):
            torch.set_num_threads(threads)
            memory, size = NativeStack(stacked(networks("mlp2", count))).scratch(100)
            sizes.append(len(memory) / size)
    finally:
        torch.set_num_threads(before)
    assert sizes == [1, 1, 2]


@needs_compiler
def test_answers_take_no_memory_for_gradients():
    stack = NativeStack(stacked(networks("mlp2", 1)))
    stack.answers(torch.zeros(100, 1, 8, 8))
    taken = len(stack._scratch)
    stack.answers(torch.zeros(20_000, 1, 8, 8))
    assert len(stack._scratch) == taken


@needs_compiler
def test_other_precisions_are_torchs():
    weights = {name: weight.double() for name, weight in stacked(networks("mlp2", 1)).items()}
    stack = plain_stack(TrialConfig(), weights)
    assert type(stack) is TorchStack
    images, labels = batches(1, 5)
    assert stack.losses(images.double(), labels).dtype == torch.float64


@needs_compiler
def test_without_leave_nothing_compiled_is_used(monkeypatch):
    weights = stacked(networks("mlp2", 1))
    assert type(plain_stack(TrialConfig(), weights)) is NativeStack
    monkeypatch.setitem(os.environ, "GCSR_NATIVE", "0")
    assert type(plain_stack(TrialConfig(), weights)) is TorchStack
