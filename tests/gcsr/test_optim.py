"""The gated optimizer four ways: reference, determinism, convergence, defining property."""

import copy
import functools
import io
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gcsr import ConfigError, GatedOptimizer, NonFiniteGradientError, regularized_parameters

pytestmark = pytest.mark.usefixtures("gate_path")

MODES = ("none", "baseline", "ours", "ours_orig")
METHODS = list(itertools.product(("l1", "l2"), MODES))
STEPS_AN_EPOCH = 10


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(20, 6, generator=generator), torch.randint(3, (20,), generator=generator)


def gated(model, *, lr=0.1, momentum=0.9, fused=None, **method):
    inner = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, fused=fused)
    method = {"regularizer": "l2", "mode": "baseline", "lam": 0.01} | method
    return GatedOptimizer(inner, regularized_parameters(model), **method)


def run(model, optimizer, steps, start=0):
    for step, (x, y) in enumerate(batches(start + steps)):
        if step < start:
            continue
        if step % STEPS_AN_EPOCH == 0:
            optimizer.start_epoch(step // STEPS_AN_EPOCH)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield optimizer.last_pi.item(), optimizer.last_lam.item()


def reference(model, steps, *, regularizer, mode, lam, gamma=3, mu=0.6, lr=0.1, momentum=0.9):
    """The method from the formulas, one scalar rule a line, float64 throughout."""
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for step, (x, y) in enumerate(batches(steps)):
        model.zero_grad()
        nn.functional.cross_entropy(model(x.double()), y).backward()
        coherent = n = 0
        for p in model.parameters():
            if p.dim() == 2:
                slope = 2 * p.data if regularizer == "l2" else p.data.sign()
                learning = p.grad != 0
                n += learning.sum().item()
                coherent += (learning & (p.grad.sign() == (p.grad + lam * slope).sign())).sum().item()
        pi = coherent / n if n else 0.0
        epoch = step // STEPS_AN_EPOCH
        imposed = {"none": False, "baseline": True, "ours": epoch >= gamma, "ours_orig": pi > mu}[mode]
        for p, v in zip(model.parameters(), velocity, strict=True):
            g = p.grad.clone()
            if imposed and regularizer == "l2" and p.dim() == 2:
                g += 2 * lam * p.data
            v.mul_(momentum).add_(g)
            p.data -= lr * v
            if imposed and regularizer == "l1" and p.dim() == 2:
                z = lr * lam
                p.data = torch.where(p.data > z, p.data - z, torch.where(p.data < -z, p.data + z, 0.0))
        yield pi, lam * imposed


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize(("regularizer", "mode"), METHODS)
def test_a_hundred_steps_agree_with_the_reference(regularizer, mode, fused):
    fast, slow = network().double(), network().double()
    # float64 and a λ at which π moves across μ, so that the gate opens and closes
    method = {"regularizer": regularizer, "mode": mode, "lam": 0.02, "gamma": 3, "mu": 0.6}
    optimizer = gated(fast, fused=fused, **method)
    expected = list(reference(slow, 100, **method))
    found = []
    for step, (x, y) in enumerate(batches(100)):
        if step % STEPS_AN_EPOCH == 0:
            optimizer.start_epoch(step // STEPS_AN_EPOCH)
        optimizer.zero_grad()
        nn.functional.cross_entropy(fast(x.double()), y).backward()
        optimizer.step()
        found.append((optimizer.last_pi.item(), optimizer.last_lam.item()))
    assert [pi for pi, _ in found] == pytest.approx([pi for pi, _ in expected])
    assert [lam for _, lam in found] == pytest.approx([lam for _, lam in expected])
    if mode == "ours_orig":
        assert len({lam for _, lam in found}) == 2, "the gate must have moved for this to say anything"
    for p, q in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)  # λ is a float32 tensor in the fast path
        assert torch.equal(p == 0, q == 0)


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_baseline_l2_is_torchs_weight_decay_of_twice_lam(inner):
    ours, theirs = network(), network()
    optimizer = GatedOptimizer(
        inner(ours.parameters(), lr=0.01), regularized_parameters(ours), regularizer="l2", mode="baseline", lam=0.05
    )
    weights = regularized_parameters(theirs)
    biases = [p for p in theirs.parameters() if p.dim() == 1]
    plain = inner([{"params": weights, "weight_decay": 0.1}, {"params": biases}], lr=0.01)
    for x, y in batches(50):
        for model, opt in ((ours, optimizer), (theirs, plain)):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_the_same_twice_is_the_same_bits():
    results = []
    for _ in range(2):
        model = network()
        list(run(model, gated(model, mode="ours_orig", regularizer="l1", lam=0.05), 30))
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_l1_converges_to_the_soft_thresholded_minimum():
    # min ½‖w − a‖² + λ‖w‖₁ has the solution S(a, λ)
    a = torch.tensor([2.0, -1.5, 0.3, -0.2, 0.0])
    w = nn.Parameter(torch.randn(5))
    optimizer = GatedOptimizer(torch.optim.SGD([w], lr=0.1), [w], regularizer="l1", mode="baseline", lam=0.5)
    for _ in range(300):
        w.grad = (w - a).detach()
        optimizer.step()
    torch.testing.assert_close(w.detach(), torch.tensor([1.5, -1.0, 0.0, 0.0, 0.0]), atol=1e-5, rtol=0)
    assert (w[2:] == 0).all()


def test_ours_is_none_before_gamma_and_imposes_from_it_on():
    free, ours = network(), network()
    list(run(free, gated(free, mode="none"), 20))
    optimizer = gated(ours, mode="ours", gamma=2)
    trace = list(run(ours, optimizer, 20))
    assert all(torch.equal(p, q) for p, q in zip(free.parameters(), ours.parameters(), strict=True))
    assert {lam for _, lam in trace} == {0.0}
    optimizer.start_epoch(2)
    x, y = next(batches(1))
    nn.functional.cross_entropy(ours(x), y).backward()
    optimizer.step()
    assert optimizer.last_lam.item() == pytest.approx(0.01)


def test_ours_orig_imposes_exactly_where_pi_exceeds_mu():
    model = network()
    trace = list(run(model, gated(model, mode="ours_orig", lam=0.1, mu=0.6), 60))
    assert all((lam > 0) == (pi > 0.6) for pi, lam in trace)
    assert 0 < sum(lam > 0 for _, lam in trace) < 60


def test_only_weights_are_regularized():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2))
    assert [id(p) for p in regularized_parameters(model)] == [id(model[0].weight), id(model[4].weight)]
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    expected = [id(attention.in_proj_weight), id(attention.out_proj.weight)]
    assert [id(p) for p in regularized_parameters(attention)] == expected


