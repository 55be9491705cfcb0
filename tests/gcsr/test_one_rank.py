"""A process group of one rank, over NCCL where there is a GPU: the method is that of a process without one. What
several ranks add up is tested over gloo (`test_distributed.py`), as most machines have no two GPUs.
"""

import copy
import math
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, init_device_mesh

import gcsr.optim
from gcsr import ConfigError, GatedOptimizer, TrialConfig, regularized_parameters, train
from gcsr.coherence import count_reference
from gcsr.parallel import backend
from tests.gcsr.comparing import moved
from tests.gcsr.test_distributed import SIZES, gradients

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS = 12


@pytest.fixture
def group():
    dist.init_process_group(backend(DEVICE.type), store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


@pytest.fixture
def reduced(monkeypatch):
    """What the optimizer adds up over the ranks: device and dtype, and whether the host goes on meanwhile."""
    calls, all_reduce = [], dist.all_reduce

    def watched(tensor, *args, **kwargs):
        calls.append((tensor.device.type, tensor.dtype, kwargs.get("async_op", False)))
        return all_reduce(tensor, *args, **kwargs)

    monkeypatch.setattr(gcsr.optim.dist, "all_reduce", watched)
    return calls


def trajectory(group, dtype, **fields):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(size).to(DEVICE, dtype)) for size in SIZES]
    inner = torch.optim.SGD(params, lr=0.05, momentum=0.9)
    optimizer = GatedOptimizer(inner, params, lam=0.2, mu=0.725, process_group=group, **fields)
    trace = []
    for step in range(STEPS):
        for p, g in zip(params, gradients(step, dtype), strict=True):
            p.grad = g.to(DEVICE)
        optimizer.step()
        trace.append((optimizer.last_pi.item(), optimizer.last_lam.item()))
    return trace, [p.detach().cpu() for p in params]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("regularizer", ["l2", "l1"])
@pytest.mark.parametrize("mode", ["ours_orig", "baseline"])
def test_its_steps_are_those_without_a_group(group, reduced, mode, regularizer, dtype):
    trace, weights = trajectory(group, dtype, mode=mode, regularizer=regularizer)
    counts = [call for call in reduced if call[1] == torch.int64]
    assert counts == [(DEVICE.type, torch.int64, True)] * STEPS, "one all-reduce a step, without the host waiting"
    expected, as_alone = trajectory(None, dtype, mode=mode, regularizer=regularizer)
    assert trace == expected
    assert all(map(torch.equal, weights, as_alone))
    if mode == "ours_orig":
        assert len({lam for _, lam in trace}) == 2, "or nothing was decided"


@pytest.mark.parametrize("fixture, model", [("digits", "mlp2"), ("pictures", "alexnet")])
def test_a_trial_is_that_without_a_group(group, reduced, fixture, model, request, monkeypatch):
    data = moved(request.getfixturevalue(fixture), DEVICE)
    config = TrialConfig(
        dataset=data.name, model=model, mode="ours_orig", lam=1e-3, epochs=3, dropout=0.0, augment=False, batch_size=50
    )
    together = train(config, data, group=group)
    assert any(call == (DEVICE.type, torch.int64, True) for call in reduced)
    monkeypatch.setenv("GCSR_GRAPHS", "0")
    alone = train(config, data)
    for ours, expected in zip(together.epochs, alone.epochs, strict=True):
        assert ours.train_loss == pytest.approx(expected.train_loss, rel=1e-3)
        assert ours.pi == pytest.approx(expected.pi, abs=1e-2)
        assert math.isfinite(ours.grad_abs_mean)


def test_a_copy_keeps_its_group_and_asks_nobody(group, reduced):
    w = nn.Parameter(torch.tensor([1.0, -2.0], device=DEVICE))
    options = {"regularizer": "l2", "mode": "baseline", "lam": 0.25, "process_group": group}
    optimizer = GatedOptimizer(torch.optim.SGD([w], 0.1, momentum=0.9), [w], **options)
    asked = len(reduced)
    other_w, other = copy.deepcopy((w, optimizer))
    assert len(reduced) == asked
    for p, each in ((w, optimizer), (other_w, other)):
        p.grad = torch.tensor([-1.0, 3.0], device=DEVICE)
        each.step()
    assert torch.equal(w, other_w)
    assert optimizer.metrics() == other.metrics()
    with pytest.raises(TypeError, match="process_group cannot be pickled"):
        pickle.dumps(optimizer)


def test_a_sharded_network_is_counted_whole(group):
    torch.manual_seed(0)
    mesh = init_device_mesh(DEVICE.type, (1,))
    model = nn.Sequential(nn.Linear(5, 11), nn.Tanh(), nn.Linear(11, 3)).to(DEVICE)
    fully_shard(model, mesh=mesh)
    params = regularized_parameters(model)
    inner = torch.optim.SGD(model.parameters(), 0.05)
    optimizer = GatedOptimizer(
        inner, params, regularizer="l1", mode="ours_orig", lam=0.3, process_group=mesh.get_group()
    )
    for step in range(6):
        optimizer.zero_grad()
        batch = torch.randn(6, 5, generator=torch.Generator().manual_seed(step)).to(DEVICE)
        model(batch).square().sum().backward()
        whole = count_reference([p.grad.full_tensor() for p in params], [p.full_tensor() for p in params], 0.3, "l1")
        optimizer.step()
        assert optimizer.last_pi.item() == whole.rate().item()


def test_a_parameter_of_partial_sums_is_refused(group):
    mesh = init_device_mesh(DEVICE.type, (1,))
    w = nn.Parameter(DTensor.from_local(torch.ones(3, device=DEVICE), mesh, [Partial()]))
    options = {"regularizer": "l2", "mode": "baseline", "lam": 0.1, "process_group": mesh.get_group()}
    with pytest.raises(ConfigError, match=r"^params: .*Partial.* is not allowed; expected shards and replicas$"):
        GatedOptimizer(torch.optim.SGD([w], 0.1), [w], **options)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("original", [True, False])
def test_shards_that_look_like_whole_parameters_are_refused(group, original):
    """Of each other's shards, ranks would count a slice each; and where all is one flat parameter, biases, too."""
    model = FullyShardedDataParallel(nn.Linear(5, 11).to(DEVICE), use_orig_params=original, device_id=DEVICE)
    params = regularized_parameters(model)
    options = {"regularizer": "l2", "mode": "baseline", "lam": 0.1, "process_group": group}
    with pytest.raises(ConfigError, match=r"^params: 'a parameter of FullyShardedDataParallel' is not allowed; expec"):
        GatedOptimizer(torch.optim.SGD(params, 0.1), params, **options)
