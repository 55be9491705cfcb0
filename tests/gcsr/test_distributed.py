"""One global π over real processes (gloo): counts, decisions and trainings of 1 to 4 workers are one process's."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.multiprocessing.spawn import ProcessException
from torch.nn.parallel import DistributedDataParallel

import gcsr.parameter_pass
from gcsr import (
    ConfigError,
    GatedOptimizer,
    NonFiniteGradientError,
    TrialConfig,
    load_dataset,
    regularized_parameters,
    train,
)
from gcsr.checkpoint import Checkpointer, FileStorage
from gcsr.coherence import CoherenceCounter, count_reference
from gcsr.errors import InvalidInputError
from gcsr.parallel import from_environment, run_workers

SIZES = (7, 50_021, 13, 3, 1)  # divisible by nothing


def gradients(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step + 1)
    grads = [torch.randn(size, generator=generator) for size in SIZES]
    grads[1] *= 1 + step % 3  # so that π moves across μ
    grads[1][:25_000] *= 1e-3  # the first rank's share is far less coherent than the last one's
    return [grad.to(dtype) for grad in grads]


def trajectory(group, *, inner=torch.optim.SGD, regularizer="l2", mode="ours_orig", dtype=torch.float32):
    """π and lam_t of every step, the π of this rank's own share, and mean |∇L|, over the same gradients."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(size).to(dtype)) for size in SIZES]
    optimizer = GatedOptimizer(
        inner(params, lr=0.05), params, regularizer=regularizer, mode=mode, lam=0.2, mu=0.725, process_group=group
    )
    trace = []
    for step in range(12):
        for p, g in zip(params, gradients(step, dtype), strict=True):
            p.grad = g
        own = optimizer._counter.count()
        optimizer.step()
        trace.append((optimizer.last_pi.item(), optimizer.last_lam.item(), (own.coherent / own.n).item()))
    return trace, optimizer.metrics()


VARIANTS = {
    "fused": {},
    "l1": {"regularizer": "l1"},
    "baseline": {"mode": "baseline"},
    "adam": {"inner": torch.optim.Adam},
    "adam-l1": {"inner": torch.optim.Adam, "regularizer": "l1"},
    "bf16": {"dtype": torch.bfloat16},
}


def accumulate(group):
    """Two micro-batches under DDP, the first without synchronization: π belongs to the averaged sum of both."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 11), nn.Tanh(), nn.Linear(11, 3))
    network = model if group is None else DistributedDataParallel(model, process_group=group)
    params = regularized_parameters(model)
    optimizer = GatedOptimizer(
        torch.optim.SGD(model.parameters(), 0.1),
        params,
        regularizer="l2",
        mode="ours_orig",
        lam=0.3,
        process_group=group,
    )
    trace = []
    for step in range(8):
        batches = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(step))
        rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        shares = [batch.tensor_split(world)[rank] for batch in batches]
        optimizer.zero_grad()
        if group is None:
            (sum(network(share).square().sum() for share in shares) / 12).backward()
        else:
            with network.no_sync():
                (network(shares[0]).square().sum() * world / 12).backward()
            (network(shares[1]).square().sum() * world / 12).backward()
        expected = count_reference([p.grad for p in params], params, 0.3, "l2")  # the averaged gradient, whole
        optimizer.step()
        trace.append((optimizer.last_pi.item(), optimizer.last_lam.item()))
        assert optimizer.last_pi.item() == expected.rate().item()
    return trace


def sharded(group):
    """FSDP2: each rank counts its shard; together the counts of the whole gradient."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(group),))
    found = []
    if mesh.size() > 1:
        model = fully_shard(nn.Linear(5, 11), mesh=mesh)
        inner, params = torch.optim.SGD(model.parameters(), 0.05), regularized_parameters(model)
        with pytest.raises(
            ConfigError, match=rf"process_group: '1 rank' is not allowed; expected the {mesh.size()} ranks"
        ):
            GatedOptimizer(inner, params, regularizer="l2", mode="baseline", lam=0.3)
    for inner in (torch.optim.SGD, torch.optim.Adam):
        for regularizer in ("l2", "l1"):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(5, 11), nn.Tanh(), nn.Linear(11, 3))
            fully_shard(model, mesh=mesh)
            params = regularized_parameters(model)
            optimizer = GatedOptimizer(
                inner(model.parameters(), 0.05),
                params,
                regularizer=regularizer,
                mode="ours_orig",
                lam=0.3,
                process_group=mesh.get_group(),
            )
            for step in range(6):
                batch = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))  # the same on every rank
                optimizer.zero_grad()
                model(batch).square().sum().backward()
                whole = [p.grad.full_tensor() for p in params]
                expected = count_reference(whole, [p.full_tensor() for p in params], 0.3, regularizer)
                optimizer.step()
                assert optimizer.last_pi.item() == expected.rate().item()
                found.append((optimizer.last_pi.item(), optimizer.last_lam.item()))
            assert any(p.to_local().numel() < p.numel() for p in params) or mesh.size() == 1
    return found