def test_what_a_bias_is_made_of_is_a_bias():
    layer = nn.Linear(2, 3)
    for name in ("weight", "bias"):
        nn.utils.parametrize.register_parametrization(layer, name, nn.Tanh())
    (weight,) = regularized_parameters(layer)
    assert weight is layer.parametrizations.weight.original


def test_schedules_and_groups_set_the_threshold():
    a, b = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    inner = torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.2}])
    schedule = torch.optim.lr_scheduler.StepLR(inner, 1, 0.5)
    optimizer = GatedOptimizer(inner, [a, b], regularizer="l1", mode="baseline", lam=1.0)
    for expected_a, expected_b in ((0.9, 0.8), (0.85, 0.7)):
        a.grad, b.grad = torch.zeros(1), torch.zeros(1)
        optimizer.step()
        schedule.step()
        assert (a.item(), b.item()) == pytest.approx((expected_a, expected_b))


@pytest.mark.parametrize("gamma", [2, "auto"])
def test_a_saved_state_goes_on_bit_for_bit(gamma):
    def fresh():
        model = network()
        return model, gated(model, mode="ours", gamma=gamma, gamma_threshold=0.5, regularizer="l1", lam=0.01)

    whole, optimizer = fresh()
    expected = list(run(whole, optimizer, 45))
    first, optimizer = fresh()
    list(run(first, optimizer, 25))
    buffer = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    second, other = fresh()
    second.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert list(run(second, other, 20, start=25)) == expected[25:]
    assert other.gamma == optimizer.gamma
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
def test_a_loaded_learning_rate_sets_the_threshold(inner):
    def after(optimizer, schedule, steps):
        for _ in range(steps):
            optimizer.param_groups[0]["params"][0].grad = torch.full((50,), 1e-3)
            optimizer.step()
            schedule.step()

    def fresh(w):
        inside = inner([w], lr=0.1)
        optimizer = GatedOptimizer(inside, [w], regularizer="l1", mode="baseline", lam=0.5)
        return optimizer, torch.optim.lr_scheduler.ExponentialLR(inside, 0.1)

    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(50))
    part = nn.Parameter(whole.detach().clone())
    after(*fresh(whole), 4)
    optimizer, schedule = fresh(part)
    after(optimizer, schedule, 2)
    other, later = fresh(part)
    other.load_state_dict(optimizer.state_dict())
    later.load_state_dict(schedule.state_dict())
    after(other, later, 2)
    assert torch.equal(whole, part)


