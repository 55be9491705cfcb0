"""Plain networks written out: autograd's losses and gradients, whoever else is in the stack."""

import pytest
import torch
from torch.func import stack_module_state
from torch.nn.functional import cross_entropy

from gcsr import TrialConfig
from gcsr.models import build_model
from gcsr.plain_stack import PlainStack


def networks(name, count, width=0.1):
    torch.manual_seed(0)
    return [build_model(name, input_shape=(1, 8, 8), classes=10, width=width) for _ in range(count)]


def stack_of(models, batch_size=32):
    return PlainStack({name: p.detach() for name, p in stack_module_state(models)[0].items()}, batch_size)


def batches(count, size):
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(count, size, 1, 8, 8, generator=generator)
    return images, torch.randint(0, 10, (count, size), generator=generator)


@pytest.mark.parametrize("name", ["mlp1", "mlp2", "mlp6"])
@pytest.mark.parametrize("count", [1, 3])
def test_losses_and_gradients_are_autograds(name, count):
    models = networks(name, count)
    stack = stack_of(models)
    for size in (32, 7, 1, 32):  # ragged last batches, and whole ones after them
        images, labels = batches(count, size)
        losses = stack.losses(images, labels)
        for k, model in enumerate(models):
            model.zero_grad()
            expected = cross_entropy(model(images[k]), labels[k])
            expected.backward()
            assert losses[k].item() == pytest.approx(expected.item(), rel=1e-5)
            for parameter, grad in model.named_parameters():
                torch.testing.assert_close(stack.grads[parameter][k], grad.grad, rtol=1e-4, atol=1e-6)


def test_answers_are_the_networks():
    models = networks("mlp4", 3)
    stack, images = stack_of(models), batches(1, 70)[0][0]  # more than a batch of training
    expected = torch.stack([model(images).argmax(1) for model in models])
    assert torch.equal(stack.answers(images), expected)


def test_a_trials_bits_do_not_depend_on_the_others():
    models = networks("mlp3", 4)
    images, labels = batches(4, 19)
    together = stack_of(models)
    losses = together.losses(images, labels)
    for k in range(4):
        alone = stack_of(models[k : k + 1])
        assert torch.equal(alone.losses(images[k : k + 1], labels[k : k + 1])[0], losses[k])
        assert all(torch.equal(grad[0], together.grads[name][k]) for name, grad in alone.grads.items())


def test_it_follows_weights_that_are_updated_in_place():
    (model,) = networks("mlp2", 1)
    weights = {name: p.detach()[None].clone() for name, p in model.named_parameters()}
    stack = PlainStack(weights, 8)
    images, labels = batches(1, 8)
    before = stack.losses(images, labels).item()
    for name, weight in weights.items():
        weight -= 0.5 * stack.grads[name]
    assert stack.losses(images, labels).item() < before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_the_loss(bad):
    (model,) = networks("mlp2", 1)
    weights = {name: p.detach()[None].clone() for name, p in model.named_parameters()}
    weights["hidden0.weight"][0, 0, 0] = bad
    stack = PlainStack(weights, 8)
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
    assert PlainStack.suits(TrialConfig(**fields), torch.device(device)) is suits
