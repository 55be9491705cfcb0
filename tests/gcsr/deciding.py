"""A whole step of a pass, beside its parts."""

import torch
from torch import Tensor

from gcsr.memory_pass import Decision, MemoryPass, PassTensor

__all__ = ["check_step"]

LAM, ELEMENTS = 0.1, 3000


def check_step(new_pass, device: torch.device, *, by_pi: bool) -> None:
    """Count, decide and update in one call: π of the counts, what is noted of it, and the update of `MemoryPass.run`.

    Args:
        new_pass: makes a pass of tensors.
        device: where it runs.
        by_pi: as in `Decision`.
    """
    w, g, m = (torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(seed)).to(device) for seed in range(3))
    decision = _decision(device, by_pi)
    in_parts, whole = ([tensor.clone() for tensor in (w, g, m)] for _ in range(2))

    parts = _pointed(new_pass, *in_parts)
    parts.run(count=True)
    coherent, n, grad_sum = (float(each) for each in parts.totals())
    parts.run(count=False, lam_t=torch.tensor([LAM if by_pi else 0.0], device=device))
    memory = _pointed(new_pass, *whole)
    memory.step(decision)
    assert decision.pi.item() == coherent / n > 0.5
    assert decision.lam_t.item() == (decision.lam.item() if by_pi else 0.0)
    noted = [2.0, 0.25 + coherent / n, 2.0 if by_pi else 1.0, 2.0 + grad_sum]
    torch.testing.assert_close(decision.sums, decision.sums.new_tensor(noted), rtol=1e-12, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(in_parts, whole, strict=True))
    assert not torch.equal(whole[0], w)

    g = whole[1]
    g[7] = torch.nan
    decision.certain.fill_(True)
    decision.certain_lam.fill_(LAM)
    memory.step(decision)
    assert decision.pi.isnan()
    assert decision.lam_t.item() == (0.0 if by_pi else decision.lam.item())
    g.zero_()
    memory.step(decision)
    assert decision.pi.item() == 0, "nothing learns, so nothing is coherent"
    g.copy_(in_parts[1])
    memory.run(count=True)
    coherent, n, _ = (float(each) for each in memory.totals())
    decision.mu.fill_(coherent / n)
    memory.step(decision)
    assert decision.pi.item() == decision.mu.item()
    assert (decision.lam_t.item() == 0) == by_pi, "π = μ imposes nothing"


def _pointed(new_pass, w: Tensor, g: Tensor, m: Tensor) -> MemoryPass:
    memory = new_pass([PassTensor(elements=ELEMENTS, high=ELEMENTS, lam=LAM)])
    (entry,) = memory.table
    entry.w, entry.g, entry.m, entry.lr, entry.momentum, entry.l2 = (
        *(tensor.data_ptr() for tensor in (w, g, m)),
        *(0.05, 0.9, 2.0),
    )
    return memory


def _decision(device: torch.device, by_pi: bool) -> Decision:
    double = {"dtype": torch.float64, "device": device}
    return Decision(
        by_pi=by_pi,
        lam=torch.tensor(LAM, device=device),
        mu=torch.tensor(0.5, **double),
        certain=torch.tensor(False, device=device),
        certain_lam=torch.zeros((), device=device),
        sums=torch.tensor([1.0, 0.25, 1.0, 2.0], **double),
        pi=torch.zeros((), **double),
        lam_t=torch.zeros((), device=device),
    )