def test_a_parameter_that_moves_to_another_group_gets_its_learning_rate():
    weights = [nn.Parameter(torch.ones(8)) for _ in range(3)]
    inner = torch.optim.SGD([{"params": weights[:2], "lr": 0.1}, {"params": weights[2:], "lr": 0.5}])
    optimizer = GatedOptimizer(inner, weights, regularizer="l2", mode="none", lam=0.0)
    for moved in (False, True):
        if moved:
            inner.param_groups[1]["params"].insert(0, inner.param_groups[0]["params"].pop())
        for weight in weights:
            weight.data.fill_(1)
            weight.grad = torch.ones(8)
        optimizer.step()
        assert [weight[0].item() for weight in weights] == pytest.approx([0.9, 0.5 if moved else 0.9, 0.5])


@pytest.mark.parametrize("sgd", [True, False])
def test_what_captured_steps_cannot_go_on_with_is_told(sgd):
    weight = nn.Parameter(torch.ones(8))
    inner = torch.optim.SGD([weight], 0.1) if sgd else torch.optim.Adam([weight], 0.1)
    optimizer = GatedOptimizer(inner, [weight], regularizer="l2", mode="ours", gamma=1, lam=1e-3)
    fused = optimizer._fused is not None
    weight.grad = torch.ones(8)
    optimizer.start_epoch(0)
    told = [optimizer.refresh()]
    optimizer.start_epoch(1)  # λ is imposed from here on
    told.append(optimizer.refresh())
    assert (told[0] == told[1]) == fused
    inner.param_groups[0]["lr"] = 0.01
    told.append(optimizer.refresh())
    assert (told[1] == told[2]) == fused
    inner.param_groups[0].update({"momentum": 0.9} if sgd else {"betas": (0.5, 0.9)})
    assert optimizer.refresh() != told[2]


def test_a_loaded_state_does_not_change_gamma():
    undecided = gated(network(), mode="ours", gamma="auto").state_dict()
    chosen = gated(network(), mode="none").state_dict()
    for state in (undecided, chosen):
        optimizer = gated(network(), mode="ours", gamma=20)
        optimizer.load_state_dict(state)
        assert optimizer.gamma == 20


def test_a_hook_clips_after_pi_was_counted():
    w = nn.Parameter(torch.tensor([0.5]))
    sgd = torch.optim.SGD([w], 0.1)
    sgd.register_step_pre_hook(lambda *_: nn.utils.clip_grad_value_([w], 0.2))
    optimizer = GatedOptimizer(sgd, [w], regularizer="l1", mode="baseline", lam=1.0)
    w.grad = torch.tensor([-2.0])
    optimizer.step()
    assert optimizer.last_pi.item() == 1.0, "clipped to -0.2, it would not have kept its sign"
    assert w.item() == pytest.approx(0.5 + 0.1 * 0.2 - 0.1)


def test_a_hook_that_drops_gradients_does_not_stop_the_shrinking():
    w = nn.Parameter(torch.ones(4))
    inner = torch.optim.SGD([w], lr=0.1)
    inner.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
    optimizer = GatedOptimizer(inner, [w], regularizer="l1", mode="baseline", lam=1.0)
    w.grad = torch.zeros(4)
    optimizer.step()
    assert torch.equal(w, torch.full((4,), 1 - 0.1))


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adagrad])
def test_hooks_before_the_step_say_what_shrinks_and_how_far(inner):
    slow, frozen = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    inside = inner([slow, frozen], lr=0.1)

    def before(optimizer, *_):
        optimizer.param_groups[0]["lr"] = 0.01
        frozen.grad = None

    inside.register_step_pre_hook(before)
    inside.register_step_post_hook(lambda optimizer, *_: optimizer.param_groups[0].update(lr=0.1))
    optimizer = GatedOptimizer(inside, [slow, frozen], regularizer="l1", mode="baseline", lam=1.0)
    for _ in range(2):
        slow.grad, frozen.grad = torch.zeros(4), torch.zeros(4)
        optimizer.step()
    assert slow[0].item() == pytest.approx(1 - 2 * 0.01)
    assert torch.equal(frozen, torch.ones(4))
    assert len(inside._optimizer_step_pre_hooks) == 1


@pytest.mark.parametrize("regularizer", ["l1", "l2"])
def test_float64_is_penalized_in_float64(regularizer):
    found = []
    for mode in ("baseline", "ours_orig"):
        w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = GatedOptimizer(
            torch.optim.SGD([w], lr=1.0), [w], regularizer=regularizer, mode=mode, lam=0.1, mu=0.0
        )
        w.grad = torch.full((1,), 1.0, dtype=torch.float64)
        optimizer.step()
        found.append(w.item())
    assert found == [pytest.approx(1 - 1 - (0.2 if regularizer == "l2" else 0.0), abs=1e-15)] * 2