def shards_of_shards(group):
    """FSDP2 upon tensor parallelism: every rank counts its part of a part, and none of it is a replica."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size(group) // 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=mesh["dp"])
    params = regularized_parameters(model)
    inner = torch.optim.SGD(model.parameters(), 0.05)
    optimizer = GatedOptimizer(inner, params, regularizer="l2", mode="ours_orig", lam=0.3, mu=0.85, process_group=group)
    for step in range(4):
        batch = torch.randn(6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(batch).square().sum().backward()
        expected = count_reference([p.grad.full_tensor() for p in params], [p.full_tensor() for p in params], 0.3, "l2")
        optimizer.step()
        assert optimizer.last_pi.item() == expected.rate().item()


def shards_of_another_group(group):
    """A mesh has several groups of the same size: of the wrong one, ranks would add up the counts of one shard."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size(group) // 2), mesh_dim_names=("dp", "tp"))
    model = fully_shard(nn.Linear(5, 11), mesh=mesh["dp"])
    inner, params = torch.optim.SGD(model.parameters(), 0.05), regularized_parameters(model)
    options = {"regularizer": "l2", "mode": "baseline", "lam": 0.3}
    GatedOptimizer(inner, params, process_group=mesh.get_group("dp"), **options)
    with pytest.raises(
        ConfigError, match="process_group: '2 other ranks' is not allowed; expected the 2 ranks that hold"
    ):
        GatedOptimizer(inner, params, process_group=mesh.get_group("tp"), **options)


