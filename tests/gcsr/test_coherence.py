"""π (eq. 9): the fast counter and the readable reference against a scalar recomputation in Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gcsr import ConfigError
from gcsr.coherence import CoherenceCounter, Counts, count_reference

pytestmark = pytest.mark.usefixtures("gate_path")


def scalar_counts(grads, weights, lam, regularizer):
    """Eq. 9 with footnote 2, one number after the other, in float32 as the networks have it."""
    coherent = n = 0
    factor = np.float32(lam)
    for g, w in zip(grads, weights, strict=True):
        for x, y in zip(g.float().flatten().tolist(), w.float().flatten().tolist(), strict=True):
            if x == 0:
                continue
            n += 1
            slope = np.float32(2) * np.float32(y) if regularizer == "l2" else np.float32(np.sign(y))
            total = np.float32(x) + factor * slope
            coherent += (total > 0 and x > 0) or (total < 0 and x < 0)
    return coherent, n


def counted(grads, weights, lam, regularizer, **share):
    params = []
    for g, w in zip(grads, weights, strict=True):
        p = torch.nn.Parameter(w.clone(memory_format=torch.preserve_format))
        p.grad = g
        params.append(p)
    return CoherenceCounter(params, lam, regularizer, **share).count()


def numbers(counts: Counts) -> tuple[int, int]:
    assert counts.coherent.dtype == counts.n.dtype == torch.int64
    return int(counts.coherent), int(counts.n)


values = st.sampled_from([0.0, -0.0, 1e-42, -1e-42, 1e-30, -1e-30, 0.5, -0.5, 1.0, -1.0]) | st.floats(
    -2, 2, width=32, allow_subnormal=True
)


@settings(max_examples=300)
@given(
    st.lists(st.lists(st.tuples(values, values), min_size=1, max_size=7), min_size=1, max_size=4),
    st.sampled_from([0.0, 1e-6, 2e-3, 0.25, 0.5, 1.0, 3.0]),
    st.sampled_from(["l1", "l2"]),
)
def test_counts_are_the_formulas(tensors, lam, regularizer):
    grads = [torch.tensor([g for g, _ in pairs]) for pairs in tensors]
    weights = [torch.tensor([w for _, w in pairs]) for pairs in tensors]
    expected = scalar_counts(grads, weights, lam, regularizer)
    assert numbers(counted(grads, weights, lam, regularizer)) == expected
    assert numbers(count_reference(grads, weights, lam, regularizer)) == expected


HAND = {
    # gradient, weight, λ, regularizer → coherent, n
    "zero gradients are not counted": ([0.0, -0.0, 1.0], [5.0, 5.0, 5.0], 1.0, "l2", 1, 1),
    "a sum of exactly 0 is not coherent": ([-1.0, 1.0], [0.5, -0.5], 1.0, "l2", 0, 2),
    "penalty weaker than gradient": ([1.0, -1.0], [-0.4, 0.4], 1.0, "l2", 2, 2),
    "penalty stronger than gradient": ([1.0, -1.0], [-0.6, 0.6], 1.0, "l2", 0, 2),
    "same direction": ([1.0, -1.0], [3.0, -3.0], 1.0, "l2", 2, 2),
    "sign(0) = 0 for L1": ([1e-3, -1e-3], [0.0, -0.0], 1.0, "l1", 2, 2),
    "L1 is λ·sign": ([0.5, 0.5, -0.5], [-1e-9, 1e-9, 1e-9], 1.0, "l1", 1, 3),
    "subnormal gradients: the product of two underflows": ([1e-42, -1e-42], [0.0, 0.0], 1.0, "l2", 2, 2),
    "subnormal against subnormal": ([2e-42, -2e-42], [-5e-43, 5e-43], 1.0, "l2", 2, 2),
    "2w overflows, 2λw does not": ([-1e38, 1e38, 1.0], [2e38, -2e38, 2e38], 1e-3, "l2", 3, 3),
    "all zero": ([0.0, 0.0], [1.0, -1.0], 1.0, "l2", 0, 0),
}


@pytest.mark.parametrize("case", HAND)
def test_by_hand(case):
    g, w, lam, regularizer, coherent, n = HAND[case]
    for count in (counted, count_reference):
        assert numbers(count([torch.tensor(g)], [torch.tensor(w)], lam, regularizer)) == (coherent, n)


def test_rate_is_zero_without_learning_and_a_fraction_otherwise():
    assert counted([torch.zeros(3)], [torch.ones(3)], 1.0, "l2").rate().item() == 0.0
    assert counted([torch.tensor([1.0, 1, 1])], [torch.tensor([0.0, 0, -9])], 1.0, "l2").rate().item() == 2 / 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(dtype):
    # In bf16, 1 − 2·0.499… rounds to 0 or changes sign; in float32 it does not.
    g = torch.full((4,), 1.0, dtype=dtype)
    w = torch.full((4,), -1.0, dtype=dtype)
    assert numbers(counted([g], [w], 0.4999, "l2")) == (4, 4)
    assert numbers(count_reference([g], [w], 0.4999, "l2")) == (4, 4)


def test_float64_is_not_narrowed():
    g, w = torch.tensor([1.0], dtype=torch.float64), torch.tensor([-0.5 + 1e-12], dtype=torch.float64)
    assert numbers(counted([g], [w], 1.0, "l2")) == (1, 1)


def test_a_parameter_without_gradient_is_not_counted():
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(5))
    used.grad = torch.ones(3)
    assert numbers(CoherenceCounter([used, unused], 0.1, "l2").count()) == (3, 3)
    used.grad = None
    assert numbers(CoherenceCounter([used, unused], 0.1, "l2").count()) == (0, 0)


def network_like(seed=0, sizes=((64, 3, 3, 3), (700, 300), (17,), (128, 128), (1,), (40_000,), (33_000,))):
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(s, generator=generator) * (torch.rand(s, generator=generator) > 0.2) for s in sizes]
    return grads, [torch.randn(s, generator=generator) for s in sizes]


@pytest.mark.parametrize("regularizer", ["l1", "l2"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_pieces_and_shares_add_up_to_the_reference(regularizer, world_size):
    grads, weights = network_like()  # small, gathered tensors and large ones that are cut
    shares = [
        numbers(counted(grads, weights, 0.3, regularizer, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    expected = numbers(count_reference(grads, weights, 0.3, regularizer))
    assert (sum(c for c, _ in shares), sum(n for _, n in shares)) == expected
    if world_size > 1:
        assert max(n for _, n in shares) < expected[1]  # nobody counts everything


@pytest.mark.parametrize("layouts", [("cl", "cl"), ("c", "cl"), ("cl", "c"), ("t", "c")])
def test_memory_layout_does_not_matter(layouts):
    (g,), (w,) = network_like(sizes=((64, 32, 5, 5),))

    def laid(tensor, layout):
        if layout == "cl":
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor.transpose(0, 3).contiguous().transpose(0, 3) if layout == "t" else tensor

    found = numbers(counted([laid(g, layouts[0])], [laid(w, layouts[1])], 0.3, "l2"))
    assert found == numbers(count_reference([g], [w], 0.3, "l2"))


@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_follow_the_weights_layout_however_a_ranks_gradient_lies(world_size):
    (g,), (w,) = network_like(sizes=((3, 5),))
    lying = [g, g.t().contiguous().t(), g][:world_size]
    shares = [
        numbers(counted([own], [w], 0.3, "l2", rank=rank, world_size=world_size)) for rank, own in enumerate(lying)
    ]
    assert tuple(map(sum, zip(*shares, strict=True))) == numbers(count_reference([g], [w], 0.3, "l2"))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_precision_is_counted_in_its_own(world_size):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(8, generator=generator), torch.randn(4, generator=generator, dtype=torch.float64)]
    grads = [-2 * 0.3 * weights[0], torch.randn(4, generator=generator, dtype=torch.float64)]  # cancelled in float32
    expected = numbers(count_reference(grads, weights, 0.3, "l2"))
    assert expected[0] <= 4
    shares = [numbers(counted(grads, weights, 0.3, "l2", rank=r, world_size=world_size)) for r in range(world_size)]
    assert tuple(map(sum, zip(*shares, strict=True))) == expected


def test_sparse_gradients_are_refused():
    table = torch.nn.Embedding(10, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ConfigError, match=r"params: 'a gradient of layout torch.sparse_coo'.*expected dense"):
        CoherenceCounter([table.weight], 0.1, "l2").count()


def test_counts_beyond_the_integers_of_float32():
    size = 2**24 + 3
    ones = torch.ones(1).expand(size)
    assert numbers(counted([ones], [ones], 0.1, "l2")) == (size, size)


def test_two_random_vectors_are_coherent_by_half():
    # The paper: "a sign coherence rate between two random vectors is expected to be 0.5"; here the penalty dominates.
    grads, weights = network_like(sizes=((400, 500),))
    pi = counted(grads, weights, 1e6, "l2").rate().item()
    assert math.isclose(pi, 0.5, abs_tol=0.01)