def test_a_learning_rate_of_one_element_shrinks_a_scalar():
    w = nn.Parameter(torch.tensor(1.0))
    inner = torch.optim.SGD([w], lr=torch.tensor([0.5]))
    optimizer = GatedOptimizer(inner, [w], regularizer="l1", mode="baseline", lam=0.5)
    w.grad = torch.tensor(0.0)
    optimizer.step()
    assert w.item() == 0.75


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_schedule_in_a_hook_sets_the_next_threshold(kind):
    w = nn.Parameter(torch.ones(1))
    inner = torch.optim.SGD([w], lr=kind(0.1))
    schedule = torch.optim.lr_scheduler.StepLR(inner, 1, 0.1)
    inner.register_step_post_hook(lambda *_: schedule.step())
    optimizer = GatedOptimizer(inner, [w], regularizer="l1", mode="baseline", lam=1.0)
    for expected in (0.9, 0.89):
        w.grad = torch.zeros(1)
        optimizer.step()
        assert w.item() == pytest.approx(expected)


def test_auto_gamma_waits_for_the_threshold():
    model = network()
    optimizer = gated(model, mode="ours", gamma="auto", gamma_threshold=0.5, lam=1e-3)
    for epoch, pi in enumerate((0.4, 0.5, 0.51, 0.1)):
        optimizer.start_epoch(epoch)
        optimizer._sums.copy_(torch.tensor([2.0, 2 * pi, 0.0, 0.0]))
        assert optimizer.gamma == (3 if epoch >= 3 else None)
    optimizer.start_epoch(4)
    assert optimizer.gamma == 3


def test_an_epoch_that_is_begun_again_is_not_chosen_for_its_own_pi():
    model = network()
    optimizer = gated(model, mode="ours", gamma="auto", gamma_threshold=0.0, lam=1e-3)
    optimizer.start_epoch(0)
    steps(model, optimizer)
    other = gated(model, mode="ours", gamma="auto", gamma_threshold=0.0, lam=1e-3)
    other.load_state_dict(optimizer.state_dict())
    other.start_epoch(0)
    assert other.gamma is None
    steps(model, other)
    other.start_epoch(1)
    assert other.gamma == 1


@pytest.mark.parametrize("gamma", ["auto", np.int64(1)])
def test_integers_of_numpy_are_integers(gamma):
    model = network()
    optimizer = gated(model, mode="ours", gamma=gamma, gamma_threshold=0.0)
    for epoch in np.arange(3):
        optimizer.start_epoch(epoch)
        steps(model, optimizer)
    assert (optimizer.gamma, optimizer.epoch) == (1, 2)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["gate"]["gamma"] == 1


@pytest.mark.parametrize("epoch", [-1, 1.5, "3", None, True])
def test_what_is_no_epoch_is_refused(epoch):
    optimizer = gated(network())
    with pytest.raises(ConfigError, match=r"^epoch: .* is not allowed; expected an integer ≥ 0"):
        optimizer.start_epoch(epoch)
    assert optimizer.epoch == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_gradient_is_reported_and_votes_for_nothing(value):
    w = nn.Parameter(torch.ones(4))
    optimizer = GatedOptimizer(torch.optim.SGD([w], lr=0.1), [w], regularizer="l2", mode="ours_orig", lam=0.1, mu=0.0)
    w.grad = torch.tensor([1.0, 1.0, value, 1.0])
    optimizer.step()
    assert optimizer.last_pi.isnan()
    assert optimizer.last_lam.item() == 0
    with pytest.raises(NonFiniteGradientError, match="epoch 0"):
        optimizer.metrics()


@pytest.mark.parametrize("regularizer", ["l1", "l2"])
@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
def test_a_parameter_without_a_gradient_is_left_alone(regularizer, inner):
    used, unused = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = GatedOptimizer(
        inner([used, unused], lr=0.1), [used, unused], regularizer=regularizer, mode="baseline", lam=0.1
    )
    used.grad = torch.zeros(4)
    optimizer.step()
    assert (used < 1).all()
    assert torch.equal(unused, torch.ones(4))


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("size", [3, 5000])
def test_a_parameter_that_was_resized_is_refused(inner, size):
    w = nn.Parameter(torch.ones(4, 2))
    optimizer = GatedOptimizer(inner([w], lr=0.1), [w], regularizer="l2", mode="baseline", lam=0.1)
    w.data = torch.ones(size, 2)
    w.grad = torch.ones(size, 2)
    with pytest.raises(ConfigError, match=r"a parameter \[\d+, 2\] on cpu.*expected \[4, 2\] on cpu, as the optimizer"):
        optimizer.step()
    assert torch.equal(w, torch.ones(size, 2))


