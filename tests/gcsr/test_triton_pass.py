"""The GPU's kernel, without a GPU: its results on Triton's interpreter, its machine code by Triton's compiler.

With a GPU the same tests run on it.
"""

import functools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gcsr.coherence import count_reference
from gcsr.memory_pass import PassTensor
from gcsr.native_pass import NativePass
from tests.gcsr.deciding import check_step
from tests.gcsr.test_coherence import values
from tests.gcsr.triton_tools import DEVICE, needs_loops, printed

triton = pytest.importorskip("triton")

import gcsr.triton_pass  # noqa: E402
from gcsr.triton_pass import TritonPass  # noqa: E402

SIZES = (2048, 1, 5000, 37)  # whole blocks and parts of blocks

needs_compiler = pytest.mark.skipif(not NativePass.available(), reason="no C compiler here")


def tensors(seed, sizes=SIZES):
    generator = torch.Generator().manual_seed(seed)

    def drawn(n):
        return torch.randn(n, generator=generator) * (torch.rand(n, generator=generator) > 0.2)

    return [[drawn(n) for n in sizes] for _ in range(3)]


def pointed(memory, weights, grads, momenta):
    for entry, w, g, m in zip(memory.table, weights, grads, momenta, strict=True):
        entry.w, entry.g, entry.m = w.data_ptr(), None if g is None else g.data_ptr(), m.data_ptr()
        entry.lr, entry.momentum = 0.05, 0.9


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.tuples(values, values), min_size=1, max_size=7), min_size=1, max_size=3),
    st.sampled_from([0.0, 2e-3, 0.5, 3.0]),
    st.sampled_from(["l1", "l2"]),
)
def test_counts_are_the_references(pairs, lam, regularizer):
    grads = [torch.tensor([g for g, _ in each], device=DEVICE) for each in pairs]
    weights = [torch.tensor([w for _, w in each], device=DEVICE) for each in pairs]
    memory = TritonPass(
        DEVICE, [PassTensor(elements=len(g), high=len(g), lam=lam, regularizer=regularizer) for g in grads]
    )
    pointed(memory, weights, grads, weights)
    memory.run(count=True)
    coherent, n, grad_sum = memory.totals()
    expected = count_reference(grads, weights, lam, regularizer)
    assert (coherent.dtype, n.dtype, grad_sum.dtype) == (torch.int64, torch.int64, torch.float64)
    assert (int(coherent), int(n)) == (int(expected.coherent), int(expected.n))
    torch.testing.assert_close(grad_sum[0], expected.grad_sum, rtol=1e-6, atol=0)