def partial_gradients(group):
    """A replicated weight whose gradient autograd leaves as partial sums: counted and penalized once, not per rank."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    mesh = init_device_mesh("cpu", (size,))
    torch.manual_seed(0)
    w = nn.Parameter(DTensor.from_local(torch.randn(4, 6), mesh, [Replicate()]))
    inputs = DTensor.from_local(torch.randn(4 * size, 6)[4 * rank : 4 * rank + 4], mesh, [Shard(0)])
    (inputs @ w.t()).square().sum().backward()
    assert w.grad.placements != w.placements
    g, before = w.grad.full_tensor(), w.detach().full_tensor().clone()
    optimizer = GatedOptimizer(
        torch.optim.SGD([w], 0.1), [w], regularizer="l2", mode="baseline", lam=1.0, process_group=mesh.get_group()
    )
    optimizer.step()
    assert optimizer.last_pi.item() == count_reference([g], [before], 1.0, "l2").rate().item()
    torch.testing.assert_close(w.detach().full_tensor(), before - 0.1 * (g + 2 * before), rtol=1e-5, atol=1e-5)


def only_some_can_fuse(group):
    """A rank without a compiler among others: all take torch's own step, or replicated weights would drift apart."""
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank(group) == 1:
            patch.setattr(gcsr.parameter_pass, "_available", lambda device_type: False)
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(1000))
        optimizer = GatedOptimizer(
            torch.optim.SGD([w], 0.1, momentum=0.9),
            [w],
            regularizer="l2",
            mode="ours_orig",
            lam=0.1,
            process_group=group,
        )
        for step in range(20):
            w.grad = torch.randn(1000, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    first = w.detach().clone()
    dist.broadcast(first, 0, group=group)
    assert torch.equal(first, w)


def replicas(group):
    """A sharded parameter beside a replicated one, of which every rank has all, and one rank is to count it."""
    mesh = init_device_mesh("cpu", (4,))
    torch.manual_seed(0)
    places = Shard(0), Replicate()
    weights = torch.randn(8, 3), torch.randn(5, 3)
    grads = torch.randn(8, 3), torch.randn(5, 3) * 0.1
    counts = count_reference(grads, weights, 0.5, "l2")
    params = [nn.Parameter(distribute_tensor(w, mesh, [place])) for w, place in zip(weights, places, strict=True)]
    for p, g, place in zip(params, grads, places, strict=True):
        p.grad = distribute_tensor(g, mesh, [place])
    sgd = torch.optim.SGD(params, 0.1)
    optimizer = GatedOptimizer(sgd, params, regularizer="l2", mode="baseline", lam=0.5, process_group=group)
    optimizer.step()
    assert optimizer.last_pi.item() == counts.coherent.item() / counts.n.item()
    assert optimizer.metrics().grad_abs_mean == pytest.approx(counts.grad_sum.item() / (24 + 15), rel=1e-6)


def one_is_not_finite(group, value):
    """Seen by one rank alone, in its own share of the gradient: no rank has a π."""
    p = nn.Parameter(torch.ones(1000))
    optimizer = GatedOptimizer(
        torch.optim.SGD([p], 0.1), [p], regularizer="l2", mode="ours_orig", lam=0.1, process_group=group
    )
    p.grad = torch.ones(1000)
    p.grad[-1] = value
    optimizer.step()
    assert optimizer.last_pi.isnan()
    with pytest.raises(NonFiniteGradientError):
        optimizer.metrics()


def tensors_of_many_kinds(group, device):
    replicas(group)
    one_is_not_finite(group, torch.nan)
    one_is_not_finite(group, -torch.inf)
    partial_gradients(group)
    only_some_can_fuse(group)
    shards_of_shards(group)
    shards_of_another_group(group)


def test_shards_partial_sums_and_machines_that_differ():
    run_workers(tensors_of_many_kinds, 4, "cpu", threads=1)


DIGITS = {"dataset": "digits", "model": "mlp3", "width": 0.25, "epochs": 4, "batch_size": 200, "lam": 3e-3}


def trial(mode, **fields):
    return TrialConfig(mode=mode, **(DIGITS | fields))


def curves(group):
    """Decisions and losses along real trainings; 1347 = 6·200 + 147 rows: every batch is ragged for some rank."""
    data = load_dataset("digits")
    methods = (("ours_orig", {}), ("ours", {"gamma": 2}), ("baseline", {"regularizer": "l1", "lam": 3e-4}))
    return [train(trial(mode, **more), data, group=group) for mode, more in methods]


def everything(folder, group, device):
    found = {name: trajectory(group, **variant) for name, variant in VARIANTS.items()}
    own = found | {"accumulate": accumulate(group), "sharded": sharded(group), "curves": curves(group)}
    # A hold-out of two images: ranks beyond them have an empty share of it.
    tiny = load_dataset("digits", holdout=2 / 1347)
    own["tiny"] = train(trial("ours", holdout=2 / 1347, batch_size=3, epochs=1, width=0.05), tiny, group=group)
    torch.save(own, Path(folder) / f"{dist.get_rank(group)}.pt")


@functools.cache
def alone():
    found = {name: trajectory(None, **variant) for name, variant in VARIANTS.items()}
    return found | {"accumulate": accumulate(None), "curves": curves(None)}


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_all_ranks_decide_as_one_process_would(workers, tmp_path):
    run_workers(functools.partial(everything, str(tmp_path)), workers, "cpu", threads=1)
    expected = alone()
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(workers)]
    for name in VARIANTS:
        trace, metrics = expected[name]
        assert name == "baseline" or len({lam for _, lam, _ in trace}) == 2, "the gate must move for this to mean much"
        for found in ranks:
            assert [step[:2] for step in found[name][0]] == [step[:2] for step in trace]
            assert found[name][1].pi == metrics.pi
            assert found[name][1].grad_abs_mean == pytest.approx(metrics.grad_abs_mean, rel=1e-6)
            if workers > 1:  # without the all-reduce each rank would have had its own share's π
                assert all(share != pi for pi, _, share in found[name][0])
    for found in ranks:
        assert [lam for _, lam in found["accumulate"]] == [lam for _, lam in expected["accumulate"]]
        assert [pi for pi, _ in found["accumulate"]] == pytest.approx(
            [pi for pi, _ in expected["accumulate"]], abs=0.05
        )
        assert found["sharded"] == ranks[0]["sharded"]
        assert len({lam for _, lam in found["sharded"]}) == 2
        assert found["tiny"].val_accuracy in (0, 0.5, 1)
        for together, single in zip(found["curves"], expected["curves"], strict=True):
            assert together.world_size == workers
            assert together.imposed_fraction == single.imposed_fraction
            assert together.train_loss == pytest.approx(single.train_loss, rel=1e-4)
            assert together.test_accuracy == pytest.approx(single.test_accuracy, abs=0.005)
            assert [e.imposed_fraction for e in together.epochs] == [e.imposed_fraction for e in single.epochs]
            assert [e.pi for e in together.epochs] == pytest.approx([e.pi for e in single.epochs], abs=1e-3)