def test_no_gradient_anywhere_is_pi_zero():
    w = nn.Parameter(torch.ones(4))
    optimizer = GatedOptimizer(torch.optim.SGD([w], lr=0.1), [w], regularizer="l2", mode="ours_orig", lam=0.1)
    for grad in (None, torch.zeros(4)):
        w.grad = grad
        optimizer.step()
        assert (optimizer.last_pi.item(), optimizer.last_lam.item()) == (0.0, 0.0)
    assert torch.equal(w, torch.ones(4))


def test_metrics_are_means_over_the_epoch():
    model = network()
    optimizer = gated(model, mode="ours_orig", lam=0.1)
    trace = list(run(model, optimizer, STEPS_AN_EPOCH))
    measured = optimizer.metrics()
    assert measured.steps == STEPS_AN_EPOCH
    assert measured.pi == pytest.approx(sum(pi for pi, _ in trace) / STEPS_AN_EPOCH)
    assert measured.imposed_fraction == sum(lam > 0 for _, lam in trace) / STEPS_AN_EPOCH
    assert measured.lam_effective == pytest.approx(0.1 * measured.imposed_fraction)


class NoHostReads(TorchDispatchMode):
    """Fails when a tensor's value is asked for by the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        assert not name.startswith(("_local_scalar_dense", "item", "nonzero.", "nonzero_", "is_nonzero", "equal")), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("regularizer", "mode"), METHODS)
def test_a_step_reads_nothing_back(regularizer, mode):
    model = network()
    optimizer = gated(model, regularizer=regularizer, mode=mode)
    list(run(model, optimizer, 1))
    optimizer.start_epoch(9)
    with NoHostReads():
        optimizer.step()
    with NoHostReads(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        optimizer.last_pi.item()  # the guard does see reads


BAD = {
    "regularizer": {"regularizer": "l3"},
    "mode": {"mode": "yours"},
    "lam": {"lam": -1.0},
    "lam: 2e": {"lam": 2e30},
    "gamma": {"gamma": 1.5},
    "mu": {"mu": 2.0},
    "gamma_threshold": {"gamma_threshold": -0.1},
}


@pytest.mark.parametrize("field", BAD)
def test_bad_arguments_are_named(field):
    with pytest.raises(ConfigError, match=field):
        gated(network(), **BAD[field])


def test_what_cannot_be_wrapped_is_refused():
    model = network()
    weights = regularized_parameters(model)
    with pytest.raises(ConfigError, match="weight_decay"):
        GatedOptimizer(
            torch.optim.SGD(model.parameters(), weight_decay=0.1), weights, regularizer="l2", mode="none", lam=0.0
        )
    with pytest.raises(ConfigError, match="params"):
        GatedOptimizer(torch.optim.SGD(network().parameters()), weights, regularizer="l2", mode="none", lam=0.0)
    with pytest.raises(ConfigError, match="maximize"):
        GatedOptimizer(
            torch.optim.SGD(model.parameters(), maximize=True), weights, regularizer="l2", mode="none", lam=0.0
        )
    with pytest.raises(ConfigError, match=r"param_groups\[0\]\.lambd: 0\.0001 is not allowed; expected 0: the penalty"):
        GatedOptimizer(torch.optim.ASGD(model.parameters()), weights, regularizer="l2", mode="none", lam=0.0)
    empty = nn.Parameter(torch.ones(0))
    for nothing in ([], [empty]):
        with pytest.raises(ConfigError, match="params"):
            GatedOptimizer(torch.optim.SGD([empty]), nothing, regularizer="l2", mode="none", lam=0.0)
    with pytest.raises(TypeError, match="closure"):
        gated(model).step(lambda: 0.0)


def test_what_is_no_optimizer_or_no_list_of_parameters_is_named():
    model = network()
    sgd, weights = torch.optim.SGD(model.parameters(), 0.1), regularized_parameters(model)
    wave = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    other = nn.Parameter(torch.ones(2))
    for inner, params, message in (
        (torch.optim.SGD, weights, "optimizer: <class '.*SGD'> is not allowed; expected a torch.optim.Optimizer"),
        (nn.Flatten(), weights, r"optimizer: Flatten\(.*\) is not allowed; expected a torch.optim.Optimizer"),
        (sgd, model.named_parameters(), "params: 'tuple' is not allowed; expected parameters, as regularized_param"),
        (sgd, model, "params: 'Linear' is not allowed"),
        (sgd, model[0], "params: 'Linear' is not allowed; expected a list of parameters"),
        (sgd, None, "params: 'NoneType' is not allowed; expected a list of parameters"),
        (sgd, weights[0], r"params: 'one tensor of shape \[16, 6\]' is not allowed; expected a list of parameters"),
        (sgd, [other], "params: '1 other parameter' is not allowed; expected parameters of the given optimizer"),
        (torch.optim.SGD([wave]), [wave], "params: 'torch.complex64' is not allowed; expected real parameters"),
    ):
        with pytest.raises(ConfigError, match=message):
            GatedOptimizer(inner, params, regularizer="l2", mode="none", lam=0.1)
    with pytest.raises(ConfigError, match=r"state: 'state, param_groups' is not allowed; .*GatedOptimizer.state_dict"):
        gated(model).load_state_dict(sgd.state_dict())
    with pytest.raises(
        ConfigError, match=r"^state: None is not allowed; expected what GatedOptimizer.state_dict\(\) gave"
    ):
        gated(model).load_state_dict(None)


def test_two_penalties_of_one_weight_are_l1_around_l2():
    w = nn.Parameter(torch.tensor([1.0, 1.0]))
    options = {"mode": "ours_orig", "lam": 0.5, "mu": 0.0}
    inside = GatedOptimizer(torch.optim.SGD([w], 0.1), [w], regularizer="l2", **options)
    around = GatedOptimizer(inside, [w], regularizer="l1", **options)
    w.grad = torch.tensor([-0.8, 2.0])
    around.step()
    assert (inside.last_pi.item(), around.last_pi.item()) == (0.5, 1.0)
    assert w.tolist() == pytest.approx([1 - 0.1 * 0.2 - 0.05, 1 - 0.1 * 3 - 0.05])
    with pytest.raises(
        ConfigError, match="optimizer: 'GatedOptimizer' is not allowed; expected one of other parameters"
    ):
        GatedOptimizer(around, [w], regularizer="l2", **options)


def test_steps_that_are_differentiated_through_are_refused():
    """The penalty would be no part of the graph, and a fused step has none."""
    w = torch.ones(3, requires_grad=True).clone()
    inner = torch.optim.SGD([w], 0.1, differentiable=True)
    with pytest.raises(ConfigError, match="optimizer: 'differentiable=True' is not allowed"):
        GatedOptimizer(inner, [w], regularizer="l2", mode="baseline", lam=0.1)


@pytest.mark.parametrize("name", ["lam", "mu", "mode", "gamma", "regularizer", "optimizer"])
def test_what_an_optimizer_was_built_with_cannot_be_set(name):
    """Some of what is built upon it would go on with the old value: π, for one, with the old λ."""
    optimizer = gated(network(), mode="ours_orig")
    with pytest.raises(
        ConfigError, match=f"^{name}: 0.5 is not allowed; expected the constructor's; for others, build"
    ):
        setattr(optimizer, name, 0.5)


def test_another_wrapper_goes_on_with_another_lam():
    model = network()
    first = gated(model, lam=0.1)
    before = steps(model, first)
    second = GatedOptimizer(first.optimizer, regularized_parameters(model), regularizer="l2", mode="baseline", lam=0.2)
    buffer = first.optimizer.state[model[0].weight]["momentum_buffer"].clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    second.step()
    torch.testing.assert_close(model[0].weight, before[0] - 0.1 * (0.9 * buffer + 0.4 * before[0]))


def test_l1_needs_a_learning_rate():
    class WithoutOne(torch.optim.Optimizer):
        def step(self, closure=None):
            pass

    w = nn.Parameter(torch.ones(2))
    GatedOptimizer(WithoutOne([w], {}), [w], regularizer="l2", mode="baseline", lam=0.1)
    with pytest.raises(ConfigError, match=r"^optimizer: 'WithoutOne' is not allowed; expected one with learning rates"):
        GatedOptimizer(WithoutOne([w], {}), [w], regularizer="l1", mode="baseline", lam=0.1)


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize(("name", "value"), [("weight_decay", 0.1), ("maximize", True)])
def test_what_a_group_is_given_later_is_refused_too(inner, name, value):
    model = network()
    weights = regularized_parameters(model)
    biases = [p for p in model.parameters() if p.dim() == 1]
    sgd = inner([{"params": biases}, {"params": weights}], 0.1)
    optimizer = GatedOptimizer(sgd, weights, regularizer="l2", mode="baseline", lam=0.1)
    sgd.param_groups[0][name] = value
    steps(model, optimizer)  # biases are not the gate's
    sgd.param_groups[1][name] = value
    with pytest.raises(ConfigError, match=rf"param_groups\[1\]\.{name}"):
        optimizer.step()


@pytest.mark.parametrize("group", ["world", True, 3])
def test_what_is_no_process_group_is_refused(group):
    with pytest.raises(
        ConfigError, match=r"^process_group: .* is not allowed; expected a ProcessGroup, as mesh.get_gro"
    ):
        gated(network(), process_group=group)


def test_a_group_without_this_process_is_refused():
    with pytest.raises(ConfigError, match="process_group: 'a group without this process' is not allowed"):
        gated(network(), process_group=torch.distributed.GroupMember.NON_GROUP_MEMBER)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_weight_that_the_optimizer_has_twice_is_counted_once():
    w = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = GatedOptimizer(torch.optim.SGD([w, w], 0.1), [w], regularizer="l2", mode="none", lam=0.25)
    w.grad = torch.tensor([-1.0, 3.0])
    optimizer.step()
    assert optimizer.metrics().grad_abs_mean == 2.0


def test_weights_that_share_memory_are_counted_before_either_is_changed():
    a, b = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([0.0]))
    b.data = a.data
    optimizer = GatedOptimizer(torch.optim.SGD([a, b], 0.1), [a, b], regularizer="l2", mode="baseline", lam=0.5)
    a.grad, b.grad = torch.tensor([30.0]), torch.tensor([-0.5])
    optimizer.step()
    assert optimizer.last_pi.item() == 0.5, "after a's step, b's gradient and penalty would have the same sign"
    assert a.item() == pytest.approx(1 - 0.1 * (30 + 1) - 0.1 * (-0.5 + 1))


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
def test_a_gradient_that_is_only_marked_as_negative_is_negative(inner):
    found = []
    for marked in (True, False):
        w = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = GatedOptimizer(inner([w], 0.1), [w], regularizer="l2", mode="baseline", lam=0.25)
        g = torch.tensor([1j, 3j]).conj().imag
        assert g.is_neg()
        w.grad = g if marked else torch.tensor([-1.0, -3.0])
        optimizer.step()
        found.append((w.tolist(), optimizer.metrics()))
    assert found[0] == found[1]


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("mode", ["baseline", "ours_orig"])
def test_gradients_that_share_memory_get_a_penalty_each(inner, mode):
    """As `torch.autograd.grad` gives them: one tensor for both of a sum, and one number for all of a tensor's."""
    a, b, c = (nn.Parameter(scale * torch.tensor([1.0, 2.0])) for scale in (1, 10, 100))
    optimizer = GatedOptimizer(inner([a, b, c], lr=0.1), [a, b, c], regularizer="l2", mode=mode, lam=0.5, mu=0.0)
    a.grad, b.grad, c.grad = torch.autograd.grad((2 * (a + b)).sum() + c.sum(), [a, b, c])
    assert a.grad is b.grad
    assert c.grad.stride() == (0,)
    before = [p.detach().clone() for p in (a, b, c)]
    optimizer.step()
    for p, w, g in zip((a, b, c), before, (2, 2, 1), strict=True):
        expected = nn.Parameter(w.clone())
        expected.grad = g + w
        inner([expected], lr=0.1).step()
        torch.testing.assert_close(p, expected)


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("mode", ["baseline", "ours_orig"])
def test_a_weight_may_be_its_own_gradient(inner, mode):
    w, expected = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = GatedOptimizer(inner([w], lr=0.1), [w], regularizer="l2", mode=mode, lam=0.5, mu=0.0)
    w.grad, expected.grad = w.detach(), 2 * expected.detach()
    optimizer.step()
    inner([expected], lr=0.1).step()
    torch.testing.assert_close(w, expected)


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
def test_a_tied_weight_that_is_given_twice_is_one(inner):
    found = []
    for times in (1, 2):
        w = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = GatedOptimizer(inner([w], lr=0.1), [w] * times, regularizer="l2", mode="baseline", lam=0.25)
        w.grad = torch.tensor([-1.0, 3.0])
        optimizer.step()
        found.append((w.tolist(), w.grad.tolist(), optimizer.metrics()))
    assert found[0] == found[1]