@needs_compiler
@pytest.mark.parametrize("regularizer", ["l1", "l2"])
def test_it_does_what_the_processors_pass_does_to_the_last_bit(regularizer):
    """Counts by group, slices, L1 and L2, momentum, an own decay, a tensor without gradient."""
    fixed = [
        PassTensor(elements=n, low=n // 7, high=n - n // 9, lam=0.3, regularizer=regularizer, group=min(index, 1))
        for index, n in enumerate(SIZES)
    ]
    lam_t = torch.tensor([0.3, 0.07])
    weights, grads, momenta = tensors(1)
    here = [w.to(DEVICE, copy=True) for w in weights], [m.to(DEVICE, copy=True) for m in momenta]
    compiled, ours = NativePass(fixed, groups=2), TritonPass(DEVICE, fixed, groups=2)
    for step in range(3):
        grads = [None if step == 2 and index == 0 else g for index, g in enumerate(tensors(step)[1])]
        there = [None if g is None else g.to(DEVICE) for g in grads]
        for memory, w, g, m in ((compiled, weights, grads, momenta), (ours, here[0], there, here[1])):
            pointed(memory, w, g, m)
            for index, entry in enumerate(memory.table):
                entry.decay = 0.125 if index == 3 else 0.0
                entry.l2, entry.l1 = (2.0, 0.0) if regularizer == "l2" else (0.0, 0.05)
                if index == 1:
                    entry.m = None
        compiled.run(count=True, lam_t=lam_t)
        ours.run(count=True, lam_t=lam_t.to(DEVICE))
        for a, b in zip(compiled.totals()[:2], ours.totals()[:2], strict=True):
            assert a.tolist() == b.tolist()
        torch.testing.assert_close(compiled.totals()[2], ours.totals()[2].cpu(), rtol=1e-6, atol=0)
        for a, b in zip(weights + momenta, here[0] + here[1], strict=True):
            assert torch.equal(a, b.cpu())
    before = [w.clone() for w in here[0]]
    ours.run(count=True)
    assert all(torch.equal(a, b) for a, b in zip(before, here[0], strict=True)), "counting changes nothing"


def test_a_gradient_that_is_not_finite_shows_in_its_sum():
    w, g = torch.ones(5000, device=DEVICE), torch.ones(5000, device=DEVICE)
    memory = TritonPass(DEVICE, [PassTensor(elements=5000, high=5000, lam=0.1)])
    for bad in (torch.nan, torch.inf):
        g[4321] = bad
        pointed(memory, [w], [g], [w])
        memory.run(count=True)
        assert not memory.totals()[2].isfinite().any()


def test_the_table_goes_to_the_device_only_when_it_is_new(monkeypatch):
    memory = TritonPass(DEVICE, [PassTensor(elements=3, high=3, lam=0.1)])
    w, g = torch.ones(3, device=DEVICE), torch.ones(3, device=DEVICE)
    pointed(memory, [w], [g], [w])
    sent = []
    real = gcsr.triton_pass._words
    monkeypatch.setattr(gcsr.triton_pass, "_words", lambda table: sent.append(table) or real(table))
    for _ in range(2):
        memory.run(count=True)
    assert len(sent) == 1
    memory.table[0].lr = 0.025
    memory.run(count=True)
    assert len(sent) == 2
    assert memory._aligned()
    memory.table[0].g += 4
    assert not memory._aligned(), "four bytes further, words of 16 bytes cannot be read"


def test_a_captured_pass_keeps_its_addresses_and_goes_on_with_new_numbers(monkeypatch):
    """Whatever the pass did since the capture; and nothing that it reads lies in memory that replays write over."""
    memory = TritonPass(DEVICE, [PassTensor(elements=3, high=3, lam=0.1)])
    w, other, g, m = (torch.ones(3, device=DEVICE) for _ in range(4))
    launched = []
    monkeypatch.setattr(gcsr.triton_pass, "pass_kernel", Noted(gcsr.triton_pass.pass_kernel, launched))
    monkeypatch.setattr("gcsr.triton_pass._capturing", lambda device: True)
    pointed(memory, [w], [g], [m])
    reserved = [table.data_ptr() for table in memory._reserve]
    lam_t = torch.zeros(1, device=DEVICE)
    memory.run(count=True)
    memory.run(count=False, lam_t=lam_t)
    assert launched[0][0][0] is launched[1][0][0], "one table where nothing moved in between"
    assert launched[0][0][0].data_ptr() in reserved, "what is taken during a capture is not to be kept"
    monkeypatch.setattr("gcsr.triton_pass._capturing", lambda device: False)
    memory.after_capture()
    w.fill_(1)
    m.zero_()
    pointed(memory, [other], [g], [m])
    memory.table[0].lr, memory.table[0].momentum = 0.25, 0.0
    memory.refresh()
    arguments, options = launched[1]
    gcsr.triton_pass.pass_kernel.real[(1,)](*arguments, **options)  # as a graph does it again
    assert (w.tolist(), other.tolist()) == ([0.75] * 3, [1.0] * 3)
    assert len(memory._reserve) == 2, "for the next capture"


def test_a_graph_of_several_steps_is_refused_and_a_failed_capture_costs_nothing(monkeypatch):
    memory = TritonPass(DEVICE, [PassTensor(elements=3, high=3, lam=0.1)])
    tensors = [torch.ones(3, device=DEVICE) for _ in range(5)]

    def capture():
        for g in tensors[2:]:
            pointed(memory, [tensors[0]], [g], [tensors[1]])
            memory.run(count=True)

    for _ in range(2):
        monkeypatch.setattr("gcsr.triton_pass._capturing", lambda device: True)
        with pytest.raises(RuntimeError, match="expected one a graph"):
            capture()
        monkeypatch.setattr("gcsr.triton_pass._capturing", lambda device: False)
        capture()
        assert len(memory._reserve) == 2


class Noted:
    """A kernel, and what it was launched with."""

    def __init__(self, real, launched):
        self.real, self.launched = real, launched

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.launched.append((arguments, options))
            if len(self.launched) > 2:
                self.real[grid](*arguments, **options)

        return launch


@needs_loops
@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("mode", ["baseline", "ours_orig"])
@pytest.mark.parametrize("regularizer", ["l1", "l2"])
def test_a_gated_optimizer_uses_it(regularizer, mode, momentum, monkeypatch):
    from gcsr import GatedOptimizer, parameter_pass, regularized_parameters

    def trained(with_pass):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)).to(DEVICE)
        inner = torch.optim.SGD(model.parameters(), 0.05, momentum=momentum)
        optimizer = GatedOptimizer(inner, regularized_parameters(model), regularizer=regularizer, mode=mode, lam=0.05)
        assert (optimizer._fused is not None) == with_pass
        for step in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).to(DEVICE)).square().sum().backward()
            optimizer.step()
        return optimizer.metrics(), [p.detach() for p in model.parameters()]

    monkeypatch.setattr(parameter_pass, "_available", lambda device_type: True)
    monkeypatch.setattr(parameter_pass, "memory_pass", TritonPass)
    metrics, weights = trained(with_pass=True)
    monkeypatch.setattr(parameter_pass, "_available", lambda device_type: False)
    reference, expected = trained(with_pass=False)
    assert metrics.pi == reference.pi
    assert metrics.imposed_fraction == reference.imposed_fraction
    for a, b in zip(weights, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@needs_loops
@pytest.mark.parametrize("by_pi", [True, False])
def test_a_step_is_its_parts_and_notes_the_decision(by_pi):
    check_step(functools.partial(TritonPass, DEVICE), DEVICE, by_pi=by_pi)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from gcsr.triton_kernel import BLOCK, WARPS, pass_kernel

kinds = {"words": "*i64", "numbers": "*fp32", "lam_t": "*fp32", "sums": "*fp32", "stride": "i32"}
for count, update in ((True, True), (True, False), (False, True)):
    for aligned in (True, False):
        fixed = {"COUNT": count, "UPDATE": update, "ALIGNED": aligned, "SIZE": BLOCK}
        signature = {name: "constexpr" if name in fixed else kinds.get(name, "*i32") for name in pass_kernel.arg_names}
        source = ASTSource(pass_kernel, signature=signature, constexprs=fixed)
        options = {"enable_fp_fusion": False, "num_warps": WARPS}
        code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
        print(f"{count=} {update=} {aligned=}", code, sep="\\n", end="=====")
"""


DECISION = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from gcsr.triton_kernel import decision_kernel

for by_pi in (True, False):
    kinds = {"counts": "*i32", "sums": "*fp32", "blocks": "i32", "stride": "i32", "lam": "*fp32", "lam_out": "*fp32"}
    fixed = {"BY_PI": by_pi, "SIZE": 1024}
    signature = kinds | {"mu": "*fp64", "certain": "*i1", "epoch": "*fp64", "pi_out": "*fp64"}
    source = ASTSource(decision_kernel, signature=signature | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
    print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["ptx"])
"""


def test_the_decisions_machine_code_divides_in_double_precision(tmp_path):
    text = printed(DECISION, tmp_path)
    assert text.count("div.rn.f64") == 2


def test_machine_code_for_hopper_rounds_as_the_processor_does(tmp_path):
    *kernels, rest = printed(COMPILE, tmp_path).split("=====")
    assert (len(kernels), rest) == (6, "")
    for kernel in kernels:
        flags, _, code = kernel.partition("\n")
        assert "add.rn.f32" in code, flags
        assert not re.search(r"\bfma\.|\.ftz", code), f"{flags}: a fused or flushed rounding"
        assert ("ld.global.v4" in code) == ("aligned=True" in flags), flags