def half(folder, group, device):
    """Stops after two of four epochs, as if killed right after the checkpoint."""
    for mode in ("ours_orig", "ours"):
        stop_after(trial(mode), folder, group, epochs=2)


def stop_after(config, folder, group, epochs):
    def stop(record):
        if record.epoch == epochs:
            raise InterruptedError

    checkpointer = Checkpointer(FileStorage(Path(folder) / f"{config.mode}.pt"))
    with pytest.raises(InterruptedError):
        train(config, load_dataset("digits"), group=group, checkpointer=checkpointer, on_epoch=stop)


def rest(folder, group, device):
    results = []
    for mode in ("ours_orig", "ours"):
        first = dist.get_rank(group) == 0  # whose checkpointer alone is used
        checkpointer = Checkpointer(FileStorage(Path(folder) / f"{mode}.pt")) if first else None
        results.append(train(trial(mode), load_dataset("digits"), group=group, checkpointer=checkpointer))
    torch.save(results, Path(folder) / f"rest{dist.get_rank(group)}.pt")


def whole(folder, group, device):
    results = [train(trial(mode), load_dataset("digits"), group=group) for mode in ("ours_orig", "ours")]
    torch.save(results, Path(folder) / f"whole{dist.get_rank(group)}.pt")


@pytest.mark.parametrize(("before", "after"), [(2, 2), (3, 3), (2, 3), (3, 1)])
def test_a_trial_resumes_also_with_another_number_of_workers(before, after, tmp_path):
    run_workers(functools.partial(half, str(tmp_path)), before, "cpu", threads=1)
    run_workers(functools.partial(rest, str(tmp_path)), after, "cpu", threads=1)
    resumed = torch.load(tmp_path / "rest0.pt", weights_only=False)
    if before == after:
        run_workers(functools.partial(whole, str(tmp_path)), before, "cpu", threads=1)
        expected = torch.load(tmp_path / "whole0.pt", weights_only=False)
    else:
        expected = [train(trial(mode), load_dataset("digits")) for mode in ("ours_orig", "ours")]
    for one, two in zip(resumed, expected, strict=True):
        exact = before == after
        for name in ("train_loss", "pi", "grad_abs_mean", "weight_abs_mean"):
            assert getattr(one, name) == pytest.approx(getattr(two, name), rel=0 if exact else 1e-3, abs=0)
        assert one.imposed_fraction == two.imposed_fraction
        assert len(one.epochs) == 4