def steps(model, optimizer, count=3):
    """Steps whose gradients stay where they are; the weights after them."""
    for x, y in batches(count):
        optimizer.zero_grad(set_to_none=False)
        nn.functional.cross_entropy(model(x.to(next(model.parameters()).dtype)), y).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"])
def test_a_copy_goes_on_as_the_original(inner, way):
    model = network()
    options = {"momentum": 0.9} if inner is torch.optim.SGD else {}
    wrapped = GatedOptimizer(
        inner(model.parameters(), 0.1, **options),
        regularized_parameters(model),
        regularizer="l1",
        mode="baseline",
        lam=0.1,
    )
    steps(model, wrapped)
    other_model, other = way((model, wrapped))
    before = steps(model, wrapped)
    after = steps(other_model, other)
    assert all(map(torch.equal, before, after))
    assert any((p == 0).any() for p in after), "L1 shrinks the copy, too"
    assert other.metrics() == wrapped.metrics()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_whose_precision_changes_on_the_way_are_no_longer_fused(dtype):
    model = network()
    wrapped = GatedOptimizer(
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        regularized_parameters(model),
        regularizer="l2",
        mode="baseline",
        lam=1e-3,
    )
    steps(model, wrapped, 1)
    for p in model.parameters():
        p.data, p.grad = p.data.to(dtype), None
    after = steps(model, wrapped)
    assert all(p.dtype == dtype and p.isfinite().all() and p.abs().max() < 2 for p in after)


