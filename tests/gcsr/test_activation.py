"""Bias, ReLU and max-pool as one operation: torch's own, forward and back."""

import pytest
import torch
from torch.nn.functional import max_pool2d, relu

pytest.importorskip("triton")

import gcsr.activation
from gcsr.activation import activated
from gcsr.models import build_model
from tests.gcsr.triton_tools import DEVICE, needs_loops, printed


def drawn(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Few different values, so that there are equals among the four pixels of a pool.
    x = torch.randint(-3, 4, shape, generator=generator).float() / 2
    return x.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def plain(x, bias, pool):
    y = relu(x.float() + bias.view(1, -1, 1, 1))
    return (max_pool2d(y, 2) if pool else y).to(x.dtype)


def both(operation, x, bias, weight):
    x, bias = x.clone().requires_grad_(), bias.clone().requires_grad_()
    y = operation(x, bias)
    return [y.detach(), *torch.autograd.grad(y, (x, bias), weight)]


@needs_loops
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(
    ("shape", "most_programs"),
    [
        ((3, 6, 8, 8), 512),
        ((2, 64, 4, 2), 512),
        ((5, 130, 2, 2), 512),
        ((11, 3, 8, 8), 4),  # each 2 or 5 tiles
    ],
)
def test_it_is_what_torch_does(shape, most_programs, pool, dtype, monkeypatch):
    monkeypatch.setattr(gcsr.activation, "_MOST_PROGRAMS", most_programs)
    x, bias = drawn(shape, dtype), drawn((1, shape[1], 1, 1), torch.float32, 1).flatten() / 4
    weight = drawn((*shape[:2], shape[2] // (1 + pool), shape[3] // (1 + pool)), dtype, 2)
    ours = both(lambda x, bias: activated(x, bias, pool=pool), x, bias, weight)
    torchs = both(lambda x, bias: plain(x, bias, pool), x, bias, weight)
    for a, b in zip(ours, torchs, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours[1], torchs[1]), "the gradient goes where torch's goes"
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("pool", [False, True])
def test_what_is_not_a_number_stays_so(pool):
    x = torch.zeros(1, 2, 2, 2, device=DEVICE)
    x[0, 0, 1, 0] = torch.nan
    y = activated(x, torch.zeros(2, device=DEVICE), pool=pool)
    assert y[0, 0].isnan().any()
    assert not y[0, 1].isnan().any()


@needs_loops
def test_a_gradient_in_another_layout():
    """As it comes from the first fully connected layer."""
    x, bias = drawn((4, 6, 2, 2), torch.float32), torch.zeros(6, device=DEVICE)
    weight = torch.randn(4, 6, device=DEVICE)
    ours = both(lambda x, bias: activated(x, bias, pool=True).flatten(1), x, bias, weight)
    torchs = both(lambda x, bias: plain(x, bias, True).flatten(1), x, bias, weight)
    assert all(torch.equal(a, b) for a, b in zip(ours[:2], torchs[:2], strict=True))


@needs_loops
@pytest.mark.parametrize("pool", [False, True])
def test_no_picture_has_no_gradient(pool):
    x, bias = torch.zeros(0, 3, 4, 4, device=DEVICE), torch.zeros(3, device=DEVICE)
    side = 4 // (1 + pool)
    grad = torch.zeros(0, 3, side, side, device=DEVICE)
    _, grad_x, grad_bias = both(lambda x, bias: activated(x, bias, pool=pool), x, bias, grad)
    assert grad_x.shape == x.shape
    assert grad_bias.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("x", "bias"),
    [
        (torch.zeros(1, 2, 2, 2, dtype=torch.float64), torch.zeros(2)),
        (torch.zeros(1, 2, 2, 2), torch.zeros(1)),
        (torch.zeros(1, 2, 2, 2), torch.zeros(2, dtype=torch.float64)),
    ],
)
def test_what_does_not_belong_together_is_refused(x, bias):
    with pytest.raises(ValueError, match="a float32 bias for each channel"):
        activated(x.to(DEVICE), bias.to(DEVICE), pool=False)


@pytest.mark.parametrize("shape", [(1, 1, 3, 2), (1, 1, 2, 5)])
def test_sizes_that_do_not_pool_are_refused(shape):
    with pytest.raises(ValueError, match="even sizes"):
        activated(torch.zeros(shape, device=DEVICE), torch.zeros(1, device=DEVICE), pool=True)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
import gcsr.picture_kernels as kernels

fixed = {"TILE": 32, "BLOCK": 64, "SIZE": 1024}
pointers = {"images": "*u8", "which": "*u8", "rows": "*i64", "crops": "*i64"}
numbers = ("count", "channels", "height", "width", "tiles", "elements", "padding")
for name in kernels.__all__:
    for dtype in ("fp32", "bf16"):
        kernel = getattr(kernels, name)
        kinds = {n: "*fp32" for n in ("bias", "partial", "scale", "shift")} | {n: "i32" for n in numbers} | pointers
        signature = {n: "constexpr" if n in fixed else kinds.get(n, "*" + dtype) for n in kernel.arg_names}
        constants = {n: value for n, value in fixed.items() if n in kernel.arg_names}
        source = ASTSource(kernel, signature=signature, constexprs=constants)
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
        print(name, dtype)
"""


def test_hopper_gets_machine_code(tmp_path):
    text = printed(COMPILE, tmp_path)
    assert len(text.splitlines()) == 2 * 5


@needs_loops
@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_a_network_is_the_same_with_it(name):
    torch.manual_seed(0)
    model = build_model(name, input_shape=(3, 32, 32), classes=10, width=0.1, dropout=0.0)
    model = model.to(DEVICE, memory_format=torch.channels_last)
    images = torch.randn(3, 3, 32, 32).to(DEVICE)

    def answered():
        logits = model(images)
        return [logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))]

    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        plainly = answered()
        model.features.fused = True
        fused = answered()
    for a, b in zip(fused, plainly, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        low = answered()
    model.features.fused = False
    with torch.autocast(DEVICE.type, torch.bfloat16):
        plainly_low = answered()
    for exact, ours, torchs in zip(plainly, low, plainly_low, strict=True):
        assert ours.dtype == torchs.dtype
        assert (ours.float() - exact).norm() <= 0.3 * exact.norm(), "eight bits, and pools that choose by them"
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
