import os

import pytest
import torch

# The Triton kernel must run where there is no GPU, too. Triton decides how when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import gcsr.parameter_pass
import gcsr.plain_network
from gcsr import Dataset, load_dataset
from gcsr.native_pass import NativePass


@pytest.fixture(params=["compiled", "torch"], scope="module")
def gate_path(request):
    """Runs a module's tests with the compiled passes and with torch's operations."""
    if request.param == "compiled" and not NativePass.available():
        pytest.skip("no C compiler here")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(gcsr.parameter_pass, "_available", lambda device_type: False)
        yield request.param


@pytest.fixture
def by_autograd(monkeypatch):
    """Plain networks are not written out, as on a GPU."""
    monkeypatch.setattr(gcsr.plain_network, "is_written_out", lambda config, device: False)


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="session")
def pictures():
    """150 small colour images in 10 classes: enough for a convolutional network to be trained on."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (150, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(150) % 10
    one = torch.ones(1, 3, 1, 1)
    return Dataset(
        name="cifar10", train_images=images[:100], train_labels=labels[:100], val_images=None, val_labels=None,
        test_images=images[100:], test_labels=labels[100:], scale=one / 64, shift=-2 * one, classes=10,
    )  # fmt: skip
