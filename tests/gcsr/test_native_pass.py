"""The compiled passes: where they are used, that they are what torch computes, and that nothing needs them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from gcsr import ConfigError, GatedOptimizer, regularized_parameters
from gcsr.coherence import CoherenceCounter, count_reference
from gcsr.memory_pass import PassTensor
from gcsr.native_pass import NativePass
from gcsr.parameter_pass import ParameterPass, can_pass
from tests.gcsr.deciding import check_step

needs_compiler = pytest.mark.skipif(not NativePass.available(), reason="no C compiler here")


def network(layout=torch.contiguous_format):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 7, 1), nn.Flatten(), nn.Linear(7 * 36, 5))
    return model.to(memory_format=layout)


def trajectory(inner, steps=40, layout=torch.contiguous_format, **gate):
    model = network(layout)
    optimizer = GatedOptimizer(inner(model), regularized_parameters(model), **gate)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        images = torch.randn(6, 3, 8, 8, generator=generator).contiguous(memory_format=layout)
        model(images).square().mean().backward()
        optimizer.step()
    return optimizer, [p.detach().clone() for p in model.parameters()]


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **({"lr": 0.05, "momentum": 0.9} | options))


@needs_compiler
@pytest.mark.parametrize("by_pi", [True, False])
def test_a_step_is_its_parts_and_notes_the_decision(by_pi):
    check_step(NativePass, torch.device("cpu"), by_pi=by_pi)


class Unfused(torch.optim.SGD):
    """Not exactly SGD: its own step is called."""


@needs_compiler
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("mode", ["none", "baseline", "ours", "ours_orig"])
@pytest.mark.parametrize("regularizer", ["l1", "l2"])
def test_the_fused_step_is_torchs_step(regularizer, mode, momentum, layout):
    gate = {"regularizer": regularizer, "mode": mode, "lam": 0.01, "gamma": 0, "mu": 0.5}
    fused, ours = trajectory(lambda m: sgd(m, momentum=momentum), layout=layout, **gate)
    plain, theirs = trajectory(lambda m: Unfused(m.parameters(), lr=0.05, momentum=momentum), layout=layout, **gate)
    assert fused._fused is not None
    assert plain._fused is None
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert fused.metrics().imposed_fraction == plain.metrics().imposed_fraction
    if momentum:
        for a, b in zip(fused.optimizer.state.values(), plain.optimizer.state.values(), strict=True):
            torch.testing.assert_close(a["momentum_buffer"], b["momentum_buffer"], rtol=1e-3, atol=1e-6)


@needs_compiler
def test_one_fused_step_by_hand():
    w = nn.Parameter(torch.tensor([1.0, -2.0, 0.25, 0.0]))
    bias = nn.Parameter(torch.tensor([4.0]))
    inner = torch.optim.SGD(
        [{"params": [w]}, {"params": [bias], "weight_decay": 0.5, "lr": 0.25}], lr=0.5, momentum=0.5
    )
    optimizer = GatedOptimizer(inner, [w], regularizer="l2", mode="baseline", lam=0.125)
    w.grad, bias.grad = torch.tensor([1.0, 1.0, 0.0, 2.0]), torch.tensor([1.0])
    optimizer.step()  # momentum = g + 2λw = [1.25, 0.5, 0.0625, 2]; of the bias g + 0.5·4 = 3
    assert w.tolist() == [1 - 0.625, -2 - 0.25, 0.25 - 0.03125, -1.0]
    assert bias.tolist() == [4 - 0.75]
    assert optimizer.last_pi.item() == 1.0
    w.grad, bias.grad = torch.zeros(4), None
    before = bias.item()
    optimizer.step()
    assert optimizer.last_pi.item() == 0.0  # all gradients are 0
    assert bias.item() == before  # as torch: without a gradient, no step
    assert inner.state[w]["momentum_buffer"][0].item() == 0.5 * 1.25 + 0.25 * 0.375


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_every_product_and_sum_is_rounded_on_its_own(threads, monkeypatch):
    monkeypatch.setattr(NativePass, "_threads", threads)
    rng = np.random.default_rng(0)
    lams, strengths = (0.25, 1e-6), torch.tensor([0.25, 1e-6])  # of each group: of π, and imposed
    tensors = [  # elements, the range that is counted, momentum, decay, l2, l1, group
        (9000, (0, 9000), 0.9, 0.0, 2.0, 0.0, 0),
        (0, (0, 0), 0.9, 0.0, 2.0, 0.0, 0),
        (4097, (5, 4000), 0.9, 0.0, 0.0, 0.05, 0),
        (21, (20, 21), None, 0.0, 0.0, 0.05, 1),  # a threshold of 5e-8
        (5000, (0, 0), 0.9, 0.1, 0.0, 0.0, 1),
        (300, (0, 300), None, 0.1, 0.0, 0.0, 1),
        (300, (0, 300), 0.9, 0.0, 0.0, 0.0, 1),
    ]
    memory = NativePass(
        [
            PassTensor(elements=n, low=low, high=high, lam=lams[group], regularizer="l1" if l1 else "l2", group=group)
            for n, (low, high), *_, l1, group in tensors
        ],
        groups=2,
    )
    w, g, m = ([rng.normal(size=n).astype(np.float32) for n, *_ in tensors] for _ in range(3))
    for each in w:
        each[::3] *= np.float32(1e-8)  # of which a threshold leaves nothing
    expected, counts, sums = [], np.zeros((2, 2), np.int64), np.zeros(2)
    for k, (entry, (_, (low, high), momentum, decay, l2, l1, group)) in enumerate(
        zip(memory.table, tensors, strict=True)
    ):
        entry.w, entry.g, entry.lr, entry.decay = w[k].ctypes.data, g[k].ctypes.data, 0.05, decay
        entry.m, entry.momentum, entry.l2, entry.l1 = (momentum and m[k].ctypes.data), momentum or 0.0, l2, l1
        counted = [torch.from_numpy(each[low:high].copy()) for each in (g[k], w[k])]
        found = count_reference([counted[0]], [counted[1]], lams[group], "l1" if l1 else "l2")
        counts[:, group] += int(found.coherent), int(found.n)
        sums[group] += found.grad_sum.item()
        lr, lam_t = np.float32(0.05), np.float32(strengths[group])
        velocity = g[k] + (np.float32(decay) + np.float32(l2) * lam_t) * w[k]
        if momentum:
            velocity = np.float32(momentum) * m[k] + velocity
        stepped, z = w[k] - lr * velocity, np.float32(l1) * lam_t
        expected.append((stepped - np.clip(stepped, -z, z), velocity if momentum else m[k].copy()))
    memory.run(count=True, lam_t=strengths)
    coherent, n, grad_sum = memory.totals()
    assert torch.stack((coherent, n)).tolist() == counts.tolist()
    assert grad_sum.tolist() == pytest.approx(sums)
    for k, (weights, velocity) in enumerate(expected):
        assert np.array_equal(w[k], weights), tensors[k]
        assert np.array_equal(m[k], velocity), tensors[k]


@needs_compiler
@pytest.mark.parametrize(
    "options", [{"nesterov": True}, {"dampening": 0.5}, {"foreach": True}, {"lr": torch.tensor(0.05)}]
)
def test_other_kinds_of_sgd_are_not_changed(options):
    gate = {"regularizer": "l2", "mode": "baseline", "lam": 0.01}
    _, ours = trajectory(lambda m: sgd(m, **options), steps=5, **gate)
    _, theirs = trajectory(lambda m: Unfused(m.parameters(), **({"lr": 0.05, "momentum": 0.9} | options)), 5, **gate)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@needs_compiler
def test_hooks_and_schedulers_of_the_inner_optimizer_are_heard(recwarn):
    model = network()
    inner = sgd(model)
    schedule = torch.optim.lr_scheduler.StepLR(inner, 1, 0.5)
    optimizer = GatedOptimizer(inner, regularized_parameters(model), regularizer="l1", mode="baseline", lam=1e-3)
    assert optimizer._fused.ready()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    schedule.step()
    assert not [w for w in recwarn if "lr_scheduler.step()" in str(w.message)]
    called = []
    inner.register_step_post_hook(lambda *_: called.append(1))
    optimizer.step()
    assert called == [1]
    every_optimizers = register_optimizer_step_post_hook(lambda *_: called.append(2))
    try:
        optimizer.step()
    finally:
        every_optimizers.remove()
    assert sorted(called) == [1, 1, 2]


@needs_compiler
def test_a_momentum_buffer_of_another_network_is_refused_before_anything_moves():
    w, other = nn.Parameter(torch.ones(12, 128)), nn.Parameter(torch.ones(10, 128))
    smaller = torch.optim.SGD([other], lr=0.1, momentum=0.9)
    other.grad = torch.ones_like(other)
    smaller.step()
    inner = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    optimizer = GatedOptimizer(inner, [w], regularizer="l2", mode="baseline", lam=0.1)
    inner.load_state_dict(smaller.state_dict())  # torch does not look at shapes here either
    w.grad = torch.ones_like(w)
    with pytest.raises(ConfigError, match=r"momentum_buffer: 'torch.float32 \[10, 128\] on cpu'.*\[12, 128\]"):
        optimizer.step()
    assert torch.equal(w, torch.ones(12, 128))


@needs_compiler
def test_a_parameter_that_is_taken_out_of_its_group_is_left_alone():
    kept, taken = (nn.Parameter(torch.ones(3)) for _ in range(2))
    inner = torch.optim.SGD([kept, taken], lr=0.5)
    optimizer = GatedOptimizer(inner, [kept], regularizer="l2", mode="none", lam=0.0)
    for expected in (0.5, 0.0):
        kept.grad, taken.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        assert kept.tolist() == [expected] * 3
        assert taken.tolist() == [0.5] * 3
        inner.param_groups[0]["params"] = [kept]


@needs_compiler
def test_groups_that_change_are_noticed():
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5000))
    found = []
    for kind in (torch.optim.SGD, Unfused):
        a, b = (nn.Parameter(p.detach().clone()) for p in (first, second))
        inner = kind([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.01}], momentum=0.9)
        optimizer = GatedOptimizer(inner, [a, b], regularizer="l1", mode="baseline", lam=0.1)
        for swapped in (False, True):
            if swapped:
                inner.param_groups[0]["params"], inner.param_groups[1]["params"] = [b], [a]
            for _ in range(3):
                a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
                optimizer.step()
        found.append((a, b))
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain)


@needs_compiler
def test_autograd_notices_a_fused_step():
    w = nn.Parameter(torch.randn(4, 4))
    optimizer = GatedOptimizer(torch.optim.SGD([w], lr=0.1), [w], regularizer="l2", mode="baseline", lam=0.1)
    loss = (torch.randn(2, 4) @ w @ w).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    assert optimizer._fused is not None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
def test_the_number_of_threads_changes_no_bit():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(700_001))
    p.grad = torch.randn(700_001)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(tuple(x.item() for x in CoherenceCounter([p], 0.3, "l2").count()))
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1
    assert found[0][:2] == tuple(x.item() for x in count_reference([p.grad], [p], 0.3, "l2"))[:2]


@needs_compiler
def test_only_what_it_can_take_is_given_to_it():
    assert can_pass([nn.Parameter(torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))])
    for tensor in (
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(6)[::2],
        torch.zeros(3, device="meta"),
        torch.zeros(1).expand(4),
    ):
        assert not can_pass([tensor])
    p = nn.Parameter(torch.zeros(4, 4))
    only = ParameterPass([p], {0: (0, 16)}, 0.5, "l2")
    p.grad = torch.zeros(4, 4).t()
    assert not only.point(), "another order in memory"
    p.grad = torch.zeros(4, 4)
    assert only.point()