def dying(folder, group, device):
    def die(record):
        if record.epoch == 1 and dist.get_rank(group) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpointer = Checkpointer(FileStorage(Path(folder) / "ours.pt"))
    train(trial("ours", epochs=10_000), load_dataset("digits"), group=group, checkpointer=checkpointer, on_epoch=die)


def test_a_lost_worker_ends_the_trial_and_leaves_its_checkpoint(tmp_path):
    with pytest.raises(ProcessException):
        run_workers(functools.partial(dying, str(tmp_path)), 2, "cpu", threads=1)
    state = Checkpointer(FileStorage(tmp_path / "ours.pt")).load(trial("ours", epochs=10_000), torch.device("cpu"))
    assert len(state["records"]) >= 1


def forever(folder, group, device):
    (Path(folder) / str(os.getpid())).touch()
    while True:
        time.sleep(1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(number, tmp_path):
    code = (
        "import functools, sys; from gcsr.parallel import run_workers; from tests.gcsr.test_distributed import forever;"
        "run_workers(functools.partial(forever, sys.argv[1]), 2, 'cpu', threads=1)"
    )
    started = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.iterdir())) < 2 and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    assert all(map(alive, workers))
    started.send_signal(number)  # to this one alone, not as a terminal does
    started.wait(timeout=60)
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def test_a_module_in_the_current_folder_hides_none_of_pythons_from_workers(tmp_path):
    script, here = tmp_path / "script.py", tmp_path / "here"
    script.write_text("from gcsr.parallel import _start_forkserver\n_start_forkserver([])\n")
    here.mkdir()
    (here / "random.py").write_text("raise SystemExit('this is no random.py')")
    path = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, script], cwd=here, env=os.environ | {"PYTHONPATH": path}, check=True, timeout=120)


def alive(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("regularizer", ["l1", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shares_add_up_to_the_whole(world_size, regularizer, dtype):
    params = [nn.Parameter(g.flip(0).clone()) for g in gradients(9, dtype)]
    for p, g in zip(params, gradients(0, dtype), strict=True):
        p.grad = g
    shares = [
        CoherenceCounter(params, 0.2, regularizer, rank=r, world_size=world_size).count() for r in range(world_size)
    ]
    expected = count_reference([p.grad for p in params], params, 0.2, regularizer)
    assert sum(share.n.item() for share in shares) == expected.n.item()
    assert sum(share.coherent.item() for share in shares) == expected.coherent.item()
    assert sum(share.grad_sum.item() for share in shares) == pytest.approx(expected.grad_sum.item(), rel=1e-5)


def joined(monkeypatch, gpus):
    """A rank's device as `from_environment` says, with so many GPUs simulated, and the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name in ("init_process_group", "destroy_process_group", "barrier"):
        monkeypatch.setattr(dist, name, lambda *args, **kwargs: None)
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    with from_environment("cuda") as (_, device):
        return device, current


def test_a_rank_has_the_gpu_of_its_local_rank_and_allocates_nowhere_else(monkeypatch):
    assert joined(monkeypatch, gpus=2) == (torch.device("cuda:1"), [1])


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    with pytest.raises(InvalidInputError, match="--nproc-per-node: 2 is not allowed here; expected at most 1, a GPU"):
        joined(monkeypatch, gpus=1)