def test_a_momentum_buffer_of_another_precision_is_refused():
    model = network()
    inner = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    wrapped = GatedOptimizer(inner, regularized_parameters(model), regularizer="l2", mode="baseline", lam=1e-3)
    steps(model, wrapped, 1)
    if wrapped._fused is None:
        pytest.skip("torch's own step makes of it what it makes")
    buffer = inner.state[model[0].weight]["momentum_buffer"]
    buffer.data = buffer.data.bfloat16()
    with pytest.raises(ConfigError, match=r"momentum_buffer: 'torch\.bfloat16"):
        steps(model, wrapped, 1)


def test_a_step_of_the_users_own_is_called_also_under_a_scheduler():
    model, calls = network(), []
    inner = torch.optim.SGD(model.parameters(), 0.1)
    torch.optim.lr_scheduler.StepLR(inner, 1)
    before = inner.step

    @functools.wraps(before)
    def timed(*args, **kwargs):
        calls.append(1)
        return before(*args, **kwargs)

    inner.step = timed
    wrapped = GatedOptimizer(inner, regularized_parameters(model), regularizer="l2", mode="baseline", lam=1e-3)
    steps(model, wrapped)
    assert len(calls) == 3


def test_groups_that_are_joined_and_parted_keep_their_learning_rates():
    params = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    inner = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(params, (0.1, 0.2, 0.3), strict=True)], 0.1)
    wrapped = GatedOptimizer(inner, params, regularizer="l2", mode="none", lam=0.0)

    def step():
        for p in params:
            p.grad = torch.ones(1)
        wrapped.step()

    step()
    third = inner.param_groups.pop()
    inner.param_groups[1]["params"].append(params[2])
    step()
    inner.param_groups[1]["params"].pop()
    inner.param_groups.append(third)
    step()
    assert [p.item() for p in params] == pytest.approx([0.7, 0.4, 1 - 0.3 - 0.2 - 0.3])


