"""One global π over real processes (gloo): the same counts and decisions as one process, through one all-reduce."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from gcsr import GatedOptimizer

SIZES = (7, 50_021, 13, 3)  # divisible by nothing


def gradients(step):
    generator = torch.Generator().manual_seed(step + 1)
    grads = [torch.randn(size, generator=generator) for size in SIZES]
    grads[1] *= 1 + step % 3  # so that π moves across μ
    grads[1][:25_000] *= 1e-3  # the first rank's share is far less coherent than the last one's
    return grads


def trajectory(group):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(size)) for size in SIZES]
    optimizer = GatedOptimizer(
        torch.optim.SGD(params, lr=0.05),
        params,
        regularizer="l2",
        mode="ours_orig",
        lam=0.2,
        mu=0.71,
        process_group=group,
    )
    trace = []
    for step in range(12):
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g
        local = optimizer._counter.count().rate().item()
        optimizer.step()
        trace.append((optimizer.last_pi.item(), optimizer.last_lam.item(), local))
    return trace


def worker(rank, world_size, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    torch.save(trajectory(dist.group.WORLD), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_decide_as_one_process_would(world_size, tmp_path):
    mp.spawn(worker, (world_size, str(tmp_path)), nprocs=world_size)
    alone = [(pi, lam) for pi, lam, _ in trajectory(None)]
    assert len({lam for _, lam in alone}) == 2, "the gate must move for this to say anything"
    for rank in range(world_size):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert [(pi, lam) for pi, lam, _ in found] == alone
        # Without the all-reduce each rank would have had its own share's π, and this would be equal.
        assert all(local != pi for pi, _, local in found)