def test_another_default_device_is_no_matter():
    model = network()
    with torch.device("meta"):
        wrapped = GatedOptimizer(
            torch.optim.Adam(model.parameters()), regularized_parameters(model), regularizer="l2", mode="none", lam=0.1
        )
    steps(model, wrapped)
    assert 0 <= wrapped.last_pi.item() <= 1


def test_what_an_optimizer_cannot_be_or_be_given_is_refused():
    model = network()
    params = regularized_parameters(model)

    def wrapped(inner=None, **fields):
        given = {"regularizer": "l2", "mode": "ours", "lam": 0.1} | fields
        return GatedOptimizer(inner or torch.optim.SGD(model.parameters(), 0.1), params, **given)

    with pytest.raises(
        ConfigError, match="optimizer: 'LBFGS' is not allowed; expected one whose step needs no closure"
    ):
        wrapped(torch.optim.LBFGS(model.parameters()))
    for name, value in (("lam", "0.1"), ("lam", None), ("lam", True), ("mu", "a"), ("gamma", None)):
        with pytest.raises(ConfigError, match=f"^{name}: "):
            wrapped(**{name: value})
    decaying = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.3)
    mine = wrapped()
    with pytest.raises(ConfigError, match=r"weight_decay: 0\.3 is not allowed"):
        mine.load_state_dict(mine.state_dict() | {"optimizer": decaying.state_dict()})


def test_who_forgets_to_start_epochs_is_told_once_where_that_matters():
    def told(start=None, steps=3, **method):
        model = network()
        optimizer = gated(model, **method)
        if start is not None:
            start(optimizer)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for _ in range(steps):
                optimizer.step()
        return [(str(each.message), each.filename) for each in found]

    missed = "GatedOptimizer: start_epoch was not called before step: mode ours never imposes λ then"
    assert told(mode="ours") == [(missed, __file__)]
    assert told(mode="ours", gamma="auto") == [(missed, __file__)]
    assert told(mode="ours", gamma=0) == []
    assert all(told(mode=mode) == [] for mode in ("none", "baseline", "ours_orig"))
    assert told(lambda optimizer: optimizer.start_epoch(0), mode="ours") == []
    state = gated(network(), mode="ours").state_dict()
    assert told(lambda optimizer: optimizer.load_state_dict(state), mode="ours") == []
